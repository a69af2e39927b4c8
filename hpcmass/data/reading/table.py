"""Where the chunks of a compressed field lie, and those held decoded. Shared by a loader's threads."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcmass.data.filters import INDEX_DTYPE, parse_compression
from hpcmass.data.manifest import Field
from hpcmass.data.mapping import Extent, Ids
from hpcmass.data.reading.decode import Bytes, Decoder, decoder_for
from hpcmass.data.reading.files import Files
from hpcmass.errors import CorruptError


class Layout:
    """Shards of a field that have the same compression and as many samples a chunk.

    Attributes:
        samples: Samples a chunk; 0: the rows are not compressed.
        chunk_bytes: Bytes of a decoded chunk.
        decoder: What decodes it outside HDF5, or None.
    """

    def __init__(self, one: Field, compression: str, samples: int) -> None:
        self.samples = samples
        self.chunk_bytes = samples * one.row_bytes
        self.decoder: Decoder | None = None
        if samples:
            kind = parse_compression(compression)
            self.decoder = decoder_for(kind, self.chunk_bytes, one.numpy_dtype.itemsize)


@dataclass
class Table:
    """The chunks of one field of one shard: 21 bytes a chunk.

    Attributes:
        starts: First byte in the file, shape (chunks,).
        sizes: Bytes.
        masks: HDF5's masks of filters left out.
        sums: CRC-32.
        checked: Whether this process has compared it.
    """

    starts: Ids
    sizes: npt.NDArray[np.uint32]
    masks: npt.NDArray[np.uint32]
    sums: npt.NDArray[np.uint32]
    checked: npt.NDArray[np.bool_]


class ChunkColumn:
    """One field, some of whose shards are compressed.

    Attributes:
        one: The field.
        extents: Its shards.
        ends: Number of the sample that each shard ends before.
        before: Number of the first sample of each shard.
        first: Number of the first chunk of each shard, all shards' counted through.
        layouts: The layouts that there are.
        layout_of: Which of them each shard has.
    """

    def __init__(self, one: Field, extents: Sequence[Extent]) -> None:
        self.one, self.extents = one, list(extents)
        self.ends = np.cumsum([extent.rows for extent in extents])
        self.before = self.ends - [extent.rows for extent in extents]
        keys = [(e.chunks.compression, e.chunks.samples) if e.chunks else ("", 0) for e in extents]
        known = list(dict.fromkeys(keys))
        self.layouts = [Layout(one, *key) for key in known]
        self.layout_of = np.array([known.index(key) for key in keys], np.int64)
        counts = [-(-e.rows // e.chunks.samples) if e.chunks else 0 for e in extents]
        self.last = np.cumsum(counts)
        self.first = self.last - counts
        self._tables: list[Table | None] = [None] * len(self.extents)

    def table(self, shard: int, files: Files) -> Table:
        """The chunks of a shard, read when first asked for.

        Raises:
            CorruptError: The shard was cut off, or its table is damaged.
        """
        table = self._tables[shard]
        if table is None:
            table = self._tables[shard] = self._read(shard, files)
        return table

    def _read(self, shard: int, files: Files) -> Table:
        extent = self.extents[shard]
        assert extent.chunks is not None
        index = np.empty(int(self.last[shard] - self.first[shard]), INDEX_DTYPE)
        files.fill(extent, [index.view(np.uint8).data], extent.chunks.index)
        ends = index["offset"].astype(np.float64) + index["size"]  # as floats: they cannot overflow
        wrong = np.flatnonzero((index["size"] == 0) | (ends > extent.file_bytes))
        if len(wrong):
            raise self.corrupt(shard, int(wrong[0]), "lies outside the file")
        sums, masks = index["crc32"].copy(), index["mask"].copy()
        starts, sizes = index["offset"].astype(np.int64), index["size"].copy()
        return Table(starts, sizes, masks, sums, np.zeros(len(index), np.bool_))

    def check(self, shard: int, table: Table, numbers: Ids, raw: Sequence[memoryview]) -> None:
        """Compare the CRC-32 of chunks that this process has not read before.

        Raises:
            CorruptError: One does not fit.
        """
        new = np.flatnonzero(~table.checked[numbers])
        for at in new.tolist():
            number = int(numbers[at])
            if zlib.crc32(raw[at]) != table.sums[number]:
                raise self.corrupt(shard, number, "does not fit its CRC-32")
        table.checked[numbers[new]] = True

    def corrupt(self, shard: int, number: int, why: str) -> CorruptError:
        """The error of a damaged chunk."""
        extent = self.extents[shard]
        assert extent.chunks is not None
        low = number * extent.chunks.samples
        high = min(low + extent.chunks.samples, extent.rows) - 1
        what = "values" if self.one.ragged else "samples"
        return CorruptError(
            f"field {self.one.name}, chunk {number} ({what} {low} … {high} of the shard) {why}",
            where=extent.path,
            hint="copy the dataset again, or make it again with `hpcmass shard`",
        )


class ChunkPool:
    """Decoded chunks that are held while there is room; what came first stays.

    Under a random order any chunk is as likely to be wanted again as any other, so exchanging them would cost
    and win nothing.

    Args:
        chunks: Number of chunks of the field.
        chunk_bytes: Bytes of a decoded chunk.
        limit: Bytes at most.
    """

    def __init__(self, chunks: int, chunk_bytes: int, limit: int) -> None:
        places = min(chunks, limit // chunk_bytes)
        self.held: Bytes = np.empty((places, chunk_bytes), np.uint8)
        self._place = np.full(chunks, -1, np.int32)  # -2: somebody is putting it there
        self._used = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all places, and of the table of who lies where."""
        return self.held.nbytes + self._place.nbytes

    def find(self, keys: Ids) -> npt.NDArray[np.int32]:
        """Places of chunks; negative where one is not held."""
        return self._place[keys]

    def put(self, keys: Ids, decoded: Bytes) -> None:
        """Hold chunks, as far as there is room."""
        if self._used == len(self.held):
            return
        with self._lock:
            new = np.flatnonzero(self._place[keys] == -1)[: len(self.held) - self._used]
            places = np.arange(self._used, self._used + len(new), dtype=np.int32)
            self._used += len(new)
            self._place[keys[new]] = -2
        self.held[places] = decoded[new]
        self._place[keys[new]] = places
