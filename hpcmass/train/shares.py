"""How many samples of a global batch each rank takes, where slow and fast ranks share one.

All functions are pure and work on what every rank knows alike, so all ranks come to the same shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcmass.train.pace import Row, samples_a_step, usual_own_s

LEAST, MOST = 0.25, 2.0
"""Limits of a rank's share, in equal shares: a slow rank still takes part, and memory is not to run out."""
_WORTH = 0.05  # of its share: less is noise
_FOLLOWS = 0.5  # of the way to what was measured: what it costs to begin a step is no matter of samples
_FINE = 1 << 16  # shares are multiples of 1/this, so that rounding is the same everywhere


def equal_shares(size: int) -> tuple[int, ...]:
    """Where the parts of all ranks end, in 1/65536 of a global batch."""
    return tuple(_FINE * (rank + 1) // size for rank in range(size))


def part_of(n: int, rank: int, ends: Sequence[int]) -> tuple[int, int]:
    """A rank's part [low, high) of `n` samples.

    Args:
        n: Samples of a global batch.
        rank: Whose part.
        ends: Of `equal_shares` or `measured_shares`.
    """
    low = 0 if rank == 0 else n * ends[rank - 1] // _FINE
    return low, n * ends[rank] // _FINE


def fractions(ends: Sequence[int]) -> list[float]:
    """Each rank's share of a global batch; their sum is 1."""
    return [(end - begin) / _FINE for begin, end in zip((0, *ends), ends, strict=False)]


def measured_shares(rows: Row, ends: Sequence[int]) -> tuple[int, ...] | None:
    """Shares by which all ranks' own work would take as long; None where that is no matter.

    A rank's speed is samples a second of its own work (input and compute, not what it waits for others), of
    the median step. Its share goes half the way there, so that one odd measurement is half forgotten.

    Args:
        rows: `Pace.row` of every rank, shape (ranks, `pace.WIDTH`).
        ends: The present shares.

    Returns:
        The new ends; None to keep the present ones.
    """
    size = len(ends)
    own, samples = usual_own_s(rows), samples_a_step(rows)
    if size < 2 or not (own > 0).all() or not (samples > 0).all():
        return None
    speed = samples / own
    now = fractions(ends)
    wanted = (speed / speed.sum()).tolist()
    moved = [old + _FOLLOWS * (new - old) for old, new in zip(now, wanted, strict=True)]
    limited = _limited(moved)
    if all(abs(new - old) <= _WORTH * old for new, old in zip(limited, now, strict=True)):
        return None
    found, total = [], 0.0
    for share in limited:
        total += share
        found.append(round(_FINE * total))
    found[-1] = _FINE
    return tuple(found)


def _limited(shares: Sequence[float]) -> list[float]:
    """The shares within their limits, else in proportion: min(max(scale * share, least), most), of sum 1."""
    low, high = LEAST / len(shares), MOST / len(shares)

    def at(scale: float) -> list[float]:
        return [min(max(scale * share, low), high) for share in shares]

    below, above = 0.0, high / min(shares)
    for _ in range(60):  # the sum grows with the scale
        middle = (below + above) / 2
        below, above = (middle, above) if sum(at(middle)) < 1 else (below, middle)
    return at(above)
