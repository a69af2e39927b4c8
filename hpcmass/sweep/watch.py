"""What a trial's run folder says: its values so far, and what its end means for the study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hpcmass.config import Job
from hpcmass.errors import HpcmassError
from hpcmass.files import read_records_from
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
    """The values of a trial's metric; of the run's records only what is new is read."""

    def __init__(self, run: RunFolder, job: Job) -> None:
        assert job.sweep is not None
        self._run = run
        self._metric = job.sweep.metric
        self._kind = "report" if job.command is not None else "valid"
        self._offset_bytes = 0
        self._seen: list[tuple[float, Any]] = []  # step and value of every evaluation, also of no number
        self._values: list[list[float]] = []
        self._ended_in: object = None  # the last evaluation's value where it is no number, such as "NaN"

    def read(self) -> list[list[float]]:
        """`[step, value]` of every evaluation that counts, in order; values that are no number are left out."""
        try:
            records, self._offset_bytes = read_records_from(self._run.metrics_file, self._offset_bytes)
        except OSError:
            return self._values
        for record in records:
            if record.get("kind") == "resume":  # As `RunFolder.records` has it: later steps did not count.
                limit = int(record.get("from_step", 0))
                self._seen = [(step, value) for step, value in self._seen if step <= limit]
            elif record.get("kind") == self._kind and record.get(self._metric) is not None:
                self._seen.append((record.get("step", 0), record[self._metric]))
        if records:
            self._values = [[step, float(value)] for step, value in self._seen if _is_number(value)]
            last = self._seen[-1][1] if self._seen else None
            self._ended_in = None if _is_number(last) else last
        return self._values

    def last(self) -> float | None:
        """The final value: the last evaluation's, else what the status says; None where it is no number.

        A trial that diverged in the end is not worth what it was before.
        """
        values = self.read()
        if self._ended_in is not None:
            return None
        if values:
            return values[-1][1]
        value = self._run.status().metrics.get(self._metric)
        return float(value) if value is not None and _is_number(value) else None

    def missing(self) -> str:
        """Why there is no value, as a sentence."""
        if self._ended_in is not None:
            return f"the last '{self._metric}' is {self._ended_in}, not a number"
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
