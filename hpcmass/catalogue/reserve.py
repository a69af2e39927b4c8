"""A little room kept in a catalogue, so that `gc` can begin where a disk or quota is used up to the last byte.

Taking something away writes a little first: a lease, who removes what, and why.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hpcmass.catalogue.blobs import make_durable_dir
from hpcmass.errors import HpcmassError, StorageError
from hpcmass.files import settle

_FILES = 12
_BYTES = 8192

Result = TypeVar("Result")


def with_room(root: Path, work: Callable[[], Result]) -> Result:
    """Do some work; where there is no room for it, give up the reserve and do it again. It is kept anew then.

    Args:
        root: The catalogue's folder.
        work: May be done again after it failed anywhere.

    Raises:
        StorageError: There is no room, and no reserve either.
    """
    try:
        result = work()
    except StorageError as error:
        if error.data.get("errno") not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if not _give_up(root):
            error.hint = "removing writes a little, and there is no room: remove any other file, and try again"
            raise
        result = work()
    _keep(root)
    return result


def _folder(root: Path) -> Path:
    return root / "care" / "reserve"


def _give_up(root: Path) -> bool:
    """Remove the reserve; whether there was any."""
    given = False
    for number in range(_FILES):
        with contextlib.suppress(OSError):
            (_folder(root) / str(number)).unlink()
            given = True
    return given


def _keep(root: Path) -> None:
    """Make the reserve where it is missing and there is room."""
    with contextlib.suppress(OSError, HpcmassError):
        make_durable_dir(_folder(root))
        for number in range(_FILES):
            path = _folder(root) / str(number)
            if not path.exists():
                path.write_bytes(os.urandom(_BYTES))  # of zeros a file system may keep nothing
                settle(path, 0o644)
