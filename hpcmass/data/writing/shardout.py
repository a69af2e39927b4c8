"""One shard that is being filled: rows go to their byte offsets block by block, and are counted on the way."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.filters import Packing
from hpcmass.data.manifest import Field, ShardInfo
from hpcmass.data.shardfile import create_shard
from hpcmass.data.sharding.finish import finish_part
from hpcmass.data.stats import FieldStats, is_countable
from hpcmass.data.writing.staging import Piece
from hpcmass.files import fsync_dir, storage_errors

BLOCK_BYTES = 4 << 20


class OpenShard:
    """A shard with room for `capacity` samples.

    Blocks have a size of their own, whatever the sizes in which samples come: the statistics, which are
    merged block by block, are then the same to the last bit however often the writing was resumed.
    """

    def __init__(
        self, path: Path, fields: Sequence[Field], capacity: int, packing: Packing | None = None
    ) -> None:
        self.path, self._packing = path, packing
        self.fields = tuple(fields)
        self.capacity = capacity
        self.samples = 0
        row_bytes = sum(one.row_bytes for one in fields)
        self._block = int(min(max(1, BLOCK_BYTES // row_bytes), capacity))
        self._held = 0
        self._buffers = {one.name: np.empty((self._block, *one.shape), one.numpy_dtype) for one in fields}
        self._countable = {one.name for one in fields if is_countable(one) or one.classes}
        self._stats = {one.name: FieldStats() for one in fields}
        _, self._offsets = create_shard(path, self.fields, capacity)
        with storage_errors(path, "write the shard"):
            self._handle = os.open(path, os.O_RDWR)

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self.samples + self._held == self.capacity

    def takes(self, batch: Mapping[str, Any], start: int, stop: int) -> int:
        """How many of the samples `start` to `stop` of a batch it takes."""
        return min(self.capacity - self.samples - self._held, stop - start)

    def put(self, batch: Mapping[str, npt.NDArray[Any]], start: int, stop: int) -> None:
        """Take the samples `start` to `stop` of a batch, no more than there is room for."""
        while start < stop:
            if not self._held and stop - start >= self._block:
                taken = self._block
                self._write({name: rows[start : start + taken] for name, rows in batch.items()}, taken)
            else:
                taken = min(self._block - self._held, stop - start)
                for name, rows in batch.items():
                    self._buffers[name][self._held : self._held + taken] = rows[start : start + taken]
                self._held += taken
                if self._held == self._block:
                    self._flush()
            start += taken

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, 0
            self._write({name: rows[:held] for name, rows in self._buffers.items()}, held)

    def _write(self, rows: Mapping[str, npt.NDArray[Any]], count: int) -> None:
        for one in self.fields:
            values = np.ascontiguousarray(rows[one.name], one.numpy_dtype)
            self._stats[one.name].merge(FieldStats.of(values, countable=one.name in self._countable))
            place = self._offsets[one.name] + self.samples * one.row_bytes
            with storage_errors(self.path, "write the shard"):
                pwrite(self._handle, values.reshape(-1).view(np.uint8).data, place)
        self.samples += count

    def finish(self, name: Path) -> Piece:
        """Make the shard whole and durable, with room for no more than it holds.

        Args:
            name: The file to use where it has to be made anew: it is compressed, or fewer samples came than it
                has room for.
        """
        self._flush()
        if self.samples < self.capacity and self._packing is None:
            self._shrink(name)
        with storage_errors(self.path, "write the shard"):
            os.close(self._handle)
            self._handle = -1
        info = finished(self.path, name, self.fields, self.samples, self._offsets, self._packing)
        self.path = self.path.with_name(info.file)
        return Piece(info, self._stats)

    def _shrink(self, path: Path) -> None:
        _, offsets = create_shard(path, self.fields, self.samples)
        with storage_errors(path, "write the shard"):
            out = os.open(path, os.O_RDWR)
            try:
                for one in self.fields:
                    for at in range(0, self.samples * one.row_bytes, BLOCK_BYTES):
                        length = min(BLOCK_BYTES, self.samples * one.row_bytes - at)
                        data = pread(self._handle, length, self._offsets[one.name] + at)
                        pwrite(out, data, offsets[one.name] + at)
            except BaseException:
                os.close(out)
                raise
        self.discard()
        self.path, self._handle, self._offsets = path, out, offsets

    def discard(self) -> None:
        """Remove the file: what it held was not published."""
        with contextlib.suppress(OSError):
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1
            self.path.unlink()


def finished(
    path: Path,
    name: Path,
    fields: Sequence[Field],
    samples: int,
    offsets: Mapping[str, int],
    packing: Packing | None,
    values: Mapping[str, int] | None = None,
) -> ShardInfo:
    """Make a shard durable whose rows are all written; or of a compressed one the file `name`, in its place."""
    whole = path if packing is None else name
    info = finish_part(path, whole, fields, samples, offsets, packing, values or {})
    with storage_errors(path.parent, "write the folder"):
        if packing is not None:
            path.unlink()
        fsync_dir(path.parent)
    return info


def pwrite(handle: int, view: memoryview, place: int) -> None:
    """Write all of it, at a place."""
    while view:
        written = os.pwrite(handle, view, place)
        view, place = view[written:], place + written


def pread(handle: int, length: int, place: int) -> memoryview:
    """Read as many bytes from a place.

    Raises:
        OSError: The file ends before.
    """
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = os.preadv(handle, [view], place)
        if not got:
            raise OSError(errno.EIO, "what was written just now is not there")
        view, place = view[got:], place + got
    return memoryview(data)
