"""Statistics that are gathered block by block and merged: one pass over data of any size.

Mean and variance are merged as Chan, Golub and LeVeque (1979) do. The histogram has bins of width 2^e at
multiples of 2^e; when the range outgrows it, neighbouring bins are added up and e grows by one. As those
bins nest exactly, the counts do not depend on how the data were cut into blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field
from hpcmass.data.ragged import QUANTILES, Ragged

MAX_BINS = 64
MAX_CLASSES = 4096
_CHUNK = 1 << 17  # values at once: their float64 copies stay in the processor's cache


@dataclass
class Histogram:
    """Counts of bins [ (first + i) 2^e, (first + i + 1) 2^e ); empty while `counts` is."""

    exponent: int = -1074
    first: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def merge(self, other: Histogram) -> None:
        """Add the other's counts."""
        if not other.counts.size:
            return
        if not self.counts.size:
            self.exponent, self.first, self.counts = other.exponent, other.first, other.counts.copy()
            return
        exponent = max(self.exponent, other.exponent)
        first, last = self._span(exponent)
        other_first, other_last = other._span(exponent)
        low, high = min(first, other_first), max(last, other_last)
        while high - low >= MAX_BINS:
            low, high, exponent = low >> 1, high >> 1, exponent + 1
        counts = np.zeros(high - low + 1, np.int64)
        for one in (self, other):
            bins = np.arange(one.counts.size) + one.first
            # A shift of a whole range at once could pass int64 only for widths beyond float64's range.
            shift = min(exponent - one.exponent, 62)
            np.add.at(counts, (bins >> shift) - low, one.counts)
        self.exponent, self.first, self.counts = exponent, low, counts

    def _span(self, exponent: int) -> tuple[int, int]:
        shift = exponent - self.exponent
        return self.first >> shift, (self.first + self.counts.size - 1) >> shift

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], low: float, high: float) -> Histogram:
        """The histogram of finite values between `low` and `high` (their least and largest)."""
        exponent = _exponent(low, high)
        bins = np.floor(values * math.ldexp(1.0, -exponent)).astype(np.int64)
        first = int(bins.min())
        return cls(exponent, first, np.bincount(bins - first).astype(np.int64))


def _exponent(low: float, high: float) -> int:
    """The least e for which at most MAX_BINS bins of width 2^e cover low … high, and bins are exact."""
    largest = max(abs(low), abs(high))
    # Bin numbers must stay below 2^50 to be exact, and below MAX_BINS apart.
    exponent = max((math.frexp(largest)[1] if largest else 0) - 50, -1000)
    if high > low:
        exponent = max(exponent, math.frexp(high / MAX_BINS - low / MAX_BINS)[1] - 2)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= MAX_BINS:
        exponent += 1
    return exponent


@dataclass
class FieldStats:
    """Statistics of one field over the samples seen so far; NaN and infinities are counted apart."""

    count: int = 0
    nonfinite: int = 0
    low: float | int | None = None
    high: float | int | None = None
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean
    histogram: Histogram = field(default_factory=Histogram)
    classes: npt.NDArray[np.int64] | None = None  # counts of 0, 1, …; None: not such a field

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, countable: bool) -> FieldStats:
        """Statistics of a block.

        Args:
            values: C-contiguous numbers of any shape.
            countable: Count classes, if the values are small non-negative integers.
        """
        total = cls()
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            total._add(flat[start : start + _CHUNK])
        low, high = total.low, total.high
        if countable and low is not None and high is not None and low >= 0 and high < MAX_CLASSES:
            total.classes = np.bincount(flat.astype(np.int64)).astype(np.int64)
        return total

    def _add(self, values: npt.NDArray[Any]) -> None:
        chunk = FieldStats(count=values.size)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            values = values[np.isfinite(values)]
            chunk.nonfinite = chunk.count - values.size
            chunk.count = values.size
        if values.size:
            chunk.low, chunk.high = values.min().item(), values.max().item()
            wide = values.astype(np.float64)
            chunk.histogram = Histogram.of(wide, float(chunk.low), float(chunk.high))
            with np.errstate(over="ignore", invalid="ignore"):
                chunk.mean = float(wide.mean())
                wide -= chunk.mean
                chunk.squares = float(np.dot(wide, wide))
        self._merge_moments(chunk)

    def merge(self, other: FieldStats) -> None:
        """Add what the other has seen (samples that come later)."""
        if other.count + other.nonfinite == 0:
            return
        if self.count + self.nonfinite == 0:
            self.classes = other.classes
        elif self.classes is None or other.classes is None:
            self.classes = None
        else:
            longer = max(self.classes.size, other.classes.size)
            both = (np.pad(one, (0, longer - one.size)) for one in (self.classes, other.classes))
            self.classes = sum(both, np.zeros(longer, np.int64))
        self._merge_moments(other)

    def _merge_moments(self, other: FieldStats) -> None:
        self.nonfinite += other.nonfinite
        if not other.count:
            return
        total = self.count + other.count
        with np.errstate(over="ignore", invalid="ignore"):
            apart = other.mean - self.mean
            self.squares += other.squares + apart * apart * self.count * other.count / total
            self.mean += apart * other.count / total
        self.count = total
        assert other.low is not None
        assert other.high is not None
        self.low = other.low if self.low is None else min(self.low, other.low)
        self.high = other.high if self.high is None else max(self.high, other.high)
        self.histogram.merge(other.histogram)

    def to_json(self, classes: int | None = None) -> dict[str, Any]:
        """As in the manifest; with `classes` (their number) the count of each instead of moments."""
        if classes is not None and self.classes is not None:
            counts = np.pad(self.classes, (0, max(0, classes - self.classes.size)))
            return {"count": self.count, "class_counts": counts.tolist()}
        result: dict[str, Any] = {"count": self.count, "min": self.low, "max": self.high}
        deviation = math.sqrt(self.squares / self.count) if self.count and self.squares >= 0 else math.nan
        mean = self.mean if self.count else math.nan
        result["mean"] = mean if math.isfinite(mean) else None
        result["std"] = deviation if math.isfinite(deviation) else None
        if self.nonfinite:
            result["nonfinite"] = self.nonfinite
        if self.histogram.counts.size:
            bins = range(self.histogram.first, self.histogram.first + self.histogram.counts.size + 1)
            result["histogram"] = {
                "edges": [math.ldexp(float(number), self.histogram.exponent) for number in bins],
                "counts": self.histogram.counts.tolist(),
            }
        return result


def field_stats(one: Field, seen: Mapping[str, FieldStats], classes: int | None = None) -> dict[str, Any]:
    """What the manifest says of a field: its values, and of a ragged one its samples' lengths too.

    Args:
        one: The field.
        seen: Statistics by field name, and of lengths by the name of the offsets.
        classes: As of `FieldStats.to_json`.
    """
    said = seen[one.name].to_json(classes)
    if one.ragged:
        said["lengths"] = _lengths_json(seen[one.offsets])
    return said


def seen_before(one: Field) -> dict[str, FieldStats]:
    """The statistics of a field in a manifest, by name, to be merged with others: what `field_stats` takes."""
    seen = {one.name: from_json(one.stats)}
    if one.ragged:
        seen[one.offsets] = from_json(one.stats["lengths"])
    return seen


def of_block(one: Field, values: Any, *, countable: bool) -> dict[str, FieldStats]:
    """Statistics of some samples by name; of a `Ragged` also those of lengths."""
    if not isinstance(values, Ragged):
        return {one.name: FieldStats.of(values, countable=countable)}
    lengths = FieldStats.of(values.lengths, countable=False)
    return {one.name: FieldStats.of(values.values, countable=countable), one.offsets: lengths}


def empty_stats(fields: Iterable[Field]) -> dict[str, FieldStats]:
    """Statistics of no samples by name, those of lengths too."""
    names = (name for one in fields for name in ([one.name, one.offsets] if one.ragged else [one.name]))
    return {name: FieldStats() for name in names}


def _lengths_json(lengths: FieldStats) -> dict[str, Any]:
    """Statistics of lengths; a quantile is the length that so many samples do not exceed, by the histogram."""
    said = lengths.to_json()
    counts, exponent = np.cumsum(lengths.histogram.counts), lengths.histogram.exponent
    quantiles = {}
    for share in QUANTILES if lengths.count else ():
        number = lengths.histogram.first + int(np.searchsorted(counts, share * lengths.count))
        assert lengths.high is not None
        quantiles[str(share)] = min(math.ceil(math.ldexp(float(number + 1), exponent)) - 1, int(lengths.high))
    return {**said, "quantiles": quantiles}


def from_json(value: dict[str, Any]) -> FieldStats:
    """Statistics out of a manifest, to be merged with others.

    Counts, extremes, class counts and histogram come back as they were; the sum of squares to rounding.
    """
    if "class_counts" in value:
        counts = np.array(value["class_counts"], np.int64)
        seen = np.flatnonzero(counts)
        numbers = np.arange(counts.size, dtype=np.float64)
        mean = float(numbers @ counts / counts.sum()) if seen.size else 0.0
        result = FieldStats(
            count=int(counts.sum()), mean=mean, classes=counts[: seen[-1] + 1 if seen.size else 0]
        )
        if seen.size:
            result.low, result.high = int(seen[0]), int(seen[-1])
            result.squares = float((numbers - mean) ** 2 @ counts)
            histogram = Histogram.of(seen.astype(np.float64), float(seen[0]), float(seen[-1]))
            bins = np.floor(seen * math.ldexp(1.0, -histogram.exponent)).astype(np.int64) - histogram.first
            histogram.counts = np.bincount(bins, counts[seen]).astype(np.int64)
            result.histogram = histogram
        return result
    count, average, deviation = int(value["count"]), value.get("mean"), value.get("std")
    result = FieldStats(count, value.get("nonfinite", 0), value.get("min"), value.get("max"))
    unknown = math.nan if count else 0.0
    result.mean = unknown if average is None else float(average)
    result.squares = unknown if deviation is None else float(deviation) ** 2 * count
    if "histogram" in value:
        edges = value["histogram"]["edges"]
        exponent = math.frexp(edges[1] - edges[0])[1] - 1
        first = round(math.ldexp(edges[0], -exponent))
        result.histogram = Histogram(exponent, first, np.array(value["histogram"]["counts"], np.int64))
    return result


def state_to_json(stats: FieldStats) -> dict[str, Any]:
    """All that merging needs, exactly, as JSON values; `state_from_json` takes it back."""
    return {
        "count": stats.count,
        "nonfinite": stats.nonfinite,
        "low": stats.low,
        "high": stats.high,
        "mean": float(stats.mean).hex(),
        "squares": float(stats.squares).hex(),
        "histogram": [stats.histogram.exponent, stats.histogram.first, stats.histogram.counts.tolist()],
        "classes": None if stats.classes is None else stats.classes.tolist(),
    }


def state_from_json(value: dict[str, Any]) -> FieldStats:
    """What `state_to_json` was given."""
    exponent, first, counts = value["histogram"]
    return FieldStats(
        count=int(value["count"]),
        nonfinite=int(value["nonfinite"]),
        low=value["low"],
        high=value["high"],
        mean=float.fromhex(value["mean"]),
        squares=float.fromhex(value["squares"]),
        histogram=Histogram(int(exponent), int(first), np.array(counts, np.int64)),
        classes=None if value["classes"] is None else np.array(value["classes"], np.int64),
    )


def merge_json(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Statistics of two datasets read one after the other, from the manifests' values, no histogram."""
    if "lengths" in first and "lengths" in second:
        plain = [{key: said for key, said in one.items() if key != "lengths"} for one in (first, second)]
        return {**merge_json(*plain), "lengths": merge_json(first["lengths"], second["lengths"])}
    count = first["count"] + second["count"]
    if "class_counts" in first and "class_counts" in second:
        longer = max(len(first["class_counts"]), len(second["class_counts"]))
        padded = [one["class_counts"] + [0] * (longer - len(one["class_counts"])) for one in (first, second)]
        return {"count": count, "class_counts": [a + b for a, b in zip(*padded, strict=True)]}
    result: dict[str, Any] = {"count": count}
    for key, choose in (("min", min), ("max", max)):
        known = [one[key] for one in (first, second) if one.get(key) is not None]
        result[key] = choose(known) if known else None
    moments: list[tuple[int, Any, Any]] = [
        (one["count"], one.get("mean"), one.get("std")) for one in (first, second)
    ]
    if count and all(mean is not None and std is not None for _, mean, std in moments):
        (n1, mean1, std1), (n2, mean2, std2) = moments
        mean = (n1 * mean1 + n2 * mean2) / count
        squares = n1 * (std1**2 + (mean1 - mean) ** 2) + n2 * (std2**2 + (mean2 - mean) ** 2)
        result |= {"mean": mean, "std": math.sqrt(squares / count)}
    else:
        result |= {"mean": None, "std": None}
    if first.get("nonfinite", 0) + second.get("nonfinite", 0):
        result["nonfinite"] = first.get("nonfinite", 0) + second.get("nonfinite", 0)
    return result


def is_countable(one: Field) -> bool:
    """Whether a field may hold class numbers: a scalar integer (or boolean) target."""
    return one.role == "target" and not one.ragged and one.shape == () and np.dtype(one.dtype).kind in "iub"
