"""How long an item takes on its worker, by which the pool knows how far ahead to bind. Loads nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Call a function; gives the seconds that it took, and its result."""
    began = time.monotonic()
    result = function(*args)
    return time.monotonic() - began, result
