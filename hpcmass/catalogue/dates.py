"""Dates as people write them in a search: an instant, or the day, month or year that a text stands for."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

_AGO = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?) *(second|minute|hour|day|week)s? ago")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_MONTH = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Span:
    """A stretch of time.

    Attributes:
        start: Its first moment, in seconds since the epoch.
        end: The first moment after it.
    """

    start: float
    end: float


def read_date(text: str, now: datetime.datetime | None = None) -> float | Span:
    """What a date means: `2026-12-01 14:30`, `2026-12-01`, `2026-12`, `2026`, `yesterday`, `7 days ago`.

    Args:
        text: The date, in this machine's time where it names no zone.
        now: The time without a zone; default: the clock's.

    Returns:
        Seconds since the epoch, or a span where no time of day was said.

    Raises:
        ValueError: It is no date.
    """
    now = now or datetime.datetime.now()
    words = " ".join(text.lower().split())
    if words == "now":
        return _stamp(now)
    if found := _AGO.fullmatch(words):
        return _stamp(now) - float(found[1]) * _SECONDS[found[2]]
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    day = datetime.timedelta(days=1)
    try:
        if words in ("today", "yesterday"):
            start = today if words == "today" else today - day
            return Span(_stamp(start), _stamp(start + day))
        if found := _MONTH.fullmatch(words):
            year, month = int(found[1]), int(found[2] or 1)
            start = datetime.datetime(year, month, 1)
            later = (year, month + 1) if found[2] and month < 12 else (year + 1, 1)
            return Span(_stamp(start), _stamp(datetime.datetime(*later, 1)))
        start = datetime.datetime.fromisoformat(text.strip())
        if _DAY.fullmatch(words):
            return Span(_stamp(start), _stamp(start + day))
        return _stamp(start)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _stamp(moment: datetime.datetime) -> float:
    try:
        return moment.timestamp()
    except OSError as error:  # beyond what the C library can tell
        raise ValueError(str(error)) from error
