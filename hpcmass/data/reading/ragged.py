"""Values of samples that differ in length, each sample's straight to its place in a batch.

A reader belongs to one thread. Samples' values are numbered through all shards, in the order of the samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcmass.data.mapping import open_checked
from hpcmass.data.ragged import Ids, Ragged, spread, wrong_offsets
from hpcmass.data.reading.chunks import ChunkReader
from hpcmass.data.reading.files import Files, fill_slowly
from hpcmass.data.reading.packed import chunk_columns, compressed_fields
from hpcmass.data.reading.rows import READ_BYTES, Arrays, Column, Reader
from hpcmass.data.reading.table import ChunkColumn
from hpcmass.data.shaping import Frame
from hpcmass.errors import CorruptError
from hpcmass.files import storage_errors

if TYPE_CHECKING:
    from hpcmass.data.reader import Dataset

_IOV = 1000  # parts a call; the system's limit is 1024
_GAP_BYTES = 4096  # unwanted bytes that are read along rather than beginning another read
_NARROW = 64  # values a sample, below which they are picked one by one
_AT_ONCE_BYTES = 8 << 20  # decoded at once


def read_offsets(dataset: Dataset, name: str) -> Ids:
    """Where the values of each sample begin, over all shards, and the end of the last: shape (n + 1,).

    Raises:
        CorruptError: The offsets of a shard are none, or the shard has another size than it should have.
        StorageError: A shard cannot be read.
    """
    one = dataset.stored[name]
    whole = np.zeros(len(dataset) + 1, np.int64)
    at = before = 0
    for extent, shard in zip(dataset.extents(name), dataset.manifest.shards, strict=True):
        offsets = np.empty(shard.samples + 1, "<i8")
        handle = open_checked(extent)
        try:
            with storage_errors(extent.path, "read the shard"):
                fill_slowly(handle, [offsets.view(np.uint8).data], shard.offsets[one.offsets], extent)
        finally:
            os.close(handle)
        wrong = wrong_offsets(offsets, extent.rows)
        if wrong:
            raise CorruptError(
                f"field {name}: the offsets {wrong}",
                where=extent.path,
                hint="copy the dataset again, or make it again with `hpcmass shard`",
            )
        whole[at : at + len(offsets)] = offsets + before
        at, before = at + shard.samples, before + extent.rows
    return whole


class Values(Protocol):
    """Values of one field."""

    def read(self, starts: Ids, counts: Ids, out: npt.NDArray[Any], places: Ids) -> None:
        """Copy ranges of values.

        Args:
            starts: First value of each range.
            counts: Their lengths.
            out: Where they go, shape (m, *field.shape), C-contiguous, of the field's type.
            places: At which of its rows.

        Raises:
            CorruptError: A shard is not as long as it was, or damaged; the message names it.
            StorageError: The file system refused.
        """

    def close(self) -> None:
        """Give back what is open."""


class HeldValues:
    """Values that are all in memory."""

    def __init__(self, whole: npt.NDArray[Any]) -> None:
        self._whole = whole

    def read(self, starts: Ids, counts: Ids, out: npt.NDArray[Any], places: Ids) -> None:
        """See `Values`."""
        copy_ranges(self._whole, starts, counts, out, places)

    def close(self) -> None:
        """See `Values`."""


def copy_ranges(source: npt.NDArray[Any], starts: Ids, counts: Ids, out: npt.NDArray[Any], places: Ids) -> None:
    """Copy ranges of rows from one array into another."""
    if not len(counts):
        return
    if int(counts.sum()) < _NARROW * len(counts):
        out[spread(places, counts)] = np.take(source, spread(starts, counts), axis=0)
        return
    for start, count, place in zip(starts.tolist(), counts.tolist(), places.tolist(), strict=True):
        out[place : place + count] = source[start : start + count]


class PreadValues:
    """Values read by preadv: neighbours in the file in one call, each sample straight to its place."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._files = Files()
        self._waste = memoryview(bytearray(_GAP_BYTES))

    def read(self, starts: Ids, counts: Ids, out: npt.NDArray[Any], places: Ids) -> None:
        """See `Values`."""
        order = np.argsort(starts, kind="stable")
        order = order[counts[order] > 0]
        size, wanted = self._column.row_bytes, starts[order]
        shards: Ids = np.searchsorted(self._column.ends, wanted, side="right")
        at = self._column.places(shards, wanted).tolist()
        many, to, files = (counts[order] * size).tolist(), (places[order] * size).tolist(), shards.tolist()
        view = out.reshape(-1).view(np.uint8).data
        low = 0
        while low < len(at):
            parts, end, high = [view[to[low] : to[low] + many[low]]], at[low] + many[low], low + 1
            while (
                high < len(at) and files[high] == files[low] and 0 <= at[high] - end <= _GAP_BYTES
                and len(parts) < _IOV and end - at[low] < READ_BYTES
            ):  # fmt: skip
                if at[high] > end:
                    parts.append(self._waste[: at[high] - end])
                parts.append(view[to[high] : to[high] + many[high]])
                end, high = at[high] + many[high], high + 1
            self._files.fill(self._column.extents[files[low]], parts, at[low])
            low = high

    def close(self) -> None:
        """See `Values`."""
        self._files.close()


class ChunkValues:
    """Values that are compressed, in some shards at least: the chunks that a sample lies in are decoded."""

    def __init__(self, column: ChunkColumn) -> None:
        self._column = column
        self._chunks = ChunkReader({column.one.name: column})
        self._plain = PreadValues(Column(column.extents, column.one.row_bytes))

    def read(self, starts: Ids, counts: Ids, out: npt.NDArray[Any], places: Ids) -> None:
        """See `Values`."""
        column = self._column
        order = np.argsort(starts, kind="stable")
        order = order[counts[order] > 0]
        shards: Ids = np.searchsorted(column.ends, starts[order], side="right")
        of = column.layout_of[shards]
        for number, layout in enumerate(column.layouts):
            mine = order[of == number]
            if not layout.samples:
                self._plain.read(starts[mine], counts[mine], out, places[mine])
                continue
            local = starts[mine] - column.before[shards[of == number]]
            base = column.first[shards[of == number]]
            first, last = base + local // layout.samples, base + (local + counts[mine] - 1) // layout.samples
            most = max(1, _AT_ONCE_BYTES // layout.chunk_bytes)
            low = 0
            while low < len(mine):
                # Chunks ascend with the samples: as many samples as lie in so many chunks.
                high = max(low + 1, int(np.searchsorted(last, first[low] + most)))
                cut = slice(low, high)
                keys = np.unique(spread(first[cut], last[cut] - first[cut] + 1))
                decoded = self._chunks.decoded(column, layout, keys)
                rows = decoded.reshape(-1).view(column.one.numpy_dtype).reshape(-1, *column.one.shape)
                begin = np.searchsorted(keys, first[cut]) * layout.samples + local[cut] % layout.samples
                copy_ranges(rows, begin, counts[mine[cut]], out, places[mine[cut]])
                low = high

    def close(self) -> None:
        """See `Values`."""
        self._chunks.close()
        self._plain.close()


def make_values(dataset: Dataset) -> dict[str, Values]:
    """A reader of each ragged field, for one thread."""
    made: dict[str, Values] = {}
    packed = compressed_fields(dataset)
    for name, one in dataset.ragged.items():
        if name in dataset.held:
            made[name] = HeldValues(dataset.held[name])
        elif name in packed:
            made[name] = ChunkValues(chunk_columns(dataset, [name])[name])
        else:
            made[name] = PreadValues(Column(dataset.extents(name), one.row_bytes))
    return made


def fill(frame: Frame, values: Mapping[str, Values], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Read the values of a batch into its arrays.

    Args:
        frame: Where they go.
        values: A reader of each field.
        arrays: As `frame.specs` says.
    """
    for part in frame.parts:
        out = arrays[part.one.name].reshape(-1, *part.one.shape)
        out.fill(part.fill)
        if part.dtype == part.one.numpy_dtype:
            values[part.one.name].read(part.starts, part.counts, out, part.places)
            continue
        got = gather(part.one, values[part.one.name], part.starts, part.counts)
        out[spread(part.places, part.counts)] = got.values
    frame.describe(arrays)


def gather(one: Any, values: Values, starts: Ids, counts: Ids) -> Ragged:
    """Some ranges of values of a field, one after the other."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    out = np.empty((int(offsets[-1]), *one.shape), one.numpy_dtype)
    values.read(starts, counts, out, offsets[:-1])
    return Ragged(out, offsets)


class ShapedReader:
    """A `Reader` of the fixed fields, that reads ragged ones too."""

    def __init__(self, fixed: Reader, values: dict[str, Values]) -> None:
        self._fixed, self._values = fixed, values

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        if out:
            self._fixed.read(ids, out)

    def fill(self, frame: Frame, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The ragged fields of a batch."""
        fill(frame, self._values, arrays)

    def close(self) -> None:
        """See `Reader`."""
        self._fixed.close()
        for one in self._values.values():
            one.close()


@dataclass(frozen=True, eq=False)
class ShapedMaker:
    """Makes a `ShapedReader` for each thread."""

    fixed: Callable[[], Reader]
    dataset: Dataset

    def __call__(self) -> ShapedReader:
        """A reader for one thread."""
        return ShapedReader(self.fixed(), make_values(self.dataset))

    @property
    def pool_bytes(self) -> int:
        """Bytes of decoded chunks that threads share."""
        return int(getattr(self.fixed, "pool_bytes", 0))
