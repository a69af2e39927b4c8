"""Whether probabilities mean what they say: reliability, expected calibration error, Brier score. Pure.

Sources: G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78
(1950); Guo, Pleiss, Sun, Weinberger, On calibration of modern neural networks, ICML 2017 (15 bins of equal
width, of the probability of the class that was said).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.evaluate.metrics import Floats, Metric, Resampling, wilson

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose class was said with a probability in one range.

    Attributes:
        low: The range's lower end, not in it (but 0).
        high: Its upper end, in it.
        n: Samples.
        confidence: Their mean probability; None of nothing.
        accuracy: The share that was right, with its Wilson interval; None of nothing.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Metric | None

    def to_json(self) -> dict[str, Any]:
        """As in a JSON file."""
        accuracy = self.accuracy.to_json() if self.accuracy else None
        return {
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "confidence": self.confidence,
            "accuracy": accuracy,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ReliabilityBin:
        """From a JSON file."""
        accuracy = Metric.from_json(raw["accuracy"]) if raw["accuracy"] else None
        return cls(raw["low"], raw["high"], raw["n"], raw["confidence"], accuracy)


def brier_scores(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """Squared distance of the probabilities from what was true, summed over the classes: 0 to 2, (n,).

    Args:
        probabilities: (n, classes).
        targets: (n,) in 0 .. classes - 1.
    """
    chosen = probabilities[np.arange(len(targets)), targets]
    found: Floats = (probabilities**2).sum(axis=1) - chosen**2 + (1 - chosen) ** 2
    return found


def reliability(confidence: Floats, hits: NDArray[np.bool_], bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy in bins of equal width.

    Args:
        confidence: Probability of the class that was said, (n,).
        hits: Whether it was right, (n,).
        bins: How many bins.
    """
    places = _places(confidence, bins)
    counts = np.bincount(places, minlength=bins)
    sums, right = (np.bincount(places, weights=one, minlength=bins) for one in (confidence, hits))
    made = []
    for index in range(bins):
        n, hit = int(counts[index]), round(float(right[index]))
        accuracy = Metric(hit / n, *wilson(hit, n), "wilson") if n else None
        mean = float(sums[index] / n) if n else None
        made.append(ReliabilityBin(index / bins, (index + 1) / bins, n, mean, accuracy))
    return tuple(made)


def calibration_error(confidence: Floats, hits: NDArray[np.bool_], bins: int = BINS, seed: int = 0) -> Metric:
    """Expected calibration error: the mean distance of accuracy from confidence over the bins' samples.

    Noise in every bin adds to the value, and to that of a resample once more: so the interval is the basic one
    (A. Davison, D. Hinkley, Bootstrap Methods and their Application, 1997, chapter 5), which takes off what the
    resamples have more; at least 0, and around the value.

    Args:
        confidence: As for `reliability`.
        hits: As for `reliability`.
        bins: How many bins.
        seed: Of the resampling.
    """
    places, gaps = _places(confidence, bins), confidence - hits
    value = float(np.abs(np.bincount(places, weights=gaps, minlength=bins)).sum() / len(gaps))
    drawing = Resampling(len(gaps), seed)
    drawn = np.array(
        [
            np.abs(np.bincount(places[ids], weights=gaps[ids], minlength=bins)).sum() / len(gaps)
            for ids in drawing.each()
        ]
    )
    high, low = 2 * value - np.percentile(drawn, [2.5, 97.5])
    return Metric(value, max(0.0, min(float(low), value)), max(float(high), value), drawing.method)


def _places(confidence: Floats, bins: int) -> NDArray[np.int64]:
    places = np.ceil(confidence * bins).astype(np.int64) - 1
    clipped: NDArray[np.int64] = np.clip(places, 0, bins - 1)
    return clipped
