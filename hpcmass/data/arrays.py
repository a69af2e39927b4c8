"""A few arrays in an HDF5 file of their own, exchanged as a whole: no dataset, no manifest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import CorruptError
from hpcmass.files import fsync_dir, make_dir, storage_errors, temporary_beside


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Put a file of arrays in the place of the one before.

    Raises:
        StorageError: The file system refused.
    """
    import h5py

    make_dir(path.parent)
    temporary = temporary_beside(path)
    try:
        with storage_errors(path, "write the file"):
            with h5py.File(temporary, "x", locking=False) as file:
                for name, value in arrays.items():
                    file.create_dataset(name, data=np.asarray(value))
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
            fsync_dir(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file.

    Raises:
        CorruptError: It is no such file.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return {name: value[()] for name, value in file.items() if isinstance(value, h5py.Dataset)}
    except (OSError, RuntimeError) as error:
        raise CorruptError(f"cannot be read as HDF5 ({error})", where=path) from error
