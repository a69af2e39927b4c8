"""One shard with ragged fields that is being filled.

How many values it will hold is known at its end alone, and room for them in an HDF5 file has to be made at its
beginning. So samples go to a plain file a field first, and from there into the shard.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.filters import Packing
from hpcmass.data.manifest import Field
from hpcmass.data.ragged import OFFSET_BYTES, Ids, Ragged
from hpcmass.data.shardfile import create_shard
from hpcmass.data.stats import empty_stats, is_countable, of_block
from hpcmass.data.writing.shardout import BLOCK_BYTES, finished, pread, pwrite
from hpcmass.data.writing.staging import Piece
from hpcmass.files import storage_errors

_BLOCK_SAMPLES = 1 << 14


class RaggedShard:
    """As `OpenShard`, whose methods it has.

    Blocks end where samples, counted from the shard's first one, fill them: the statistics, merged block by
    block, are the same to the last bit in whatever batches samples come.
    """

    def __init__(
        self,
        path: Path,
        fields: Sequence[Field],
        capacity: int,
        limit_bytes: int | None = None,
        packing: Packing | None = None,
    ) -> None:
        """Begin.

        Args:
            path: The shard's file, made by `finish`.
            fields: Its fields.
            capacity: Samples at most.
            limit_bytes: It is full with the sample that brings it to so many bytes; None: with `capacity`.
            packing: How it is compressed; None: not.
        """
        self._packing = packing
        self.path, self.fields, self.capacity = path, tuple(fields), capacity
        self.samples = 0  # those held included
        self._limit, self._bytes = limit_bytes, 0
        self._held: dict[str, list[Any]] = {one.name: [] for one in fields}
        self._held_samples = self._held_bytes = 0
        self._countable = {one.name for one in fields if is_countable(one) or one.classes}
        self._stats = empty_stats(fields)
        self._lengths: dict[str, list[Ids]] = {one.name: [] for one in fields if one.ragged}
        self._spilt: dict[str, tuple[Path, int]] = {}
        self._at = dict.fromkeys(self._held, 0)
        stem = path.name.removesuffix(".h5")
        try:
            for number, one in enumerate(fields):
                spill = path.with_name(f"{stem}{number:02x}.h5")  # a name that the next start clears away
                with storage_errors(spill, "write the samples"):
                    self._spilt[one.name] = spill, os.open(spill, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except BaseException:
            self.discard()
            raise

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self.samples == self.capacity or (self._limit is not None and self._bytes >= self._limit)

    def takes(self, batch: Mapping[str, Any], start: int, stop: int) -> int:
        """How many of the samples `start` to `stop` of a batch it takes."""
        many = min(self.capacity - self.samples, stop - start)
        if self._limit is not None:
            sizes = np.cumsum(self._sizes(batch, start, start + many))
            many = min(many, int(np.searchsorted(sizes, self._limit - self._bytes)) + 1)
        return many

    def put(self, batch: Mapping[str, Any], start: int, stop: int) -> None:
        """Take the samples `start` to `stop` of a batch, no more than it takes."""
        while start < stop:
            sizes = np.cumsum(self._sizes(batch, start, stop))
            many = min(
                stop - start,
                _BLOCK_SAMPLES - self._held_samples,
                int(np.searchsorted(sizes, BLOCK_BYTES - self._held_bytes)) + 1,
            )
            for one in self.fields:
                rows = batch[one.name]
                part = rows.part(start, start + many) if one.ragged else rows[start : start + many]
                self._held[one.name].append(_copy(part))
            size = int(sizes[many - 1])
            self._held_samples, self._held_bytes = self._held_samples + many, self._held_bytes + size
            self.samples, self._bytes, start = self.samples + many, self._bytes + size, start + many
            if self._held_samples == _BLOCK_SAMPLES or self._held_bytes >= BLOCK_BYTES:
                self._flush()

    def finish(self, name: Path) -> Piece:
        """Make the shard, whole and durable.

        Args:
            name: The file to use where it is compressed; else what the shard has room for is what it holds.
        """
        self._flush()
        values = {name: int(sum(one.sum() for one in lengths)) for name, lengths in self._lengths.items()}
        _, places = create_shard(self.path, self.fields, self.samples, values)
        with storage_errors(self.path, "write the shard"):
            out = os.open(self.path, os.O_RDWR)
            try:
                for one in self.fields:
                    self._copy_out(one, out, places[one.name])
                    if one.ragged:
                        self._write_offsets(one, out, places[one.offsets])
            finally:
                os.close(out)
        self._drop()
        info = finished(self.path, name, self.fields, self.samples, places, self._packing, values)
        self.path = self.path.with_name(info.file)
        return Piece(info, self._stats)

    def discard(self) -> None:
        """Remove the files: what they held was not published."""
        self._drop()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _drop(self) -> None:
        for path, handle in self._spilt.values():
            with contextlib.suppress(OSError):
                os.close(handle)
                path.unlink()
        self._spilt = {}

    def _sizes(self, batch: Mapping[str, Any], start: int, stop: int) -> Ids:
        """Bytes of each of a batch's samples."""
        sizes = np.zeros(stop - start, np.int64)
        for one in self.fields:
            if one.ragged:
                sizes += np.diff(batch[one.name].offsets[start : stop + 1]) * one.row_bytes + OFFSET_BYTES
            else:
                sizes += one.row_bytes
        return sizes

    def _flush(self) -> None:
        for one in self.fields:
            parts, self._held[one.name] = self._held[one.name], []
            if not parts:
                continue
            rows = _joined(parts)
            for name, seen in of_block(one, rows, countable=one.name in self._countable).items():
                self._stats[name].merge(seen)
            if isinstance(rows, Ragged):
                self._lengths[one.name].append(rows.lengths)
                rows = rows.values
            data = np.ascontiguousarray(rows, one.numpy_dtype).reshape(-1).view(np.uint8).data
            path, handle = self._spilt[one.name]
            with storage_errors(path, "write the samples"):
                pwrite(handle, data, self._at[one.name])
            self._at[one.name] += len(data)
        self._held_samples = self._held_bytes = 0

    def _copy_out(self, one: Field, out: int, place: int) -> None:
        _, handle = self._spilt[one.name]
        for at in range(0, self._at[one.name], BLOCK_BYTES):
            data = pread(handle, min(BLOCK_BYTES, self._at[one.name] - at), at)
            pwrite(out, data, place + at)

    def _write_offsets(self, one: Field, out: int, place: int) -> None:
        end = np.zeros(1, np.int64)
        for ends in [end, *self._lengths[one.name]]:
            ends = end[-1] + np.cumsum(ends)
            pwrite(out, ends.astype("<i8").view(np.uint8).data, place)
            place, end = place + OFFSET_BYTES * len(ends), ends


def _copy(part: Any) -> Any:
    """A part of a batch that its giver may change later."""
    return Ragged(part.values.copy(), part.offsets) if isinstance(part, Ragged) else part.copy()


def _joined(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], Ragged):
        return np.concatenate(parts)
    offsets: npt.NDArray[np.int64] = np.zeros(1 + sum(map(len, parts)), np.int64)
    np.cumsum(np.concatenate([part.lengths for part in parts]), out=offsets[1:])
    return Ragged(np.concatenate([part.values for part in parts]), offsets)
