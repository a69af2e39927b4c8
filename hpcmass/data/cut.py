"""Which sample goes into which split and shard. Pure: sizes, labels and a seed in, an assignment out.

A *part* is one shard of one split. Parts are numbered through all splits in the order they were named.
Within a shard the samples keep the order of the source; only the choice of the shard is random. That
lets a source larger than memory be cut in one pass of sequential reads and writes.

The rules, in which n is the number of samples and all sizes are exact:

splits: sizes are n x fraction, rounded by largest remainder; no split is empty (or it is an error).
even: a random permutation of all samples is laid out; splits, then shards of sizes that differ by at
    most one, are consecutive stretches of it.
contiguous: the same without the permutation.
random-cut: the same permutation and splits; the shards of a split are cut by `random_cut_sizes`.
stratified: every class is dealt to the splits, then to the shards of each split, in proportion to their
    sizes; the count of a class in a part is within one sample of the exact proportion (`deal`).
grouped: samples of one group stay in one split, and in one shard unless a split has fewer groups than
    shards (then the largest groups are halved). Sizes are as near to the wanted ones as that allows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import permutation, rank_slice
from hpcmass.errors import DataError
from hpcmass.files import check_name

STRATEGIES = ("even", "random-cut", "stratified", "grouped", "contiguous")

Codes = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One shard of one split: its split's name (None without splits), number within it, and size."""

    split: str | None
    number: int
    samples: int


@dataclass(frozen=True)
class Cut:
    """An assignment of every sample to one part.

    Attributes:
        parts: All parts, splits one after the other.
        n: Samples.
    """

    parts: tuple[Part, ...]
    n: int
    _key: str | None = None
    _table: npt.NDArray[np.int32] | None = None

    def part_of(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Number of the part of each sample from `start` to `stop`, shape (stop - start,)."""
        if self._table is not None:
            return self._table[start:stop]
        slots = (
            np.arange(start, stop, dtype=np.int64)
            if self._key is None
            else permutation(self.n, self._key, start, stop)
        )
        ends = np.cumsum([part.samples for part in self.parts])
        return np.searchsorted(ends, slots, side="right").astype(np.int32)


def plan_cut(
    strategy: str,
    n: int,
    *,
    shards: int | Mapping[str, int],
    splits: Mapping[str, float] | None = None,
    seed: int = 0,
    codes: Codes | None = None,
) -> Cut:
    """Assign n samples to splits and shards.

    Args:
        strategy: One of `STRATEGIES`.
        n: Number of samples.
        shards: Shards of every split, or a number for each split by name.
        splits: Fraction of the samples in each split, by name; the sum is 1. None: no splits.
        seed: The same seed gives the same assignment.
        codes: For `stratified` the class, for `grouped` the group of each sample: int64, shape (n,),
            0 … number of classes or groups - 1.

    Raises:
        DataError: There are fewer samples (or groups) than splits or shards, or an argument is wrong.
        NameNotAllowed: A split's name may not be a file name.
    """
    if strategy not in STRATEGIES:
        raise DataError(f"unknown strategy {strategy!r}", hint=f"choose from {', '.join(STRATEGIES)}")
    if n < 1:
        raise DataError("there are no samples to cut")
    if not 0 <= seed < 2**63:
        raise DataError(f"the seed {seed} is not between 0 and 2^63")
    names: list[str | None] = [None] if splits is None else list(splits)
    fractions = [Fraction(1)] if splits is None else fractions_of(splits)
    counts = _shard_counts(shards, names)
    rng = np.random.Generator(np.random.Philox(key=seed))
    if strategy in ("stratified", "grouped"):
        if codes is None or codes.shape != (n,):
            raise DataError(f"the strategy {strategy} needs a label for each sample", hint="name it with `by`")
        by_codes = _stratified if strategy == "stratified" else _grouped
        table, sizes = by_codes(codes, n, names, fractions, counts, rng, seed)
        return Cut(_parts(names, sizes), n, _table=table)
    split_sizes = _split_sizes(n, fractions, names)
    sizes = []
    for name, size, count in zip(names, split_sizes, counts, strict=True):
        _check_shards(name, size, count)
        cut = random_cut_sizes(size, count, rng) if strategy == "random-cut" else even_sizes(size, count)
        sizes.append(cut)
    return Cut(_parts(names, sizes), n, _key=None if strategy == "contiguous" else f"cut/{seed}")


def even_sizes(n: int, count: int) -> list[int]:
    """Sizes of `count` parts of n samples that differ by one at most."""
    bounds = [rank_slice(0, n, part, count) for part in range(count)]
    return [stop - start for start, stop in bounds]


def random_cut_sizes(n: int, count: int, rng: np.random.Generator) -> list[int]:
    """Sizes of `count` parts made by cutting the first part again and again at a random point.

    The first part is at first all n samples. While there are fewer than `count` parts: let m be the
    samples of the first part, and k the parts that are still to come out of it (itself among them). A
    real point p is drawn uniformly from the half-open interval (k - 2, m - 1] and cuts the first part in
    two. What lies behind the point is finished and keeps its whole samples, m - ceil(p). The remainder,
    the sample that the point falls into, joins the next part to be cut, which is now the first part with
    ceil(p) samples. As k - 1 ≤ ceil(p) ≤ m - 1, every finished part has one sample at least, and one is
    left for every part still to come: no part is empty. After count - 1 cuts the first part is finished
    as it is. Parts are numbered from the front, so the part that was cut off first comes last.

    Sizes differ widely: each cut halves the first part on average. Use `even` for equal shards.

    Returns:
        `count` sizes of 1 at least with the sum n.
    """
    if not 1 <= count <= n:
        raise ValueError(f"{n} samples cannot make {count} parts")
    finished: list[int] = []
    first = n
    for coming in range(count, 1, -1):
        point = (first - 1) - rng.random() * (first - coming + 1)
        whole = max(math.ceil(point), coming - 1)
        finished.append(first - whole)
        first = whole
    return [first, *reversed(finished)]


def deal(rows: Sizes, columns: Sizes, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Integers in proportion to both margins: entry (i, j) is within 1 of rows[i] x columns[j] / n.

    Every entry gets its share rounded down. What is missing in each row is at most 1 an entry and is
    handed out one by one, row by row, to the columns that lack most (Ryser's construction of a 0-1
    matrix with given margins, which succeeds because the fractional remainders are such a matrix).

    Args:
        rows: Samples of each class, shape (R,).
        columns: Samples of each part, shape (C,); the same sum n.
        rng: Breaks ties.

    Returns:
        int64 array of shape (R, C) with exactly these margins.
    """
    total = int(rows.sum())
    # Python integers where a product could pass 2^63.
    wide = int(rows.max()) * int(columns.max()) >= 2**62
    kind: type[Any] = object if wide else np.int64
    shares: npt.NDArray[np.int64] = (
        np.multiply.outer(rows.astype(kind), columns.astype(kind)) // total
    ).astype(np.int64)
    row_lacks = rows - shares.sum(axis=1)
    column_lacks = columns - shares.sum(axis=0)
    for row in rng.permutation(len(rows)):
        lacks = int(row_lacks[row])
        if lacks:
            ties = rng.permutation(len(columns))
            chosen = ties[np.argsort(-column_lacks[ties], kind="stable")[:lacks]]
            shares[row, chosen] += 1
            column_lacks[chosen] -= 1
    return shares


def _parts(names: Sequence[str | None], sizes: Sequence[Sequence[int]]) -> tuple[Part, ...]:
    return tuple(
        Part(name, number, int(size))
        for name, of_split in zip(names, sizes, strict=True)
        for number, size in enumerate(of_split)
    )


def fractions_of(splits: Mapping[str, float]) -> list[Fraction]:
    """The fractions as they were written (0.1 is 1/10), checked."""
    if not splits:
        raise DataError("no split is named", hint="such as train=0.8,valid=0.1,test=0.1")
    for name, fraction in splits.items():
        check_name(name, "split")
        if not 0.0 < float(fraction) <= 1.0:
            raise DataError(f"split {name}: the fraction {fraction} is not between 0 and 1")
    fractions = [Fraction(str(float(fraction))) for fraction in splits.values()]
    total = sum(fractions, Fraction(0))
    if abs(float(total) - 1) > 1e-6:
        raise DataError(f"the splits' fractions add up to {float(total):g}, not to 1")
    return [fraction / total for fraction in fractions]


def _shard_counts(shards: int | Mapping[str, int], names: Sequence[str | None]) -> list[int]:
    if isinstance(shards, int):
        counts = [shards] * len(names)
    else:
        unknown = set(shards) ^ {str(name) for name in names if name is not None}
        if unknown:
            raise DataError(f"shards and splits do not name the same: {', '.join(sorted(unknown))}")
        counts = [shards[str(name)] for name in names]
    if min(counts) < 1:
        raise DataError(f"{min(counts)} shards are not possible", hint="1 shard at least")
    return counts


def _check_shards(name: str | None, size: int, count: int) -> None:
    if size < count:
        where = f"split {name} has {size} samples" if name else f"there are {size} samples"
        raise DataError(f"{where}, too few for {count} shards", hint="ask for fewer shards")


def _split_sizes(n: int, fractions: Sequence[Fraction], names: Sequence[str | None]) -> list[int]:
    """Largest-remainder rounding of n x fraction; an empty split takes one sample from the largest."""
    if n < len(fractions):
        raise DataError(f"{n} samples are too few for {len(fractions)} splits ({', '.join(map(str, names))})")
    exact = [n * fraction for fraction in fractions]
    sizes = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (sizes[i] - exact[i], i))
    for index in by_remainder[: n - sum(sizes)]:
        sizes[index] += 1
    for index in range(len(sizes)):
        if sizes[index] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[index] = 1
    return sizes


def _stratified(
    codes: Codes,
    n: int,
    names: Sequence[str | None],
    fractions: Sequence[Fraction],
    counts: Sequence[int],
    rng: np.random.Generator,
    seed: int,
) -> tuple[npt.NDArray[np.int32], list[list[int]]]:
    split_sizes = _split_sizes(n, fractions, names)
    of_split = deal(np.bincount(codes), np.array(split_sizes), rng)
    sizes, columns = [], []
    for index, (name, size, count) in enumerate(zip(names, split_sizes, counts, strict=True)):
        _check_shards(name, size, count)
        sizes.append(even_sizes(size, count))
        columns.append(deal(of_split[:, index], np.array(sizes[-1]), rng))
    per_part = np.concatenate(columns, axis=1)
    # Samples in random order, sorted by class (stable): each class is then a random row to be dealt.
    shuffled = permutation(n, f"cut/{seed}", 0, n)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    table = np.empty(n, dtype=np.int32)
    part_numbers = np.tile(np.arange(per_part.shape[1], dtype=np.int32), per_part.shape[0])
    table[by_class] = np.repeat(part_numbers, per_part.ravel())
    return table, sizes


def _grouped(
    codes: Codes,
    n: int,
    names: Sequence[str | None],
    fractions: Sequence[Fraction],
    counts: Sequence[int],
    rng: np.random.Generator,
    seed: int,
) -> tuple[npt.NDArray[np.int32], list[list[int]]]:
    group_sizes = np.bincount(codes)
    present = np.flatnonzero(group_sizes)
    if len(present) < len(names):
        raise DataError(f"{len(present)} groups are too few for {len(names)} splits")
    weights = [(int(group_sizes[group]), int(group)) for group in rng.permutation(present)]
    to_split = _pack(weights, [float(n * fraction) for fraction in fractions])
    pieces: list[tuple[int, int]] = []  # (group, samples), in the order in which the group is used up
    part_of_piece: list[int] = []
    first_part = 0
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        mine = [(size, group) for (size, group), split in zip(weights, to_split, strict=True) if split == index]
        _check_shards(name, sum(size for size, _ in mine), count)
        mine = _halve_largest(mine, count)
        to_shard = _pack(mine, [sum(size for size, _ in mine) / count] * count)
        pieces += [(group, size) for size, group in mine]
        part_of_piece += [first_part + shard for shard in to_shard]
        first_part += count
    order = sorted(range(len(pieces)), key=lambda i: pieces[i][0])
    shuffled = permutation(n, f"cut/{seed}", 0, n)
    by_group = shuffled[np.argsort(codes[shuffled], kind="stable")]
    table = np.empty(n, dtype=np.int32)
    numbers = np.array([part_of_piece[i] for i in order], dtype=np.int32)
    table[by_group] = np.repeat(numbers, [pieces[i][1] for i in order])
    totals = np.bincount(table, minlength=first_part)
    ends = np.cumsum(counts)
    return table, [totals[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]


def _pack(weights: Sequence[tuple[int, int]], targets: Sequence[float]) -> list[int]:
    """Put weights into bins, the largest first, each into the bin that lacks most; no bin stays empty.

    Returns:
        The bin of each weight. (Graham's longest-processing-time rule, with wanted sizes.)
    """
    heap = [(-target, index) for index, target in enumerate(targets)]
    heapq.heapify(heap)
    empty = set(range(len(targets)))
    bins = [0] * len(weights)
    order = sorted(range(len(weights)), key=lambda i: -weights[i][0])
    for placed, index in enumerate(order):
        # When only as many weights are left as bins are empty, the fuller bins must wait.
        must_fill = len(order) - placed <= len(empty)
        waiting = []
        while must_fill and heap[0][1] not in empty:
            waiting.append(heapq.heappop(heap))
        lack, chosen = heapq.heappop(heap)
        for entry in waiting:
            heapq.heappush(heap, entry)
        heapq.heappush(heap, (lack + weights[index][0], chosen))
        empty.discard(chosen)
        bins[index] = chosen
    return bins


def _halve_largest(weights: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Halve the largest pieces until there are `count`; unchanged when there are enough."""
    heap = [(-size, position, group) for position, (size, group) in enumerate(weights)]
    if len(heap) >= count:
        return weights
    heapq.heapify(heap)
    for position in range(len(weights), count):
        negative, _, group = heapq.heappop(heap)
        half = -negative // 2
        heapq.heappush(heap, (-half, position, group))
        heapq.heappush(heap, (negative + half, position - count, group))
    return [(-size, group) for size, _, group in heap]
