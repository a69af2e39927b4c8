"""A study as its folder tells it: read by anybody, while a driver runs or long after, without Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Job, load_job
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import Lease, Owner
from hpcmass.sweep.records import BestTrial, Outcome, TrialSpec, best_trial, read_trials
from hpcmass.sweep.watch import Values


@dataclass(frozen=True)
class TrialRow:
    """One trial of the table.

    Attributes:
        state: `complete`, `pruned`, `failed`; while it is not counted, the run's: `created`, `running`,
            `stopped`, `unknown`.
        value: The metric's last value so far.
        steps: Optimiser steps done.
        seconds: From its start to its end, or until now.
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


@dataclass(frozen=True)
class StudySummary:
    """A study in a few words.

    Attributes:
        counts: Trials by state.
        planned: Trials that the job asks for.
        driver: Who drives it now, or None.
    """

    folder: Path
    metric: str
    direction: str
    counts: dict[str, int]
    planned: int
    best: BestTrial | None
    driver: Owner | None


def study_table(folder: Path) -> list[TrialRow]:
    """The trials of a study, by number.

    Raises:
        NotFound: There is no study here.
        CorruptError: A record is not what it should be.
    """
    job = _job(folder)
    return [_row(job, spec, outcome) for spec, outcome in read_trials(folder)]


def study_summary(folder: Path) -> StudySummary:
    """Counts, the best trial and the driver of a study.

    Raises:
        NotFound: There is no study here.
    """
    job = _job(folder)
    assert job.sweep is not None
    trials = read_trials(folder)
    counts: dict[str, int] = {}
    for spec, outcome in trials:
        state = _row(job, spec, outcome).state
        counts[state] = counts.get(state, 0) + 1
    return StudySummary(
        folder,
        job.sweep.metric,
        job.sweep.direction,
        counts,
        job.sweep.trials,
        best_trial(job.sweep.direction, trials),
        Lease(folder / "lease").owner(),
    )


def _job(folder: Path) -> Job:
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
        end = status.ended or status.updated
        seconds = None if status.started is None or end is None else end - status.started
    except HpcmassError:
        pass
    if outcome is None:
        values = Values(spec.run, job).read()
        value = values[-1][1] if values else None
        return TrialRow(spec.number, state, value, spec.params, steps, seconds, attempts, reason, spec.path)
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
    )
