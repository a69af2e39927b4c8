"""The sweeps of a project: how each stands, and enough of its trials for pictures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.dashboard.looks import Paced
from hpcmass.dashboard.plain import UNREADABLE, number, said
from hpcmass.dashboard.runs import bounds, folders, row_of
from hpcmass.dashboard.server import Question
from hpcmass.errors import NotFound
from hpcmass.files import check_name
from hpcmass.sweep.records import Outcome, objective_values, trial_names, violations
from hpcmass.sweep.standing import Running, Standing, StudyWatch

MOST_DRAWN = 600
_LOOK_S = 1.0  # of one answer may go into studies that were not read yet
_QUIET_S = 30.0  # between two looks at a study that nobody drives
_EVERY_S = 1.5
_MOST_REASON = 300


@dataclass
class _Trial:
    number: int
    params: Mapping[str, Any]
    state: str
    value: float | None
    feasible: bool
    order: int
    seconds: float | None
    reason: str | None


@dataclass
class _Study:
    """One study that was looked at, and what is kept of its trials."""

    folder: Path
    watch: StudyWatch | None = None
    trials: dict[int, _Trial] = field(default_factory=dict)
    read: bool = False
    driven: bool = True
    standing: Paced = field(init=False)

    def __post_init__(self) -> None:
        self.standing = Paced(self._look)

    def _look(self) -> Standing:
        self.read = True
        if self.watch is None:
            self.watch = StudyWatch(self.folder, self._counted)
        found = self.watch.look()
        self.driven = found.driver is not None
        return found

    def _counted(self, at: int, params: Mapping[str, Any], outcome: Outcome) -> None:
        assert self.watch is not None
        table = self.watch.job.sweep
        assert table is not None
        values = objective_values(table, outcome)
        value = outcome.value if values is None else values[0]
        feasible = not any(violations(table, outcome.measured))
        reason = None if outcome.reason is None else str(outcome.reason)[:_MOST_REASON]
        self.trials[at] = _Trial(
            at, params, outcome.state, number(value), feasible, outcome.order, number(outcome.seconds), reason
        )


class StudiesReader:
    """The folder of studies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._studies: dict[str, _Study] = {}
        self._made: dict[str, float] = {}
        self._names = Paced(self._list)

    def page(self, query: Question) -> dict[str, Any]:
        """Some of the studies, the newest first.

        Args:
            query: `q` (a part of the name), `offset`, `limit`.
        """
        part = query.get("q", "").strip().lower()
        names = [name for name in self._names() if part in name.lower()]
        first, count = bounds(query, 25, 50)
        began = time.monotonic()
        rows: list[dict[str, Any]] = []
        for name in names[first : first + count]:
            study = self._study(name)
            if study.read or not rows or time.monotonic() - began < _LOOK_S:
                rows.append(_row(name, study))
            else:
                rows.append({"name": name, "state": "unread"})
        return {"total": len(names), "offset": first, "studies": rows}

    def study(self, name: str, query: Question) -> dict[str, Any]:
        """All of one study that a page shows; of its trials one page, the newest first.

        Raises:
            NotFound: There is none.
        """
        study = self._study(self._checked(name))
        found = _row(name, study, _EVERY_S)
        first, count = bounds(query, 25, 100)
        try:
            numbers = sorted((int(one) for one in trial_names(study.folder)), reverse=True)
        except OSError:
            numbers = []
        if query.get("state"):
            wanted = query["state"]
            numbers = [n for n in numbers if n in study.trials and study.trials[n].state == wanted]
        return {
            **found,
            "points": _points(study),
            "trials": {
                "total": len(numbers),
                "offset": first,
                "rows": [_trial_row(study, name, one) for one in numbers[first : first + count]],
            },
        }

    def trial(self, name: str, at: str) -> Path:
        """The folder of a trial.

        Raises:
            NotFound: There is none.
        """
        if not (at.isascii() and at.isdigit()) or len(at) > 9:
            raise NotFound(f"{at!r} is no number of a trial")
        return self.folder / self._checked(name) / "trials" / f"{int(at):06d}"

    def path(self, name: str) -> Path:
        """The folder of a study.

        Raises:
            NotFound: There is none.
        """
        return self.folder / self._checked(name)

    def _checked(self, name: str) -> str:
        check_name(name, "study name")
        if not (self.folder / name / "job.toml").is_file():
            raise NotFound(f"there is no study {name!r}")
        return name

    def _study(self, name: str) -> _Study:
        with self._lock:
            return self._studies.setdefault(name, _Study(self.folder / name))

    def _list(self) -> list[str]:
        names = folders(self.folder)
        for gone in self._made.keys() - set(names):
            del self._made[gone]
            self._studies.pop(gone, None)
        for name in names:
            if name not in self._made:
                try:
                    self._made[name] = os.stat(self.folder / name / "job.toml").st_mtime
                except OSError:
                    continue  # No study, or not yet.
        return sorted(self._made, key=lambda name: (-self._made[name], name))


def _row(name: str, study: _Study, every_s: float | None = None) -> dict[str, Any]:
    try:
        found: Standing = study.standing(every_s or (_EVERY_S if study.driven else _QUIET_S))
    except UNREADABLE as error:
        return {"name": name, "state": "UNKNOWN", "reason": said(error)}
    best = found.best
    state = "running" if found.driver else "complete" if found.done >= found.planned or found.ended else "idle"
    return {
        "name": name,
        "state": state,
        "objectives": found.objectives,
        "planned": found.planned,
        "done": found.done,
        "counts": found.counts,
        "waiting": found.waiting,
        "running": [_running(one) for one in found.running[:100]],
        "running_count": len(found.running),
        "best": None if best is None else {"number": best.number, "value": best.value, "params": best.params},
        "front": found.front,
        "course": found.course[-200:],
        "per_s": None if found.per_s is None else float(f"{found.per_s:.3g}"),
        "workers": found.workers,
        "idle": found.idle,
        "targets": found.targets,
        "causes": found.causes,
        "driver": None if found.driver is None else f"process {found.driver.pid} on {found.driver.host}",
        "node_s": found.node_s,
        "node_hours_limit": found.node_hours_limit,
        "ended": found.ended,
    }


def _running(one: Running) -> dict[str, Any]:
    return {
        "number": one.number,
        "target": one.target,
        "step": one.step,
        "total_steps": one.total_steps,
        "value": number(one.value),
        "since": number(one.since),
        "params": one.params,
    }


def _trial_row(study: _Study, name: str, at: int) -> dict[str, Any]:
    known = study.trials.get(at)
    if known is not None:
        return {
            "number": at,
            "state": known.state,
            "value": known.value,
            "seconds": known.seconds,
            "reason": known.reason,
            "params": known.params,
        }
    row = row_of(study.folder / "trials" / f"{at:06d}", f"{name}/{at}")
    state = "waiting" if row is None or row["state"] == "CREATED" else row["state"].lower()
    return {"number": at, "state": state, "reason": None if row is None else row["reason"], "params": {}}


def _points(study: _Study) -> dict[str, Any]:
    """Trials for the pictures: the best third, the newest third, and a sample over the whole study."""
    trials = sorted(study.trials.values(), key=lambda one: one.order)
    if len(trials) > MOST_DRAWN:
        assert study.watch is not None
        assert study.watch.job.sweep is not None
        sign = study.watch.job.sweep.objectives[0].sign
        third = MOST_DRAWN // 3
        having = [one for one in trials if one.value is not None and one.state == "complete"]
        best = sorted(having, key=lambda one: (not one.feasible, sign * (one.value or 0.0)))[:third]
        chosen = {one.number: one for one in [*best, *trials[-third:]]}
        rest = [one for one in trials if one.number not in chosen]
        wanted = MOST_DRAWN - len(chosen)
        chosen |= {(one := rest[place * len(rest) // wanted]).number: one for place in range(wanted)}
        trials = sorted(chosen.values(), key=lambda one: one.order)
    return {
        "of": len(study.trials),
        "trials": [
            [one.number, one.order, one.state, one.value, int(one.feasible), dict(one.params)] for one in trials
        ],
    }
