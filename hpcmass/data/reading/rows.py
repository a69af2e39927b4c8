"""Readers of rows: mapped, or read by preadv straight into where they are wanted.

A reader belongs to one thread. All give exactly what `Dataset.batch` gives; they differ in what a shard that
has become shorter does: for `PreadReader` it is an error with the shard's name, always; for `MapReader`
where it is seen before a page is touched that is no longer there.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcmass.data.mapping import Extent, Ids, Rows, open_checked
from hpcmass.errors import CorruptError
from hpcmass.files import storage_errors

Arrays = Mapping[str, npt.NDArray[Any]]

READ_BYTES = 4 << 20  # the longest read of several rows
BLOCK_BYTES = 512 << 10  # what a read from a disk or a server should have at least
_IOV = 1000  # rows a call; the system's limit is 1024
_STAGED_ROW_BYTES = 1024  # narrower rows are read with what lies between and then picked
_OPEN_FILES = 128
_WATCHED = 16
_LOOK_S = 1.0
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


def still_whole(handle: int, extent: Extent) -> None:
    """Compare an open shard with what it should be.

    Raises:
        CorruptError: It was cut off, or removed.
    """
    with storage_errors(extent.path, "read the shard"):
        found = os.fstat(handle)
    if found.st_nlink == 0:
        raise CorruptError("the shard was removed while it was read", where=extent.path)
    if found.st_size != extent.file_bytes:
        raise CorruptError(
            f"the shard changed while it was read: expected {extent.file_bytes} bytes, found {found.st_size}",
            where=extent.path,
        )


class Watched:
    """Shards whose sizes are looked at again while they are mapped: a few a call, all of them in turn."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = list({extent.path: extent for extent in extents}.values())
        self._handles: list[int | None] = [None] * len(self._extents)
        self._next = 0

    def check(self) -> None:
        """Compare a few shards with what they were.

        Raises:
            CorruptError: One was cut off, or removed.
        """
        for _ in range(min(_WATCHED, len(self._extents))):
            extent, handle = self._extents[self._next], self._handles[self._next]
            if handle is None:
                handle = open_checked(extent)
                if len(self._extents) <= _OPEN_FILES:
                    self._handles[self._next] = handle
                else:
                    os.close(handle)
            else:
                still_whole(handle, extent)
            self._next = (self._next + 1) % len(self._extents)

    def close(self) -> None:
        """Close what is open."""
        for handle in self._handles:
            if handle is not None:
                os.close(handle)
        self._handles = [None] * len(self._extents)


class Files:
    """Open shards, whose sizes are looked at again now and then: a reader's own, closed with it."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[int, float]] = OrderedDict()  # handle, when it was looked at

    def handle(self, extent: Extent) -> int:
        """A descriptor of the shard, as long as no other shard is asked for.

        Raises:
            CorruptError: It has another size than it should have, or was removed.
            StorageError: It cannot be opened.
        """
        now = time.monotonic()
        handle, checked = self._open.get(extent.path, (-1, now))
        if handle < 0:
            handle = open_checked(extent)
            self._open[extent.path] = handle, now
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1][0])
        elif now - checked > _LOOK_S:
            still_whole(handle, extent)
            self._open[extent.path] = handle, now
        return handle

    def fill(self, extent: Extent, parts: Sequence[memoryview], offset: int) -> None:
        """Read the bytes from `offset` on into the parts, one after the other.

        Raises:
            CorruptError: The shard ends before.
            StorageError: It cannot be read.
        """
        handle = self.handle(extent)
        left = sum(map(len, parts))
        try:
            got = os.preadv(handle, parts, offset)
        except OSError:
            got = 0  # named below
        if got == left:
            return
        with storage_errors(extent.path, "read the shard"):
            fill_slowly(handle, parts, offset, extent)

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()


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


class PreadReader:
    """Rows read by preadv: neighbours in the file in one call, each row straight to its place.

    Args:
        columns: Where each field's rows lie.
        kept: Whole fields that are held in memory (labels, say), as arrays of n rows.
        gap_bytes: Unwanted bytes between two rows that are read along rather than beginning another read.
        advise: Tell the system of all rows of wide fields before reading the first (WILLNEED).
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        kept: Mapping[str, npt.NDArray[Any]],
        *,
        gap_bytes: int = 0,
        advise: bool = False,
    ) -> None:
        self._columns, self._kept, self._gap, self._advise = columns, kept, gap_bytes, advise
        self._files = Files()
        self._scratch = bytearray(0)

    def read(self, ids: Ids, out: Arrays) -> None:
        """See `Reader`."""
        if not len(ids):
            return
        for name in out.keys() & self._kept.keys():
            np.take(self._kept[name], ids, axis=0, out=out[name], mode="clip")
        if out.keys() <= self._kept.keys():
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


def fill_slowly(handle: int, parts: Sequence[memoryview], offset: int, extent: Extent) -> None:
    """Read until all parts are full, however little a call gives.

    Raises:
        CorruptError: The file ends before.
        OSError: What the system said.
    """
    for part in parts:
        done = 0
        while done < len(part):
            got = os.preadv(handle, [part[done:]], offset)
            if got == 0:
                raise CorruptError(
                    f"the shard was cut off while it was read: expected {extent.file_bytes} bytes, "
                    f"found {os.fstat(handle).st_size}",
                    where=extent.path,
                )
            done, offset = done + got, offset + got


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
