"""Rows out of compressed chunks: raw chunks by preadv or out of mapped shards, decoded on the reading thread.

h5py's process-wide lock is taken only for what has no decoder of its own: see `Hdf5Decoder`.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpcmass.data.mapping import Extent, Ids, open_checked
from hpcmass.data.reading.decode import BadChunk, Bytes
from hpcmass.data.reading.files import Files, Watched
from hpcmass.data.reading.rows import FRESH_S, READ_BYTES, Arrays, Column, PreadReader, Reader
from hpcmass.data.reading.table import ChunkColumn, ChunkPool, Layout

_AT_ONCE_BYTES = 8 << 20  # decoded before they are picked from
_GAP_BYTES = 16 << 10  # between two chunks that are read together: HDF5's own structures lie there


class Maps:
    """Shards mapped as a whole; shared by a loader's threads."""

    def __init__(self) -> None:
        self._maps: dict[Path, memoryview] = {}

    def view(self, extent: Extent) -> memoryview:
        """The bytes of a shard."""
        found = self._maps.get(extent.path)
        if found is None:
            handle = open_checked(extent)
            with open(handle, "rb") as file:
                found = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._maps[extent.path] = found
        return found


class ChunkReader:
    """Rows of fields that are compressed, in some shards at least.

    Args:
        columns: The fields by name.
        maps: Where the shards are mapped; None: they are read by preadv.
        pools: Decoded chunks that are held, for some of the fields.
        files: How shards are read that are not mapped.
    """

    def __init__(
        self,
        columns: Mapping[str, ChunkColumn],
        maps: Maps | None = None,
        pools: Mapping[str, ChunkPool] | None = None,
        files: Callable[[], Files] = Files,
    ) -> None:
        self._columns, self._maps, self._pools = columns, maps, pools or {}
        self._files = files()
        extents = next(iter(columns.values())).extents if columns else []
        self._watched = Watched(extents) if maps else None
        self._checked = 0.0
        self._scratch: Bytes = np.empty(0, np.uint8)
        self._plain: dict[str, PreadReader] = {}

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        if not len(ids):
            return
        if self._watched is not None and time.monotonic() - self._checked > FRESH_S:
            self._watched.check()
        for name, array in out.items():
            column = self._columns[name]
            flat = array.reshape(-1).view(np.uint8).reshape(len(ids), column.one.row_bytes)
            self._column(name, column, ids, flat)
        if self._watched is not None:
            self._watched.check()
            self._checked = time.monotonic()

    def close(self) -> None:
        """See `Reader`."""
        self._files.close()
        if self._watched is not None:
            self._watched.close()
        for plain in self._plain.values():
            plain.close()

    def decoded(self, column: ChunkColumn, layout: Layout, keys: Ids) -> Bytes:
        """Chunks (distinct), decoded, shape (len(keys), layout.chunk_bytes): valid until the next call."""
        size = len(keys) * layout.chunk_bytes
        if self._scratch.nbytes < size:
            self._scratch = np.empty(size, np.uint8)
        out = self._scratch[:size].reshape(len(keys), layout.chunk_bytes)
        self._chunks(column, layout, keys, out)
        return out

    # -- which chunks -------------------------------------------------------------------------------------
    def _column(self, name: str, column: ChunkColumn, ids: Ids, out: Bytes) -> None:
        shards: Ids = np.searchsorted(column.ends, ids, side="right")
        if len(column.layouts) == 1:
            self._layout(name, column, column.layouts[0], ids, shards, out)
            return
        of = column.layout_of[shards]
        for number, layout in enumerate(column.layouts):
            mine = np.flatnonzero(of == number)
            if len(mine):
                part = np.empty((len(mine), out.shape[1]), np.uint8)
                self._layout(name, column, layout, ids[mine], shards[mine], part)
                out[mine] = part

    def _layout(
        self, name: str, column: ChunkColumn, layout: Layout, ids: Ids, shards: Ids, out: Bytes
    ) -> None:
        if not layout.samples:
            if name not in self._plain:
                self._plain[name] = PreadReader({name: Column(column.extents, column.one.row_bytes)}, {})
            self._plain[name].read(ids, {name: out})
            return
        local = ids - column.before[shards]
        wanted: Ids = column.first[shards] + local // layout.samples
        keys, inverse = np.unique(wanted, return_inverse=True)
        many = max(1, _AT_ONCE_BYTES // layout.chunk_bytes)
        if layout.samples == 1 and len(keys) == len(ids):  # chunks and rows are one and the same
            for low in range(0, len(ids), many):
                self._chunks(column, layout, wanted[low : low + many], out[low : low + many])
            return
        inverse = inverse.reshape(-1)
        rows = inverse * layout.samples + local % layout.samples
        if len(keys) <= many:
            self._pick(column, layout, keys, rows, out)
            return
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(0, len(keys) + many, many))
        for number, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if high > low:
                chosen, first = order[low:high], number * many
                part = np.empty((len(chosen), out.shape[1]), np.uint8)
                moved = rows[chosen] - first * layout.samples
                self._pick(column, layout, keys[first : first + many], moved, part)
                out[chosen] = part

    def _pick(self, column: ChunkColumn, layout: Layout, keys: Ids, rows: Ids, out: Bytes) -> None:
        """Rows of some chunks; decoded straight to their places where they are all rows in order."""
        whole = len(rows) == len(keys) * layout.samples and bool((np.diff(rows) == 1).all())
        if whole:
            self._chunks(column, layout, keys, out.reshape(len(keys), layout.chunk_bytes))
            return
        decoded = self.decoded(column, layout, keys)
        np.take(decoded.reshape(-1, out.shape[1]), rows, axis=0, out=out, mode="clip")

    # -- decoded chunks -----------------------------------------------------------------------------------
    def _chunks(self, column: ChunkColumn, layout: Layout, keys: Ids, out: Bytes) -> None:
        """Chunks (distinct), decoded, in this order: out of the pool, or out of the shards."""
        pool = self._pools.get(column.one.name)
        if pool is None:
            self._decode(column, layout, keys, out)
            return
        places = pool.find(keys)
        there, missing = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
        if not len(there):
            self._decode(column, layout, keys, out)
            pool.put(keys, out)
            return
        if not len(missing):
            np.take(pool.held, places, axis=0, out=out, mode="clip")
            return
        out[there] = pool.held[places[there]]
        part = np.empty((len(missing), layout.chunk_bytes), np.uint8)
        self._decode(column, layout, keys[missing], part)
        pool.put(keys[missing], part)
        out[missing] = part

    def _decode(self, column: ChunkColumn, layout: Layout, keys: Ids, out: Bytes) -> None:
        shards = np.searchsorted(column.last, keys, side="right")
        raw: list[memoryview] = [memoryview(b"")] * len(keys)
        masks = [0] * len(keys)
        order = np.lexsort((keys, shards))
        bounds = [*np.flatnonzero(np.diff(shards[order], prepend=-1)).tolist(), len(keys)]
        for low, high in pairwise(bounds):
            chosen = order[low:high]
            shard = int(shards[chosen[0]])
            numbers = keys[chosen] - column.first[shard]
            found, left_out = self._raw(column, shard, numbers)
            for at, one, mask in zip(chosen.tolist(), found, left_out, strict=True):
                raw[at], masks[at] = one, mask
        assert layout.decoder is not None
        try:
            layout.decoder.decode(raw, masks, out)
        except BadChunk as bad:
            shard = int(shards[bad.number])
            number = int(keys[bad.number] - column.first[shard])
            raise column.corrupt(shard, number, str(bad)) from None

    def _raw(self, column: ChunkColumn, shard: int, numbers: Ids) -> tuple[list[memoryview], list[int]]:
        """Chunks (ascending) as they lie in a shard, and their filter masks."""
        extent, table = column.extents[shard], column.table(shard, self._files)
        starts, sizes = table.starts[numbers], table.sizes[numbers].astype(np.int64)
        if self._maps is not None:
            view = self._maps.view(extent)
            raw = [view[a:b] for a, b in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]
        else:
            raw = self._fetch(extent, starts, sizes)
        column.check(shard, table, numbers, raw)
        return raw, table.masks[numbers].tolist()

    def _fetch(self, extent: Extent, starts: Ids, sizes: Ids) -> list[memoryview]:
        """Chunks by preadv: neighbours, and what lies between them, in one call."""
        ends = starts + sizes
        raw: list[memoryview] = []
        begins = [0, *(np.flatnonzero(np.abs(starts[1:] - ends[:-1]) > _GAP_BYTES) + 1).tolist(), len(starts)]
        begin, end, size = starts.tolist(), ends.tolist(), 0
        for low, high in pairwise(begins):
            while low < high:
                # A run is cut where it grows past the longest read, and where the file does not ascend.
                stop, size = low + 1, end[low] - begin[low]
                while stop < high and begin[stop] >= end[stop - 1] and end[stop] - begin[low] <= READ_BYTES:
                    stop += 1
                size = end[stop - 1] - begin[low]
                got = np.empty(size, np.uint8).data
                self._files.fill(extent, [got], begin[low])
                raw += [got[begin[k] - begin[low] : end[k] - begin[low]] for k in range(low, stop)]
                low = stop
        return raw


@dataclass(frozen=True)
class BothMaker:
    """Makes a `BothReader` for each thread.

    Attributes:
        plain: Makes the reader of what is not compressed, or held.
        columns: What is decoded.
        maps: Where the shards are mapped, if they are.
        pools: Decoded chunks that are held, which all threads share.
        files: How shards are read that are not mapped.
    """

    plain: Callable[[], Reader]
    columns: Mapping[str, ChunkColumn]
    maps: Maps | None
    pools: Mapping[str, ChunkPool]
    files: Callable[[], Files] = Files

    def __call__(self) -> BothReader:
        """A reader for one thread."""
        chunks = ChunkReader(self.columns, self.maps, self.pools, self.files)
        return BothReader(self.plain(), chunks, list(self.columns))

    @property
    def pool_bytes(self) -> int:
        """Bytes of the pools of decoded chunks."""
        return sum(pool.bytes for pool in self.pools.values())


class BothReader:
    """Plain fields by one reader, compressed ones by another."""

    def __init__(self, plain: Reader, chunks: ChunkReader, compressed: Sequence[str]) -> None:
        self._plain, self._chunks, self._compressed = plain, chunks, frozenset(compressed)

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        plain = {name: one for name, one in out.items() if name not in self._compressed}
        if plain:
            self._plain.read(ids, plain)
        packed = {name: one for name, one in out.items() if name in self._compressed}
        if packed:
            self._chunks.read(ids, packed)

    def close(self) -> None:
        """See `Reader`."""
        self._plain.close()
        self._chunks.close()
