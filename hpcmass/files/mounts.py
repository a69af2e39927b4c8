"""What kind of file system a path lies on."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Of one machine's kernel alone, so that its locks and shared mappings hold among all who see the files.
_OF_THIS_MACHINE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay"})


def is_local(path: Path | str, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a path, or the nearest parent that exists, lies on a file system of this machine alone.

    Args:
        path: Any path.
        mounts: What the kernel says is mounted, see proc(5).

    Returns:
        False too where that cannot be told.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    wanted = os.path.realpath(path)
    best, kind = -1, ""
    for line in lines:
        left, dash, right = line.partition(" - ")
        words = left.split(" ")
        if not dash or len(words) < 5:
            continue
        # Blanks and backslashes of a mount point are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of two at one place the later hides the other
            best, kind = len(point), right.split(" ")[0]
    return kind in _OF_THIS_MACHINE
