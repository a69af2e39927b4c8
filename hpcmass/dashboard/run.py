"""One run in full: its curves, of which only what is new is read, and why it is in its state."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcmass.dashboard.looks import Paced
from hpcmass.dashboard.plain import UNREADABLE, number, said
from hpcmass.dashboard.runs import row_of
from hpcmass.errors import NotFound
from hpcmass.files import read_last_records, read_records_from
from hpcmass.runs import RunFolder, explain, log_tail
from hpcmass.slurm.records import read_submissions

MOST_POINTS = 400
_MOST_NAMES = 24
_MOST_BYTES = 32_000_000  # of a run's records; of longer ones the last so many
_OPEN = 24  # runs whose curves are kept
_NO_METRIC = {"step", "epoch", "time", "attempt", "rank", "ranks", "from_step"}
_OF_TRAIN = ("loss", "lr", "samples_per_s")
_KINDS = ("train", "valid", "report")


class RunReader:
    """Runs that somebody looks at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, Paced] = OrderedDict()

    def read(self, path: Path, name: str) -> dict[str, Any]:
        """All of a run.

        Raises:
            NotFound: There is no such run.
        """
        if path not in self._open and row_of(path, name) is None:
            raise NotFound(f"there is no run {name!r}")
        with self._lock:
            paced = self._open.setdefault(path, Paced(_One(path, name).look))
            self._open.move_to_end(path)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        found: dict[str, Any] = paced()
        return found


class _One:
    def __init__(self, path: Path, name: str) -> None:
        self._run, self._name = RunFolder(path), name
        self._curves = Curves(self._run.metrics_file)
        self._explained: tuple[object, dict[str, Any]] | None = None

    def look(self) -> dict[str, Any]:
        row = row_of(self._run.path, self._name)
        if row is None:
            raise NotFound(f"there is no run {self._name!r}")
        curves, whole = self._curves.read()
        return {
            **row,
            "path": str(self._run.path),
            "curves": curves,
            "whole": whole,
            "why": self._why(row),
            "job": _job_text(self._run.job_file),
            "slurm": _submitted(self._run.path),
        }

    def _why(self, row: dict[str, Any]) -> dict[str, Any]:
        run = self._run
        if row["damaged"]:
            return {"headline": row["reason"]}
        if row["state"] == "RUNNING":
            with contextlib.suppress(*UNREADABLE):
                owner = run.lease().owner()
                if owner is not None:
                    log = log_tail(run.log_file(int(row["attempt"] or 1), 0), 12)
                    return {"headline": f"it is running (process {owner.pid} on {owner.host})", "log": log}
            return {"headline": "it is running"}
        # Reading why costs the whole record of a run, and does not change while its status stays.
        seen = (_mtime(run.path / "status.json"), _mtime(run.path / "errors"), _mtime(run.metrics_file))
        if self._explained is None or self._explained[0] != seen:
            self._explained = (seen, self._explain())
        return self._explained[1]

    def _explain(self) -> dict[str, Any]:
        if (_size(self._run.metrics_file) or 0) > _MOST_BYTES:
            return {"headline": f"its records are too long for a page; hpcmass why {self._name} tells"}
        try:
            found = explain(self._run)
        except UNREADABLE as error:
            return {"headline": f"why is not known: {said(error)}"}
        first = found.first_error
        keys = ("rank", "error", "message", "host", "step", "where", "traceback")
        first_said = None if first is None else {key: getattr(first, key) for key in keys}
        return {
            "headline": found.headline,
            "error": first_said,
            "advice": found.advice,
            "pace": found.pace,
            "log": found.log_tail,
        }


class Curves:
    """The series of one run's records; only what was added is read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self._inode: int | None = None
        self._series: dict[str, list[tuple[float, float]]] = {}
        self._whole = True

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """`[{"name", "steps", "values"}]`, validation first, and whether they begin with the run."""
        with contextlib.suppress(OSError):
            self._more()
        order = {"valid": 0, "report": 1, "train": 2}
        names = sorted(self._series, key=lambda name: (order[name.partition(" ")[0]], name))
        kept = [(name, thinned(self._series[name])) for name in names[:_MOST_NAMES] if self._series[name]]
        listed = [{"name": n, "steps": [s for s, _ in p], "values": [v for _, v in p]} for n, p in kept]
        return listed, self._whole

    def _more(self) -> None:
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            return
        if self._inode != found.st_ino or found.st_size < self._at:
            self._inode, self._at, self._series, self._whole = found.st_ino, 0, {}, True
            if found.st_size > _MOST_BYTES:
                self._whole = False
                self._at = found.st_size
                self._take(read_last_records(self._file, _MOST_BYTES // 4))
        if found.st_size > self._at:
            records, self._at = read_records_from(self._file, self._at)
            self._take(records)

    def _take(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            kind = record.get("kind")
            if kind == "resume":
                limit = number(record.get("from_step")) or 0
                for name, points in self._series.items():
                    self._series[name] = [point for point in points if point[0] <= limit]
            step = number(record.get("step"))
            if kind not in _KINDS or step is None:
                continue
            for key, value in record.items():
                worth = number(value)
                if worth is None or key in _NO_METRIC or (kind == "train" and key not in _OF_TRAIN):
                    continue
                if (name := f"{kind} {key}") in self._series or len(self._series) < 4 * _MOST_NAMES:
                    self._series.setdefault(name, []).append((step, worth))


def thinned(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points of a curve: of each stretch its lowest and its highest."""
    if len(points) <= most:
        return points
    kept: list[tuple[float, float]] = []
    parts = most // 2 - 1
    for part in range(parts):
        piece = points[part * len(points) // parts : (part + 1) * len(points) // parts]
        ends = {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _submitted(path: Path) -> list[dict[str, Any]]:
    """The last Slurm jobs that it was given to; Slurm itself is never asked from here."""
    if not (path / "slurm").is_dir():
        return []
    with contextlib.suppress(*UNREADABLE):
        return [
            {"job": s.slurm_id, "target": s.target, "when": s.submitted} for s in read_submissions(path)[-5:]
        ]
    return []


def _job_text(file: Path, most: int = 16_000) -> str | None:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read(most)
    except OSError:
        return None


def _mtime(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
