"""A trial that is being run, as its driver sees it, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from hpcmass.errors import HpcmassError
from hpcmass.runs import RunFolder
from hpcmass.sweep.records import TrialSpec
from hpcmass.sweep.remedy import Room
from hpcmass.sweep.watch import Values


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


def attempt_of(run: RunFolder) -> int:
    """How often a run was begun, as it says itself."""
    try:
        return run.status().attempt
    except HpcmassError:
        return 0


def seconds_of(run: RunFolder) -> float | None:
    """Seconds from a run's first start to its end, or to the last that was heard."""
    try:
        status = run.status()
    except HpcmassError:
        return None
    end = status.ended or status.updated
    return None if status.started is None or end is None else round(end - status.started, 3)


__all__ = ["Flight", "Submit", "attempt_of", "expect", "reached", "room_for", "seconds_of", "slurm_state"]
