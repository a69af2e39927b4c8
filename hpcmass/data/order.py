"""The sample order: a pure function of (kind, n, seed, epoch, position), never of the number of ranks.

`Order` is the seam: positions 0 … n-1 of an epoch in, sample ids out, any of them at once and with no table
of an epoch. This module has the two plain kinds; `hpcmass.data.blocks` and `hpcmass.data.strata` have the
others, and `hpcmass.data.orders.make_order` makes any. See docs/order.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from hpcmass.data.feistel import Ids, Permutation

__all__ = ["FORMAT", "KINDS", "Ids", "Order", "PlainOrder", "epoch_ids", "permutation", "rank_slice"]

KINDS = ("sequential", "global")

# Raised whenever a kind gives other ids for the same settings. 1: the network of powers of two, never released.
FORMAT = 2

_permutations = lru_cache(maxsize=64)(Permutation)


class Order(Protocol):
    """Which sample stands at which position of which epoch; the same on every rank and machine."""

    @property
    def n(self) -> int:
        """Positions of an epoch."""

    def ids(self, epoch: int, start: int, stop: int) -> Ids:
        """The sample ids at positions `start` to `stop` of one epoch.

        Returns:
            int64 array of shape (stop - start,).

        Raises:
            ValueError: Positions outside 0 … n.
        """

    def to_json(self) -> dict[str, Any]:
        """What the ids depend on, as JSON values: two orders are the same exactly if these are equal."""

    def describe(self) -> str:
        """One line for people: the kind, its sizes and how well it mixes."""


class PlainOrder:
    """`sequential` or `global`: the whole data set, as it lies or in a random permutation an epoch."""

    def __init__(self, kind: str, n: int, seed: int, *, key: str | None = None) -> None:
        """Make one.

        Args:
            kind: `sequential` or `global`.
            n: Samples in the data set.
            seed: Seed of the order.
            key: Stands for the seed where the order is one of several of a run.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown order {kind!r}: choose from {', '.join(KINDS)}")
        self.kind, self.n, self.seed = kind, n, seed
        self._key = str(seed) if key is None else key

    def ids(self, epoch: int, start: int, stop: int) -> Ids:
        """See `Order`."""
        check_range(self.n, start, stop)
        if self.kind == "sequential":
            return np.arange(start, stop, dtype=np.int64)
        return permutation(self.n, f"epoch/{self._key}/{epoch}", start, stop)

    def to_json(self) -> dict[str, Any]:
        """See `Order`."""
        seed = {} if self.kind == "sequential" else {"seed": self.seed}
        return {"format": FORMAT, "kind": self.kind, "n": self.n, **seed}

    def describe(self) -> str:
        """See `Order`."""
        if self.kind == "sequential":
            return f"sequential: {self.n} samples as they lie, the same every epoch"
        return f"global: a random permutation of all {self.n} samples, another every epoch"


def epoch_ids(kind: str, n: int, seed: int, epoch: int, start: int, stop: int) -> Ids:
    """The sample ids at positions `start` to `stop` of one epoch of a plain order.

    Args:
        kind: `sequential` (0, 1, 2 …) or `global` (a random permutation of all samples).
        n: Samples in the dataset.
        seed: Seed of the order.
        epoch: Number of the epoch; every epoch has its own permutation.
        start: First position, 0 at least.
        stop: End position (not included), `n` at most.

    Returns:
        int64 array of shape (stop - start,).

    Raises:
        ValueError: An unknown kind, or positions outside 0 … n.
    """
    return PlainOrder(kind, n, seed).ids(epoch, start, stop)


def permutation(n: int, key: str, start: int, stop: int) -> Ids:
    """Images of `start` … `stop` - 1 under the pseudo-random permutation of 0 … n-1 that `key` names.

    Returns:
        int64 array of shape (stop - start,).

    Raises:
        ValueError: Positions outside 0 … n.
    """
    return _permutations(n, key).range(start, stop)


def rank_slice(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    """The contiguous part of positions `start` … `stop` that is `rank`'s of `size`.

    Sizes differ by one at most, the first ranks having the larger ones; with fewer positions than ranks
    the last ranks have none.

    Raises:
        ValueError: `rank` is not within 0 … size-1, or `stop` lies before `start`.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not within 0 … {size - 1}")
    if stop < start:
        raise ValueError(f"the range {start} … {stop} ends before it starts")
    base, larger = divmod(stop - start, size)
    low = start + rank * base + min(rank, larger)
    return low, low + base + (1 if rank < larger else 0)


def check_range(n: int, start: int, stop: int) -> None:
    """Refuse positions outside 0 … n.

    Raises:
        ValueError: They are.
    """
    if not 0 <= start <= stop <= n:
        raise ValueError(f"positions {start} … {stop} are not within 0 … {n}")
