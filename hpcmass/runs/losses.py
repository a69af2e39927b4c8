"""Losses of a node or a pilot job under a piece of work: they cost it none of its retries, within a bound."""

from __future__ import annotations

from collections.abc import Hashable

# So many in a row without getting any further are no accident.
MOST_FREE_LOSSES = 20


class FreeLosses:
    """Counts the losses of each piece of work since it last got on."""

    def __init__(self) -> None:
        self._counted: dict[Hashable, int] = {}
        self._best: dict[Hashable, int] = {}

    def add(self, work: Hashable, step: int) -> int:
        """Note a loss; gives how many there were since the work last got further than ever before.

        Args:
            work: What was lost.
            step: The step that it had reached.
        """
        best = self._best.get(work)
        if best is None or step > best:
            self._best[work] = step
            self._counted[work] = 0
        self._counted[work] += 1
        return self._counted[work]
