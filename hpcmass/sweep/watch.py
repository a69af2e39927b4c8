"""What a trial's run folder says: its values so far, and what its end means for the study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from hpcmass.config import Job, nearest
from hpcmass.errors import HpcmassError
from hpcmass.files import read_records_from
from hpcmass.runs import PAUSED, RankError, RunFolder, State, first_error
from hpcmass.sweep.facts import FACTS

PRUNED = "pruned: "
NO_NUMBER = "not a number"

# Errors of the machine, not of the user: the same trial may succeed when it is started again.
_INFRASTRUCTURE = {"LaunchError", "RankFailed", "StorageError", "LeaseHeld"}


@dataclass(frozen=True)
class Verdict:
    """What a trial that does not run means.

    Attributes:
        kind: `complete`, `pruned`, `paused` (at a rung), `failed` (the user's), or `lost` (the machine's: start
            it again).
        reason: One sentence, for all but `complete`.
    """

    kind: str
    reason: str | None = None


class Values:
    """The values of a trial's metric; of the run's records only what is new is read."""

    def __init__(self, run: RunFolder, job: Job) -> None:
        assert job.sweep is not None
        self._run = run
        self._names = job.sweep.names
        self._metric = job.sweep.objectives[0].name
        self._kind = "report" if job.command is not None else "valid"
        self._offset_bytes = 0
        self._seen: list[tuple[float, dict[str, Any]]] = []  # step and values of every evaluation
        self._values: list[list[float]] = []
        self._final = False

    def freeze(self) -> None:
        """Read what there is for the last time: the trial has ended."""
        self.read()
        self._final = True

    def read(self) -> list[list[float]]:
        """`[step, value]` of every evaluation that counts, in order; values that are no number are left out.

        Of several objectives this is the first one.
        """
        if self._final:
            return self._values
        try:
            records, self._offset_bytes = read_records_from(self._run.metrics_file, self._offset_bytes)
        except OSError:
            return self._values
        for record in records:
            if record.get("kind") == "resume":  # As `RunFolder.records` has it: later steps did not count.
                limit = int(record.get("from_step", 0))
                self._seen = [(step, values) for step, values in self._seen if step <= limit]
            elif record.get("kind") == self._kind:
                values = {name: record[name] for name in self._names if record.get(name) is not None}
                self._seen.append((record.get("step", 0), values))
        if records:
            series = [(step, values.get(self._metric)) for step, values in self._seen]
            self._values = [[step, float(value)] for step, value in series if is_number(value)]
        return self._values

    def last(self, name: str | None = None) -> float | None:
        """The final value of a name: the last evaluation's, else what the status or the run's folder says.

        None where there is none, or it is no number: a trial that diverged in the end is not worth what it
        was before.

        Args:
            name: By default the (first) objective.
        """
        name = name or self._metric
        found = self._last_word(name)
        if found is None:
            found = self._run.status().metrics.get(name)
        if found is None and name in FACTS:
            found = FACTS[name](self._run)
        return float(found) if is_number(found) else None

    def measured(self) -> dict[str, float]:
        """The final value of every name that the study looks at, where there is one."""
        found = {name: self.last(name) for name in self._names}
        return {name: value for name, value in found.items() if value is not None}

    def missing(self) -> str | None:
        """What a complete trial lacks, as a sentence; None where all names have a value."""
        lacking = next((name for name in self._names if self.last(name) is None), None)
        if lacking is None:
            return None
        word = self._last_word(lacking)
        if word is not None:
            return f"the last '{lacking}' is {word}, {NO_NUMBER}"
        if lacking in FACTS:
            return f"'{lacking}' is not known of this run"
        seen: set[str] = set(self._run.status().metrics)
        for record in self._run.records(self._kind):
            seen |= {name for name, value in record.items() if is_number(value)}
        names = sorted(seen - {"step", "epoch", "time", "kind"})
        like = nearest(lacking, [*names, *FACTS])
        said = f"; it reported {', '.join(names)}" if names else ""
        return f"the run never reported '{lacking}'{said}" + (f"; did you mean '{like}'?" if like else "")

    def _last_word(self, name: str) -> Any:
        self.read()
        return next((values[name] for _, values in reversed(self._seen) if name in values), None)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def judge(run: RunFolder, values: Values) -> Verdict:
    """What the end of a trial means; one that is being run has no end yet and is not to be judged."""
    stopped = run.asked_to_stop() or ""
    verdict = judge_run(run)
    if verdict.kind == "complete":
        missing = values.missing()
        return verdict if missing is None else Verdict("failed", missing)
    if stopped.startswith(PAUSED):
        # Where it was cut off on its way there, it goes on.
        return Verdict("paused", stopped) if run.status().state is State.STOPPED and run.paused() else verdict
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
