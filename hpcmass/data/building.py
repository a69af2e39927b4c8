"""A folder that appears complete or not at all: built under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from hpcmass.data.manifest import newest_manifest, split_folders
from hpcmass.errors import AlreadyExists
from hpcmass.files import fsync_dir, process_start, storage_errors
from hpcmass.files.publish import temporary_beside


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something; only a dataset of ours may be exchanged."""
    with storage_errors(out, "look at the folder"):
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


@contextlib.contextmanager
def building(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the body ends well, and vanishes otherwise."""
    missing = [parent for parent in out.parents if not parent.exists()]
    with storage_errors(out.parent, "make the folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        folder = temporary_beside(out)
        folder.mkdir()
    try:
        yield folder
        for inner in [*(one for one in folder.iterdir() if one.is_dir()), folder]:
            fsync_dir(inner)
        _put_in_place(folder, out, overwrite)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    with storage_errors(out.parent, "write the folder"):
        fsync_dir(out.parent)


def _put_in_place(folder: Path, out: Path, overwrite: bool) -> None:
    """Give the finished folder its name; an old dataset is moved aside first and then removed."""
    aside = None
    with storage_errors(out, "name the folder"):
        if overwrite and out.exists():
            aside = temporary_beside(out)
            os.rename(out, aside)
        try:
            os.rename(folder, out)
        except OSError as error:
            if aside is not None:
                os.rename(aside, out)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExists("was made by another process meanwhile", where=out) from error
            raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Remove temporary folders of processes on this host that were killed while they made `out`."""
    pattern = re.compile(re.escape(f".{out.name[:80]}.{socket.gethostname()}-") + r"(\d+)-[0-9a-f]{8}\.tmp")
    for name in os.listdir(out.parent):
        match = pattern.fullmatch(name)
        if match and process_start(int(match[1])) is None:
            shutil.rmtree(out.parent / name, ignore_errors=True)
