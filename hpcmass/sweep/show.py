"""A study as its folder tells it: read by anybody, while a driver runs or long after, without Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcmass.config import Job, load_job
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import Lease, Owner
from hpcmass.runs import PAUSED
from hpcmass.sweep.budget import Used, read_used, used_in_words
from hpcmass.sweep.log import study_trials
from hpcmass.sweep.records import (
    BestTrial,
    Outcome,
    TrialSpec,
    best_trials,
    beyond,
    objective_values,
    violations,
)
from hpcmass.sweep.space import planned
from hpcmass.sweep.watch import Values


@dataclass(frozen=True)
class TrialRow:
    """One trial of the table.

    Attributes:
        state: `complete`, `pruned`, `failed`; while it is not counted, the run's: `created`, `running`,
            `paused` (at a rung), `stopped`, `unknown`.
        value: The metric's last value so far; of several objectives the first.
        steps: Optimiser steps done.
        seconds: From its start to its end, or until now.
        measured: Every objective, and every name that a constraint is about.
        feasible: Whether a complete trial keeps to the constraints; None where it is not known.
        front: Whether it is one of the best: the best alone, or of the Pareto front.
        twin: An earlier trial at the same point.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    steps: int
    seconds: float | None
    attempts: int
    reason: str | None
    path: Path
    measured: dict[str, float] = field(default_factory=dict)
    feasible: bool | None = None
    front: bool = False
    twin: int | None = None


@dataclass(frozen=True)
class StudySummary:
    """A study in a few words.

    Attributes:
        metric: The (first) objective.
        counts: Trials by state.
        planned: Trials that it is to have (`space.planned`).
        best: The best trial, of one objective.
        driver: Who drives it now, or None.
        objectives: `[name, direction]` of each.
        constraints: As the job has them.
        front: The best trials: of several objectives the Pareto front, of one the best alone.
        beyond: Complete trials that do not keep to the constraints.
        names: Every name that a trial is measured by.
        used: What was used, of the budget where there is one, in words.
        usage: The same in numbers (`budget.Used`).
    """

    folder: Path
    metric: str
    direction: str
    counts: dict[str, int]
    planned: int
    best: BestTrial | None
    driver: Owner | None
    objectives: list[list[str]] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    front: list[BestTrial] = field(default_factory=list)
    beyond: int = 0
    names: list[str] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)
    usage: Used = field(default_factory=Used)


def study_table(folder: Path) -> list[TrialRow]:
    """The trials of a study, by number.

    Raises:
        NotFound: There is no study here.
        CorruptError: A record is not what it should be.
    """
    job = study_job(folder)
    assert job.sweep is not None
    trials = study_trials(folder).pairs()
    front = {best.number for best in best_trials(job.sweep, trials)}
    return [replace(_row(job, *pair), front=pair[0].number in front) for pair in trials]


def study_summary(folder: Path) -> StudySummary:
    """Counts, the best trial and the driver of a study.

    Raises:
        NotFound: There is no study here.
    """
    job = study_job(folder)
    assert job.sweep is not None
    trials = study_trials(folder).pairs()
    counts: dict[str, int] = {}
    for spec, outcome in trials:
        state = _row(job, spec, outcome).state
        counts[state] = counts.get(state, 0) + 1
    first, *others = job.sweep.objectives
    used = read_used(folder)
    front = best_trials(job.sweep, trials)
    return StudySummary(
        folder,
        first.name,
        first.direction,
        counts,
        planned(job.sweep),
        front[0] if front and not others else None,
        Lease(folder / "lease").owner(),
        [[one.name, one.direction] for one in job.sweep.objectives],
        job.sweep.constraints,
        front,
        beyond(job.sweep, trials),
        list(job.sweep.names),
        used_in_words(used, job.sweep),
        used,
    )


def study_job(folder: Path) -> Job:
    """The job of a study.

    Raises:
        NotFound: There is no study here.
    """
    if not (folder / "job.toml").is_file():
        raise NotFound("there is no study here", where=folder, hint="begin one with: hpcmass sweep JOB")
    job = load_job(folder / "job.toml")
    if job.sweep is None:
        raise NotFound("there is no study here, its job has no [sweep]", where=folder / "job.toml")
    return job


def _row(job: Job, spec: TrialSpec, outcome: Outcome | None) -> TrialRow:
    state, steps, seconds, attempts, reason = "created", 0, None, 0, None
    try:
        status = spec.run.status()
        state, steps, attempts, reason = status.state.value.lower(), status.step, status.attempt, status.reason
        state = "paused" if state == "stopped" and (reason or "").startswith(PAUSED) else state
        end = status.ended or status.updated
        seconds = None if status.started is None or end is None else end - status.started
    except HpcmassError:
        pass
    if outcome is None:
        values = Values(spec.run, job).read()
        value = values[-1][1] if values else None
        return TrialRow(
            spec.number, state, value, spec.params, steps, seconds, attempts, reason, spec.path, twin=spec.twin
        )
    assert job.sweep is not None
    complete = objective_values(job.sweep, outcome) is not None
    if outcome.seconds is not None:
        seconds = outcome.seconds
    return TrialRow(
        spec.number,
        outcome.state,
        outcome.value,
        spec.params,
        steps,
        seconds,
        outcome.attempts,
        outcome.reason,
        spec.path,
        outcome.measured,
        not any(violations(job.sweep, outcome.measured)) if complete else None,
        twin=spec.twin,
    )
