"""The user's own cache folder: what lies there may be removed at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder of hpcmass below `${XDG_CACHE_HOME:-~/.cache}`; it is not made."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root.joinpath("hpcmass", *parts)
