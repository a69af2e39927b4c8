"""The folder in which the keepers of one start leave their notes, for as long as the ranks run."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from hpcmass.errors import HpcmassError
from hpcmass.files import Owner, matching, read_json, replace_json, storage_errors

_OWNER = "owner.json"
# Keepers outlive a killed supervisor by seconds, and still write.
_STALE_S = 600.0


def notes_folder(shared: Path | None) -> Path:
    """A new folder; what killed supervisors of this user have left beside it is removed.

    Args:
        shared: A folder that all nodes see; None: on this machine's own disk.

    Raises:
        StorageError: It cannot be made.
    """
    base = Path(tempfile.gettempdir()) if shared is None else shared.resolve()
    prefix = "hpcmass-launch-" if shared is None else ".launch-"
    with storage_errors(base, "write the ranks' notes"):
        base.mkdir(parents=True, exist_ok=True)
        _clear(base, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        replace_json(folder / _OWNER, {"format": 1, **vars(Owner.this_process())})
    return folder


def _clear(base: Path, prefix: str) -> None:
    """Remove the folders whose owner was a process of this machine and is gone; one in doubt stays."""
    for folder in matching(base, f"{prefix}*"):
        with contextlib.suppress(OSError, HpcmassError, TypeError):
            seen = folder.lstat()
            if seen.st_uid != os.geteuid() or folder.is_symlink() or time.time() - seen.st_mtime < _STALE_S:
                continue
            record = read_json(folder / _OWNER)
            record.pop("format", None)
            if Owner(**record).alive() is False:
                shutil.rmtree(folder, ignore_errors=True)
