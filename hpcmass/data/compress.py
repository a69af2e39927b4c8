"""Making a shard of compressed chunks out of a plain one.

One task a shard: HDF5 itself compresses, chunk after chunk from the front, so the bytes depend on the samples
and the arguments alone, whatever the number of workers that had written the plain shard.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcmass.data.filters import (
    BITSHUFFLE,
    INDEX_DTYPE,
    ZSTD,
    Compression,
    Packing,
    chunk_samples,
    parse_compression,
    register,
    set_filters,
)
from hpcmass.data.manifest import INDEX_GROUP, ChunkInfo, Field, ShardInfo
from hpcmass.data.shardfile import create_set, data_sets, system_error
from hpcmass.errors import HpcmassError
from hpcmass.files import storage_errors
from hpcmass.files.publish import temporary_beside

_AT_ONCE_BYTES = 8 << 20


def compress_shard(
    path: Path,
    fields: Sequence[Field],
    samples: int,
    offsets: Mapping[str, int],
    packing: Packing,
    out: Path,
    values: Mapping[str, int] | None = None,
) -> tuple[dict[str, ChunkInfo], dict[str, int]]:
    """Make a shard with compressed chunks out of a plain one, which stays.

    Args:
        path: The plain shard; its rows are written.
        fields: Its fields.
        samples: Number of its samples.
        offsets: Byte offset of each field's rows.
        packing: How it is to be compressed.
        out: The file that is made, or made anew.
        values: Of each ragged field the number of its values.

    Returns:
        What the manifest says of each field; and the byte offsets of what stays as it is: the offsets of ragged
        fields, and their values where there are none.

    Raises:
        DataError: A chunk would be too large, or a filter is missing.
        StorageError: The file system refused.
    """
    compression = packing.compression
    part = temporary_beside(out)
    found, places = {}, {}
    try:
        with h5py.File(part, "w", libver=("earliest", "v108"), locking=False, rdcc_nbytes=0) as file:
            indexes = {}
            plain = {one.offsets for one in fields if one.ragged}
            for one, many in data_sets(fields, samples, values or {}):
                if one.name in plain or not many:
                    places[one.name] = create_set(file, one, many)
                    if not many:
                        continue
                    created, chunk = file[one.name], many
                else:
                    chunk = chunk_samples(one, many, compression, packing.chunk_samples)
                    created = _create(file, one, many, compression, chunk)
                rows = np.memmap(path, one.numpy_dtype, "r", offsets[one.name], (many, *one.shape))
                step = max(1, _AT_ONCE_BYTES // (chunk * one.row_bytes)) * chunk
                for low in range(0, many, step):
                    created[low : low + step] = rows[low : low + step]
                del rows
                if one.name not in plain:
                    indexes[one.name] = chunk, _index(created, chunk)
            group = file.create_group(INDEX_GROUP)
            for name, (chunk, index) in indexes.items():
                place = _write_index(group, name, index)
                total = int(index["size"].sum(dtype=np.int64))
                found[name] = ChunkInfo(compression.name, chunk, total, place)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, HpcmassError):
            raise
        with storage_errors(path, "write the shard"):
            raise system_error(error) from error
    with storage_errors(out, "write the shard"):
        os.replace(part, out)
    return found, places


def check_chunks(file: h5py.File, one: Field, shard: ShardInfo) -> str | None:
    """What is wrong with the chunks of a field in a shard, or None: the table of them against HDF5's own.

    Every chunk is decoded by HDF5 too.
    """
    item, info = file[one.name], shard.chunks[one.name]
    if item.chunks != (info.samples, *one.shape):
        return f"has chunks of shape {item.chunks}, not {info.samples} samples"
    table = file.get(f"{INDEX_GROUP}/{one.name}")
    if not isinstance(table, h5py.Dataset) or table.id.get_offset() != info.index or table.dtype != INDEX_DTYPE:
        return "has no table of its chunks where the manifest says"
    if parse_compression(info.compression).kind in (BITSHUFFLE, ZSTD):
        register()
    index = table[...]
    found = _index(item, info.samples)
    if index.shape != found.shape:
        return f"has {len(found)} chunks and {len(index)} in its table"
    wrong = np.flatnonzero(index != found)
    if len(wrong):
        return f"chunk {wrong[0]} (and {len(wrong) - 1} more) does not fit the table of chunks"
    step = max(1, _AT_ONCE_BYTES // (info.samples * one.row_bytes)) * info.samples
    for low in range(0, len(item), step):
        try:
            item[low : low + step]
        except (OSError, RuntimeError) as error:
            return f"chunks from sample {low} on cannot be decoded ({error})"
    return None


def _create(file: h5py.File, one: Field, samples: int, compression: Compression, chunk: int) -> h5py.Dataset:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CHUNKED)
    properties.set_chunk((chunk, *one.shape))
    properties.set_obj_track_times(False)
    set_filters(properties, one, compression, chunk)
    kind = h5py.h5t.py_create(np.dtype(one.numpy_dtype), logical=True)
    space = h5py.h5s.create_simple((samples, *one.shape))
    return h5py.Dataset(h5py.h5d.create(file.id, one.name.encode(), kind, space, properties))


def _index(created: h5py.Dataset, chunk: int) -> npt.NDArray[Any]:
    """Where the chunks lie, in their order."""
    index = np.zeros(-(-len(created) // chunk), INDEX_DTYPE)
    created.id.flush()

    def add(info: Any) -> None:
        index[info.chunk_offset[0] // chunk] = info.byte_offset, info.size, info.filter_mask, 0

    created.id.chunk_iter(add)
    rest = (0,) * (created.ndim - 1)
    for number in range(len(index)):
        _, raw = created.id.read_direct_chunk((number * chunk, *rest))
        index["crc32"][number] = zlib.crc32(raw)
    return index


def _write_index(group: h5py.Group, name: str, index: npt.NDArray[Any]) -> int:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_obj_track_times(False)
    kind = h5py.h5t.py_create(index.dtype, logical=True)
    created = h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(index.shape), properties)
    h5py.Dataset(created)[...] = index
    return int(created.get_offset())
