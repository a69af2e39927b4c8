"""What a worker of `shard` does: read a block of the source, put its rows where they belong, count.

Imports nothing heavier than numpy, so that a worker process stays small. Rows go straight to their byte
offsets in the shards: no two blocks touch the same bytes, so workers need not know of each other, and the
shards' bytes do not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field
from hpcmass.data.ragged import OFFSET_BYTES, Ragged
from hpcmass.data.sources.base import Source
from hpcmass.data.stats import FieldStats, of_block
from hpcmass.errors import DataError
from hpcmass.files import sha256_file, storage_errors
from hpcmass.files.publish import fsync_file

_MAX_OPEN = 128

SplitStats = dict[int, dict[str, FieldStats]]
"""Statistics a split (by number) and field."""


@dataclass
class Scatter:
    """Where the rows of a source go.

    Attributes:
        source: The samples.
        fields: Fields that are written.
        paths: File of each part.
        offsets: Byte offset of each field's rows, a part.
        split_of_part: Number of each part's split.
        countable: Fields whose values are counted as classes.
        values: Of each part the number of values of each ragged field.
    """

    source: Source
    fields: tuple[Field, ...]
    paths: list[Path]
    offsets: list[dict[str, int]]
    split_of_part: list[int]
    countable: frozenset[str]
    values: list[dict[str, int]]
    _open: dict[int, int] = field(default_factory=dict, repr=False)

    def write(
        self,
        start: int,
        part_of: npt.NDArray[np.int32],
        before: npt.NDArray[np.int64],
        values_before: Mapping[str, npt.NDArray[np.int64]],
    ) -> SplitStats:
        """Write the samples from `start` on.

        Args:
            start: First sample of the block.
            part_of: Part of each sample of the block, shape (b,).
            before: Samples of each part that lie before this block, shape (parts,).
            values_before: Of each ragged field their values, shape (parts,).

        Returns:
            Statistics of the block.
        """
        block = self.source.read(start, start + len(part_of))
        # Stable, so that samples keep the source's order within their part.
        order = np.argsort(part_of, kind="stable")
        parts, firsts = np.unique(part_of[order], return_index=True)
        bounds = [*firsts.tolist(), len(order)]
        stats: SplitStats = {}
        for one in self.fields:
            rows = _in_order(one, block.pop(one.name), order, many=len(parts))
            for index, part in enumerate(parts.tolist()):
                low, high = bounds[index], bounds[index + 1]
                if isinstance(rows, Ragged):
                    mine, first = rows.part(low, high), int(values_before[one.name][part])
                    self._put(part, mine.values, self.offsets[part][one.name] + first * one.row_bytes)
                    # The first of them ends the sample before, or begins with 0.
                    place = self.offsets[part][one.offsets] + int(before[part]) * OFFSET_BYTES
                    self._put(part, (mine.offsets + first).astype("<i8"), place)
                else:
                    place = self.offsets[part][one.name] + int(before[part]) * one.row_bytes
                    self._put(part, rows[low:high], place)
            for split, low, high in self._stretches(parts.tolist(), bounds):
                seen = rows.part(low, high) if isinstance(rows, Ragged) else rows[low:high]
                stats.setdefault(split, {}).update(of_block(one, seen, countable=one.name in self.countable))
        return stats

    def _stretches(self, parts: list[int], bounds: list[int]) -> list[tuple[int, int, int]]:
        """(split, first row, end row) of each split present; its parts follow each other."""
        found: dict[int, tuple[int, int]] = {}
        for index, part in enumerate(parts):
            split = self.split_of_part[part]
            found[split] = (found.get(split, (bounds[index], 0))[0], bounds[index + 1])
        return [(split, low, high) for split, (low, high) in found.items()]

    def _put(self, part: int, rows: npt.NDArray[Any], place: int) -> None:
        view = rows.reshape(-1).view(np.uint8).data
        with storage_errors(self.paths[part], "write the shard"):
            if part not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    self.close()
                self._open[part] = os.open(self.paths[part], os.O_WRONLY)
            while view:
                written = os.pwrite(self._open[part], view, place)
                view, place = view[written:], place + written

    def close(self) -> None:
        """Close the shards that are open."""
        while self._open:
            os.close(self._open.popitem()[1])


def _in_order(one: Field, values: Any, order: npt.NDArray[np.int64], *, many: int) -> Any:
    """A block's values of a field, of the field's type, by part."""
    if isinstance(values, Ragged):
        if len(values) != len(order) or values.values.shape[1:] != one.shape:
            raise DataError(f"field {one.name}: a block has {len(values)} samples")
        rows = values if many == 1 else values.take(order)
        return Ragged(rows.values.astype(one.numpy_dtype, copy=False), rows.offsets)
    if values.shape != (len(order), *one.shape):
        raise DataError(f"field {one.name}: a block has shape {values.shape}")
    fixed = values if many == 1 else values[order]
    return fixed.astype(one.numpy_dtype, copy=False)


def finish_shard(path: Path) -> tuple[int, str]:
    """Make a shard durable; returns its size in bytes and SHA-256."""
    with storage_errors(path, "write the shard"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return path.stat().st_size, sha256_file(path)


def make_durable(paths: Iterable[Path]) -> None:
    """Have the bytes on disk that any process has written into these shards."""
    for path in paths:
        with storage_errors(path, "write the shard"):
            fsync_file(path)


def hash_files(paths: Sequence[Path]) -> list[tuple[int, str]]:
    """Size in bytes and SHA-256 of each file."""
    result = []
    for path in paths:
        with storage_errors(path, "read the file"):
            size = path.stat().st_size
        result.append((size, sha256_file(path)))
    return result


def tree_hash(names: Sequence[str], hashes: Sequence[tuple[int, str]]) -> str:
    """One SHA-256 for many files: over a line `HASH  NAME` each, as sha256sum prints them."""
    digest = hashlib.sha256()
    for name, (_, one) in zip(names, hashes, strict=True):
        digest.update(f"{one}  {name}\n".encode())
    return digest.hexdigest()


_scatter: Scatter | None = None


def start_worker(scatter: Scatter) -> None:
    """Prepare a worker process: it leaves Ctrl-C to its parent, and ends when the parent has ended."""
    global _scatter
    _scatter = scatter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def write_in_worker(
    start: int,
    part_of: npt.NDArray[np.int32],
    before: npt.NDArray[np.int64],
    values_before: Mapping[str, npt.NDArray[np.int64]],
) -> SplitStats:
    """`Scatter.write` of the scatter that `start_worker` was given."""
    assert _scatter is not None
    return _scatter.write(start, part_of, before, values_before)
