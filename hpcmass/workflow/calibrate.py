"""How fast a job runs on a target: a short run of it there, measured once and kept in the project folder.

```
calibrations/KEY/speed.json        what was measured, published once
calibrations/KEY/attempt-0001/     one short job: job.toml, site.toml, job.sbatch, began, job.json, run/
```
KEY stands for everything that makes a run faster or slower: recipe, parameters, data, batch, target and layout.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Layout, Project, Site, job_to_toml, job_with, layout_of, site_to_toml
from hpcmass.config.duration import parse_duration, slurm_time
from hpcmass.data.manifest import read_manifest
from hpcmass.errors import AlreadyExists, ConfigError, CorruptError, HpcmassError, NotFound
from hpcmass.files import (
    canonical_json,
    make_dir,
    matching,
    publish,
    publish_json,
    read_json,
    sha256_bytes,
    sha256_file,
    storage_errors,
)
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.placement import Speed, Work
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.send import new_comment
from hpcmass.slurm.submission import submit_script

FORMAT = 1
STEPS = 60
LONGEST_S = 600
_LOG_EVERY = 5
_WARM_UP = 0.25
# Written by the job itself when it begins: Slurm without accounting forgets when that was.
_NOTE_BEGIN = 'date +%s.%N >"$0"; exec "$@"'


@dataclass(frozen=True)
class Attempt:
    """One short job that measures, or was to measure, a target.

    Attributes:
        state: `running` (or waiting in the queue), `measured`, `failed`.
        reason: Why it failed.
    """

    folder: Path
    job_id: str
    state: str
    reason: str = ""


def work_of(job: Job, project: Project, run: Path | None = None) -> Work | None:
    """What is left to do of a job's run; None where that cannot be counted in samples.

    Raises:
        NotFound: A dataset is missing.
    """
    if job.recipe is None or job.data.train is None or job.train.mode != "data-parallel":
        return _by_time(job)
    samples = sum(manifest.samples for manifest in _manifests(job, project))
    steps_per_epoch = max(1, -(-samples // job.train.global_batch))
    total = steps_per_epoch * job.train.epochs
    total = min(total, job.train.max_steps or total)
    done = 0
    if run is not None and RunFolder(run).exists():
        done = min(total, RunFolder(run).status().step or 0)
    left = total - done
    epochs = -(-left // steps_per_epoch)
    evaluations = max(1, -(-epochs // job.train.evaluate_every_epochs))
    return Work(round(left * samples / steps_per_epoch), evaluations)


def _by_time(job: Job) -> Work | None:
    """Work of a job without countable steps: as many "samples" as `resources.time` has seconds."""
    return Work(parse_duration(job.resources.time)) if job.resources.time else None


def assumed_speed(job: Job) -> Speed | None:
    """The speed of a job whose steps cannot be counted: it is taken to need its `resources.time` everywhere."""
    if job.resources.time is None:
        return None
    return Speed(
        1.0, assumed=f"how long it runs is not measured but taken from resources.time ({job.resources.time})"
    )


def can_measure(job: Job) -> bool:
    """Whether a short run says how long the whole one takes."""
    return job.recipe is not None and job.train.mode == "data-parallel"


def key_of(job: Job, project: Project, site: Site, target: str, layout: Layout) -> str:
    """The name of a measurement: a digest of what it depends on.

    Raises:
        NotFound: The recipe or a dataset is missing.
    """
    hardware = site.targets[target].model_dump(
        mode="json",
        exclude={"price_per_node_hour", "max_time", "default_time", "max_nodes", "account", "requeue"},
    )
    facts = {
        "recipe": sha256_file(Path(job.recipe)) if job.recipe else None,
        "params": job.params,
        "data": [manifest.id for manifest in _manifests(job, project)],
        "inputs": [job.data.inputs, job.data.targets, job.data.order],
        "train": [job.train.global_batch, job.train.accumulation, job.train.precision, job.train.backend],
        "optimizer": [job.train.optimizer, job.train.optimizer_args],
        "site": site.name,
        "target": hardware,
        "layout": {
            name: value for name, value in asdict(layout).items() if name not in ("time_s", "memory_gb")
        },
    }
    return f"{target}-{sha256_bytes(canonical_json(facts))[:20]}"


def _manifests(job: Job, project: Project) -> list[Any]:
    names = [job.data.train] if isinstance(job.data.train, str) else job.data.train or []
    return [read_manifest(project.data_path(name)) for name in names]


def known_speed(project: Project, key: str) -> Speed | None:
    """What was measured before, or None.

    Raises:
        CorruptError: The file is damaged.
    """
    file = _folder(project, key) / "speed.json"
    try:
        raw = read_json(file)
    except NotFound:
        return None
    try:
        return Speed(float(raw["samples_per_s"]), float(raw["startup_s"]), float(raw["end_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            f"is not what a calibration writes ({error})", where=file, hint="remove it and measure again"
        ) from None


def begin(job: Job, project: Project, site: Site, target: str, key: str, *, slurm: Slurm) -> Attempt:
    """Submit the short job that measures a target, or find the one that is on its way.

    Raises:
        SlurmError: Slurm refused, or does not answer.
        ConfigError: The target cannot give what the job asks for.
    """
    folder = _folder(project, key)
    earlier = _attempts(folder)
    if earlier:
        last = look(project, key, earlier[-1], slurm=slurm)
        if last.state != "failed":
            return last
    attempt = _new_attempt(folder, len(earlier) + 1)
    short = _short(job, project)
    chosen = site.targets[target]
    layout = layout_of(short.resources.model_copy(update={"time": None}), chosen, name=target)
    limits = [LONGEST_S, parse_duration(chosen.max_time) if chosen.max_time else LONGEST_S]
    layout = layout_of(
        short.resources.model_copy(update={"time": slurm_time(min(limits))}), chosen, name=target
    )
    publish(attempt / "job.toml", job_to_toml(short))
    publish(attempt / "site.toml", site_to_toml(site.model_copy(update={"default_target": target})))
    words = [*hpcmass_command(), "train", str(attempt / "job.toml"), "--project", str(project.root)]
    words += ["--site", str(attempt / "site.toml"), "--run-folder", str(attempt / "run")]
    spec = ScriptSpec(
        name=f"measure-{target}",
        target=chosen,
        layout=layout,
        command=("bash", "-c", _NOTE_BEGIN, str(attempt / "began"), *words),
        out=attempt,
        signal_s=0,
        cwd=project.root,
        title=f"how fast {job.name} runs on {target}",
    )
    job_id = submit_script(render_script(spec), attempt, slurm=slurm, comment=new_comment())
    publish_json(attempt / "job.json", {"format": FORMAT, "job_id": job_id, "submitted": time.time()})
    return Attempt(attempt, job_id, "running")


def latest(project: Project, key: str, *, slurm: Slurm) -> Attempt | None:
    """The last attempt to measure, if there was one."""
    earlier = _attempts(_folder(project, key))
    return look(project, key, earlier[-1], slurm=slurm) if earlier else None


def look(project: Project, key: str, attempt: Path, *, slurm: Slurm) -> Attempt:
    """What has come of an attempt; what it measured is published."""
    try:
        job_id = str(read_json(attempt / "job.json")["job_id"])
    except (NotFound, CorruptError, KeyError):
        young = time.time() - attempt.stat().st_mtime < 60
        return Attempt(attempt, "", "running" if young else "failed", "it was not submitted")
    info = slurm.jobs([job_id])[job_id]
    run = RunFolder(attempt / "run")
    if info.state.ended is False:
        # Also when the run is complete: its keeper still reads the run folder, which is removed below.
        return Attempt(attempt, job_id, "running", info.reason)
    speed = _measure(run, attempt)
    if speed is None:
        if info.state.ended is None:
            return Attempt(attempt, job_id, "running", "Slurm does not say what has become of it")
        return Attempt(attempt, job_id, "failed", _why(run, attempt, job_id, info.state.value))
    with contextlib.suppress(AlreadyExists):
        record = {"format": FORMAT, **asdict(speed), "job_id": job_id, "measured": time.time()}
        publish_json(_folder(project, key) / "speed.json", record)
    shutil.rmtree(run.path, ignore_errors=True)  # Its checkpoints and model are of no use; files are rationed.
    return Attempt(attempt, job_id, "measured")


def wait(
    project: Project, attempts: dict[str, Attempt], keys: dict[str, str], *, slurm: Slurm, seconds: float
) -> dict[str, Attempt]:
    """Look at attempts until none is on its way any more, or the time is over."""
    until = time.monotonic() + seconds
    pause = 0.5
    while any(each.state == "running" for each in attempts.values()) and time.monotonic() < until:
        time.sleep(pause)
        pause = min(5.0, pause * 1.3)
        for name, each in attempts.items():
            if each.state == "running":
                attempts[name] = look(project, keys[name], each.folder, slurm=slurm)
    return attempts


def _short(job: Job, project: Project) -> Job:
    """The job with few steps, and nothing but steps between the first and the last."""
    samples = sum(manifest.samples for manifest in _manifests(job, project))
    steps_per_epoch = max(1, samples // job.train.global_batch)
    changes = {
        "train.max_steps": STEPS,
        "train.epochs": -(-STEPS // steps_per_epoch) + 1,
        "train.log_every_steps": _LOG_EVERY,
        "train.evaluate_every_epochs": STEPS + 1,
        "train.checkpoint_every_steps": STEPS,
        "train.early_stop": None,
        "sweep": None,
        "resources.target": None,
    }
    short = job_with(job, {name: value for name, value in changes.items() if value is not None})
    return short.model_copy(
        update={
            "name": "calibration",
            "sweep": None,
            "train": short.train.model_copy(update={"early_stop": None}),
            "resources": short.resources.model_copy(update={"target": None}),
        }
    )


def _measure(run: RunFolder, attempt: Path) -> Speed | None:
    """The speed from a run's records; None where there are too few of them."""
    if not run.exists():
        return None
    try:
        began = float((attempt / "began").read_text())
        records = list(run.records("train"))
        status = run.status()
    except (OSError, ValueError, HpcmassError):
        return None
    batch = _batch(run)
    if len(records) < 2:
        return None
    steady = records[min(int(len(records) * _WARM_UP), len(records) - 2) :]
    seconds = float(steady[-1]["time"]) - float(steady[0]["time"])
    steps = int(steady[-1]["step"]) - int(steady[0]["step"])
    rate = (
        steps * batch / seconds if seconds > 0 and steps > 0 else float(records[-1].get("samples_per_s") or 0.0)
    )
    if rate <= 0:
        return None
    first = float(records[0]["time"]) - began - int(records[0]["step"]) * batch / rate
    done = status.state is State.COMPLETED and status.ended is not None
    end = (status.ended or 0.0) - float(records[-1]["time"]) if done else 0.0
    return Speed(rate, max(0.0, first), max(0.0, end))


def _batch(run: RunFolder) -> int:
    from hpcmass.config import read_run_job

    return read_run_job(run.job_file).train.global_batch


def _why(run: RunFolder, attempt: Path, job_id: str, state: str) -> str:
    if run.exists() and (reason := run.status().reason):
        return f"its short run failed: {reason}"
    log = attempt / f"out-{job_id}.log"
    lines: Sequence[str] = []
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
    return f"its short run ended as {state}" + (f": {lines[-1]}" if lines else f"; see {attempt}")


def _folder(project: Project, key: str) -> Path:
    return project.root / "calibrations" / key


def _attempts(folder: Path) -> list[Path]:
    return matching(folder, "attempt-*")


def _new_attempt(folder: Path, number: int) -> Path:
    """Make the next attempt's folder: who makes it is the one that submits.

    Raises:
        ConfigError: Another process has begun the same one this moment.
    """
    make_dir(folder)
    attempt = folder / f"attempt-{number:04d}"
    with storage_errors(attempt, "make the folder"):
        try:
            os.mkdir(attempt)
        except FileExistsError:
            raise ConfigError(
                "is being measured by another process", where=attempt, transient=True, hint="run it again"
            ) from None
    return attempt
