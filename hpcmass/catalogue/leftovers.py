"""Temporaries that writers left when they were killed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hpcmass.files import process_start, temporary_beside

_TEMPORARY = re.compile(r"\..*\.([^.]*(?:\.[^.]+)*?)-([0-9]+)-[0-9a-f]{8}\.tmp")
_ASIDE = {"trash", "quarantine"}
OLD_S = 86400.0
"""A temporary of a process of which nothing is known here is held for left after so long."""


def temporaries(root: Path) -> Iterator[Path]:
    """Files and folders that a writer makes beside what it publishes."""
    for folder, below, names in os.walk(root):
        if Path(folder) == root:
            below[:] = [name for name in below if name not in _ASIDE]
        for name in [*names, *below]:
            if name.startswith(".") and name.endswith(".tmp"):
                yield Path(folder) / name
        below[:] = [name for name in below if not name.startswith(".")]


def left_behind(path: Path, now: float) -> bool:
    """Whether the writer of a temporary is gone: it was on this machine and has ended, or it is a day old.

    Args:
        path: The temporary.
        now: The file system's time, see `file_system_now`.
    """
    match = _TEMPORARY.fullmatch(path.name)
    if match and match[1].endswith(socket.gethostname()) and process_start(int(match[2])) is None:
        # A process of another container of this host has another number here: so a minute besides.
        return age_s(path, now) > 60
    return age_s(path, now) > OLD_S


def age_s(path: Path, now: float) -> float:
    """Seconds since a file was written; 0 where it is gone."""
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0


def file_system_now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder; where none can be made, this machine's."""
    path = temporary_beside(folder / "clock")
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
