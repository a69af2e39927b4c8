"""A study's way to the pool: each trial with the size that its parameters and its earlier attempts ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Resources, Site, Target, job_with, parse_duration, site_to_toml
from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import replace
from hpcmass.slurm.jobs import JobState
from hpcmass.sweep.attempts import place_of
from hpcmass.sweep.budget import Nodes
from hpcmass.sweep.causes import Cause
from hpcmass.sweep.records import TrialSpec
from hpcmass.sweep.remedy import WALL, Room
from hpcmass.workflow.lanes import Ask
from hpcmass.workflow.pool import Pool
from hpcmass.workflow.targets import trial_resources
from hpcmass.workflow.trials import run_trial

# How long no block begins on a node that was lost under a trial: one that comes back may well go again.
_AVOIDED_S = 1800.0


class TrialWorkers:
    """Hands trials to a pool, and tells what the pool knows of their attempts."""

    def __init__(self, pool: Pool, root: Path, job: Job, site: Site) -> None:
        """Make one.

        Args:
            pool: The workers.
            root: The project's folder.
            job: The study's job.
            site: Where trials run now, whatever it was when they were laid down.
        """
        assert job.sweep is not None
        self._pool, self._root, self._job, self._site = pool, root, job, site_to_toml(site)
        self._usual = Ask(usual_item(job))
        self._avoided: set[tuple[int, str]] = set()

    def submit(self, trial: TrialSpec) -> Future[Any]:
        """As `sweep.driver.Submit` has it."""
        ask = self.ask_of(trial)
        for node in trial.avoid:
            if (trial.number, node) not in self._avoided and self._pool.book is not None:
                self._avoided.add((trial.number, node))
                self._pool.book.avoid(node, _AVOIDED_S)
        with contextlib.suppress(FileNotFoundError):
            refresh(trial.path / "site.toml", self._site)
        return self._pool.run_as(ask, run_trial, str(trial.path), str(self._root), ask.item.ranks)

    def expect(self, trials: int) -> None:
        """As `sweep.driver.Submit` has it."""
        self._pool.to_come = trials

    def ask_of(self, trial: TrialSpec) -> Ask:
        """What a trial asks of a slot."""
        if not trial.changes and not any(name.startswith("resources.") for name in trial.overrides):
            return self._usual
        wall = trial.changes.get(WALL)
        own = {name: value for name, value in trial.changes.items() if name != WALL}
        item = item_of(self._job, {**trial.overrides, **own})
        return Ask(item, None if wall is None else int(wall))

    def room(self, trial: TrialSpec) -> Room:
        """As `sweep.driver.Submit` has it."""
        place, ask = place_of(trial.run), self.ask_of(trial)
        targets = self._fitting(ask)
        target = targets.get(place.target)
        if target is None or target.kind != "slurm":
            return Room()
        shape = self._pool.shapes(ask)[place.target]
        assert shape is not None
        had = ask.item.memory_gb
        if had is None and target.memory_gb is not None:
            had = target.memory_gb / shape.slots
        memories = [one.memory_gb for one in targets.values() if one.kind == "slurm"]
        most = None if None in memories else max(size for size in memories if size is not None)
        walls = [parse_duration(one.max_time) for one in targets.values() if one.max_time is not None]
        return Room(had, most, float(shape.time_s), max([float(shape.time_s), *walls]))

    def nodes(self) -> Nodes:
        """As `sweep.budget` asks for it."""
        local = sum(target.kind == "local" for target in self._pool.targets.values())
        ledger = None if self._pool.book is None else self._pool.book.ledger
        if ledger is None or local == len(self._pool.targets):
            return Nodes(local=local)
        return Nodes(ledger.used_s(), ledger.reserved_s(), local, not local and self._pool.spent())

    def _fitting(self, ask: Ask) -> Mapping[str, Target]:
        with contextlib.suppress(HpcmassError):
            return {name: self._pool.targets[name] for name in self._pool.shapes(ask)}
        return {}

    def state_of(self, trial: TrialSpec) -> str:
        """As `sweep.driver.Submit` has it: of the block's job, or of its node where the job is not over yet."""
        place, book = place_of(trial.run), self._pool.book
        if not place.job_id or book is None:
            return ""
        info = book.slurm.jobs([place.job_id]).get(place.job_id)
        if info is not None and info.state.ended:
            return info.state.value
        with contextlib.suppress(SlurmError):
            for node in book.slurm.nodes():
                silent = node.state == "DOWN" or "NOT_RESPONDING" in node.flags
                if node.name == place.node and silent:
                    return Cause.NODE_FAIL.value
        return info.state.value if info is not None and info.state is JobState.COMPLETING else ""


def refresh(file: Path, text: str) -> None:
    """Have a file say this; it is not written where it does.

    Raises:
        FileNotFoundError: There is none.
    """
    if file.read_text(encoding="utf-8") != text:
        replace(file, text)


def usual_item(job: Job) -> Resources:
    """What a trial asks for whose parameters do not say otherwise; a target only where the study has one."""
    return trial_resources(job).model_copy(update={"target": None})


def item_of(job: Job, overrides: Mapping[str, Any]) -> Resources:
    """What a trial with these values asks for.

    Raises:
        ConfigError: They are impossible.
    """
    own = {name: value for name, value in overrides.items() if name.startswith("resources.")}
    asked = job_with(job, own).resources
    usual = usual_item(job)
    given = {name.partition(".")[2] for name in own}
    update = {name: getattr(asked, name) for name in given}
    if "ranks" in given and "nodes" not in given and usual.nodes is not None and asked.ranks < usual.nodes:
        update["nodes"] = None
    return usual.model_copy(update=update)
