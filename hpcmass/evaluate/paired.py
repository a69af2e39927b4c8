"""Is one model better than another? Both on the same samples, so that what is hard for both cancels out. Pure.

Sources: Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
Psychometrika 12 (1947), in its exact, binomial form; B. Efron, R. Tibshirani, An Introduction to the Bootstrap
(1993), chapters 13 and 16, for the mean difference of pairs; T. Dietterich, Approximate statistical tests for
comparing supervised classification learning algorithms, Neural Computation 10 (1998), for McNemar's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.errors import DataError
from hpcmass.evaluate.metrics import Floats, Resampling
from hpcmass.evaluate.scores import Scores

SIGNIFICANT = 0.05
_EXACT_UP_TO = 10_000
_HIGHER_IS_BETTER = {"accuracy"}
_LOWER_IS_BETTER = {"log_loss", "brier", "mse", "mae", "loss"}


@dataclass(frozen=True)
class Difference:
    """A metric of this model minus that of the other one.

    Attributes:
        value: The mean difference.
        low: Lower end of its 95 % interval (paired bootstrap).
        high: Upper end.
        p: Two-sided probability of so large a difference where there is none, by `test`.
        test: `mcnemar` or `bootstrap-1000`.
        only_this: Of accuracy: samples that this model alone had right; None else.
        only_other: Samples that the other one alone had right.
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    only_this: int | None = None
    only_other: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a JSON file."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Difference:
        """From a JSON file."""
        found = {name: raw.get(name) for name in ("only_this", "only_other")}
        return cls(raw["value"], raw["low"], raw["high"], raw["p"], raw["test"], **found)


@dataclass(frozen=True)
class Paired:
    """A model against another one, on the same samples.

    Attributes:
        against: The other one, such as `mnist@2`.
        n: Samples.
        differences: By metric.
    """

    against: str
    n: int
    differences: dict[str, Difference]

    def verdict(self, metric: str) -> str:
        """`better`, `worse`, `higher`, `lower` (where nobody says what is good), or `no difference seen`."""
        one = self.differences[metric]
        if one.p >= SIGNIFICANT or one.value == 0:
            return "no difference seen"
        higher = one.value > 0
        if metric in _HIGHER_IS_BETTER | _LOWER_IS_BETTER:
            return "better" if higher == (metric in _HIGHER_IS_BETTER) else "worse"
        return "higher" if higher else "lower"

    def to_json(self) -> dict[str, Any]:
        """As in a JSON file."""
        differences = {name: one.to_json() for name, one in self.differences.items()}
        return {"against": self.against, "n": self.n, "differences": differences}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Paired:
        """From a JSON file."""
        differences = {name: Difference.from_json(one) for name, one in raw["differences"].items()}
        return cls(raw["against"], raw["n"], differences)


def compare_paired(this: Scores, other: Scores, against: str, *, seed: int = 0) -> Paired:
    """Hold a model's samples against another's.

    Metrics that are no means over samples (macro F1, R², calibration error) are not; R² differs as `mse`.

    Args:
        this: Of the model in question.
        other: Of the other one, on the same dataset.
        against: What the other one is called.
        seed: Of the resampling.

    Raises:
        DataError: They are not of the same samples, or have no metric in common.
    """
    if (this.dataset, this.n) != (other.dataset, other.n):
        raise DataError("two models can only be compared on the same samples")
    common = [name for name in this.values if name in other.values]
    if not common:
        raise DataError(
            f"the models have no metric in common: {', '.join(this.values)}; {', '.join(other.values)}"
        )
    made = {name: _difference(name, this.values[name], other.values[name], seed) for name in common}
    return Paired(against, this.n, made)


def mcnemar(only_this: int, only_other: int) -> float:
    """Two-sided probability of so uneven a split of the samples that one of two models alone had right.

    Exact (binomial) up to 10,000 such samples, above by the normal distribution with continuity correction.
    """
    n, less = only_this + only_other, min(only_this, only_other)
    if n == 0:
        return 1.0
    if n > _EXACT_UP_TO:
        return math.erfc(max(0, n - 2 * less - 1) / math.sqrt(2 * n))
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = (math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(less + 1))
    return min(1.0, 2 * sum(tail))


def _difference(name: str, this: Floats, other: Floats, seed: int) -> Difference:
    if this.shape != other.shape:
        raise DataError(f"the models measure {name} in different ways")
    n, drawing = len(this), Resampling(len(this), seed)
    if this.ndim == 2:  # sums over values, and of how many
        sums = drawing.sums(np.column_stack([this, other]))
        drawn = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
        value = this[:, 0].sum() / this[:, 1].sum() - other[:, 0].sum() / other[:, 1].sum()
    elif name == "accuracy":
        here, there = int(((this == 1) & (other == 0)).sum()), int(((this == 0) & (other == 1)).sum())
        # Differences are -1, 0 or 1: a resample is one draw of how many there are of each.
        shares = np.array([here, there, n - here - there]) / n
        cells = np.random.default_rng(seed).multinomial(n, shares, size=drawing.times)
        low, high = np.percentile((cells[:, 0] - cells[:, 1]) / n, [2.5, 97.5])
        p = mcnemar(here, there)
        return Difference((here - there) / n, float(low), float(high), p, "mcnemar", here, there)
    else:
        drawn = drawing.sums((this - other)[:, None])[:, 0] / n
        value = (this - other).mean()
    low, high = np.percentile(drawn, [2.5, 97.5])
    less, more = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p = min(1.0, 2 * (min(less, more) + 1) / (len(drawn) + 1))
    return Difference(float(value), float(low), float(high), p, drawing.method)
