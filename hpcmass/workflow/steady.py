"""Reads that outlast a hiccup of a shared file system (ESTALE, EIO, a server that fails over)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from hpcmass.errors import StorageError
from hpcmass.workflow.warden import say

_PATIENCE_S, _PAUSE_S = 15.0, 0.5
T = TypeVar("T")


def steady(read: Callable[[], T], *, patience_s: float = _PATIENCE_S) -> T:
    """What `read` returns, tried again for some seconds while the file system refuses.

    Raises:
        StorageError, OSError: It refused all the while.
    """
    until, told = time.monotonic() + patience_s, False
    while True:
        try:
            return read()
        except (OSError, StorageError) as error:
            if time.monotonic() + _PAUSE_S > until:
                raise
            if not told:
                told = True
                say(f"{error}; trying again")
            time.sleep(_PAUSE_S)
