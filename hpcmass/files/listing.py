"""Look into a folder that others add to and remove."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path


def matching(folder: Path, pattern: str) -> list[Path]:
    """List what is in a folder by its name; `Path.glob` raises where the folder goes while it is read.

    Args:
        folder: The folder; one that is not there, or is no longer, holds nothing.
        pattern: A pattern of one name, as of `fnmatch`; a leading dot needs no pattern of its own.

    Returns:
        The paths, in the order of their names.

    Raises:
        OSError: The folder is there and cannot be read.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]
