"""The runs of a project: their states, of which only what may have changed is read again."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.dashboard.looks import Paced
from hpcmass.dashboard.plain import UNREADABLE, number, said, text
from hpcmass.dashboard.server import Question
from hpcmass.errors import NameNotAllowed, NotFound
from hpcmass.files import check_name
from hpcmass.runs import RunFolder, State, Status

MOST_ROWS = 200
_LOOK_S = 1.0  # of one look may go into runs that were not read yet
_LIVE = 200  # runs under way that one look reads again, those first that were not read for longest
_ENDED = 100  # the same of ended ones, which are read again seldom: a run may go on
_ENDED_S = 30.0
STATES = [state.value for state in State]


@dataclass
class _Seen:
    row: dict[str, Any]
    when: float  # sorts
    read: float  # monotonic
    facts: tuple[int, ...] | None  # of status.json, as it was read
    live: bool


@dataclass
class _Known:
    runs: dict[str, _Seen | None] = field(default_factory=dict)  # None: no run (yet)
    unread: int = 0


class RunsReader:
    """The folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = _Known()
        self.look = Paced(self._look)

    def page(self, query: Question) -> dict[str, Any]:
        """Some of the runs: those under way first, then the newest.

        Args:
            query: `state`, `q` (a part of the name), `offset`, `limit`.
        """
        counts, rows, unread = self.look()
        wanted, part = query.get("state", ""), query.get("q", "").strip().lower()
        found = [
            row for row in rows if wanted in ("", row["state"]) and (not part or part in row["name"].lower())
        ]
        first, count = bounds(query)
        return {
            "counts": counts,
            "total": len(rows),
            "found": len(found),
            "unread": unread,
            "offset": first,
            "runs": found[first : first + count],
        }

    def summary(self) -> dict[str, Any]:
        """Counts, and the first few."""
        counts, rows, unread = self.look()
        return {"counts": counts, "total": len(rows), "unread": unread, "runs": rows[:6]}

    # -- reading --------------------------------------------------------------------------------------
    def _look(self) -> tuple[dict[str, int], list[dict[str, Any]], int]:
        names = folders(self.folder)
        known, now = self._known.runs, time.monotonic()
        for gone in known.keys() - set(names):
            del known[gone]
        # Newest names tend to sort last; all are read in the end.
        new = [name for name in reversed(names) if name not in known]
        for place, name in enumerate(new):
            if place and time.monotonic() - now > _LOOK_S:
                break
            known[name] = self._read(name)
        self._again(now)
        unread = sum(name not in known for name in names)
        seen = [one for one in known.values() if one is not None]
        seen.sort(key=lambda one: (not one.live, -one.when, one.row["name"]))
        counts = dict.fromkeys(STATES, 0)
        for one in seen:
            counts[one.row["state"]] += 1
        return counts, [one.row for one in seen], unread

    def _again(self, now: float) -> None:
        """Read again what may have changed, the longest unread first, not more than a shared disk likes."""
        known = self._known.runs
        ages = sorted((one.read, name) for name, one in known.items() if one is not None and one.read < now)
        live = [name for _, name in ages if (one := known[name]) is not None and one.live][:_LIVE]
        ended = [
            name for read, name in ages if (one := known[name]) and not one.live and now - read > _ENDED_S
        ][:_ENDED]
        nothing = [name for name, one in known.items() if one is None][:_ENDED]
        for name in live + ended + nothing:
            before = known[name]
            if before is not None and not before.live and before.facts == _facts(self.folder / name):
                before.read = now
                continue
            known[name] = self._read(name)

    def _read(self, name: str) -> _Seen | None:
        path = self.folder / name
        facts = _facts(path)
        row = row_of(path, name)
        if row is None:
            return None
        live = row["state"] in (State.RUNNING.value, State.CREATED.value)
        when = row["started"] or row["updated"] or (facts[0] / 1e9 if facts else 0.0)
        return _Seen(row, when, time.monotonic(), facts, live)


def row_of(path: Path, name: str) -> dict[str, Any] | None:
    """What a list says of a run; None where there is none."""
    try:
        check_name(name.rpartition("/")[2])
        return _row(name, RunFolder(path).status())
    except NotFound:
        if not (path / "job.toml").is_file():
            return None
        return _row(name, Status(State.UNKNOWN, reason="status.json is missing"), damaged=True)
    except UNREADABLE as error:
        if isinstance(error, NameNotAllowed) and not (path / "job.toml").is_file():
            return None
        return _row(name, Status(State.UNKNOWN, reason=said(error)), damaged=True)


def _row(name: str, status: Status, *, damaged: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "state": status.state.value,
        "damaged": damaged,
        "step": number(status.step),
        "total_steps": number(status.total_steps),
        "epoch": number(status.epoch),
        "ranks": number(status.ranks),
        "attempt": number(status.attempt),
        "backend": text(status.backend),
        "started": number(status.started),
        "updated": number(status.updated),
        "ended": number(status.ended),
        "reason": text(status.reason),
        "metrics": status.metrics,
    }


def bounds(query: Question, default: int = 50, most: int = MOST_ROWS) -> tuple[int, int]:
    """`offset` and `limit` of a query, within reason."""

    def whole(name: str, otherwise: int) -> int:
        given = query.get(name, "")
        return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else otherwise

    return whole("offset", 0), max(1, min(most, whole("limit", default)))


def folders(parent: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden, sorted."""
    try:
        with os.scandir(parent) as entries:
            return sorted(one.name for one in entries if not one.name.startswith(".") and one.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _facts(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path / "status.json")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
