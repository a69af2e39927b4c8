"""What a supervisor shows of rank 0."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class Tail:
    """Copies what a growing file gains to standard output."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.file.seek(0, os.SEEK_END)

    def copy(self) -> None:
        """Copy what is new."""
        while block := self.file.read(1 << 16):
            try:
                # Rank 0 may be drawing a progress line on the same terminal: it is wiped, and drawn again.
                wipe = "\r\x1b[2K" if sys.stdout.isatty() else ""
                sys.stdout.write(wipe + block.decode(errors="replace"))
                sys.stdout.flush()
            except (OSError, ValueError):
                return


def terminal() -> str | None:
    """The device of the terminal that shows standard error, or None."""
    try:
        return os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else None
    except (OSError, ValueError):
        return None
