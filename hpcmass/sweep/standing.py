"""How a study stands now, for whoever looks again and again: of its folder only what is new is read."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.config import Job
from hpcmass.errors import HpcmassError
from hpcmass.files import Lease, Owner, read_json, read_records, read_records_from
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.front import pareto_front
from hpcmass.sweep.log import study_trials
from hpcmass.sweep.records import (
    Outcome,
    objective_values,
    outcome_of,
    read_outcome,
    trial_path,
    violations,
)
from hpcmass.sweep.show import study_job
from hpcmass.sweep.space import planned
from hpcmass.sweep.watch import Values, is_number

LATELY_S = 600.0  # what throughput and workers are judged by
HERE = "this machine"


@dataclass(frozen=True)
class Running:
    """A trial that a worker has.

    Attributes:
        target: Where; None where nobody wrote it down.
        since: Epoch seconds at which this attempt began, or None.
    """

    number: int
    target: str | None
    step: int
    total_steps: int
    value: float | None
    since: float | None
    attempt: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Best:
    """The best trial so far."""

    number: int
    value: float
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """How a study stands. What is not known is None.

    Attributes:
        counts: Counted trials by outcome.
        waiting: Trials that were drawn and that nobody runs.
        best: Of one objective; `front` is how many trials there are on the Pareto front of several.
        course: The best value after each complete trial that bettered it, oldest first.
        per_s: Trials counted a second of late.
        workers, idle: Workers that worked of late, and those of them that have nothing now.
        targets: By target `[running, ended attempts]`.
        node_s, wall_s, reserved_s: What was used, and what blocks under way may use yet.
        node_hours_limit, wall_limit, value_limit: The budget.
        ended: Why the last driver ended the study.
    """

    name: str
    now: float
    objectives: list[tuple[str, str]]
    planned: int
    counts: dict[str, int]
    running: list[Running]
    waiting: int
    best: Best | None
    front: int
    course: list[float]
    per_s: float | None
    workers: int | None
    idle: int | None
    targets: dict[str, list[int]]
    causes: dict[str, int]
    driver: Owner | None
    node_s: float | None = None
    wall_s: float | None = None
    reserved_s: float | None = None
    node_hours_limit: float | None = None
    wall_limit: str | None = None
    value_limit: float | None = None
    ended: str | None = None

    @property
    def done(self) -> int:
        """Trials that are counted."""
        return sum(self.counts.values())


@dataclass
class _Open:
    """A trial without an outcome."""

    run: RunFolder
    values: Values
    params: Mapping[str, Any]


@dataclass
class _Counted:
    ended: list[float] = field(default_factory=list)  # when, of late
    counts: dict[str, int] = field(default_factory=dict)
    losses: list[tuple[float, ...]] = field(default_factory=list)  # of the Pareto front of several objectives
    course: list[float] = field(default_factory=list)
    best: Best | None = None


class StudyWatch:
    """Looks at a study's folder; every look costs what has changed, and the trials that are under way."""

    def __init__(
        self, folder: Path, counted: Callable[[int, Mapping[str, Any], Outcome], None] | None = None
    ) -> None:
        """Watch a study.

        Args:
            folder: The study's.
            counted: Called once for every trial that has an outcome: number, parameters, outcome.

        Raises:
            NotFound: There is none here.
        """
        self.folder = folder
        self._tell = counted
        self.job: Job = study_job(folder)
        assert self.job.sweep is not None
        self._planned = planned(self.job.sweep)
        self._open: dict[int, _Open] = {}
        self._known: set[str] = set()
        self._begun = False
        self._counted = _Counted()
        self._slots: dict[tuple[str, str, str, int], float] = {}  # when each was seen to work last
        self._attempts_at = 0
        self._ended_on: dict[str, int] = {}
        self._causes: dict[str, int] = {}

    def look(self) -> Standing:
        """How it stands now.

        Raises:
            CorruptError: A record of the study is damaged.
        """
        assert self.job.sweep is not None
        now = time.time()
        if not self._begun:
            self._read_log(now)
        self._find_new()
        running: list[Running] = []
        waiting = 0
        for number in sorted(self._open):
            one = self._open[number]
            outcome = read_outcome(one.run.path)
            if outcome is not None:
                del self._open[number]
                self._count(number, one.run, one.params, outcome, None, now)
            elif (found := self._running(number, one, now)) is not None:
                running.append(found)
            else:
                waiting += 1
        self._read_attempts()
        usage, budget = self._usage(), getattr(self.job.sweep, "budget", None)
        busy = len(running)
        lately = sum(now - seen < LATELY_S for seen in self._slots.values())
        return Standing(
            name=self.folder.resolve().name,
            now=now,
            objectives=[(one.name, one.direction) for one in self.job.sweep.objectives],
            planned=self._planned,
            counts=dict(self._counted.counts),
            running=running,
            waiting=waiting,
            best=self._counted.best,
            front=len(self._counted.losses),
            course=list(self._counted.course),
            per_s=self._per_s(now),
            workers=lately or None,
            idle=max(0, lately - busy) if lately else None,
            targets=self._by_target(running),
            causes=dict(self._causes),
            driver=self._driver(),
            node_s=usage.get("node_s"),
            wall_s=usage.get("wall_s"),
            reserved_s=usage.get("reserved_s"),
            node_hours_limit=getattr(budget, "node_hours", None),
            wall_limit=getattr(budget, "wall", None),
            value_limit=getattr(budget, "value", None),
            ended=usage.get("ended"),
        )

    # -- trials ---------------------------------------------------------------------------------------
    def _read_log(self, now: float) -> None:
        """Take in what the log says at once; of a study of 100,000 trials their files take minutes."""
        self._begun = True
        try:
            trials = study_trials(self.folder)
        except HpcmassError:
            return  # The files themselves say what they can.
        for number in trials.in_order():
            raw = dict(trials.ended(number) or {})
            run = RunFolder(trial_path(self.folder, number))
            outcome = outcome_of({**raw, "values": []}, run.path)
            self._count(number, run, trials.drawn(number)["params"], outcome, raw.get("at"), now)
            self._known.add(run.path.name)
        for number in trials.unfinished():
            run = RunFolder(trial_path(self.folder, number))
            self._open[number] = _Open(run, Values(run, self.job), trials.drawn(number)["params"])
            self._known.add(run.path.name)

    def _find_new(self) -> None:
        folder = self.folder / "trials"
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        for name in sorted(names - self._known):
            if not name.isdigit():
                continue
            try:
                raw = read_json(folder / name / "trial.json")
                number, params = int(raw["number"]), dict(raw["params"])
            except (HpcmassError, KeyError, TypeError, ValueError):
                continue  # Not drawn yet.
            self._known.add(name)
            run = RunFolder(folder / name)
            self._open[number] = _Open(run, Values(run, self.job), params)

    def _count(
        self,
        number: int,
        run: RunFolder,
        params: Mapping[str, Any],
        outcome: Outcome,
        ended: float | None,
        now: float,
    ) -> None:
        assert self.job.sweep is not None
        counted, table = self._counted, self.job.sweep
        if self._tell is not None:
            self._tell(number, params, outcome)
        counted.counts[outcome.state] = counted.counts.get(outcome.state, 0) + 1
        with contextlib.suppress(OSError):
            ended = ended or os.stat(run.path / "outcome.json").st_mtime
            if now - ended < LATELY_S:
                counted.ended.append(ended)
                self._see_slots(run, now)
        values = objective_values(table, outcome)
        if values is None or any(violations(table, outcome.measured)):
            return
        sign = table.objectives[0].sign
        if len(values) > 1:
            # The front of the front so far and this one is the front: nobody else can come back.
            counted.losses.append(tuple(o.sign * v for o, v in zip(table.objectives, values, strict=True)))
            counted.losses = [counted.losses[place] for place in pareto_front(counted.losses)]
        best = counted.best
        if best is None or sign * values[0] < sign * best.value:
            counted.best = Best(number, values[0], params)
            counted.course.append(values[0])

    def _running(self, number: int, one: _Open, now: float) -> Running | None:
        try:
            status = one.run.status()
        except HpcmassError:
            return None
        if status.state is not State.RUNNING:
            return None
        begin = self._see_slots(one.run, now)
        values = one.values.read()
        return Running(
            number,
            None if begin is None else str(begin.get("target") or HERE),
            status.step,
            status.total_steps,
            values[-1][1] if values else None,
            status.started if begin is None else float(begin["time"]),
            status.attempt,
            one.params,
        )

    def _see_slots(self, run: RunFolder, now: float) -> Mapping[str, Any] | None:
        """Note the slots that a run had; gives the beginning of its last stay."""
        last: Mapping[str, Any] | None = None
        open_ = False
        for record in read_records(run.path / "slots.jsonl"):
            if not is_number(record.get("time")) or record.get("kind") not in ("begin", "end"):
                continue
            open_ = record["kind"] == "begin"
            last = record if open_ else last
            key = tuple(str(record.get(name) or "") for name in ("target", "job_id", "node"))
            place = (*key, int(record["slot"])) if is_number(record.get("slot")) else (*key, 0)
            self._slots[place] = max(self._slots.get(place, 0.0), now if open_ else float(record["time"]))  # type: ignore[index,arg-type]
        return last

    # -- the study ------------------------------------------------------------------------------------
    def _read_attempts(self) -> None:
        with contextlib.suppress(OSError):
            records, self._attempts_at = read_records_from(self.folder / "attempts.jsonl", self._attempts_at)
            for record in records:
                if record.get("kind") != "end":
                    continue
                target = str(record.get("target") or HERE)
                self._ended_on[target] = self._ended_on.get(target, 0) + 1
                cause = str(record.get("cause") or "")
                if cause and cause not in ("COMPLETED", "PRUNED", "PAUSED"):
                    self._causes[cause] = self._causes.get(cause, 0) + 1

    def _by_target(self, running: Iterable[Running]) -> dict[str, list[int]]:
        found = {target: [0, count] for target, count in self._ended_on.items()}
        for one in running:
            if one.target is not None:
                found.setdefault(one.target, [0, 0])[0] += 1
        return dict(sorted(found.items()))

    def _per_s(self, now: float) -> float | None:
        self._counted.ended = ended = [when for when in self._counted.ended if now - when < LATELY_S]
        if len(ended) < 2:
            return None
        return (len(ended) - 1) / max(1e-3, now - min(ended))

    def _usage(self) -> dict[str, Any]:
        try:
            raw = read_json(self.folder / "usage.json")
        except HpcmassError:
            return {}
        if not isinstance(raw, dict):
            return {}
        numbers = {
            name: float(raw[name]) for name in ("node_s", "wall_s", "reserved_s") if is_number(raw.get(name))
        }
        return {**numbers, "ended": raw["ended"] if isinstance(raw.get("ended"), str) else None}

    def _driver(self) -> Owner | None:
        try:
            return Lease(self.folder / "lease").owner()
        except HpcmassError:
            return None
