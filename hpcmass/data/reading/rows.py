"""Readers of rows: mapped, or read by preadv straight into where they are wanted.

A reader belongs to one thread. All give exactly what `Dataset.batch` gives; they differ in what a shard that
has become shorter does: for `PreadReader` it is an error with the shard's name, always; for `MapReader`
where it is seen before a page is touched that is no longer there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcmass.data.mapping import Extent, Ids, Rows
from hpcmass.data.reading.files import Files, Watched

Arrays = Mapping[str, npt.NDArray[Any]]

READ_BYTES = 4 << 20  # the longest read of several rows
BLOCK_BYTES = 512 << 10  # what a read from a disk or a server should have at least
_IOV = 1000  # rows a call; the system's limit is 1024
_STAGED_ROW_BYTES = 1024  # narrower rows are read with what lies between and then picked
FRESH_S = 2e-3  # a look so short ago counts as one just before
_ADVISED_ROW_BYTES = 32 << 10


class Reader(Protocol):
    """Copies rows of all fields into given arrays."""

    def read(self, ids: Ids, out: Arrays) -> None:
        """Rows `ids` (each within 0 … n-1) of every field of `out`, arrays of shape (len(ids), *shape).

        Raises:
            CorruptError: A shard is not as long as it was; the message names it.
            StorageError: The file system refused.
        """

    def close(self) -> None:
        """Give back what is open."""


class MapReader:
    """Rows copied out of mapped shards, one `np.take` a field, which drops the interpreter's lock.

    Sizes are looked at before and after: what is handed out was whole. A shard cut off in between may still
    be a SIGBUS, which no reader of mapped files can rule out; so only node-local shards are mapped by choice.
    """

    def __init__(self, rows: Mapping[str, Rows], extents: Sequence[Extent]) -> None:
        self._rows = rows
        self._watched = Watched(extents)
        self._checked = 0.0

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        if time.monotonic() - self._checked > FRESH_S:
            self._watched.check()
        for name, array in out.items():
            self._rows[name].gather_into(ids, array)
        self._watched.check()
        self._checked = time.monotonic()

    def close(self) -> None:
        """See `Reader`."""
        self._watched.close()


class Column:
    """Where the rows of one field lie."""

    def __init__(self, extents: Sequence[Extent], row_bytes: int) -> None:
        self.extents = list(extents)
        self.row_bytes = row_bytes
        self.ends = np.cumsum([extent.rows for extent in extents])
        before = self.ends - [extent.rows for extent in extents]
        self._offsets = np.array([extent.offset for extent in extents], np.int64) - before * row_bytes

    def places(self, shards: Ids, ids: Ids) -> Ids:
        """Bytes at which rows begin in their files."""
        placed: Ids = self._offsets[shards] + ids * self.row_bytes
        return placed

    def stretches(self, first: int, stop: int) -> Iterator[tuple[Extent, int, int]]:
        """Where the rows `first` to `stop` lie: a shard, the byte at which they begin there, how many bytes."""
        shard = int(np.searchsorted(self.ends, first, side="right"))
        while first < stop:
            last = min(stop, int(self.ends[shard]))
            if last > first:
                place = int(self._offsets[shard]) + first * self.row_bytes
                yield self.extents[shard], place, (last - first) * self.row_bytes
            first, shard = last, shard + 1


class PreadReader:
    """Rows read by preadv: neighbours in the file in one call, each row straight to its place.

    Args:
        columns: Where each field's rows lie.
        kept: Whole fields that are held in memory (labels, say), as arrays of n rows.
        gap_bytes: Unwanted bytes between two rows that are read along rather than beginning another read.
        advise: Tell the system of all rows of wide fields before reading the first (WILLNEED).
        files: How shards are read; default: through the page cache.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        kept: Mapping[str, npt.NDArray[Any]],
        *,
        gap_bytes: int = 0,
        advise: bool = False,
        files: Callable[[], Files] = Files,
    ) -> None:
        self._columns, self._kept, self._gap, self._advise = columns, kept, gap_bytes, advise
        self._files = files()
        self._scratch = bytearray(0)

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        if not len(ids):
            return
        for name in out.keys() & self._kept.keys():
            np.take(self._kept[name], ids, axis=0, out=out[name], mode="clip")
        if out.keys() <= self._kept.keys():
            return
        if len(ids) > 1 and int(ids[-1]) - int(ids[0]) == len(ids) - 1 and (np.diff(ids) == 1).all():
            self._neighbours(int(ids[0]), int(ids[-1]) + 1, out)
            return
        order: Ids = np.argsort(ids, kind="stable")
        wanted: Ids = ids[order]
        ends = next(iter(self._columns.values())).ends if self._columns else np.array([0])
        shards: Ids = np.searchsorted(ends, wanted, side="right")
        for name, array in out.items():
            if name in self._kept:
                continue
            column = self._columns[name]
            flat = array.reshape(-1).view(np.uint8).reshape(len(ids), column.row_bytes)
            if column.row_bytes < _STAGED_ROW_BYTES:
                self._staged(column, wanted, shards, order, flat)
            else:
                self._direct(column, wanted, shards, order, flat)

    def close(self) -> None:
        """See `Reader`."""
        self._files.close()

    def _neighbours(self, first: int, stop: int, out: Arrays) -> None:
        """Rows that follow each other: nothing to sort, and little to do with the interpreter's lock held."""
        for name, array in out.items():
            if name in self._kept:
                continue
            view, at = array.reshape(-1).view(np.uint8).data, 0
            for extent, place, length in self._columns[name].stretches(first, stop):
                for low in range(0, length, READ_BYTES):
                    high = min(low + READ_BYTES, length)
                    self._files.fill(extent, [view[at + low : at + high]], place + low)
                at += length

    def _direct(self, column: Column, wanted: Ids, shards: Ids, order: Ids, out: npt.NDArray[np.uint8]) -> None:
        """Wide rows: every row is a part of a vectored read."""
        size = column.row_bytes
        first = np.flatnonzero(np.diff(wanted, prepend=-1))  # of repeated rows the first
        rows, places, files = wanted[first], column.places(shards, wanted)[first], shards[first]
        targets = order[first]
        runs = _runs(rows, places, files, targets, size, self._gap)
        if self._advise and size >= _ADVISED_ROW_BYTES:
            for low, high, _ in runs:
                begin = int(places[low])
                length = int(places[high - 1]) + size - begin
                handle = self._files.handle(column.extents[int(files[low])])
                os.posix_fadvise(handle, begin, length, os.POSIX_FADV_WILLNEED)
        view = out.reshape(-1).data
        at, to = places.tolist(), (targets * size).tolist()
        for low, high, straight in runs:
            if straight:
                parts = [view[to[low] : to[low] + (high - low) * size]]
            else:
                parts, end = [], at[low]
                for number in range(low, high):
                    if at[number] > end:
                        parts.append(self._waste(at[number] - end))
                    parts.append(view[to[number] : to[number] + size])
                    end = at[number] + size
            self._files.fill(column.extents[int(files[low])], parts, at[low])
        if len(first) < len(wanted):
            self._repeat(wanted, order, out)

    def _staged(self, column: Column, wanted: Ids, shards: Ids, order: Ids, out: npt.NDArray[np.uint8]) -> None:
        """Narrow rows: read with what lies between them into a scratch buffer, then picked."""
        size = column.row_bytes
        places = column.places(shards, wanted)
        gap = max(self._gap, 4096)
        new = (np.diff(places) > gap + size) | (np.diff(shards) != 0)
        # A run is cut where it grows past the scratch buffer.
        begins, start = [0], 0
        at = places.tolist()
        for cut in [*(np.flatnonzero(new) + 1).tolist(), len(at)]:
            while at[cut - 1] + size - at[start] > READ_BYTES:
                limit = at[start] + READ_BYTES - size
                start += max(1, int(np.searchsorted(places[start:cut], limit, side="right")))
                begins.append(start)
            if cut < len(at):
                begins.append(cut)
                start = cut
        for low, high in zip(begins, [*begins[1:], len(at)], strict=True):
            length = at[high - 1] + size - at[low]
            staged = self._waste(length)
            self._files.fill(column.extents[int(shards[low])], [staged], at[low])
            rows = np.frombuffer(staged, np.uint8).reshape(-1, size)
            out[order[low:high]] = rows[(places[low:high] - at[low]) // size]

    @staticmethod
    def _repeat(wanted: Ids, order: Ids, out: npt.NDArray[np.uint8]) -> None:
        same = np.flatnonzero(np.diff(wanted) == 0) + 1
        begin = np.maximum.accumulate(np.where(np.diff(wanted, prepend=-1) != 0, np.arange(len(wanted)), 0))
        for number in same.tolist():
            out[order[number]] = out[order[begin[number]]]

    def _waste(self, length: int) -> memoryview:
        """A part of the scratch buffer."""
        if len(self._scratch) < length:
            self._scratch = bytearray(length)
        return memoryview(self._scratch)[:length]


def _runs(rows: Ids, places: Ids, files: Ids, targets: Ids, size: int, gap: int) -> list[tuple[int, int, bool]]:
    """Rows (distinct, ascending) in runs that one call reads.

    Returns:
        (low, high, straight) a run; straight: without gaps, and its places in memory follow each other too.
    """
    between = np.diff(places) - size
    cut = (between > gap) | (np.diff(files) != 0)
    odd = (between != 0) | (np.diff(targets) != 1)
    crooked = np.concatenate([[0], np.cumsum(odd)])
    at_once = max(1, min(_IOV // 2 if gap else _IOV, READ_BYTES // size))  # a gap is a part too
    found = []
    begins = [0, *(np.flatnonzero(cut) + 1).tolist(), len(rows)]
    for begin, end in pairwise(begins):
        for low in range(begin, end, at_once):
            high = min(low + at_once, end)
            found.append((low, high, bool(crooked[high - 1] == crooked[low])))
    return found
