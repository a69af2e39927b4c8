"""`train.mode = "per-shard"`: a model a group of shards, trained side by side, combined, compared.

A run of this mode is a run folder with `parts/00 …` (run folders, each with the shards it is trained on in
`shards.json`), `parts/whole` (the data-parallel model, for the comparison), `combined/<how>/model`, and
`report.json`. Its own `model/` is the first combination that the job names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Project, Site, job_differences, read_run_job
from hpcmass.data import Dataset
from hpcmass.errors import BlockLost, ConfigError, HpcmassError, TrainError
from hpcmass.evaluate import Compared, compare, compare_table
from hpcmass.evaluate.combine import combine
from hpcmass.files import claim, make_dir, replace_json
from hpcmass.launch import usable_cores
from hpcmass.runs import MOST_FREE_LOSSES, FreeLosses, RunFolder, State, Status
from hpcmass.sweep.interrupt import Interruption
from hpcmass.sweep.watch import is_running, judge_run
from hpcmass.train import opening
from hpcmass.train.begun import MAY_DIFFER
from hpcmass.train.datasets import open_all
from hpcmass.train.model import load_bundle
from hpcmass.train.pins import read_pins, record_pins, settle
from hpcmass.workflow.pool import Pool, open_pool
from hpcmass.workflow.sweeps import lay_down_run
from hpcmass.workflow.targets import target_of
from hpcmass.workflow.trials import run_trial

_RETRIES = 2
_WHOLE = "whole"


@dataclass(frozen=True)
class _Part:
    """One model to train: `shards` of the training data, or all of them (None)."""

    name: str
    run: RunFolder
    shards: list[int] | None
    samples: int
    ranks: int


def train_per_shard(
    job: Job, run: RunFolder, project: Project, site: Site, *, fresh: bool = False, console: bool = True
) -> Status:
    """Train the parts of a job that are not trained yet, combine them, and compare what came out.

    Args:
        job: A job with `train.mode = "per-shard"`.
        run: Its run folder; what stands there already is kept.
        project: What data paths are relative to.
        site: Where the parts are trained.
        fresh: Begin again; what is there is kept under another name.
        console: Whether each step is told on stderr.

    Returns:
        The run's status: COMPLETED, or STOPPED by a signal.

    Raises:
        ConfigError: Fewer shards than groups, or the run was begun with another job.
        TrainError: A part failed; its own folder says why.
        RecipeError: The parts cannot be combined in this way.
        LeaseHeld: Another process has taken the run over.
    """
    assert job.per_shard is not None
    if opening.look(job, run, fresh=fresh)["done"]:
        return run.status()
    if run.exists() and not fresh:
        _check_same(job, run)
    pins = settle(job, project, run, fresh=fresh)
    train = open_all(project, job.data.train or [], pins)
    parts = _deal(job, run, train)
    lease = opening.take(job, run, site, fresh=fresh)
    record_pins(run.path, pins)
    attempt = opening.next_attempt(run, 1, "per-shard")
    say = _Say(console)
    try:
        with Interruption() as interruption:
            _train(job, project, site, run, parts, interruption, say)
            if interruption.signal:
                name = signal.Signals(interruption.signal).name
                return run.update(state=State.STOPPED, reason=f"ended by {name}", ended=time.time())
        metrics = _finish(job, project, run, parts, say)
        return run.update(state=State.COMPLETED, reason=None, ended=time.time(), metrics=metrics)
    except KeyboardInterrupt:
        if not run.lost:
            run.update(state=State.STOPPED, reason="ended at once by Ctrl-C", ended=time.time())
        raise
    except BaseException as error:
        if run.lost:
            raise
        run.record_exception(attempt, 0, error)
        text = error.message if isinstance(error, HpcmassError) else f"{type(error).__name__}: {error}"
        run.update(state=State.FAILED, reason=text, ended=time.time())
        raise
    finally:
        lease.release()


def _check_same(job: Job, run: RunFolder) -> None:
    """Refuse what a data-parallel run may change when it goes on: the parts were laid down with the old job.

    Raises:
        ConfigError: The job asks for more epochs or steps than the run was begun with.
    """
    begun = read_run_job(run.job_file)
    differing = job_differences(begun, job, ignore=MAY_DIFFER)
    if differing:
        facts = "; ".join(f"{key}: {old} then, {new} now" for key, (old, new) in differing.items())
        raise ConfigError(
            f"the parts of this run were begun with another job ({facts})",
            where=run.path,
            hint="give the run another name (--run NAME), or begin again (--fresh)",
        )


def _deal(job: Job, run: RunFolder, train: Dataset) -> list[_Part]:
    """The parts: shard s goes to group s modulo the number of groups."""
    assert job.per_shard is not None
    ranges = train.shard_ranges()
    groups = job.per_shard.groups
    if len(ranges) < groups:
        raise ConfigError(
            f"there are {len(ranges)} shards of training data for {groups} groups",
            where="per_shard.groups",
            hint="ask for fewer groups, or cut the data into more shards",
        )
    parts = []
    for group in range(groups):
        shards = list(range(group, len(ranges), groups))
        samples = sum(len(ranges[shard]) for shard in shards)
        name = f"{group:02d}"
        parts.append(_Part(name, RunFolder(run.path / "parts" / name), shards, samples, 1))
    if job.per_shard.compare:
        whole = RunFolder(run.path / "parts" / _WHOLE)
        parts.append(_Part(_WHOLE, whole, None, len(train), job.resources.ranks))
    return parts


class _Say:
    def __init__(self, console: bool) -> None:
        self._console = console

    def __call__(self, text: str) -> None:
        if self._console:
            print(text, file=sys.stderr, flush=True)


# -- training -------------------------------------------------------------------------------------------
def _train(
    job: Job,
    project: Project,
    site: Site,
    run: RunFolder,
    parts: Sequence[_Part],
    interruption: Interruption,
    say: _Say,
) -> None:
    """Train what is not trained yet, side by side, each part until it is completed.

    Raises:
        TrainError: A part failed, or was lost again and again.
    """
    target = target_of(job, site)
    todo = []
    for part in parts:
        _lay_down(job, site, run, part)
        if part.run.status().state is State.COMPLETED:
            say(f"part {part.name}: trained already")
        else:
            todo.append(part)
    if not todo:
        return
    here = target.kind == "local"
    parallel = min(len(todo), max(1, target.cores or usable_cores())) if here else len(todo)
    threads = job.resources.threads_per_rank
    item = job.resources.model_copy(update={"ranks": max(part.ranks for part in todo), "nodes": None})
    named = {job.resources.target or site.default_target: target}
    with open_pool(named, parallel=parallel, folder=run.path, threads=threads, item=item) as pool:
        _until_completed(pool, project, run, todo, interruption, say)


def _lay_down(job: Job, site: Site, run: RunFolder, part: _Part) -> None:
    if part.run.exists():
        return
    make_dir(part.run.path)
    if part.shards is not None:
        text = f'{{"format": 1, "train": {part.shards}}}\n'
        claim(part.run.path / "shards.json", text)
    record_pins(part.run.path, read_pins(run.path))
    named = job.model_copy(update={"name": f"{job.name}-{part.name}"})
    lay_down_run(named, site, part.run.path, ranks=part.ranks, recipe=run.path / "recipe.py")


def _until_completed(
    pool: Pool,
    project: Project,
    whole: RunFolder,
    parts: Sequence[_Part],
    interruption: Interruption,
    say: _Say,
) -> None:
    def submit(part: _Part) -> Future[Any]:
        return pool.run(run_trial, str(part.run.path.absolute()), str(project.root), part.ranks)

    running = {submit(part): part for part in parts}
    losses: dict[str, int] = {}
    free_losses = FreeLosses()
    while running and not interruption.signal:
        whole.check_held()
        done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
        if done and all(is_running(running[future].run) for future in done):
            time.sleep(0.5)  # Their workers were lost, and their leases are not over yet.
            continue
        for future in done if not interruption.signal else ():
            if is_running(running[future].run):
                continue
            part = running.pop(future)
            verdict = judge_run(part.run)
            if verdict.kind == "complete":
                say(f"part {part.name}: trained on {part.samples} samples")
                continue
            if isinstance(future.exception(), BlockLost):
                counted, most = free_losses.add(part.name, part.run.status().step), MOST_FREE_LOSSES
            else:
                counted, most = losses.get(part.name, 0) + 1, _RETRIES
                losses[part.name] = counted
            if verdict.kind == "failed" or counted > most:
                raise TrainError(
                    f"part {part.name} failed: {verdict.reason}",
                    where=part.run.path,
                    hint=f"see: hpcmass why {part.run.path}",
                )
            say(f"part {part.name}: again ({verdict.reason})")
            running[submit(part)] = part


# -- afterwards -----------------------------------------------------------------------------------------
def _finish(job: Job, project: Project, run: RunFolder, parts: Sequence[_Part], say: _Say) -> dict[str, float]:
    """Combine, compare, and give the metrics of the first combination."""
    assert job.per_shard is not None
    run.check_held()
    groups = [part for part in parts if part.shards is not None]
    valid = None if job.data.valid is None else open_all(project, job.data.valid, read_pins(run.path))
    for how in job.per_shard.combine:
        _combine(how, groups, run.path / "combined" / how / "model", valid, job)
        say(f"combined by {how}")
    opening.remove_model(run)
    _combine(job.per_shard.combine[0], groups, run.model, valid, job)
    split = "test" if job.data.test is not None else "valid"
    names = job.data.test if job.data.test is not None else job.data.valid
    if names is None:
        return {}
    bundles = {f"part {part.name}": part.run.model for part in groups}
    bundles |= {how: run.path / "combined" / how / "model" for how in job.per_shard.combine}
    if len(groups) < len(parts):
        bundles["data-parallel"] = parts[-1].run.model
    models = {name: load_bundle(path) for name, path in bundles.items()}
    targets = job.data.targets or []
    rows = compare(models, open_all(project, names), target=targets[0] if len(targets) == 1 else None)
    _write_report(run, split, rows, bundles)
    title, header, table = compare_table(rows, f"on the {split} split")
    for line in (title, "  ".join(header), *("  ".join(map(str, row)) for row in table)):
        say(line)
    chosen = next(row for row in rows if row.name == job.per_shard.combine[0])
    return {f"{split}_{name}": metric.value for name, metric in chosen.evaluation.metrics.items()}


def _combine(how: str, parts: Sequence[_Part], out: Path, valid: Dataset | None, job: Job) -> None:
    if out.exists():
        return
    make_dir(out.parent)
    combine(
        how,
        [part.run.model for part in parts],
        out,
        weights=[part.samples for part in parts],
        valid_ds=valid,
        targets=job.data.targets,
    )


def _write_report(run: RunFolder, split: str, rows: Sequence[Compared], bundles: dict[str, Path]) -> None:
    replace_json(
        run.path / "report.json",
        {
            "format": 1,
            "split": split,
            "rows": [
                {
                    "name": row.name,
                    "model": os.path.relpath(bundles[row.name], run.path),
                    "evaluation": row.evaluation.to_json(),
                }
                for row in rows
            ],
        },
    )
