"""How long a rank's start took, by part, so that a slow one can be put down to its cause."""

from __future__ import annotations

import os
import time
from typing import Any

from hpcmass.files import process_start


class Startup:
    """Seconds from the start of this process to the end of each part of its start.

    Attributes:
        began: When the process started, in seconds since the epoch.
    """

    def __init__(self) -> None:
        age = _process_age_s()
        self.began = time.time() - age
        self._zero = time.monotonic() - age
        self._parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Say that a part is done; the first word counts."""
        self._parts.setdefault(part, round(time.monotonic() - self._zero, 3))

    def record(self, attempt: int) -> dict[str, Any]:
        """The record for `metrics.jsonl`."""
        return {"kind": "start", "attempt": attempt, "began": self.began, "parts": dict(self._parts)}


def _process_age_s() -> float:
    """Seconds since this process was started; 0.0 where the system does not tell."""
    ticks = process_start(os.getpid())
    if ticks is None:
        return 0.0
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, age)
