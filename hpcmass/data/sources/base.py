"""What every source of samples gives: named fields, a number of samples, and blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcmass.data.ragged import Ids, Sizes
from hpcmass.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]
Block = dict[str, Any]
"""Samples by field: an array (n, *shape), or a `Ragged` where the field is ragged."""
Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); stages are `read`, `shard` (samples) and `checksum` (bytes)."""


@dataclass(frozen=True)
class SourceField:
    """A field as a source offers it: numpy dtype (native byte order), shape of a sample, class names.

    Of a ragged field the shape is that of one of a sample's values.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None = None
    ragged: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's value; of a ragged field of one of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Source(Protocol):
    """Samples to be sharded. Sources are values: picklable, opened again in every process that reads."""

    @property
    def kind(self) -> str:
        """`npy`, `npz`, `hdf5`, `csv`, `parquet` or `images`."""

    @property
    def fields(self) -> tuple[SourceField, ...]:
        """The fields that `read` gives."""

    @property
    def n(self) -> int:
        """Number of samples."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the samples come from, for the record in the manifest."""

    def select(self, names: Sequence[str]) -> Source:
        """The same source with these fields only, in this order."""

    def read(self, start: int, stop: int) -> Block:
        """Samples `start` to `stop`: a C-contiguous array (stop - start, *shape) a field, or a `Ragged`."""

    def offsets(self, name: str) -> Ids:
        """Offsets (n + 1,) of a ragged field."""


class Unread(Protocol):
    """A source that can only be read from front to back, and is first copied into plain arrays."""

    def spill(self, scratch: Path, progress: Progress | None) -> Source:
        """Copy the samples in blocks into files in `scratch`, a folder, and give a source over those."""


def check_dtype(dtype: np.dtype[Any], name: str, where: object) -> np.dtype[Any]:
    """The dtype in native byte order, if it is a number or a boolean.

    Raises:
        DataError: It holds Python objects, text, dates, records or complex numbers.
    """
    if dtype.hasobject:
        raise DataError(
            f"array {name} holds Python objects, which only unpickling could read, and that is refused",
            where=where,
            hint="save it as an array of numbers",
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(
            f"array {name} has type {dtype}; integers, booleans and floats up to 64 bits are possible",
            where=where,
            hint="convert it to numbers (complex numbers to two real arrays; several words a sample to "
            "class numbers)",
        )
    return dtype.newbyteorder("=")


def check_lengths(lengths: dict[str, int], where: object) -> int:
    """The number of samples that all fields have.

    Raises:
        DataError: There is no field, they differ in length, or there are no samples.
    """
    if not lengths:
        raise DataError("holds no array of numbers", where=where)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in sorted(lengths.items()))
        raise DataError(
            f"the fields differ in their number of samples ({listed})",
            where=where,
            hint="name the fields that belong together",
        )
    n = next(iter(lengths.values()))
    if n < 1:
        raise DataError("holds no samples", where=where)
    return n


def sizes_of(source: Source, fields: Sequence[Any]) -> Sizes:
    """How many bytes the samples of a source take in these fields (with `row_bytes` and `ragged`)."""
    fixed = sum(one.row_bytes for one in fields if not one.ragged)
    ragged = [(source.offsets(one.name), one.row_bytes) for one in fields if one.ragged]
    return Sizes(source.n, fixed + 8 * len(ragged), ragged)


def pick(fields: Sequence[SourceField], names: Sequence[str], where: object) -> tuple[SourceField, ...]:
    """The named fields out of those there are, in the order of the names.

    Raises:
        DataError: There is no such field.
    """
    known = {one.name: one for one in fields}
    for name in names:
        if name not in known:
            raise DataError(f"has no field {name!r}", where=where, hint=f"there are: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))
