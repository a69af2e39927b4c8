"""A trial that is being run, as its driver sees it, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcmass.errors import BlockLost, HpcmassError, LaunchError, SweepError
from hpcmass.runs import RunFolder, Status
from hpcmass.sweep.records import Outcome, TrialSpec
from hpcmass.sweep.remedy import Room
from hpcmass.sweep.watch import Values, Verdict, is_running, judge


class Submit(Protocol):
    """How trials are run: given by the floor above.

    The future ends when the trial is no longer run, however it ended; its result is not looked at, the run
    folder is. It holds an exception only when the trial could not be run or its worker was lost: a `BlockLost`
    where the node or the pilot job went, which costs the trial none of its retries.

    It may have more: `room(trial) -> Room`, what a trial's last attempt had and a further one could have;
    `expect(trials)`, told how many trials are still to be drawn;
    `state_of(trial) -> str`, what Slurm calls the job that the last attempt was in, empty where nobody knows.
    """

    def submit(self, trial: TrialSpec) -> Future[Any]:
        """Start a trial, or queue it; `trial.changes` and `trial.avoid` say what this attempt is to have."""
        ...


def room_for(workers: Submit | None, trial: TrialSpec) -> Room:
    """What the workers could give a trial; nothing is known where they do not say."""
    ask: Callable[[TrialSpec], Room] | None = getattr(workers, "room", None)
    return Room() if ask is None else ask(trial)


def expect(workers: Submit | None, trials: int) -> None:
    """Tell the workers how many trials are still to be drawn."""
    tell: Callable[[int], None] | None = getattr(workers, "expect", None)
    if tell is not None:
        tell(trials)


def slurm_state(workers: Submit | None, trial: TrialSpec) -> str:
    """What Slurm calls the job that a trial's last attempt was in; empty where nobody knows."""
    ask: Callable[[TrialSpec], str] | None = getattr(workers, "state_of", None)
    return "" if ask is None else ask(trial)


@dataclass
class Flight:
    """A trial that is being run: by a worker of ours, or (no future) by somebody we only watch.

    Attributes:
        reported: Evaluations that the pruner knows.
        said: Those that were there when this attempt was taken up, of which nobody is told again.
        stopping: It was asked to stop, or is over.
        free: What ran it was lost from outside.
        held: A worker of an earlier driver has it.
        error: What its future held.
    """

    spec: TrialSpec
    values: Values
    future: Future[Any] | None = None
    reported: int = 0
    said: int = 0
    stopping: bool = False
    free: bool = False
    held: bool = False
    error: BaseException | None = None


def reached(flight: Flight) -> int:
    """The step that a trial has reached, as its status says (a script's only at its end) or its reports."""
    values = flight.values.read()
    reported = int(values[-1][0]) if values else 0
    try:
        return max(reported, flight.spec.run.status().step)
    except HpcmassError:
        return reported


def status_of(run: RunFolder) -> Status | None:
    """A run's status, or None where it has none that can be read."""
    try:
        return run.status()
    except HpcmassError:
        return None


def attempt_of(run: RunFolder) -> int:
    """How often a run was begun, as it says itself."""
    status = status_of(run)
    return 0 if status is None else status.attempt


def seconds_of(status: Status) -> float | None:
    """Seconds from a run's first start to its end, or to the last that was heard."""
    end = status.ended or status.updated
    return None if status.started is None or end is None else round(end - status.started, 3)


def ended_of(flight: Flight, study: Path, held: Callable[[TrialSpec], bool]) -> Verdict | None:
    """What came of a trial that is no longer run, or None while it is.

    Args:
        flight: The trial.
        study: The study's folder.
        held: Whether a worker of an earlier driver has it.

    Raises:
        SweepError: There are no workers any more.
    """
    run, future = flight.spec.run, flight.future
    if future is not None and not future.done():
        return None
    error = future.exception() if future is not None else None
    if isinstance(error, LaunchError):
        raise SweepError(
            f"the workers are gone: {error.message}",
            where=study,
            hint="start it again; unfinished trials go on where they stand",
        ) from error
    flight.error = error
    flight.free = flight.free or isinstance(error, BlockLost)
    if (error is not None or future is None) and is_running(run):
        flight.future = None  # Its ranks outlived the worker, or another process has it: watch it.
        return None
    if flight.held:
        flight.held = held(flight.spec)
        if flight.held:
            return None  # Its worker is about to begin.
    verdict = judge(run, flight.values)
    if verdict.kind == "lost" and error is not None:
        plain = error.message if isinstance(error, BlockLost) else f"{type(error).__name__}: {error}"
        return Verdict("lost", plain)
    return verdict


def outcome_from(flight: Flight, verdict: Verdict, *, order: int, starts: int, cause: str | None) -> Outcome:
    """What a trial counts as.

    Args:
        flight: The trial.
        verdict: What its end means.
        order: Outcomes that were counted before.
        starts: How often this driver has started it.
        cause: Why its last attempt ended.
    """
    failed, status = verdict.kind == "failed", status_of(flight.spec.run)
    return Outcome(
        state=verdict.kind,
        value=None if failed else flight.values.last(),
        values=flight.values.read(),
        attempts=max(starts, 0 if status is None else status.attempt),
        order=order,
        seconds=None if status is None else seconds_of(status),
        reason=verdict.reason,
        measured={} if failed else flight.values.measured(),
        cause=cause,
    )


__all__ = [
    "Flight",
    "Submit",
    "attempt_of",
    "ended_of",
    "expect",
    "outcome_from",
    "reached",
    "room_for",
    "seconds_of",
    "slurm_state",
]
