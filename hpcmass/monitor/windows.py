"""Windows of time in files: written by one replica each, rolled up by hour and day, read by anybody.

`windows-REPLICA.jsonl`, `hours-REPLICA.jsonl` and `days-REPLICA.jsonl`: append-only, a record a line. A file
that has grown to its limit becomes `….1.jsonl` in place of the one before, so that a monitor's folder is
bounded however long a deployment lives.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.files import append_record, read_records
from hpcmass.monitor.sketch import Sketch

HOUR_S, DAY_S = 3600.0, 86400.0
LEVELS = {"windows": 0.0, "hours": HOUR_S, "days": DAY_S}
LIMIT_BYTES = 16 << 20


@dataclass
class Window:
    """What one replica saw from `start` to `end` (seconds since the epoch).

    Attributes:
        version: The model's.
        requests: For inference, answered with outputs.
        rows: Samples in them.
        answers: Of all addresses by HTTP status.
        latency: Counts of answered requests by `metrics.SECONDS`.
        latency_s: Their sum.
        sampled: Samples that the features were taken of.
        features: Statistics by feature.
    """

    replica: str
    version: str
    start: float
    end: float
    requests: int = 0
    rows: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    latency: list[int] = field(default_factory=list)
    latency_s: float = 0.0
    sampled: int = 0
    features: dict[str, Sketch] = field(default_factory=dict)

    def merge(self, other: Window) -> None:
        """Add another window of any replica."""
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.requests += other.requests
        self.rows += other.rows
        self.sampled += other.sampled
        self.latency_s += other.latency_s
        for code, count in other.answers.items():
            self.answers[code] = self.answers.get(code, 0) + count
        longer = max(len(self.latency), len(other.latency))
        both = ([*one, *[0] * (longer - len(one))] for one in (self.latency, other.latency))
        self.latency = [a + b for a, b in zip(*both, strict=True)]
        for name, one in other.features.items():
            self.features.setdefault(name, Sketch()).merge(one)

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        features = {name: one.to_json() for name, one in self.features.items()}
        return {**vars(self), "features": features}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Window | None:
        """What `to_json` wrote; None where it is something else."""
        try:
            features = {name: Sketch.from_json(one) for name, one in value["features"].items()}
            made = cls(**{**value, "features": features})
            float(made.start), float(made.end), int(made.requests)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return made


def merge_windows(windows: Sequence[Window]) -> Window:
    """One window of several, which are left as they are."""
    first = windows[0]
    total = Window(first.replica, first.version, first.start, first.end)
    for one in windows:
        total.merge(one)
    return total


class WindowFiles:
    """One replica's files.

    Args:
        folder: The monitor's.
        replica: A name that no other living replica has.
        limit_bytes: At which a file makes place for the next.
    """

    def __init__(self, folder: Path, replica: str, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.replica, self.limit_bytes = folder, replica, limit_bytes
        self._open: dict[str, list[Window]] = {}  # by level: not rolled up yet

    def append(self, window: Window) -> None:
        """Add a window, and roll up hours and days that are over.

        Raises:
            StorageError: The file system refused.
        """
        for fine, coarse in (("windows", "hours"), ("hours", "days")):
            if fine not in self._open:  # what an earlier process of this name left to be rolled up
                span_s = LEVELS[coarse]
                done = max((_span(one.start, span_s) for one in self._read(coarse)), default=-math.inf)
                self._open[fine] = [one for one in self._read(fine) if _span(one.start, span_s) > done]
        self._add("windows", window)
        self._roll("windows", "hours", window.end)
        self._roll("hours", "days", window.end)

    def _add(self, level: str, window: Window) -> None:
        path = self.folder / f"{level}-{self.replica}.jsonl"
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size > self.limit_bytes:
                os.replace(path, path.with_suffix(".1.jsonl"))
        append_record(path, window.to_json())
        if level in self._open:
            self._open[level].append(window)

    def _roll(self, fine: str, coarse: str, now: float) -> None:
        """Write each span of the coarser kind that is over, out of the finer records."""
        span_s = LEVELS[coarse]
        over = _span(now, span_s)
        groups: dict[tuple[float, str], list[Window]] = {}
        for one in self._open[fine]:
            if (start := _span(one.start, span_s)) < over:
                groups.setdefault((start, one.version), []).append(one)
        for key in sorted(groups):
            self._add(coarse, merge_windows(groups[key]))
        self._open[fine] = [one for one in self._open[fine] if _span(one.start, span_s) >= over]

    def _read(self, level: str) -> list[Window]:
        return list(_records(self.folder, level, self.replica))


def _span(start: float, span_s: float) -> float:
    return math.floor(start / span_s) * span_s


def _records(folder: Path, level: str, replica: str) -> Iterable[Window]:
    seen = set()
    for name in (f"{level}-{replica}.1.jsonl", f"{level}-{replica}.jsonl"):
        for record in read_records(folder / name):
            window = Window.from_json(record)
            if window is not None and (key := (window.start, window.version)) not in seen:
                seen.add(key)
                yield window


def _wrote(folder: Path, replica: str) -> float:
    """When a replica wrote last."""
    found = 0.0
    for level in LEVELS:
        for end in (".jsonl", ".1.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                found = max(found, os.stat(folder / f"{level}-{replica}{end}").st_mtime)
    return found


def served(windows: Sequence[Window]) -> str:
    """The version that is served now: of what ended last, the one with most requests (another is on trial).

    Args:
        windows: Some, by time.
    """
    last = max(windows, key=lambda one: one.end)
    since = last.end - max(2 * (last.end - last.start), 60.0)
    recent = [one for one in windows if one.end > since]
    requests: dict[str, int] = {}
    for one in recent:
        requests[one.version] = requests.get(one.version, 0) + one.requests
    most = max(requests.values())
    return next(one.version for one in reversed(recent) if requests[one.version] == most)


def replicas_in(folder: Path) -> list[str]:
    """The replicas that have written windows into a folder."""
    names = {path.name.removeprefix("windows-") for path in folder.glob("windows-*.jsonl")}
    return sorted({name.removesuffix(".jsonl").removesuffix(".1") for name in names})


def read_windows(folder: Path, since: float = -math.inf, until: float = math.inf) -> list[Window]:
    """All replicas' windows from `since` to `until`, by time; those rolled up where the fine ones are gone.

    A window counts that ends after `since` and begins before `until`; none is counted twice.
    """
    found: list[Window] = []
    for replica in replicas_in(folder):
        if _wrote(folder, replica) < since - HOUR_S:  # by the file server's clock; most of a long life are such
            continue
        fine = list(_records(folder, "windows", replica))
        for level in ("hours", "days"):
            span_s = LEVELS[level]
            spans = {_span(one.start, span_s) for one in fine}
            coarse = [one for one in _records(folder, level, replica) if one.end > since]
            # The span that the oldest of the finer ones is in may be there in part alone.
            first = min(spans, default=math.inf)
            whole = {_span(one.start, span_s) for one in coarse} & {first}
            fine = [one for one in fine if _span(one.start, span_s) not in whole] + [
                one for one in coarse if _span(one.start, span_s) in whole or one.start < first
            ]
        found += [one for one in fine if one.end > since and one.start < until]
    return sorted(found, key=lambda one: one.start)
