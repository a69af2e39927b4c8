"""Batches in fixed proportions: `stratified` by class, and mixtures of several data sets.

Both rest on one layout. The groups (classes, or data sets) have `counts` samples an epoch, n in all; a batch
of B takes B counts[c] / n of group c, rounded down or up, never further. Which are rounded up: the remainders
of all groups are laid end to end on a line, and a batch takes the groups at the points u, u + n, u + 2n …: as
many as are missing, and none twice, for a remainder is shorter than n. u goes through K equal parts of n, K
being the number of batches, in steps of the golden ratio; so every group gets exactly its count in an epoch,
spread evenly over it. It is arithmetic with whole numbers, so any batch can be worked out by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.feistel import Ids, permute_each
from hpcmass.data.order import FORMAT, Order, check_range

_AT_ONCE = 1 << 16
_GOLDEN = (math.sqrt(5) - 1) / 2
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64


class Strata:
    """Which group stands at which place of a batch, and how many of the group stood before.

    Attributes:
        n: Positions of an epoch, the sum of `counts`.
        batches: Whole batches; what is left over is a shorter one at the end.
    """

    def __init__(self, counts: npt.ArrayLike, batch: int) -> None:
        """Lay out an epoch.

        Args:
            counts: Samples an epoch of each group, shape (groups,).
            batch: Samples of a global batch.
        """
        self.counts = np.asarray(counts, np.int64)
        self.n, self.batch = int(self.counts.sum()), batch
        self.batches = self.n // batch
        if self.n * max(self.batches, batch) >= 1 << 62:
            raise ValueError(f"{self.n} positions in batches of {batch} are too many for this order")
        if not self.batches:
            return
        self.floors = batch * self.counts // self.n
        fractions = batch * self.counts % self.n
        self._line = np.concatenate([[0], np.cumsum(fractions)])
        self.extras = int(self._line[-1]) // self.n
        # Steps (of the K) whose points fall into each group's part of the line: a range modulo K.
        ends = (
            -(-self._line * self.batches // self.n)
            if self.n * self.batches * (self.extras + 1) < 1 << 62
            else None
        )
        if ends is None:
            ends = np.array([-(-int(end) * self.batches // self.n) for end in self._line], np.int64)
        self.first_step, self.ups = ends[:-1] % self.batches, np.diff(ends)
        self.step = max(1, round(self.batches * _GOLDEN))
        while math.gcd(self.step, self.batches) > 1:
            self.step += 1

    def steps(self, first: int, end: int, turn: int) -> Ids:
        """The step of batches `first` … `end`; `turn` is where the epoch begins."""
        return (np.arange(first, end, dtype=np.int64) * self.step + turn) % self.batches

    def ups_of(self, steps: Ids) -> Ids:
        """The groups that are rounded up in each batch: (batches, extras)."""
        points = (steps * self.n // self.batches)[:, None] + np.arange(self.extras, dtype=np.int64) * self.n
        return np.searchsorted(self._line, points, side="right").astype(np.int64) - 1

    def ups_before(self, group: int, batches: int, turn: int) -> int:
        """In how many of the first batches of an epoch a group is rounded up."""
        shift = (turn - int(self.first_step[group])) % self.batches
        above = shift - int(self.ups[group]) + self.batches
        step = self.step % self.batches
        return (
            _floor_sum(batches, self.batches, step, shift)
            - _floor_sum(batches, self.batches, step, above)
            + batches
        )


def _floor_sum(count: int, modulus: int, factor: int, offset: int) -> int:
    """Sum of floor((factor i + offset) / modulus) for i = 0 … count-1, as Euclid's algorithm goes."""
    total = 0
    while True:
        total += count * (count - 1) // 2 * (factor // modulus) + count * (offset // modulus)
        factor, offset = factor % modulus, offset % modulus
        last = factor * count + offset
        if last < modulus:
            return total
        count, offset, modulus, factor = last // modulus, last % modulus, factor, modulus


class _Batchwise:
    """The part that both orders share: batches laid out group by group, then shuffled within themselves."""

    def __init__(self, strata: Strata, seed: int) -> None:
        self.strata, self.seed = strata, seed

    @property
    def n(self) -> int:
        """See `hpcmass.data.order.Order`."""
        return self.strata.n

    @property
    def batch(self) -> int:
        """Samples of a global batch."""
        return self.strata.batch

    def ids(self, epoch: int, start: int, stop: int) -> Ids:
        """See `hpcmass.data.order.Order`."""
        check_range(self.n, start, stop)
        size, batches, parts = self.batch, self.strata.batches, []
        key = np.uint64(_number(f"shuffle/{self.seed}/{epoch}"))
        turn = _number(f"turn/{self.seed}/{epoch}") % max(1, batches)
        first, end = start // size, min(-(-stop // size), batches)
        at_once = max(1, _AT_ONCE // size)
        for low in range(first, end, at_once):
            high = min(low + at_once, end)
            items = self._whole(epoch, low, high, turn)
            parts.append(_shuffled(items, low * size, key)[max(0, start - low * size) : stop - low * size])
        if stop > batches * size:
            items, place = self._rest(epoch)[None], batches * size
            parts.append(_shuffled(items, place, key)[max(0, start - place) : stop - place])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _whole(self, epoch: int, first: int, end: int, turn: int) -> Ids:
        """Ids of whole batches, each in the order of its groups: (batches, batch)."""
        raise NotImplementedError

    def _rest(self, epoch: int) -> Ids:
        """Ids of the shorter batch at the end, in the order of its groups."""
        raise NotImplementedError


class StratifiedOrder(_Batchwise):
    """Every batch holds the classes in the proportions of the data set; a permutation of all samples."""

    def __init__(self, labels: npt.NDArray[Any], seed: int, *, batch: int, field: str) -> None:
        """Make one.

        Args:
            labels: Class of each sample, shape (n,), any integers.
            seed: Seed of the order.
            batch: Samples of a global batch.
            field: Where the labels are from, for `to_json`.
        """
        self.field = field
        self.classes, counts = np.unique(labels, return_counts=True)
        super().__init__(Strata(counts, batch), seed)
        narrow = np.int32 if len(labels) < 1 << 31 else np.int64
        self._members = np.argsort(labels, kind="stable").astype(narrow)
        self._offsets = np.cumsum(counts) - counts
        if self.strata.batches:
            self._template = np.repeat(np.arange(len(counts)), self.strata.floors)
            firsts = np.cumsum(self.strata.floors) - self.strata.floors
            self._within = np.arange(len(self._template)) - firsts[self._template]

    def _whole(self, epoch: int, first: int, end: int, turn: int) -> Ids:
        strata, numbers = self.strata, np.arange(first, end, dtype=np.int64)[:, None]
        steps = strata.steps(first, end, turn)
        ups = strata.ups_of(steps)
        beyond = (steps[:, None] - strata.first_step[ups]) % strata.batches
        plain = numbers * strata.floors[self._template] + self._within
        groups = np.concatenate([np.broadcast_to(self._template, plain.shape), ups], axis=1)
        places = np.concatenate([plain, strata.batches * strata.floors[ups] + beyond], axis=1)
        return self._samples(epoch, groups.reshape(-1), places.reshape(-1)).reshape(places.shape)

    def _rest(self, epoch: int) -> Ids:
        strata, used = self.strata, np.zeros_like(self.strata.counts)
        if strata.batches:
            used = strata.batches * strata.floors + strata.ups
        left = strata.counts - used
        groups = np.repeat(np.arange(len(left)), left)
        return self._samples(epoch, groups, np.arange(len(groups)) - (np.cumsum(left) - left - used)[groups])

    def _samples(self, epoch: int, groups: Ids, places: Ids) -> Ids:
        """Samples at places of their class's own permutation of this epoch."""
        counts = self.strata.counts[groups]
        images = permute_each(places, counts, groups, f"strata/{self.seed}/{epoch}")
        samples: Ids = self._members[self._offsets[groups] + images].astype(np.int64)
        return samples

    def to_json(self) -> dict[str, Any]:
        """See `hpcmass.data.order.Order`."""
        digest = hashlib.sha256(self._members.astype("<i8").tobytes()).hexdigest()
        return {
            "format": FORMAT, "kind": "stratified", "n": self.n, "seed": self.seed, "batch": self.batch,
            "field": self.field, "classes": len(self.classes), "labels_sha256": digest,
        }  # fmt: skip

    def describe(self) -> str:
        """See `hpcmass.data.order.Order`."""
        kept = self._members.nbytes / 1e6
        return (
            f"stratified: {self.n} samples, each batch of {self.batch} with the {len(self.classes)} classes of "
            f"{self.field!r} in the data set's proportions, rounded down or up; {kept:.1f} MB on every rank"
        )


class MixedOrder(_Batchwise):
    """Several data sets in fixed proportions, each gone through again and again, reshuffled each time.

    An epoch is `n` positions. Data set i gives `quotas[i]` of them and goes on in the next epoch where it
    stopped, so that each of its samples is used once before any is used again.
    """

    def __init__(
        self, children: Sequence[Order], names: Sequence[str], quotas: Sequence[int], seed: int, *, batch: int
    ) -> None:
        """Make one.

        Args:
            children: The order of each data set; their "epochs" are the passes through it.
            names: Names of the data sets.
            quotas: Samples an epoch that each gives.
            seed: Seed of the order.
            batch: Samples of a global batch.
        """
        super().__init__(Strata(quotas, batch), seed)
        self.children, self.names = list(children), list(names)
        sizes = np.array([child.n for child in children], np.int64)
        self._firsts = np.cumsum(sizes) - sizes

    def _whole(self, epoch: int, first: int, end: int, turn: int) -> Ids:
        strata = self.strata
        ups = strata.ups_of(strata.steps(first, end, turn))
        taken = np.broadcast_to(strata.floors, (end - first, len(self.children))).copy()
        np.add.at(taken, (np.arange(end - first)[:, None], ups), 1)
        bounds, slots = np.cumsum(taken, axis=1), np.arange(self.batch)
        out = np.empty((end - first, self.batch), np.int64)
        for group in range(len(self.children)):
            before = first * int(strata.floors[group]) + strata.ups_before(group, first, turn)
            mine = (slots < bounds[:, group, None]) & (slots >= (bounds - taken)[:, group, None])
            out[mine] = self._pass_ids(epoch, group, before, before + int(taken[:, group].sum()))
        return out

    def _rest(self, epoch: int) -> Ids:
        strata, parts = self.strata, []
        for group, quota in enumerate(strata.counts.tolist()):
            used = 0
            if strata.batches:
                used = strata.batches * int(strata.floors[group]) + int(strata.ups[group])
            parts.append(self._pass_ids(epoch, group, used, quota))
        return np.concatenate(parts)

    def _pass_ids(self, epoch: int, group: int, start: int, stop: int) -> Ids:
        """Ids `start` … `stop` of a data set's share of an epoch."""
        child, parts = self.children[group], [np.empty(0, np.int64)]
        before = epoch * int(self.strata.counts[group])
        at, end = before + start, before + stop
        while at < end:
            number, place = divmod(at, child.n)
            last = min(child.n, place + end - at)
            parts.append(child.ids(number, place, last) + self._firsts[group])
            at += last - place
        return np.concatenate(parts)

    def to_json(self) -> dict[str, Any]:
        """See `hpcmass.data.order.Order`."""
        members = [
            {"name": name, "quota": quota, "order": child.to_json()}
            for name, quota, child in zip(self.names, self.strata.counts.tolist(), self.children, strict=True)
        ]
        return {
            "format": FORMAT, "kind": "mix", "n": self.n, "seed": self.seed, "batch": self.batch, "of": members
        }  # fmt: skip

    def describe(self) -> str:
        """See `hpcmass.data.order.Order`."""
        said = []
        for name, quota, child in zip(self.names, self.strata.counts.tolist(), self.children, strict=True):
            said.append(f"{name} {quota} of {child.n} ({child.to_json()['kind']})")
        text = ", ".join(said)
        return f"mix: an epoch is {self.n} samples: {text}; each batch of {self.batch} in this proportion"


def _shuffled(items: Ids, start: int, key: np.uint64) -> Ids:
    """Each row in random order, by a hash of its positions, which begin at `start`; flat."""
    places = np.arange(start, start + items.size, dtype=np.uint64) ^ key
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        places ^= places >> np.uint64(shift)
        places *= factor
    places ^= places >> np.uint64(31)
    return np.take_along_axis(items, np.argsort(places.reshape(items.shape), axis=1), axis=1).reshape(-1)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
