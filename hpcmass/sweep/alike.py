"""A study that is broken from the start is stopped early: all that was counted failed, and alike."""

from __future__ import annotations

from hpcmass.errors import SweepError
from hpcmass.sweep.records import Outcome, TrialSpec
from hpcmass.sweep.trials import Trials

_SAME_FAILURES = 3


class Alike:
    """The failures of a study, as long as there is nothing else."""

    def __init__(self, trials: Trials) -> None:
        self._reasons: list[str] | None = _alike(trials)  # None once they are not alike

    def note(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Take in what a trial counts as.

        Raises:
            SweepError: The first trials all failed the same way.
        """
        if self._reasons is None:
            return
        reason = outcome.reason if outcome.state == "failed" else None
        self._reasons.append(reason or "")
        if not reason or reason != self._reasons[0]:
            self._reasons = None
        elif len(self._reasons) >= _SAME_FAILURES:
            raise SweepError(
                f"the first {len(self._reasons)} trials failed the same way: {reason}",
                where=spec.path,
                hint=f"see: hpcmass why {spec.path}",
            )


def _alike(trials: Trials) -> list[str]:
    """The reasons of the outcomes counted so far where all are one failure, else none: counting begins anew."""
    reasons: list[str] = []
    for number in trials.in_order():
        ended = trials.ended(number) or {}
        reasons.append(ended.get("reason") or "" if ended["state"] == "failed" else "")
        if not reasons[-1] or reasons[-1] != reasons[0]:
            return []
    return reasons
