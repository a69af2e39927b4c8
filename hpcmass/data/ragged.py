"""Values of samples that differ in length: one flat array of all of them, and where each sample's begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.errors import DataError

OFFSETS = ".offsets"
"""What is added to a ragged field's name to get that of its offsets, in shards and in sources."""
OFFSET_BYTES = 8
QUANTILES = (0.05, 0.5, 0.95, 0.99)

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Samples of differing length.

    Attributes:
        values: All samples' values, one after the other, shape (total, *shape).
        offsets: Where each sample's begin, and the end of the last one: from 0 to total, shape (n + 1,).
    """

    values: Values
    offsets: Ids

    @classmethod
    def of(cls, samples: Sequence[Values], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Ragged:
        """Samples given one by one, each of shape (length, *shape) and this type."""
        offsets = np.zeros(len(samples) + 1, np.int64)
        np.cumsum([len(one) for one in samples], out=offsets[1:])
        values = np.concatenate(samples) if len(samples) else np.empty((0, *shape), dtype)
        return cls(values, offsets)

    @property
    def lengths(self) -> Ids:
        """Length of each sample, shape (n,)."""
        lengths: Ids = np.diff(self.offsets)
        return lengths

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Values:
        """The values of one sample, shape (length, *shape): a view."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def __iter__(self) -> Iterator[Values]:
        return (self[number] for number in range(len(self)))

    def part(self, start: int, stop: int) -> Ragged:
        """The samples `start` to `stop`: views."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, ids: Ids) -> Ragged:
        """Some samples, in this order: a copy."""
        lengths = self.lengths[ids]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged(np.take(self.values, spread(self.offsets[ids], lengths), axis=0), offsets)


def spread(starts: Ids, counts: Ids) -> Ids:
    """Numbers of all elements of ranges: starts[0], starts[0] + 1, …, one range after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Ids = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
    return numbers


def wrong_offsets(offsets: Ids, total: int) -> str | None:
    """What is wrong with the offsets of samples whose values are `total` in number, or None."""
    if not len(offsets) or offsets[0] != 0:
        return f"begin with {offsets[0] if len(offsets) else 'nothing'}, not with 0"
    fallen = np.flatnonzero(np.diff(offsets) < 0)
    if len(fallen):
        at = int(fallen[0])
        return f"do not ascend: {offsets[at + 1]} follows {offsets[at]} (sample {at})"
    if offsets[-1] != total:
        return f"end with {offsets[-1]}, and there are {total} values"
    return None


def check_given(name: str, offsets: Values, total: int, where: object) -> Ids:
    """Offsets that somebody gave, as int64.

    Raises:
        DataError: They are no offsets of so many values.
    """
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise DataError(
            f"the offsets of field {name} are {offsets.dtype} of shape {list(offsets.shape)}",
            where=where,
            hint="give one integer a sample, where its values begin, and the end of the last one",
        )
    made: Ids = offsets.astype(np.int64)
    wrong = wrong_offsets(made, total)
    if wrong:
        raise DataError(f"the offsets of field {name} {wrong}", where=where, field=name)
    return made


@dataclass(frozen=True)
class Sizes:
    """How many bytes samples take, where some fields are ragged.

    Attributes:
        n: Number of samples.
        row_bytes: Bytes of a sample's fixed fields.
        ragged: Of each ragged field its offsets (n + 1,) and the bytes of a value.
    """

    n: int
    row_bytes: int
    ragged: Sequence[tuple[Ids, int]]

    def before(self, number: int) -> int:
        """Bytes of all samples before this one."""
        return number * self.row_bytes + sum(int(offsets[number]) * size for offsets, size in self.ragged)

    def blocks(self, start: int, limit_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        """The samples from `start` on, in stretches of so many bytes and samples at most; of one at least."""
        while start < self.n:
            limit = self.before(start) + limit_bytes
            numbers = range(start, min(start + most, self.n) + 1)
            stop = numbers[bisect_right(numbers, limit, key=self.before) - 1]
            stop = max(stop, start + 1)
            yield start, stop
            start = stop
