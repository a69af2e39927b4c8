"""`hpcmass plan` and `target = "auto"`: each target's speed and queue, and the choice between them."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hpcmass.config import Job, Project, Site, as_job, load_site
from hpcmass.errors import ConfigError, HpcmassError, SlurmError
from hpcmass.slurm import commands
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.parse import NodeInfo
from hpcmass.slurm.placement import (
    Candidate,
    Choice,
    Goal,
    Queue,
    Speed,
    choose,
    estimate,
    layouts,
)
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.workflow import calibrate
from hpcmass.workflow.targets import AUTO

_QUEUE_FRESH_S = 3.0
# Reasons for which a job waits for nodes, and so stands before a new one.
_WAITS_FOR_NODES = {"None", "Priority", "Resources"}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def choose_target(
    job: Job,
    project: Project,
    site: Site,
    slurm: Slurm,
    goal: Goal | None = None,
    *,
    measure: bool = False,
    wait_s: float = 600.0,
    run: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Which of a site's targets a job should run on.

    Args:
        job: The job; its `resources.target` does not count.
        project: Where its data lie, and what was measured before.
        site: The targets.
        slurm: Asked for the queue: once for nodes, once for waiting jobs, once a target for a start.
        goal: Default: to finish first.
        measure: Submit a short run of the job to every target on which it was not measured yet, and wait.
        wait_s: How long at most to wait for these, in seconds; what is late is found by the next call.
        run: The run's folder: what it has done already does not count.
        say: Told what is being measured.

    Raises:
        NotFound: A dataset is missing.
        SlurmError: Slurm does not answer.
    """
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"target": None})})
    candidates = layouts(job.resources, site)
    work = calibrate.work_of(job, project, run)
    queues = _queues([each for each in candidates if not each.refusal], site, slurm)
    asked = time.monotonic()
    speeds, notes = _speeds(
        job, project, site, candidates, queues, slurm, measure=measure, wait_s=wait_s, say=say
    )
    if measure and time.monotonic() - asked > _QUEUE_FRESH_S:
        # The queue has moved on while the short runs were waited for, and they stood in it themselves.
        queues = _queues([each for each in candidates if not each.refusal], site, slurm)
    done = []
    for each in candidates:
        price = site.targets[each.target].price_per_node_hour
        queue = queues.get(each.target, Queue())
        estimated = estimate(each, work, speeds.get(each.target), queue, price)
        if note := notes.get(each.target):
            estimated = replace(estimated, notes=(*estimated.notes, note))
        done.append(estimated)
    return choose(done, goal or Goal())


def chosen_target(
    job: Job | Path | str,
    project: Project,
    slurm: Slurm,
    *,
    site_file: Path | str | None,
    target: str | None,
    run_name: str | None,
    sets: Sequence[str] = (),
    measure: bool = True,
    say: Callable[[str], None] = _tell,
) -> tuple[str | None, tuple[str, ...]]:
    """The target as given, or, where it or the job says `auto`, the one that finishes first, and why.

    Where nothing is known of the job's speed it is measured if `measure`, by a short job on every target.

    Raises:
        ConfigError: No target can be chosen: the message says why, target by target.
    """
    resolved = as_job(job, sets)
    if (target or resolved.resources.target) != AUTO:
        return target, ()
    site = load_site(site_file, project.site_file)
    run = project.run_path(run_name or resolved.name)
    choice = choose_target(resolved, project, site, slurm, measure=measure, run=run, say=say)
    if choice.target is None:
        facts = "; ".join(
            f"{each.target}: {each.refusal or ', '.join(each.notes)}" for each in choice.candidates
        )
        raise ConfigError(
            f"no target can be chosen: {choice.reason} ({facts})",
            where="resources.target",
            hint="name a target (--target NAME)",
        )
    return choice.target, (f"target {choice.reason}",)


# -- speed ---------------------------------------------------------------------------------------------------


def _speeds(
    job: Job,
    project: Project,
    site: Site,
    candidates: Sequence[Candidate],
    queues: Mapping[str, Queue],
    slurm: Slurm,
    *,
    measure: bool,
    wait_s: float,
    say: Callable[[str], None],
) -> tuple[dict[str, Speed], dict[str, str]]:
    """What is known of the job's speed by target, and a note where it is not."""
    open_targets = [each for each in candidates if not each.refusal and not queues[each.target].impossible]
    if not calibrate.can_measure(job):
        assumed = calibrate.assumed_speed(job)
        return ({each.target: assumed for each in open_targets} if assumed else {}), {}
    speeds: dict[str, Speed] = {}
    notes: dict[str, str] = {}
    keys: dict[str, str] = {}
    attempts: dict[str, calibrate.Attempt] = {}
    for each in open_targets:
        assert each.layout is not None
        keys[each.target] = calibrate.key_of(job, project, site, each.target, each.layout)
        speed = calibrate.known_speed(project, keys[each.target])
        if speed is not None:
            speeds[each.target] = speed
            continue
        try:
            attempt = _attempt(job, project, site, each.target, keys[each.target], slurm, measure=measure)
        except HpcmassError as error:
            notes[each.target] = f"could not be measured: {error.message}"
            continue
        if attempt is not None:
            attempts[each.target] = attempt
    on_the_way = [name for name, attempt in attempts.items() if attempt.state == "running"]
    if measure and on_the_way:
        say(f"measuring {job.name} on {', '.join(on_the_way)} with a short run each")
        attempts = calibrate.wait(project, attempts, keys, slurm=slurm, seconds=wait_s)
    for name, attempt in attempts.items():
        found = calibrate.known_speed(project, keys[name])
        if found is not None:
            speeds[name] = found
        elif attempt.state == "running":
            notes[name] = f"is being measured (Slurm job {attempt.job_id or 'not known yet'})"
        else:
            notes[name] = attempt.reason
    return speeds, notes


def _attempt(
    job: Job, project: Project, site: Site, target: str, key: str, slurm: Slurm, *, measure: bool
) -> calibrate.Attempt | None:
    if measure:
        return calibrate.begin(job, project, site, target, key, slurm=slurm)
    return calibrate.latest(project, key, slurm=slurm)


# -- queue ---------------------------------------------------------------------------------------------------


def _queues(candidates: Sequence[Candidate], site: Site, slurm: Slurm) -> dict[str, Queue]:
    """The queue of every target; what Slurm does not say is unknown."""
    nodes = slurm.nodes()
    waiting = parse_pending(slurm.run(commands.squeue_pending()))
    unnamed = any(site.targets[each.target].partition is None for each in candidates)
    default = _default_partition(slurm) if unnamed else ""
    found = {}
    for each in candidates:
        assert each.layout is not None
        target = site.targets[each.target]
        # Of several partitions a job starts in the first that has room.
        partitions = set((target.partition or default).split(","))
        mine = [node for node in nodes if partitions & set(node.partitions) and node.usable]
        start, words, impossible = _expected_start(each, site, slurm)
        found[each.target] = Queue(
            start_s=start,
            words=words,
            impossible=impossible,
            idle_nodes=_idle(mine),
            pending_jobs=sum(bool(partitions & theirs) for theirs in waiting),
        )
    return found


def _idle(nodes: Sequence[NodeInfo]) -> int:
    return sum(node.idle for node in nodes)


def _default_partition(slurm: Slurm) -> str:
    return next((each.name for each in slurm.partitions() if each.default), "")


def _expected_start(each: Candidate, site: Site, slurm: Slurm) -> tuple[float | None, str, bool]:
    """Seconds from now to the start that `sbatch --test-only` expects, Slurm's words, whether it never can."""
    assert each.layout is not None
    with tempfile.TemporaryDirectory(prefix="hpcmass-plan-") as folder:
        script = Path(folder) / "job.sbatch"
        spec = ScriptSpec(
            name="plan",
            target=site.targets[each.target],
            layout=each.layout,
            command=("true",),
            out=Path(folder),
            signal_s=0,
        )
        try:
            script.write_text(render_script(spec), encoding="utf-8")
            start, words = slurm.test_only(script)
        except SlurmError as error:
            return None, error.message, False
        except HpcmassError as error:
            return None, error.message, True
    if start is None:
        return None, words, True
    return max(0.0, start - time.time()), words, False


def parse_pending(text: str) -> list[frozenset[str]]:
    """The partitions of every job that waits for nodes, from `squeue_pending`."""
    found = []
    for line in text.splitlines():
        partitions, _, reason = line.partition(commands.SEPARATOR)
        if reason.strip() in _WAITS_FOR_NODES:
            found.append(frozenset(partitions.split(",")))
    return found
