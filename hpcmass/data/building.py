"""A folder that appears complete or not at all: made under a hidden name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
from pathlib import Path

from hpcmass.data.manifest import newest_manifest, split_folders
from hpcmass.errors import AlreadyExists
from hpcmass.files import fsync_dir, process_start, storage_errors
from hpcmass.files.publish import temporary_beside


def check_free(out: Path, overwrite: bool, *, repair: bool = True) -> None:
    """Refuse a folder that holds something; only a dataset of ours may be exchanged.

    Args:
        out: The folder.
        overwrite: Whether a dataset that is there may be exchanged.
        repair: Whether a dataset that a killed process was just exchanging is put back first.

    Raises:
        AlreadyExists: It holds something.
        StorageError: The file system refused.
    """
    with storage_errors(out, "look at the folder"):
        if repair:
            _put_back(out)
        if not os.path.lexists(out):
            return
        if not out.is_dir():
            raise AlreadyExists("is there already and is not a folder", where=out)
        if not any(out.iterdir()):
            return
    is_dataset = newest_manifest(out) is not None or bool(split_folders(out))
    if not is_dataset:
        raise AlreadyExists("is there already and holds other files", where=out, hint="name another folder")
    if not overwrite:
        raise AlreadyExists(
            "holds a dataset already",
            where=out,
            hint="use it, name another folder, or remove it first",
            complete=True,
        )


def put_in_place(folder: Path, out: Path, overwrite: bool) -> None:
    """Give the finished folder its name, durably; an old dataset is moved aside first and then removed.

    Raises:
        AlreadyExists: Somebody else made `out` meanwhile.
        StorageError: The file system refused.
    """
    aside = temporary_beside(out).with_suffix(".old") if overwrite and out.exists() else None
    with storage_errors(out, "name the folder"):
        try:
            if aside is not None:
                os.rename(out, aside)
            os.rename(folder, out)
        except BaseException as error:
            if aside is not None:
                with contextlib.suppress(OSError):  # It was not moved yet, or the new one is in place.
                    os.rename(aside, out)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExists("was made by another process meanwhile", where=out) from error
            raise
        fsync_dir(out.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def remove_abandoned(out: Path) -> None:
    """Remove what processes on this host left beside `out` that were killed while they made it."""
    _put_back(out)
    for folder in [*abandoned(out, "tmp"), *(abandoned(out, "old") if out.exists() else [])]:
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(out: Path) -> None:
    """Give the old dataset its name again where an exchange was cut short between its two renamings."""
    for aside in abandoned(out, "old"):
        if not os.path.lexists(out):
            os.rename(aside, out)


def abandoned(out: Path, suffix: str) -> list[Path]:
    """Folders beside `out` that processes on this host, killed since, had for it."""
    start = re.escape(f".{out.name[:80]}.{socket.gethostname()}-")
    pattern = re.compile(rf"{start}(\d+)-[0-9a-f]{{8}}\.{suffix}")
    matches = map(pattern.fullmatch, sorted(os.listdir(out.parent)) if out.parent.is_dir() else [])
    return [out.parent / match[0] for match in matches if match and process_start(int(match[1])) is None]
