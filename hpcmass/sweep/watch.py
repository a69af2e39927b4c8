"""What a trial's run folder says: its values so far, and what its end means for the study."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from hpcmass.config import Job
from hpcmass.errors import HpcmassError
from hpcmass.runs import RankError, RunFolder, State, first_error

PRUNED = "pruned: "

# Errors of the machine, not of the user: the same trial may succeed when it is started again.
_INFRASTRUCTURE = {"LaunchError", "RankFailed", "StorageError", "LeaseHeld"}


@dataclass(frozen=True)
class Verdict:
    """What a trial that does not run means.

    Attributes:
        kind: `complete`, `pruned`, `failed` (the user's), or `lost` (the machine's: start it again).
        reason: One sentence, for all but `complete`.
    """

    kind: str
    reason: str | None = None


class Values:
    """The values of a trial's metric, read again only when the run's records have grown."""

    def __init__(self, run: RunFolder, job: Job) -> None:
        assert job.sweep is not None
        self._run = run
        self._metric = job.sweep.metric
        self._kind = "report" if job.command is not None else "valid"
        self._size = -1
        self._values: list[list[float]] = []

    def read(self) -> list[list[float]]:
        """`[step, value]` of every evaluation that counts, in order; values that are no number are left out."""
        try:
            size = os.stat(self._run.metrics_file).st_size
        except OSError:
            return self._values
        if size != self._size:
            self._size = size
            self._values = [
                [record.get("step", 0), float(record[self._metric])]
                for record in self._run.records(self._kind)
                if _is_number(record.get(self._metric))
            ]
        return self._values

    def last(self) -> float | None:
        """The final value: the last evaluation's, else what the status says."""
        values = self.read()
        if values:
            return values[-1][1]
        value = self._run.status().metrics.get(self._metric)
        return float(value) if value is not None and _is_number(value) else None

    def missing(self) -> str:
        """Why there is no value, as a sentence."""
        seen: set[str] = set(self._run.status().metrics)
        for record in self._run.records(self._kind):
            seen |= {name for name, value in record.items() if _is_number(value)}
        names = ", ".join(sorted(seen - {"step", "epoch", "time", "kind"}))
        return f"the run never reported '{self._metric}'" + (f"; it reported {names}" if names else "")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def judge(run: RunFolder, values: Values) -> Verdict:
    """What the end of a trial means; one that is being run has no end yet and is not to be judged."""
    stopped = run.asked_to_stop() or ""
    verdict = judge_run(run)
    if verdict.kind == "complete":
        return verdict if values.last() is not None else Verdict("failed", values.missing())
    if stopped.startswith(PRUNED):
        return Verdict("pruned", stopped)
    if stopped and run.status().state is State.STOPPED:
        return Verdict("pruned", f"asked to stop: {stopped}")
    return verdict


def judge_run(run: RunFolder) -> Verdict:
    """What the end of a run means, whatever it was run for: `complete`, `failed` or `lost`."""
    status = run.status()
    if status.state is State.COMPLETED:
        return Verdict("complete")
    if status.state is not State.FAILED:
        return Verdict("lost", status.reason or "its worker was lost")
    first = first_error(run.errors(status.attempt) or run.errors())
    if first is None:
        return Verdict("failed", status.reason or "it failed without a word")
    lost = first.kind == "signal" or first.error in _INFRASTRUCTURE
    return Verdict("lost" if lost else "failed", _sentence(first))


def _sentence(error: RankError) -> str:
    # Without the place, which names the trial's folder: the same fault reads the same in every trial.
    return f"{error.error}: {error.message}".strip()


def is_running(run: RunFolder) -> bool:
    """Whether somebody who is alive runs it."""
    try:
        return run.status().state is State.RUNNING
    except HpcmassError:
        return False
