"""How many CPU cores there are to share out."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
