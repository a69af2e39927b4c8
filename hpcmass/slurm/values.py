"""Single values in Slurm's answers: times, limits, sizes, lists of nodes and resources. Pure.

Times are epoch seconds (`SLURM_TIME_FORMAT=%s`); a local ISO time is understood too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

_CLOCK = re.compile(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)(?:\.(\d+))?")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}
NOTHING = {"", "N/A", "NONE", "(null)", "Unknown", "UNLIMITED", "INVALID", "NOT_SET", "INFINITE", "infinite"}


def parse_time(text: str) -> float | None:
    """Epoch seconds of a time, or None where there is none."""
    if text in NOTHING:
        return None
    if text.lstrip("-").isdigit():
        return float(text) if int(text) > 0 else None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def parse_clock(text: str) -> int | None:
    """Seconds of `D-HH:MM:SS`, `MM:SS`, `D-HH` or minutes; None where there is no limit or no time."""
    text = text.strip()
    match = None if text in NOTHING else _CLOCK.fullmatch(text)
    if match is None:
        return None
    days = int(match[1] or 0)
    parts = [int(part) for part in match.group(2, 3, 4) if part is not None]
    if match[1] is not None:  # With days the parts count from hours downwards.
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_size(text: str, unit: str = "") -> float | None:
    """Bytes of `1234K`, `2.5G`, `4000M`; a bare number counts in `unit`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[nc]?", text.strip())
    return None if match is None else float(match[1]) * _UNITS[match[2] or unit]


def parse_tres(text: str) -> tuple[tuple[str, int], ...]:
    """`cpu=4,mem=4000M,gres/gpu=2` as pairs; memory in MiB."""
    found = []
    for part in text.split(","):
        name, equals, value = part.partition("=")
        size = parse_size(value, "M" if name == "mem" else "") if equals else None
        if size is not None:
            found.append((name, round(size / 1024**2) if name == "mem" else round(size)))
    return tuple(found)


def parse_gres(text: str) -> tuple[tuple[str, str, int], ...]:
    """`gpu:a100:2(S:0-1),fpga:1` as (name, type, count)."""
    found = []
    for part in re.split(r",(?![^(]*\))", text):
        words = re.sub(r"\(.*?\)", "", part).strip().split(":")
        if not words[0] or words[0] in NOTHING:
            continue
        size = parse_size(words[-1]) if len(words) > 1 else None
        count = 1 if size is None else round(size)
        kinds = words[1:] if size is None else words[1:-1]
        found.append((words[0], ":".join(kinds), count))
    return tuple(found)


def expand_nodes(text: str) -> tuple[str, ...]:
    """`cn[1-3,07-08],gn1` as names."""
    names: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        if part and part not in NOTHING:
            names.extend(_expand(part))
    return tuple(names)


def _expand(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if match is None:
        yield part
        return
    head, ranges, tail = match.groups()
    for piece in ranges.split(","):
        low, dash, high = piece.partition("-")
        if dash and low.isdigit() and high.isdigit():
            middle: Iterable[str] = (f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1))
        else:
            middle = (piece,)
        for one in middle:
            yield from _expand(f"{head}{one}{tail}")


def parse_cpu(text: str) -> float | None:
    """Seconds of sacct's TotalCPU, `[DD-[HH:]]MM:SS[.mmm]`."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    whole = parse_clock(text.split(".")[0])
    return None if whole is None else whole + float(f"0.{match[5] or 0}")
