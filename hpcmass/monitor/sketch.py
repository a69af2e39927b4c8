"""Statistics of one feature that can be merged: moments, extremes, what is missing, and counts by bin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BINS = 32
EXACT_CLASSES = 256  # more classes than this are counted by their number's rest


@dataclass
class Sketch:
    """What was seen of a feature.

    Attributes:
        count: Finite values.
        missing: NaN and infinities.
        mean: Of the finite values.
        squares: Their squared deviations from it, summed.
        low: The least, None without any.
        high: The largest.
        bins: Counts: below the first edge, between the edges, from the last edge on; of classes, by number.
    """

    count: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float | None = None
    high: float | None = None
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        """All values, the missing too."""
        return self.count + self.missing

    @property
    def variance(self) -> float:
        """Of the finite values."""
        return self.squares / self.count if self.count else 0.0

    @classmethod
    def of(cls, values: npt.ArrayLike, edges: Floats | None, classes: int | None = None) -> Sketch:
        """The statistics of some values.

        Args:
            values: (n,).
            edges: Ascending bounds of the bins; None: no bins are counted.
            classes: The values are class numbers below this.
        """
        wide = np.asarray(values, np.float64).reshape(-1)
        finite = np.isfinite(wide)
        kept = wide if finite.all() else wide[finite]
        made = cls(count=int(kept.size), missing=int(wide.size - kept.size))
        if kept.size:
            made.low, made.high = float(kept.min()), float(kept.max())
            with np.errstate(over="ignore", invalid="ignore"):
                made.mean = float(kept.mean())
                made.squares = float(np.square(kept - made.mean).sum())
        if classes is not None:
            made.bins = np.bincount(kept.astype(np.int64) % classes, minlength=classes).astype(np.int64)
        elif edges is not None:
            at = np.searchsorted(edges, kept, side="right")
            made.bins = np.bincount(at, minlength=edges.size + 1).astype(np.int64)
        return made

    def merge(self, other: Sketch) -> None:
        """Add what the other has seen, which has the same bins."""
        self.missing += other.missing
        if self.bins.size == other.bins.size:
            self.bins = self.bins + other.bins
        elif not self.bins.size and not self.total - other.missing:
            self.bins = other.bins.copy()
        else:
            self.bins = np.zeros(0, np.int64)
        if not other.count:
            return
        total, apart = self.count + other.count, other.mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            self.squares += other.squares + apart * apart * self.count * other.count / total
            self.mean += apart * other.count / total
        self.count = total
        assert other.low is not None
        assert other.high is not None
        self.low = other.low if self.low is None else min(self.low, other.low)
        self.high = other.high if self.high is None else max(self.high, other.high)

    def to_json(self) -> list[Any]:
        """As a record has it: count, missing, mean, squares, least, largest, bins."""
        numbers = [one if math.isfinite(one) else None for one in (self.mean, self.squares)]
        return [self.count, self.missing, *numbers, self.low, self.high, self.bins.tolist()]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Sketch:
        """What `to_json` wrote."""
        count, missing, mean, squares, low, high, bins = value
        first, second = (math.nan if one is None else float(one) for one in (mean, squares))
        return cls(int(count), int(missing), first, second, low, high, np.array(bins, np.int64))


def merged(sketches: Iterable[Sketch]) -> Sketch:
    """All of them together."""
    total = Sketch()
    for one in sketches:
        total.merge(one)
    return total


def edges_of(values: npt.ArrayLike, bins: int = BINS) -> Floats:
    """Bounds that cut values into bins of about the same share: their quantiles, each once.

    Whatever is at one value alone (zeros of an image, a whole number) has a bin to itself.
    """
    wide = np.asarray(values, np.float64)
    wide = np.sort(wide[np.isfinite(wide)])
    if not wide.size:
        return np.zeros(0)
    at = np.arange(1, bins) * wide.size // bins
    found = wide[at]
    # The end of a value that fills whole bins: the next number there is.
    above = np.nextafter(found[1:][found[1:] == found[:-1]], np.inf)
    return np.unique(np.concatenate([found, above]))


def thinned(edges: Floats, counts: npt.NDArray[np.int64], bins: int = BINS) -> tuple[Floats, Floats]:
    """Neighbouring bins of a histogram added up until each has its share.

    Args:
        edges: (k + 1,) of `counts`, nothing outside.
        counts: (k,).
        bins: How many are wanted, at most.

    Returns:
        Inner edges and counts as `Sketch.bins` has them: below the first, between, from the last on.
    """
    share = counts.sum() / bins
    kept, found, have = [], [], 0
    for number, count in enumerate(counts[:-1]):
        have += int(count)
        if have >= share:
            kept.append(float(edges[number + 1]))
            found.append(have)
            have = 0
    return np.array(kept, np.float64), np.array([*found, have + int(counts[-1])], np.float64)
