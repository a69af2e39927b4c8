"""Open shards: as many as the process may have open, looked at again now and then, read in part.

What a process may open is shared among its readers: each thread of each loader has one.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcmass.data.mapping import Extent, open_checked
from hpcmass.errors import CorruptError, StorageError
from hpcmass.files import storage_errors

_OPEN_FILES = 128  # a reader's at most
_WATCHED = 16
_LOOK_S = 1.0
_DIRECT_ALIGN = 4096  # what every file system takes that reads past the page cache


class _Shares:
    """How many shards a reader may hold open: half of what the process may, shared among all readers.

    Without a lock: readers are also given up by the garbage collector, in whatever thread and wherever that is,
    and processes are forked while others read. Each step is one of the interpreter's own.
    """

    def __init__(self) -> None:
        self._readers: set[int] = set()
        self.each = _OPEN_FILES

    def join(self, reader: object) -> None:
        """One more."""
        self._readers.add(id(reader))
        self._count()

    def leave(self, reader: object) -> None:
        """One less; it may have left before."""
        self._readers.discard(id(reader))
        self._count()

    def _count(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            self.each = _OPEN_FILES
        else:
            self.each = max(1, min(_OPEN_FILES, limit // 2 // max(1, len(self._readers))))


_SHARES = _Shares()


def open_files() -> int:
    """How many shards a reader may hold open now."""
    return _SHARES.each


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
        _SHARES.join(self)

    def check(self) -> None:
        """Compare a few shards with what they were.

        Raises:
            CorruptError: One was cut off, or removed.
        """
        held = len(self._extents) <= _SHARES.each
        for _ in range(min(_WATCHED, len(self._extents))):
            extent, handle = self._extents[self._next], self._handles[self._next]
            if handle is None:
                handle = open_checked(extent)
                self._handles[self._next] = handle
            else:
                still_whole(handle, extent)
            if not held:
                self._handles[self._next] = None
                os.close(handle)
            self._next = (self._next + 1) % len(self._extents)

    def close(self) -> None:
        """Close what is open."""
        for handle in self._handles:
            if handle is not None:
                os.close(handle)
        self._handles = [None] * len(self._extents)
        _SHARES.leave(self)

    def __del__(self) -> None:
        self.close()


class Files:
    """Open shards, whose sizes are looked at again now and then: a reader's own, closed with it."""

    _flags = 0

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[int, float]] = OrderedDict()  # handle, when it was looked at
        _SHARES.join(self)

    def handle(self, extent: Extent) -> int:
        """A descriptor of the shard, as long as no other shard is asked for.

        Raises:
            CorruptError: It has another size than it should have, or was removed.
            StorageError: It cannot be opened.
        """
        now = time.monotonic()
        handle, checked = self._open.get(extent.path, (-1, now))
        if handle < 0:
            while len(self._open) >= _SHARES.each:
                os.close(self._open.popitem(last=False)[1][0])
            handle = open_checked(extent, self._flags)
            self._open[extent.path] = handle, now
        else:
            self._open.move_to_end(extent.path)
            if now - checked > _LOOK_S:
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
        _SHARES.leave(self)

    def __del__(self) -> None:
        self.close()


class DirectFiles(Files):
    """The same past the page cache (O_DIRECT): what is read once need not be put there, a page at a time.

    Whole pages of the file are read into a buffer of its own, and the parts are copied out of it. Where the
    file system cannot, everything is read through the page cache.
    """

    _flags = getattr(os, "O_DIRECT", 0)

    def __init__(self) -> None:
        super().__init__()
        self._buffer = mmap.mmap(-1, _DIRECT_ALIGN)

    def fill(self, extent: Extent, parts: Sequence[memoryview], offset: int) -> None:
        """See `Files`."""
        if self._flags and self._fill_direct(extent, parts, offset):
            return
        super().fill(extent, parts, offset)

    def _fill_direct(self, extent: Extent, parts: Sequence[memoryview], offset: int) -> bool:
        """Whether it could be read so."""
        length = sum(map(len, parts))
        begin = offset - offset % _DIRECT_ALIGN
        wanted = -(-(offset + length - begin) // _DIRECT_ALIGN) * _DIRECT_ALIGN
        if len(self._buffer) < wanted:
            self._buffer = mmap.mmap(-1, wanted)
        view = memoryview(self._buffer)[:wanted]
        got = 0
        try:
            got = os.preadv(self.handle(extent), [view], begin)
        except OSError:
            pass  # read again, and named, through the page cache
        except StorageError as error:
            if error.data["errno"] != errno.EINVAL:
                raise
        if got < offset + length - begin:
            self._plainly()
            return False
        at = offset - begin
        whole = np.frombuffer(view, np.uint8)
        for part in parts:
            np.copyto(np.frombuffer(part, np.uint8), whole[at : at + len(part)])  # drops the interpreter's lock
            at += len(part)
        return True

    def _plainly(self) -> None:
        """From now on through the page cache."""
        self.close()
        _SHARES.join(self)
        self._flags, self._buffer = 0, mmap.mmap(-1, _DIRECT_ALIGN)


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
