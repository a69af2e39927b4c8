"""How often a folder is looked at: for all browsers together, and the more seldom the slower it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 1.5
_SHARE = 0.1  # of the time may go into looking


class Paced:
    """A reading that is done again only when it is due; until then the last result is given.

    Args:
        read: What reads; never called by two threads at once.
        every_s: Seconds between two readings at least.
    """

    def __init__(self, read: Callable[[], Any], every_s: float = EVERY_S) -> None:
        self._read, self._every_s = read, every_s
        self._lock = threading.Lock()
        self._ended, self._took = float("-inf"), 0.0
        self._last: Any = None

    def __call__(self, every_s: float | None = None) -> Any:
        """The result; where the reading failed its error, until the next is due.

        Args:
            every_s: Instead of what was said when it was made.
        """
        with self._lock:
            if time.monotonic() - self._ended >= max(every_s or self._every_s, self._took / _SHARE):
                began = time.monotonic()
                try:
                    self._last = self._read()
                except Exception as error:
                    self._last = error
                self._ended = time.monotonic()
                self._took = self._ended - began
            if isinstance(self._last, Exception):
                raise self._last
            return self._last
