"""Every attempt at a trial, in the study's `attempts.jsonl`: written before it is handed on, and at its end.

A record before (`submit`) and one behind (`end`), with the trial's number in both: so whoever drives the study
next knows what may still be running, what each attempt had asked for, and why it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.errors import HpcmassError
from hpcmass.files import append_record, read_records, storage_errors
from hpcmass.runs import RunFolder

FILE = "attempts.jsonl"
_TRIAL = re.compile(rb'"trial":\s*(\d+)')
SLOTS = "slots.jsonl"  # in a run's folder: where its worker was, by the worker itself


@dataclass(frozen=True)
class Place:
    """Where a worker ran an attempt.

    Attributes:
        target, job_id: Name of the target and Slurm job of the block; empty on a machine without.
        host, node: The host's name, and the (first) node's as Slurm calls it.
        slot: Number of the slot on the node.
        nodes: Nodes that the attempt had.
        share: The part of them that was its own: 0.25 where four trials had a node, 1 where it had it whole.
        started, ended: Epoch seconds; `ended` is None where the worker was lost.
    """

    target: str = ""
    job_id: str = ""
    host: str = ""
    node: str = ""
    slot: int = 0
    nodes: int = 1
    share: float = 1.0
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class History:
    """The attempts at one trial so far.

    Attributes:
        submitted: How often it was handed to workers.
        causes: Why each attempt that is known to have ended did, oldest first.
        changes: What the last one had instead of what its job says: job keys, and `wall_s`.
        avoid: Nodes that it was lost on.
        counted: Attempts that cost it a retry.
        again: Whether the last one ended, and is to be followed by another.
        started: When the last one began that had a worker.
    """

    submitted: int = 0
    causes: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    avoid: tuple[str, ...] = ()
    counted: int = 0
    again: bool = False
    started: float | None = None


class AttemptLog:
    """Writes a study's `attempts.jsonl`; there is one writer, the study's driver."""

    def __init__(self, study: Path) -> None:
        self.file = study / FILE
        self._handle: int | None = None

    def __del__(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)

    def _append(self, record: dict[str, Any]) -> None:
        """One record by one write, to a file that stays open: a study has two for every trial."""
        if self._handle is None:
            append_record(self.file, record)  # closes off what an earlier driver left half written
            with storage_errors(self.file, "open the file"):
                self._handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            return
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with storage_errors(self.file, "append to the file"):
            written = os.write(self._handle, line)
            if written != len(line):
                os.write(self._handle, line[written:])

    def submit(self, trial: int, attempt: int, changes: Mapping[str, Any], avoid: tuple[str, ...]) -> None:
        """Note that an attempt is about to be handed to workers."""
        record: dict[str, Any] = {"kind": "submit", "trial": trial, "attempt": attempt}
        if changes:
            record["changes"] = dict(changes)
        if avoid:
            record["avoid"] = list(avoid)
        self._append({**record, "time": time.time()})

    def end(self, trial: int, attempt: int, fields: Mapping[str, Any]) -> None:
        """Note how an attempt ended."""
        record = {"kind": "end", "trial": trial, "attempt": attempt, **fields, "time": time.time()}
        self._append(record)


def read_attempts(study: Path, trials: set[int] | None = None) -> Iterator[dict[str, Any]]:
    """The records of a study's attempts, oldest first; of some trials, or of all."""
    try:
        data = (study / FILE).read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        found = _TRIAL.search(line)
        if found is None or (trials is not None and int(found[1]) not in trials):
            continue  # not read any further: a study may have hundreds of thousands
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("trial"), int):
                yield record


def histories(study: Path, trials: set[int]) -> dict[int, History]:
    """What is on record of some trials' attempts. A trial without a record has none."""
    found: dict[int, dict[str, Any]] = {}
    if not trials:
        return {}
    for record in read_attempts(study, trials):
        mine = found.setdefault(
            record["trial"],
            {
                "submitted": 0,
                "causes": (),
                "changes": {},
                "avoid": (),
                "counted": 0,
                "again": False,
                "started": None,
            },
        )
        if record.get("kind") == "submit":
            mine["submitted"] += 1
            mine["again"] = False
            mine["changes"] = dict(record.get("changes", {}))
            mine["avoid"] = tuple(record.get("avoid", ()))
        elif record.get("kind") == "end":
            mine["causes"] = (*mine["causes"], str(record.get("cause")))
            mine["again"] = record.get("next") == "again"
            mine["started"] = record.get("started") or mine["started"]
            mine["counted"] += mine["again"] and not record.get("free", False)
            mine["changes"] = dict(record.get("changes", mine["changes"]))
            mine["avoid"] = tuple(record.get("avoid", mine["avoid"]))
    return {trial: History(**fields) for trial, fields in found.items()}


def place_of(run: RunFolder) -> Place:
    """Where a trial's last attempt ran, as its worker wrote it down; by the run's own times where none did."""
    begin: dict[str, Any] | None = None
    ended: float | None = None
    for record in read_records(run.path / SLOTS):
        if record.get("kind") == "begin":
            begin, ended = record, None
        elif record.get("kind") == "end":
            ended = record.get("time")
    if begin is None:
        try:
            status = run.status()
        except HpcmassError:
            return Place()
        return Place(started=status.started, ended=status.ended or status.updated)
    return Place(
        target=str(begin.get("target", "")),
        job_id=str(begin.get("job_id", "")),
        host=str(begin.get("host", "")),
        node=str(begin.get("node", "")),
        slot=int(begin.get("slot", 0)),
        nodes=int(begin.get("nodes", 1)),
        share=float(begin.get("share", 1.0)),
        started=begin.get("time"),
        ended=ended,
    )


# What an attempt's `end` record says that never had a worker.
NOWHERE: Mapping[str, Any] = {
    **dict.fromkeys(("target", "node", "job_id"), ""),
    **dict.fromkeys(("started", "ended", "node_s")),
}


def end_fields(run: RunFolder, *, ranks: int, step: int) -> dict[str, Any]:
    """What an `end` record says of where and how long an attempt ran.

    Args:
        run: The trial's run folder.
        ranks: Its ranks.
        step: The step that it has reached.
    """
    place = place_of(run)
    ended = place.ended
    if ended is None and place.started is not None:
        try:
            ended = max(place.started, run.status().updated or 0.0)
        except HpcmassError:
            ended = place.started
    seconds = None if place.started is None or ended is None else max(0.0, ended - place.started)
    return {
        "target": place.target,
        "node": place.node or place.host,
        "nodes": place.nodes,
        "share": place.share,
        "slot": place.slot,
        "job_id": place.job_id,
        "ranks": ranks,
        "started": place.started,
        "ended": ended,
        "node_s": None if seconds is None else round(seconds * place.nodes * place.share, 3),
        "step": step,
    }


__all__ = [
    "FILE",
    "NOWHERE",
    "SLOTS",
    "AttemptLog",
    "History",
    "Place",
    "end_fields",
    "histories",
    "place_of",
    "read_attempts",
]
