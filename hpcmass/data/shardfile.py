"""Making a shard: an ordinary HDF5 file with room for its samples, which plain writes then fill."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from hpcmass.data.manifest import Field
from hpcmass.files import storage_errors

# Rows begin at a page boundary, so that a reader can map all shards as one array.
ALIGNMENT_BYTES = 4096
# What the file's own structures take at most, a field (measured: about 3 pages a field and 2 a file).
_STRUCTURE_BYTES = 4 * ALIGNMENT_BYTES


def create_shard(
    path: Path, fields: Sequence[Field], samples: int, values: Mapping[str, int] | None = None
) -> tuple[int, dict[str, int]]:
    """Create a shard whose rows are allocated and not yet written (they read as zeros).

    The bytes of the file depend on the arguments alone: no times are recorded, and the file format is
    the oldest, which every HDF5 library reads.

    Args:
        path: The file, not there yet.
        fields: Fields; their dtype and shape are used.
        samples: Number of samples.
        values: Of each ragged field the number of values of all samples.

    Returns:
        The file's size in bytes, and the byte offset of each field's rows, and of ragged fields' offsets.

    Raises:
        StorageError: The file system refused (no space, a size limit).
    """
    sets = data_sets(fields, samples, values or {})
    needed = sum(rows * one.row_bytes + _STRUCTURE_BYTES for one, rows in sets) + _STRUCTURE_BYTES
    with storage_errors(path, "write the shard"):
        # A limit on file sizes is found here: HDF5 would report it only when closing, and not clearly.
        with open(path, "xb") as probe:
            os.ftruncate(probe.fileno(), needed)
        path.unlink()
    offsets = {}
    try:
        with h5py.File(
            path,
            "x",
            libver=("earliest", "v108"),
            locking=False,
            alignment_threshold=1,
            alignment_interval=ALIGNMENT_BYTES,
        ) as file:
            for one, rows in sets:
                offsets[one.name] = create_set(file, one, rows)
    except (OSError, RuntimeError) as error:
        with storage_errors(path, "write the shard"):
            raise system_error(error) from error
    with storage_errors(path, "write the shard"):
        return path.stat().st_size, offsets


def system_error(error: OSError | RuntimeError) -> OSError:
    """What the system said in an error of HDF5, which tells it only within a long text."""
    found = re.search(r"errno = (\d+)", str(error))
    if found:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return error if isinstance(error, OSError) else OSError(str(error))


def data_sets(fields: Sequence[Field], samples: int, values: Mapping[str, int]) -> list[tuple[Field, int]]:
    """The data sets of a shard, as fields, and how many rows each has: behind a ragged field its offsets."""
    sets = []
    for one in fields:
        sets.append((one, values[one.name] if one.ragged else samples))
        if one.ragged:
            sets.append((Field(one.offsets, "int64", ()), samples + 1))
    return sets


def create_set(file: h5py.File, one: Field, rows: int) -> int:
    """Make a contiguous data set, not written yet; the byte at which it begins in the file."""
    shape = (rows, *one.shape)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(one.numpy_dtype), logical=True)
    created = h5py.h5d.create(file.id, one.name.encode(), kind, h5py.h5s.create_simple(shape), properties)
    offset = created.get_offset() if rows else 0  # HDF5 gives no place to nothing
    if offset is None:
        raise RuntimeError(f"HDF5 gave no place to the rows of {one.name}")
    return int(offset)
