"""What a dataset has compressed, where its chunks lie, and rows that are held whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.mapping import Ids, Rows
from hpcmass.data.reading.table import ChunkColumn, ChunkPool

if TYPE_CHECKING:
    from hpcmass.data.reader import Dataset


def compressed_fields(dataset: Dataset) -> list[str]:
    """Names of the fields that are compressed, in one shard at least."""
    found = {name for shard in dataset.manifest.shards for name in shard.chunks}
    return [name for name in dataset.stored if name in found]


def stored_bytes(dataset: Dataset) -> int:
    """Bytes that the samples take in the shards: compressed chunks, and rows that are not compressed."""
    total = 0
    for shard in dataset.manifest.shards:
        for name, one in dataset.stored.items():
            chunks = shard.chunks.get(name)
            total += chunks.bytes if chunks else shard.rows(one) * one.row_bytes
    return total


def chunk_columns(dataset: Dataset, names: Sequence[str]) -> dict[str, ChunkColumn]:
    """The chunks of compressed fields; what was read of their tables is kept by the dataset."""
    for name in names:
        if name not in dataset.columns:
            dataset.columns[name] = ChunkColumn(dataset.stored[name], dataset.extents(name))
    return {name: dataset.columns[name] for name in names}


def chunk_pools(dataset: Dataset, columns: Mapping[str, ChunkColumn], pool_bytes: int) -> dict[str, ChunkPool]:
    """Pools of decoded chunks within so many bytes, shared out by the fields' width."""
    width = sum(dataset.fields[name].row_bytes for name in columns)
    pools = {}
    for name, column in columns.items():
        share = pool_bytes * dataset.fields[name].row_bytes // width
        # Chunks of one size only (concatenated datasets may have several), beside shards that have none.
        sizes = {layout.chunk_bytes for layout in column.layouts if layout.samples}
        if len(sizes) == 1 and share >= max(sizes):
            pools[name] = ChunkPool(int(column.last[-1]), max(sizes), share)
    return pools


class HeldRows(Rows):
    """Rows of a field that is held in memory as a whole."""

    def __init__(self, whole: npt.NDArray[Any]) -> None:
        self.dtype, self.shape = whole.dtype, whole.shape[1:]
        self._whole = whole

    def gather_into(self, ids: Ids, out: npt.NDArray[Any]) -> None:
        """See `Rows`."""
        np.take(self._whole, ids, axis=0, out=out, mode="clip")
