"""Metrics with 95 % intervals: numpy only, pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""

RESAMPLES = 1000
"""Bootstrap resamples; fewer only where n is so large that they would take more than `_MAX_DRAWS` draws."""

_MAX_DRAWS = 200_000_000
_MIN_RESAMPLES = 200
_CHUNK_DRAWS = 4_000_000
_MAX_CLASSES_F1 = 64
_SMALLEST_PROBABILITY = 1e-15


@dataclass(frozen=True)
class Metric:
    """A value and its 95 % interval.

    Attributes:
        value: The estimate; NaN is never stored, see `None` below.
        low: Lower end, or None where no interval is given.
        high: Upper end, or None.
        method: How the interval was made: `wilson`, `normal`, `bootstrap-1000`, or empty.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def fixed(self, digits: int = 3) -> str:
        """The value and interval with a fixed number of digits after the point."""
        text = f"{self.value:.{digits}f}"
        return text if self.low is None else f"{text} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_json(self) -> dict[str, Any]:
        """As in a JSON file."""
        if self.low is None:
            return {"value": self.value}
        return {"value": self.value, "low": self.low, "high": self.high, "method": self.method}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Metric:
        """From a JSON file."""
        return cls(raw["value"], raw.get("low"), raw.get("high"), raw.get("method", ""))


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927) 209-212; recommended by Brown, Cai, DasGupta, Interval estimation for a binomial proportion,
    Statistical Science 16 (2001) 101-133, for its coverage also near 0 and 1.

    Args:
        successes: 0 to n.
        n: At least 1.
        z: Normal quantile.
    """
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n an end is exactly 0 or 1; rounding must not put the value outside of its interval.
    low = 0.0 if successes == 0 else max(0.0, float(middle - half))
    high = 1.0 if successes == n else min(1.0, float(middle + half))
    return low, high


def proportion(successes: int, n: int) -> Metric | None:
    """A proportion with its Wilson interval, or None for "of nothing"."""
    if n == 0:
        return None
    low, high = wilson(successes, n)
    return Metric(successes / n, low, high, "wilson")


def mean_metric(total: float, total_squares: float, n: int) -> Metric:
    """A mean with its normal interval (central limit theorem), from the sums of values and of squares."""
    mean = total / n
    if n < 2:
        return Metric(mean)
    variance = max(0.0, total_squares - n * mean * mean) / (n - 1)
    half = Z95 * float(np.sqrt(variance / n))
    return Metric(mean, mean - half, mean + half, "normal")


def ratio_metric(
    total: float, count: float, squares: float, products: float, count_squares: float, *, n: int
) -> Metric:
    """A mean over values that are unequally many in each sample, with its normal interval.

    The samples are what is drawn, so the interval is that of a ratio of two means (the delta method: Cochran,
    "Sampling Techniques", 1977, chapter 6); with one value a sample that of a mean.

    Args:
        total: Sum over samples of the sums of their values.
        count: Sum of the numbers of values.
        squares: Sum of the squares of the sums.
        products: Sum of sums times numbers.
        count_squares: Sum of the squares of the numbers.
        n: Samples.

    Raises:
        DataError: There is no value.
    """
    if not count:
        raise DataError("the dataset has no value that a metric could be of")
    mean = total / count
    if n < 2:
        return Metric(mean)
    residues = max(0.0, squares - 2 * mean * products + mean * mean * count_squares)
    half = Z95 * float(np.sqrt(n / (n - 1) * residues)) / count
    return Metric(mean, mean - half, mean + half, "normal")


def confusion_matrix(targets: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts (classes, classes): row the true class, column the predicted one."""
    counts = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def log_losses(probabilities: Floats, targets: Ints) -> Floats:
    """`-ln p(true class)` of each sample, (n,); probabilities below 1e-15 count as 1e-15.

    Args:
        probabilities: (n, classes).
        targets: (n,) in 0 .. classes - 1.
    """
    chosen = probabilities[np.arange(len(targets)), targets]
    losses: Floats = -np.log(np.clip(chosen, _SMALLEST_PROBABILITY, 1.0))
    return losses


def f1_scores(confusion: NDArray[Any]) -> Floats:
    """F1 of each class, (..., classes), of confusion matrices (..., classes, classes); NaN where undefined."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    scores: Floats = np.divide(2 * hits, both, out=np.full(hits.shape, np.nan), where=both > 0)
    return scores


def f1_metrics(confusion: Ints, seed: int = 0) -> tuple[list[Metric | None], Metric]:
    """F1 of each class, and their mean (macro F1), with percentile bootstrap intervals.

    Resampling n samples with replacement and counting them is one draw of a multinomial distribution over
    the cells of the matrix, so that the samples themselves are not needed. With more than 64 classes there
    are no intervals.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        confusion: (classes, classes).
        seed: Of the resampling.
    """
    scores = f1_scores(confusion)
    macro = float(np.nanmean(scores))
    classes, n = len(confusion), int(confusion.sum())
    if classes > _MAX_CLASSES_F1:
        return [_defined(score) for score in scores], Metric(macro)
    rng = np.random.default_rng(seed)
    cells = rng.multinomial(n, confusion.ravel() / n, size=RESAMPLES).reshape(RESAMPLES, classes, classes)
    drawn = f1_scores(cells)
    method = f"bootstrap-{RESAMPLES}"
    rows: list[Metric | None] = []
    for index, score in enumerate(scores):
        values = drawn[:, index][~np.isnan(drawn[:, index])]
        rows.append(None if np.isnan(score) else Metric(float(score), *_percentiles(values), method))
    return rows, Metric(macro, *_percentiles(np.nanmean(drawn, axis=1)), method)


def regression_metrics(targets: Floats, values: Floats, seed: int = 0) -> dict[str, Metric]:
    """Mean squared error, mean absolute error and R² with percentile bootstrap intervals.

    Several outputs a sample count together: errors are averaged over them, R² is that of all of them, each
    about its own mean. R² is left out where the targets do not vary. The number of resamples stands in
    `method`: 1000, less (200 at least) where n is above 200,000.

    Args:
        targets: (n, outputs).
        values: (n, outputs).
        seed: Of the resampling.
    """
    n = len(targets)
    errors = targets - values
    squares, absolutes = (errors**2).mean(axis=1), np.abs(errors).mean(axis=1)
    centred = targets - targets.mean(axis=0)
    # What a resample's R² needs of a sample: sums of these are enough.
    columns = np.column_stack([squares, absolutes, (centred**2).sum(axis=1), centred])
    resamples = resamples_of(n)
    drawn = _resampled_sums(columns, resamples, np.random.default_rng(seed))
    whole = _regression_values(columns.sum(axis=0)[None], n)
    many = _regression_values(drawn, n)
    found = {}
    for name, value in whole.items():
        if np.isnan(value[0]):
            continue
        defined = many[name][~np.isnan(many[name])]
        found[name] = Metric(float(value[0]), *_percentiles(defined), f"bootstrap-{resamples}")
    return found


def _regression_values(sums: Floats, n: int) -> dict[str, Floats]:
    """MSE, MAE and R² (r,) from sums (r, 3 + outputs) over n samples each."""
    outputs = sums.shape[1] - 3
    mse = sums[:, 0] / n
    spread = sums[:, 2] - (sums[:, 3:] ** 2).sum(axis=1) / n
    enough = spread > 1e-12 * np.maximum(sums[:, 2], np.finfo(float).tiny)
    r2 = np.full(len(sums), np.nan)
    np.divide(mse * n * outputs, spread, out=r2, where=enough)
    return {"mse": mse, "mae": sums[:, 1] / n, "r2": 1 - r2}


def resamples_of(n: int) -> int:
    """Resamples of n samples: 1000, less (200 at least) where n is above 200,000."""
    return max(_MIN_RESAMPLES, min(RESAMPLES, _MAX_DRAWS // n))


class Resampling:
    """Draws of n samples out of n, with replacement.

    Args:
        n: Samples.
        seed: Of the drawing.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n, self.times = n, resamples_of(n)
        self._rng = np.random.default_rng(seed)

    @property
    def method(self) -> str:
        """How an interval made of it is called."""
        return f"bootstrap-{self.times}"

    def each(self) -> Iterator[Ints]:
        """The samples (n,) of each draw."""
        for _ in range(self.times):
            yield self._rng.integers(0, self.n, size=self.n)

    def sums(self, columns: Floats) -> Floats:
        """Sums (times, k) over the rows (n, k) of each draw."""
        return _resampled_sums(columns, self.times, self._rng)


def _resampled_sums(columns: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Sums (resamples, columns) over n rows drawn with replacement, in chunks that fit in memory."""
    n, width = columns.shape
    at_once = max(1, _CHUNK_DRAWS // (n * width))
    sums = np.empty((resamples, width))
    for start in range(0, resamples, at_once):
        stop = min(resamples, start + at_once)
        sums[start:stop] = columns[rng.integers(0, n, size=(stop - start, n))].sum(axis=1)
    return sums


def _percentiles(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _defined(score: float) -> Metric | None:
    return None if np.isnan(score) else Metric(float(score))
