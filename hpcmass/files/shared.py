"""Folders that a group shares: what is made in one follows it, whatever the umask of who makes it.

A folder is shared when it is group-writable and has the set-group-ID bit (`chmod 2775`, or `3775` where only
its owner may remove a file). A new folder in it gets its mode; a new file is readable by whom the folder is.
Everywhere else the umask decides, as ever.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_SHARED = stat.S_ISGID | stat.S_IWGRP
_MIRRORED = 0o3777  # all but set-user-ID


def shared_mode(folder: Path) -> int | None:
    """The mode that new folders get in a shared folder; None where it is not shared, or not there."""
    try:
        mode = os.stat(folder).st_mode
    except OSError:
        return None
    return mode & _MIRRORED if mode & _SHARED == _SHARED else None


def file_mode(folder: Path, mode: int) -> int:
    """The mode of a new file in a folder: of `mode` what the folder's own bits allow, where it is shared."""
    shared = shared_mode(folder)
    return mode if shared is None else mode & (shared | 0o700)


def settle_open(handle: int, folder: Path, mode: int) -> None:
    """Give an open file of a shared folder its mode; elsewhere it keeps the one that the umask gave it.

    Raises:
        OSError: The file system refused.
    """
    shared = shared_mode(folder)
    if shared is not None and os.fstat(handle).st_mode & 0o7777 != mode & (shared | 0o700):
        os.fchmod(handle, mode & (shared | 0o700))


def settle(path: Path, mode: int) -> None:
    """Give a new file its mode, see `file_mode`.

    Raises:
        OSError: The file system refused.
    """
    os.chmod(path, file_mode(path.parent, mode))


def make_dir_as_parent(path: Path, temporary: Path) -> None:
    """Make a folder in an existing one; in a shared one it appears with its mode at once.

    Args:
        path: The folder; an existing one is fine.
        temporary: A name beside it that nobody uses.

    Raises:
        OSError: The file system refused.
    """
    mode = shared_mode(path.parent)
    if mode is None:
        path.mkdir(exist_ok=True)
        return
    os.mkdir(temporary, 0o700)
    try:
        os.chmod(temporary, mode)
        # Of two that make it at once the later one replaces an empty folder by its like.
        if not path.is_dir():
            os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(temporary)
