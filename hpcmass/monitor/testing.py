"""The tests behind a verdict of drift, on counts by bin and moments: pure, and each with its p-value.

Samples are not independent: what is asked now resembles what was asked a minute ago. So the number of samples
is replaced by an effective one, out of how much neighbouring blocks of time differ against what chance allows;
neighbours, so that the rhythm of a day, which training data have too, does not count as noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcmass.monitor.sketch import Floats, Sketch

PSI_BINS = 10
_LEAST = 5.0  # samples of the reference in a bin of PSI


@dataclass(frozen=True)
class Blocks:
    """One feature over blocks of time, weighed by how much was asked in each.

    Attributes:
        shares: Of each bin, (k,).
        mean: Over all.
        variance: Within blocks.
        missing: Share of missing values.
        n: Samples, as far as unequal weights leave them.
        deff: By how much less they tell, seen from the bins; 1: they are independent.
        mean_deff: Likewise, seen from the means.
        freedom: Degrees of freedom of `mean_deff`.
    """

    shares: Floats
    mean: float
    variance: float
    missing: float
    n: float
    deff: float
    mean_deff: float
    freedom: float


def pool(blocks: Sequence[tuple[float, Sketch]]) -> Blocks | None:
    """Put blocks together, in the order of time; None where there is nothing to go by.

    Args:
        blocks: Weight (requests) and statistics of each.
    """
    kept = [(weight, one) for weight, one in blocks if weight > 0 and one.count]
    if not kept:
        return None
    weights = np.array([weight for weight, _ in kept])
    weights /= weights.sum()
    counts = np.array([one.count for _, one in kept], np.float64)
    bins = np.array([one.bins / max(one.count, 1) for _, one in kept])
    means = np.array([one.mean for _, one in kept])
    variances = np.array([one.variance for _, one in kept])
    shares, mean, variance = weights @ bins, float(weights @ means), float(weights @ variances)
    missing = float(weights @ np.array([one.missing / one.total for _, one in kept]))
    n = 1.0 / float((weights**2 / counts).sum())
    deff = mean_deff = 1.0
    freedom = max(1.0, (len(kept) - 1) * 2 / 3)
    if len(kept) > 1:
        chance = 1 / counts[1:] + 1 / counts[:-1]
        each = float((shares * (1 - shares)).sum())
        if each > 0:
            deff = float((np.diff(bins, axis=0) ** 2).sum(axis=1) @ (1 / chance)) / (each * len(chance))
        if variance > 0:
            mean_deff = float((np.diff(means) ** 2 / chance).mean()) / variance
    return Blocks(shares, mean, variance, missing, n, _sure(deff, freedom), _sure(mean_deff, freedom), freedom)


def _sure(deff: float, freedom: float) -> float:
    """A design effect, taken as 1 where chance explains it, and else by its upper side."""
    error = math.sqrt(2 / freedom)
    return 1.0 if deff <= 1 + 2 * error else deff * (1 + error)


@dataclass(frozen=True)
class Result:
    """What a test says.

    Attributes:
        test: `ks`, `psi`, `mean`, `missing` or `class`.
        p: The chance of this much difference without drift.
        effect: The size of the difference, in the test's own measure.
        n: The effective number of samples behind it.
    """

    test: str
    p: float
    effect: float
    n: float


def run_tests(reference: Sketch, seen: Blocks, *, classes: bool) -> list[Result]:
    """All tests of a feature.

    Args:
        reference: Of the training data.
        seen: Of what was asked or answered.
        classes: The bins are class numbers, without order.
    """
    results = []
    if reference.bins.size == seen.shares.size and reference.bins.sum():
        shares = reference.bins / reference.bins.sum()
        if classes:
            results.append(_psi("class", reference, shares, seen, grouped=False))
        else:
            results += [_ks(reference, shares, seen), _psi("psi", reference, shares, seen, grouped=True)]
    if not classes and reference.variance > 0 and math.isfinite(seen.mean):
        results.append(_mean(reference, seen))
    results.append(_missing(reference, seen))
    return results


def _both(n: float, m: float) -> float:
    return n * m / (n + m)


def _ks(reference: Sketch, shares: Floats, seen: Blocks) -> Result:
    from scipy.special import kolmogorov

    distance = float(np.abs(np.cumsum(shares - seen.shares)).max())
    n = _both(seen.n / seen.deff, reference.count)
    return Result("ks", float(kolmogorov(math.sqrt(n) * distance)), distance, n)


def _psi(test: str, reference: Sketch, shares: Floats, seen: Blocks, *, grouped: bool) -> Result:
    """Population stability index; as n m / (n + m) times it has a chi-squared distribution without drift."""
    from scipy.special import chdtrc

    live = max(seen.n / seen.deff, 1.0)
    n = _both(live, reference.count)
    least = max(_LEAST / live, _LEAST / reference.count, 0.5 / PSI_BINS if grouped else 0.0)
    pairs = _joined(shares, seen.shares, least) if grouped else _rare(shares, seen.shares, least)
    # Half a sample more in each bin: an empty one has no logarithm.
    p = (pairs[0] * reference.count + 0.5) / (reference.count + 0.5 * pairs[0].size)
    q = (pairs[1] * live + 0.5) / (live + 0.5 * pairs[1].size)
    value = float(((q - p) * np.log(q / p)).sum())
    freedom = pairs[0].size - 1
    # PSI has heavier tails than Pearson's measure where bins are small: the p-value is the latter's.
    pearson = float(((pairs[1] - pairs[0]) ** 2 / np.maximum((pairs[0] * reference.count + pairs[1] * live)
                    / (reference.count + live), 1e-12)).sum())  # fmt: skip
    return Result(test, float(chdtrc(freedom, n * pearson)) if freedom > 0 else 1.0, value, n)


def _joined(p: Floats, q: Floats, least: float) -> tuple[Floats, Floats]:
    """Neighbouring bins put together until each has its share of the reference."""
    groups, have = [0], 0.0
    for number, share in enumerate(p[:-1]):
        have += float(share)
        if have >= least:
            groups.append(number + 1)
            have = 0.0
    if len(groups) > 1 and float(p[groups[-1] :].sum()) < least:
        groups.pop()
    return np.add.reduceat(p, groups), np.add.reduceat(q, groups)


def _rare(p: Floats, q: Floats, least: float) -> tuple[Floats, Floats]:
    """Classes, all rare ones as one."""
    rare = p < least
    if not rare.any():
        return p, q
    return np.append(p[~rare], p[rare].sum()), np.append(q[~rare], q[rare].sum())


def _mean(reference: Sketch, seen: Blocks) -> Result:
    from scipy.special import stdtr

    n = seen.n / seen.mean_deff
    error = math.sqrt(max(seen.variance, 1e-300) / n + reference.variance / reference.count)
    t = (seen.mean - reference.mean) / error
    freedom = seen.freedom if seen.mean_deff > 1 else n
    effect = abs(seen.mean - reference.mean) / math.sqrt(reference.variance)
    return Result("mean", min(1.0, 2 * float(stdtr(freedom, -abs(t)))), effect, n)


def _missing(reference: Sketch, seen: Blocks) -> Result:
    """Whether more is missing than was: given how many are missing in all, how many of them are ours."""
    from scipy.special import betainc

    n = seen.n / seen.deff
    ours, theirs = seen.missing * n, float(reference.missing)
    more = seen.missing - reference.missing / max(reference.total, 1)
    if ours <= 0 or more <= 0:
        return Result("missing", 1.0, max(more, 0.0), n)
    return Result("missing", float(betainc(ours, theirs + 1.0, n / (n + max(reference.total, 1)))), more, n)
