"""The book of a trial: answers of both versions since it began, and how often they were compared."""

from __future__ import annotations

from collections.abc import Iterable

from hpcmass.serve.canary import Seen, worse
from hpcmass.serve.deployment import Asked, Canary
from hpcmass.serve.gateway_stats import BOUNDS
from hpcmass.serve.member import Member

_EVERY = 3  # seconds of counts between two looks
# Answers of one stall of a machine are slow together, which no test of independent ones knows: slowness has to
# be found at so many looks in a row; errors, which no stall makes, at one.
_LOOKS_SLOW = 3


class Trial:
    """Counts by version, from the moment at which this trial was first seen."""

    def __init__(self) -> None:
        self._canary: Canary | None = None
        self._counts: dict[str, list[int]] = {}
        self._errors: dict[str, int] = {}
        self._last: dict[str, tuple[list[int], int]] = {}
        self._seconds = self._looks = self._looked = self._slow = 0

    def follow(self, asked: Asked) -> None:
        """Begin anew where another trial is asked for."""
        if asked.canary != self._canary:
            self._canary = asked.canary
            self._counts, self._errors = {}, {}
            self._seconds = self._looks = self._looked = self._slow = 0

    def count(self, members: Iterable[Member], asked: Asked) -> None:
        """Add what was answered since the last time."""
        for one in members:
            self._add(one)
        self._seconds += 1

    def gone(self, member: Member) -> None:
        """Add the last of a replica that is no more."""
        self._add(member)
        self._last.pop(member.known.rid, None)

    def seen(self, model: str) -> Seen:
        """What is known of a version."""
        return Seen(self._counts.get(model, [0] * (len(BOUNDS) + 1)), self._errors.get(model, 0))

    def verdict(self, asked: Asked, now: float) -> tuple[str, str] | None:
        """`worse` or `passed`, and why; None: go on."""
        canary = asked.canary
        if canary is None or canary != self._canary or self._seconds < self._looked + _EVERY:
            return None
        self._looked = self._seconds
        self._looks += 1
        trial, stable = self.seen(canary.model), self.seen(asked.stable)
        why = worse(stable, trial, self._looks)
        self._slow = self._slow + 1 if why else 0
        if why and (not why.startswith("latency") or self._slow >= _LOOKS_SLOW):
            return "worse", why
        if why:
            return None
        if canary.after_s is not None and now - canary.since >= canary.after_s and trial.answers >= 100:
            return "passed", f"{trial.answers} answers, {trial.errors} of them errors, not worse"
        return None

    def _add(self, member: Member) -> None:
        if member.backend is None:
            return
        window, rid, model = member.backend.window, member.known.rid, member.known.model
        counts, errors = self._last.get(rid, ([0] * (len(BOUNDS) + 1), 0))
        mine = self._counts.setdefault(model, [0] * (len(BOUNDS) + 1))
        for place, (new, old) in enumerate(zip(window.total, counts, strict=True)):
            mine[place] += new - old
        self._errors[model] = self._errors.get(model, 0) + window.total_errors - errors
        self._last[rid] = (list(window.total), window.total_errors)
