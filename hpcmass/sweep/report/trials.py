"""The trials of a study with what a report wants to know beside the outcome: when, where, and what it took."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.config import Job, SweepTable
from hpcmass.errors import HpcmassError
from hpcmass.files import read_json, read_records
from hpcmass.runs import State, Status
from hpcmass.sweep.records import Outcome, TrialSpec, objective_values, violations
from hpcmass.sweep.watch import Values, is_number

# What `hpcmass.workflow.slots` writes into a run's folder, where it runs in a block.
_SLOTS = "slots.jsonl"
_ERROR_NAME = re.compile(r"([A-Z][A-Za-z]{3,60}): ")


@dataclass(frozen=True)
class Stay:
    """A while in which a trial had a slot.

    Attributes:
        target: The target's name; empty on the driver's own machine.
        job_id, node, slot: The block and the place in it; None where nobody wrote it down.
        begin, end: Seconds since the epoch; `end` is None while it goes on.
        lost: Whether nobody gave the slot back: the worker was lost, and `end` is the last sign of life.
        cpu_s: Processor time; None where it is not known.
    """

    target: str
    job_id: str
    node: str
    slot: int | None
    begin: float
    end: float | None
    lost: bool = False
    cpu_s: float | None = None


@dataclass(frozen=True)
class Told:
    """One trial as the report has it.

    Attributes:
        state: The outcome's; of a trial that is not counted `running`, `waiting`, or what its run is.
        cause: Of a failed trial: in one word, why.
        stays: Where it was, and when.
    """

    spec: TrialSpec
    outcome: Outcome | None
    state: str
    measured: Mapping[str, float]
    values: list[float] | None
    feasible: bool | None
    status: Status | None
    reason: str | None
    cause: str | None
    attempts: int
    seconds: float | None
    stays: list[Stay] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Its number."""
        return self.spec.number


def told(job: Job, spec: TrialSpec, outcome: Outcome | None) -> Told:
    """Read one trial; what cannot be read of its run is not known."""
    assert job.sweep is not None
    try:
        status: Status | None = spec.run.status()
    except HpcmassError:
        status = None
    measured = dict(outcome.measured) if outcome is not None else _so_far(job, spec)
    values = None if outcome is None else objective_values(job.sweep, outcome)
    if outcome is not None and outcome.value is not None:
        measured.setdefault(job.sweep.objectives[0].name, outcome.value)
    reason = outcome.reason if outcome is not None else status.reason if status else None
    state = outcome.state if outcome is not None else _state_of(status)
    return Told(
        spec,
        outcome,
        state,
        measured,
        values,
        None if values is None else _feasible(job.sweep, measured),
        status,
        reason,
        cause_of(spec.path, reason) if state == "failed" else None,
        outcome.attempts if outcome is not None else status.attempt if status else 0,
        _seconds(outcome, status),
        _stays(spec.path, status, ended=outcome is not None),
    )


def cause_of(path: Path, reason: str | None) -> str:
    """The cause of a failure in a word or two: what the outcome says it was, else by its text."""
    said = _extra(path / "outcome.json", "cause")
    if isinstance(said, str) and said:
        return said
    text = reason or ""
    if text.startswith("lost "):
        return "lost"
    if found := _ERROR_NAME.match(text):
        return found[1]
    if text.startswith(("the run never reported", "the last '")) or text.endswith("not known of this run"):
        return "no value"
    return "other"


def _extra(file: Path, key: str) -> Any:
    try:
        raw = read_json(file)
    except HpcmassError:
        return None
    return raw.get(key) if isinstance(raw, dict) else None


def _so_far(job: Job, spec: TrialSpec) -> dict[str, float]:
    assert job.sweep is not None
    seen = Values(spec.run, job).read()
    return {job.sweep.objectives[0].name: seen[-1][1]} if seen else {}


def _feasible(table: SweepTable, measured: Mapping[str, float]) -> bool:
    return not any(violations(table, measured))


def _state_of(status: Status | None) -> str:
    if status is None or status.state is State.CREATED:
        return "waiting"
    if status.state is State.RUNNING:
        return "running"
    if status.state is State.STOPPED and (status.reason or "").startswith("paused"):
        return "paused"  # at a rung, from which it may go on
    return "uncounted" if status.state is not State.UNKNOWN else "lost"


def _seconds(outcome: Outcome | None, status: Status | None) -> float | None:
    if outcome is not None and outcome.seconds is not None:
        return outcome.seconds
    end = None if status is None else status.ended or status.updated
    return None if status is None or status.started is None or end is None else end - status.started


def _stays(path: Path, status: Status | None, *, ended: bool) -> list[Stay]:
    records = list(read_records(path / _SLOTS)) if (path / _SLOTS).is_file() else []
    if not records:
        if status is None or status.started is None:
            return []
        over = ended or status.state is not State.RUNNING
        return [Stay("", "", "", None, status.started, (status.ended or status.updated) if over else None)]
    stays: list[Stay] = []
    for place, record in enumerate(records):
        if record.get("kind") != "begin" or not is_number(record.get("time")):
            continue
        end, lost, cpu_s = _end_of(record, records[place + 1 :])
        if end is None and (ended or lost or status is None or status.state is not State.RUNNING):
            last = status.ended or status.updated if status else None
            end, lost = max(last or record["time"], record["time"]), True
        stays.append(
            Stay(
                str(record.get("target") or ""),
                str(record.get("job_id") or ""),
                str(record.get("node") or record.get("host") or ""),
                record["slot"] if isinstance(record.get("slot"), int) else None,
                float(record["time"]),
                end,
                lost,
                cpu_s,
            )
        )
    return stays


def _end_of(begin: Mapping[str, Any], later: list[dict[str, Any]]) -> tuple[float | None, bool, float | None]:
    """When a slot was given back, whether it never was (the trial began again elsewhere), and its CPU time."""
    for record in later:
        if record.get("kind") == "begin":
            return None, True, None
        if record.get("kind") == "end" and record.get("attempt") == begin.get("attempt"):
            time, cpu = record.get("time"), record.get("cpu_s")
            return float(time) if is_number(time) else None, False, float(cpu) if is_number(cpu) else None
    return None, False, None
