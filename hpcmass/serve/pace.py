"""How long batches of each size take: measured when the replica warms up, and kept true while it serves."""

from __future__ import annotations

from collections.abc import Callable

_NEW = 0.1  # weight of what was just measured
_OUTLIER = 4.0  # a batch this many times slower than known counts as this many times: the machine was away


class Pace:
    """Seconds of a batch by its size, at powers of two; between them a batch counts to the smaller.

    Args:
        budget_s: What a batch may take, so that it is not made larger.
        most: Rows in a batch, at most.
    """

    def __init__(self, budget_s: float, most: int) -> None:
        self.budget_s, self.most = budget_s, most
        self.seconds: dict[int, float] = {}
        self.limit = 1
        self.row_s = 0.0

    def measure(self, run: Callable[[int], float], *, repeats: int = 3) -> None:
        """Try sizes 1, 2, 4 … until one takes longer than the budget; of several calls the quickest counts.

        Args:
            run: Computes so many rows, and gives the seconds.
            repeats: Of each size; the quickest counts. Before them each size is run once for nothing.
        """
        size = 1
        while size <= self.most:
            run(size)
            best = min(run(size) for _ in range(repeats))
            self.seconds[size] = min(best, self.seconds.get(size, best))
            if self.seconds[size] > self.budget_s:
                break
            size *= 2
        self._settle()

    def took(self, rows: int, seconds: float) -> None:
        """Learn from one batch."""
        size = 1 << (rows.bit_length() - 1)
        if (known := self.seconds.get(size)) is None:
            return
        now = min(seconds * size / rows, _OUTLIER * known)
        known = self.seconds[size] = known + _NEW * (now - known)
        if size == self.limit and (larger := self.seconds.get(2 * size)) is not None and larger > 2 * known:
            # Not tried any more: it may have been the machine, and nothing is worse than two of the half.
            self.seconds[2 * size] = larger + _NEW * (2 * known - larger)
        self._settle()

    def _settle(self) -> None:
        """The largest size that the budget allows, and seconds a row in such batches."""
        size = 1
        while 2 * size in self.seconds and self.seconds[2 * size] <= self.budget_s:
            size *= 2
        self.limit = size
        self.row_s = self.seconds[size] / size
