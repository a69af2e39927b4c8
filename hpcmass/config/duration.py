"""Durations as people and Slurm write them. Pure."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WORDS = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")


def parse_duration(text: str) -> int:
    """Seconds of `90m`, `1d12h`, `01:30:00` or Slurm's `2-12:00:00`.

    `1:30` and bare numbers mean different things to different people (Slurm reads minutes) and are refused;
    with days, Slurm's `D-HH:MM` has one meaning.

    Raises:
        ValueError: The text is none of these, or not above zero.
    """
    text = text.strip()
    seconds = -1.0
    if _WORDS.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))
    elif (clock := _CLOCK.fullmatch(text)) and (clock[1] is not None or clock[4] is not None):
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration; write 90m, 1d12h, 01:30:00 or 2-12:00:00")
    return round(seconds)


def slurm_time(seconds: int) -> str:
    """`D-HH:MM:SS`, or `HH:MM:SS` below a day: what `--time` takes without doubt."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def span(seconds: float | None) -> str:
    """A time as a person reads it: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return "unknown"
    seconds = max(0.0, seconds)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
