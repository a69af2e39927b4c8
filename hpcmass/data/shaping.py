"""Batches of samples that differ in length: padded to one length, or packed into rows of one.

Pure: from the lengths of a batch's samples it follows where each of their values goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field
from hpcmass.data.ragged import Ids, spread
from hpcmass.errors import DataError

IGNORED = -100
"""What integer targets are filled with: torch's cross entropy leaves it out."""
LENGTH, SEGMENT, POSITION = "_length", "_segment", "_position"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """What becomes of a ragged field in a batch; `[data.ragged.NAME]` of a job.

    Attributes:
        kind: `pad`: a row a sample, filled up. `pack`: rows of `length`, several samples in each.
        fill: What is put where no value is; None: -100 for integer targets, else 0.
        length: Length of a row; None (`pad` alone): that of the batch's longest sample.
        to_multiple: Of which the length is a multiple, where `length` is None.
        longer: What becomes of a sample longer than `length`: an error, or its first values are taken.
        alone: A row a sample in `pack` too: for what takes an output a sample.
    """

    kind: Literal["pad", "pack"] = "pad"
    fill: float | None = None
    length: int | None = None
    to_multiple: int = 1
    longer: Literal["refuse", "cut"] = "refuse"
    alone: bool = False

    def of_length(self, longest: int) -> Shape:
        """The same, with a length where it has none: that which samples of this length come to."""
        if self.length is not None:
            return self
        return replace(self, length=max(1, -(-longest // self.to_multiple)) * self.to_multiple, to_multiple=1)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, `alone` left out."""
        said = asdict(self)
        del said["alone"]
        return said


def resolve(stored: Mapping[str, Field], asked: Mapping[str, Shape]) -> dict[str, Shape]:
    """What becomes of each ragged field.

    As asked; one that is not named is as a named one that has the same lengths, with a fill of its own (tags
    beside the tokens that they are of); where samples are packed, all are.

    Raises:
        DataError: What is asked is of no ragged field, or contradicts itself; `where` names the key.
    """
    ragged = {name: one for name, one in stored.items() if one.ragged}
    for name, shape in asked.items():
        if name not in ragged:
            raise DataError(
                f"there is no ragged field {name!r}",
                where="data.ragged",
                hint=f"there are: {', '.join(ragged) or 'none'}",
            )
        if shape.kind == "pack" and shape.length is None:
            raise DataError("packing needs the length of a row", where=f"data.ragged.{name}.length")
    packed = {name: shape for name, shape in asked.items() if shape.kind == "pack"}
    first = next(iter(packed.values()), Shape())
    for name, shape in asked.items():
        if packed and (shape.kind, shape.length, shape.longer) != (first.kind, first.length, first.longer):
            raise DataError(
                "ragged fields are packed alike, or none of them is",
                where=f"data.ragged.{name}",
                hint="give all of them the same as, length and longer, or leave the others out",
            )
    found = {}
    for name, one in ragged.items():
        lengths = one.stats.get("lengths")
        alike = (shape for other, shape in asked.items() if ragged[other].stats.get("lengths") == lengths)
        found[name] = asked.get(name) or replace(first if packed else next(alike, Shape()), fill=None)
    for name, shape in found.items():
        batch_dtype(ragged[name], shape)
    return found


def fill_of(one: Field, shape: Shape) -> float:
    """What is put where no value is."""
    if shape.fill is not None:
        return shape.fill
    return IGNORED if one.role == "target" and one.numpy_dtype.kind in "iu" else 0


def batch_dtype(one: Field, shape: Shape) -> np.dtype[Any]:
    """The type of a field in batches: its own, or int64 where that cannot hold the fill.

    Raises:
        DataError: No type holds both.
    """
    fill, dtype = fill_of(one, shape), one.numpy_dtype
    if dtype.kind == "f":
        return dtype
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (int(limits.min), int(limits.max)) if limits is not None else (0, 1)
    if int(fill) == fill and low <= fill <= high:
        return dtype
    if int(fill) != fill or dtype.name == "uint64":
        raise DataError(
            f"a field of {one.dtype} cannot be filled with {fill:g}", where=f"data.ragged.{one.name}.fill"
        )
    return np.dtype("<i8")


def leader(ragged: Mapping[str, Field]) -> str:
    """The field that segments and positions are named by: the first input, else the first one."""
    return next((name for name, one in ragged.items() if one.role == "input"), next(iter(ragged)))


def fields_of(stored: Mapping[str, Field], shapes: Mapping[str, Shape]) -> dict[str, Field]:
    """The fields of a batch: those that are stored, and behind each ragged one what says how long it is."""
    fields: dict[str, Field] = {}
    ragged = {name: one for name, one in stored.items() if one.ragged}
    for name, one in stored.items():
        fields[name] = replace(one, dtype=batch_dtype(one, shapes[name]).name) if one.ragged else one
        role = "input" if one.role == "input" else "meta"
        if not one.ragged:
            continue
        if shapes[name].kind == "pad":
            fields[name + LENGTH] = Field(name + LENGTH, "int64", (), role, one.stats.get("lengths", {}))
        elif name == leader(ragged):
            for what in (SEGMENT, POSITION):
                fields[name + what] = Field(name + what, "int32", (), role, ragged=True)
    return fields


@dataclass(frozen=True, eq=False)
class Part:
    """One ragged field of a batch.

    Attributes:
        one: The field.
        dtype: Its type in the batch.
        fill: What is where no value is.
        starts: Number of each sample's first value in the dataset, shape (b,).
        counts: How many of its values are taken.
        places: Where they go, in rows laid one after the other.
        rows: Number of rows.
        width: Length of a row.
    """

    one: Field
    dtype: np.dtype[Any]
    fill: float
    starts: Ids
    counts: Ids
    places: Ids
    rows: int
    width: int


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the values of one batch go.

    Attributes:
        parts: A ragged field each.
        lead: Name of the field that segments are named by, where samples are packed.
        segments: Number of each sample in its row, from 1; of packed ones.
    """

    parts: tuple[Part, ...]
    lead: str | None
    segments: Ids | None

    @property
    def specs(self) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
        """Name, type and shape of each of its arrays."""
        found: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
        for part in self.parts:
            name = part.one.name
            found.append((name, part.dtype, (part.rows, part.width, *part.one.shape)))
            if self.lead is None:
                found.append((name + LENGTH, np.dtype("<i8"), (len(part.counts),)))
            elif name == self.lead:
                found += [
                    (name + what, np.dtype("<i4"), (part.rows, part.width)) for what in (SEGMENT, POSITION)
                ]
        return found

    def describe(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fill in the arrays that say which values are whose: lengths, or segments and positions."""
        for part in self.parts:
            if self.lead is None:
                arrays[part.one.name + LENGTH][...] = part.counts
            elif part.one.name == self.lead:
                assert self.segments is not None
                at = spread(part.places, part.counts)
                for what in (SEGMENT, POSITION):
                    arrays[self.lead + what].fill(0)
                arrays[self.lead + SEGMENT].reshape(-1)[at] = np.repeat(self.segments, part.counts)
                ranges = spread(np.zeros(len(part.counts), np.int64), part.counts)
                arrays[self.lead + POSITION].reshape(-1)[at] = ranges

    def samples(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """The batch's fields sample by sample, without the padding: `[number, ...]` of each is a view."""
        own = {name for name, _, _ in self.specs}
        views: dict[str, Any] = {name: array for name, array in arrays.items() if name not in own}
        for part in self.parts:
            flat = arrays[part.one.name].reshape(-1, *part.one.shape)
            views[part.one.name] = Pieces(flat, part.places, part.counts)
        return views


class Pieces:
    """Samples of differing length within an array; each is a view of it."""

    def __init__(self, flat: npt.NDArray[Any], places: Ids, counts: Ids) -> None:
        self._flat, self._places, self._counts = flat, places, counts

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        number = key[0] if isinstance(key, tuple) else key
        return self._flat[self._places[number] : self._places[number] + self._counts[number]]


class Framer:
    """Frames of batches.

    Args:
        fields: The ragged fields.
        shapes: What becomes of each.
        offsets: Of each the number of every sample's first value, and of all values: shape (n + 1,).
    """

    def __init__(
        self, fields: Mapping[str, Field], shapes: Mapping[str, Shape], offsets: Mapping[str, Ids]
    ) -> None:
        self._fields, self._shapes, self._offsets = fields, shapes, offsets
        self._packed = any(shape.kind == "pack" for shape in shapes.values())

    def frame(self, ids: Ids) -> Frame:
        """The frame of a batch.

        Args:
            ids: Its samples, shape (b,).

        Raises:
            DataError: A sample is longer than may be, or packed fields differ in their lengths.
        """
        lengths = {}
        for name, offsets in self._offsets.items():
            lengths[name] = _cut(name, offsets[ids + 1] - offsets[ids], self._shapes[name], ids)
        if not self._packed:
            parts = [
                self._part(name, ids, mine, *_padded(mine, self._shapes[name]))
                for name, mine in lengths.items()
            ]
            return Frame(tuple(parts), None, None)
        lead = leader(self._fields)
        for name, mine in lengths.items():
            other = np.flatnonzero(mine != lengths[lead])
            if len(other):
                at = int(other[0])
                raise DataError(
                    f"sample {ids[at]} has {mine[at]} values of {name} and {lengths[lead][at]} of {lead}: "
                    "fields that are packed are of the same lengths",
                    where=f"data.ragged.{name}",
                    hint='use as = "pad"',
                )
        shape = self._shapes[lead]
        assert shape.length is not None
        places, segments, rows = pack(lengths[lead], shape.length, alone=shape.alone)
        parts = [self._part(name, ids, mine, places, rows, shape.length) for name, mine in lengths.items()]
        return Frame(tuple(parts), lead, segments)

    def _part(self, name: str, ids: Ids, counts: Ids, places: Ids, rows: int, width: int) -> Part:
        one, shape = self._fields[name], self._shapes[name]
        starts = self._offsets[name][ids]
        return Part(one, batch_dtype(one, shape), fill_of(one, shape), starts, counts, places, rows, width)


def _cut(name: str, lengths: Ids, shape: Shape, ids: Ids) -> Ids:
    """The lengths that are taken."""
    if shape.length is None or not len(lengths) or int(lengths.max()) <= shape.length:
        return lengths
    if shape.longer == "refuse":
        at = int(np.argmax(lengths > shape.length))
        raise DataError(
            f"sample {ids[at]} has {lengths[at]} values of {name}, more than the length of {shape.length}",
            where=f"data.ragged.{name}.length",
            hint='take a larger length, or longer = "cut"',
        )
    return np.minimum(lengths, shape.length)


def _padded(lengths: Ids, shape: Shape) -> tuple[Ids, int, int]:
    width = shape.length
    if width is None:
        width = shape.of_length(int(lengths.max()) if len(lengths) else 0).length
        assert width is not None
    return np.arange(len(lengths), dtype=np.int64) * width, len(lengths), width


def pack(lengths: Sequence[int] | Ids, length: int, *, alone: bool = False) -> tuple[Ids, Ids, int]:
    """Put samples into rows: each into the first one that has room for it, in their order (first fit).

    Args:
        lengths: Of the samples, each within 0 … length.
        length: Of a row.
        alone: A row a sample.

    Returns:
        Where each sample begins, in rows laid one after the other; its number in its row, from 1; and the
        number of rows, at least 1. Samples without a value are in no row, and have number 0.
    """
    sizes = np.asarray(lengths, np.int64)
    if alone:
        return np.arange(len(sizes), dtype=np.int64) * length, np.ones(len(sizes), np.int64), max(1, len(sizes))
    room, used = np.full(max(1, len(sizes)), length, np.int64), np.zeros(max(1, len(sizes)), np.int64)
    places, segments = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    rows, least = 1, 0  # rows before `least` are full
    for number, size in enumerate(sizes.tolist()):
        if not size:
            continue
        row = least + int(np.argmax(room[least : rows + 1] >= size))
        rows = max(rows, row + 1)
        places[number] = row * length + length - room[row]
        room[row] -= size
        used[row] += 1
        segments[number] = used[row]
        while least < rows and not room[least]:
            least += 1
    return places, segments, rows
