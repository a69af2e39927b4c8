"""The rows of a field over all shards of a dataset as one array, and rows gathered out of it.

Where it can be, the shards' pages are mapped side by side into one range of addresses, so that a row of
any shard has one number and a batch is a single `np.take`: twice as fast as going shard by shard
(measured; see benchmarks/loader.py). Shards whose rows do not begin at a page are copied row by row.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import ChunkInfo
from hpcmass.errors import CorruptError
from hpcmass.files import storage_errors

PAGE = mmap.PAGESIZE
_MAX_ADDRESSES = 1 << 44
_PROT_NONE, _PROT_READ = 0, 1
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """Rows of one field in one shard: the file, its size, the byte of the first row, their number.

    Where `chunks` is given the rows are compressed, and `offset` is 0.
    """

    path: Path
    file_bytes: int
    offset: int
    rows: int
    chunks: ChunkInfo | None = None


def open_rows(extents: Sequence[Extent], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Rows:
    """The rows of one field over all shards, mapped read-only.

    Raises:
        CorruptError: A shard has not the size it should have (it was cut off since the dataset was opened).
        StorageError: A shard cannot be opened.
    """
    row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if all(extent.offset % PAGE == 0 for extent in extents):
        joined = _map_joined(extents, row_bytes)
        if joined is not None:
            return JoinedRows(extents, dtype, shape, *joined)
    return SeparateRows(extents, dtype, shape)


class Rows:
    """Rows 0 … n-1 of a field; `gather` copies some of them."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def gather(self, ids: Ids) -> npt.NDArray[Any]:
        """Rows with these numbers (each within 0 … n-1), copied, C-contiguous: (len(ids), *shape)."""
        out = np.empty((len(ids), *self.shape), self.dtype)
        self.gather_into(ids, out)
        return out

    def gather_into(self, ids: Ids, out: npt.NDArray[Any]) -> None:
        """The same into `out`, which has this shape and type; others run meanwhile (without the GIL)."""
        raise NotImplementedError


class JoinedRows(Rows):
    """All shards in one range of addresses; unmapped pages lie between them and are never touched."""

    def __init__(
        self,
        extents: Sequence[Extent],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        address: int,
        total_bytes: int,
        first_rows: list[int],
    ) -> None:
        self.dtype, self.shape = dtype, shape
        row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        rows = total_bytes // row_bytes
        buffer = (ctypes.c_char * (rows * row_bytes)).from_address(address)
        self._rows = np.frombuffer(memoryview(buffer), dtype=dtype).reshape(rows, *shape)
        self._rows.flags.writeable = False
        self._ends = np.cumsum([extent.rows for extent in extents])
        # What is added to a sample's number to get its row in the range of addresses.
        before = self._ends - [extent.rows for extent in extents]
        self._shift = np.array(first_rows, np.int64) - before
        self._one = len(extents) == 1
        unmap = weakref.finalize(self, _libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(total_bytes))
        unmap.atexit = False  # the process's end unmaps, and other threads may still be reading

    def gather_into(self, ids: Ids, out: npt.NDArray[Any]) -> None:
        """See `Rows`."""
        rows = ids if self._one else ids + self._shift[np.searchsorted(self._ends, ids, side="right")]
        # Any mode but `raise` spares numpy a second copy; the ids were checked before.
        np.take(self._rows, rows, axis=0, out=out, mode="clip")


class SeparateRows(Rows):
    """Every shard mapped by itself; rows are copied one by one."""

    def __init__(self, extents: Sequence[Extent], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._ends = np.cumsum([extent.rows for extent in extents])
        self._before = self._ends - [extent.rows for extent in extents]
        self._views = []
        for extent in extents:
            handle = open_checked(extent)
            try:
                held = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
            flat = np.frombuffer(held, np.uint8, extent.rows * self._row_bytes, extent.offset)
            self._views.append(flat.reshape(extent.rows, self._row_bytes))

    def gather_into(self, ids: Ids, out: npt.NDArray[Any]) -> None:
        """See `Rows`."""
        if not len(ids):
            return
        target = out.reshape(-1).view(np.uint8).reshape(len(ids), self._row_bytes)
        shards = np.searchsorted(self._ends, ids, side="right")
        rows = (ids - self._before[shards]).tolist()
        for number, (shard, row) in enumerate(zip(shards.tolist(), rows, strict=True)):
            np.copyto(target[number], self._views[shard][row])


def open_checked(extent: Extent, flags: int = 0) -> int:
    """A file descriptor of a shard, whose size is checked: touching pages past its end would be a SIGBUS."""
    with storage_errors(extent.path, "read the shard"):
        handle = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC | flags)
    found = os.fstat(handle).st_size
    if found != extent.file_bytes:
        os.close(handle)
        raise CorruptError(f"expected {extent.file_bytes} bytes, found {found}", where=extent.path)
    return handle


def _map_joined(extents: Sequence[Extent], row_bytes: int) -> tuple[int, int, list[int]] | None:
    """Map all extents into one range of addresses, each at a multiple of both the page and the row.

    Returns:
        Address, length in bytes and the row at which each extent begins; None where that is impossible.
    """
    step = math.lcm(PAGE, row_bytes)
    places, total = [], 0
    for extent in extents:
        places.append(total)
        total += math.ceil(extent.rows * row_bytes / step) * step
    if total > _MAX_ADDRESSES:
        return None
    libc = _libc()
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    address = libc.mmap(None, total, _PROT_NONE, flags, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    for extent, place in zip(extents, places, strict=True):
        try:
            handle = open_checked(extent)
        except BaseException:
            libc.munmap(address, total)
            raise
        try:
            got = libc.mmap(
                address + place,
                extent.rows * row_bytes,
                _PROT_READ,
                _MAP_SHARED | _MAP_FIXED,
                handle,
                extent.offset,
            )
        finally:
            os.close(handle)
        if got != address + place:
            libc.munmap(address, total)
            return None
    return address, total, [place // row_bytes for place in places]


def _libc() -> Any:
    """The C library, with the two calls that Python's own mmap does not give: a fixed address."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_longlong,
    ]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
