"""Values as JSON has them, whatever a file held; and problems as the page shows them."""

from __future__ import annotations

import math
from typing import Any

from hpcmass.errors import HpcmassError

UNREADABLE = (
    HpcmassError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
"""What reading a file can end with whose content is not what it should be."""

MOST_TEXT = 20_000
_DEEP = 24


def plain(value: Any, depth: int = 0) -> Any:
    """JSON's own types: numbers that are none become text, long texts are cut, deep things too."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > _DEEP:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    text = str(value)
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"


def number(value: Any) -> float | None:
    """A finite number out of what a file has there, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def text(value: Any) -> str | None:
    """A text out of what a file has there, or None."""
    return value if isinstance(value, str) else None


def said(error: Exception) -> str:
    """Why something cannot be read, in one sentence."""
    if isinstance(error, HpcmassError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
