"""Whether a version on trial is worse than the one that stands: two tests, looked at again and again. Pure.

Errors: Fisher's exact test, one-sided, that the trial's share of errors is the higher one. Latency: the
Mann–Whitney test, one-sided, with the correction for ties (latencies are known by buckets 12 % apart), that
the trial's answers take longer; it counts only where a random answer of the trial is slower than a random
one of the other with probability `WORSE` or more, and the median is at least a bucket higher, so that a
difference too small to matter ends no trial however many answers there are.

Looked at k times, the k-th look has the level ALPHA / (k (k + 1)), for each of the two tests half of it: the
sum over all looks is ALPHA: a trial as good as the other is ended with probability ALPHA at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.01
WORSE = 0.6
_LEAST = 20  # answers of the trial before it is judged


@dataclass(frozen=True)
class Seen:
    """Answers of one version since the trial began: counts by latency, and errors."""

    latency: Sequence[int]
    errors: int

    @property
    def answers(self) -> int:
        """All of them, errors too."""
        return sum(self.latency) + self.errors


def worse(stable: Seen, trial: Seen, look: int) -> str | None:
    """Why the trial is significantly worse, in words; None where it is not, or too little is known.

    Args:
        stable: The version that stands.
        trial: The one on trial.
        look: The how-manyth look it is, from 1.
    """
    if trial.answers < _LEAST:
        return None
    level = ALPHA / (2 * look * (look + 1))
    p = fisher(trial.errors, trial.answers, stable.errors, max(1, stable.answers))
    if p < level:
        return (
            f"errors: {trial.errors} of {trial.answers}, the other {stable.errors} of {stable.answers} "
            f"(Fisher p = {p:.2g})"
        )
    if sum(trial.latency) < _LEAST or sum(stable.latency) < _LEAST:
        return None
    p, superior = mann_whitney(trial.latency, stable.latency)
    if p < level and superior >= WORSE and _median(trial.latency) > _median(stable.latency):
        return f"latency: slower in {superior:.0%} of pairs (Mann–Whitney p = {p:.2g})"
    return None


def fisher(errors: int, of: int, other_errors: int, other_of: int) -> float:
    """P(at least `errors` of `of`) where both have one share of errors, given their sum; one-sided."""
    both, total = errors + other_errors, of + other_of
    whole = _choose(total, both)
    top = min(both, of)
    return min(
        1.0,
        sum(
            math.exp(_choose(of, one) + _choose(other_of, both - one) - whole)
            for one in range(errors, top + 1)
            if both - one <= other_of
        ),
    )


def mann_whitney(trial: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
    """One-sided p that the first is larger, and the probability that a random one of it is, ties half."""
    n, m = sum(trial), sum(other)
    below, wins, ties = 0, 0.0, 0.0
    for a, b in zip(trial, other, strict=True):
        wins += a * (below + b / 2)
        below += b
        ties += (a + b) ** 3 - (a + b)
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    superior = wins / (n * m)
    if variance <= 0:
        return 1.0, superior
    z = (wins - n * m / 2 - 0.5) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2)), superior


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _median(counts: Sequence[int]) -> int:
    left = sum(counts) / 2
    for place, count in enumerate(counts):
        left -= count
        if left <= 0 and count:
            return place
    return 0
