"""The answers of squeue and sacct, in the formats of `hpcmass.slurm.commands`. Pure.

What is no record is skipped: a site prints lines of its own, comments and names may hold line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hpcmass.slurm.commands import SACCT_FIELDS, SEPARATOR, SQUEUE_FIELDS
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.values import expand_nodes, parse_clock, parse_cpu, parse_size, parse_time, parse_tres

_ID = re.compile(r"\d+(?:_(?:\d+|\[[\d,:%-]+(?:\.\.\.)?\]?)|\+\d+)?")
_RECORD = re.compile(rf"\n(?=\d[^\n{SEPARATOR}]*{SEPARATOR})")
_STATES = {
    **{state.value: state for state in JobState},
    "CONFIGURING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,
    "SIGNALING": JobState.RUNNING,
    "STOPPED": JobState.SUSPENDED,
    "RESIZING": JobState.RUNNING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "EXPEDITING": JobState.PENDING,
    "REVOKED": JobState.CANCELLED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
}


def parse_state(text: str) -> JobState:
    """A state as squeue and sacct write it (`CANCELLED by 0`, `RUNNING+`); UNKNOWN where it is none."""
    word = text.split()[0].rstrip("+*") if text.split() else ""
    return _STATES.get(word.upper(), JobState.UNKNOWN)


def expand_array(job_id: str) -> list[str]:
    """The elements of `7_[0-2,5%2]`; any other id is itself. A range cut short gives what it shows."""
    match = re.fullmatch(r"(\d+)_\[([^\]%]*)(?:%\d+)?\]?", job_id)
    if match is None:
        return [job_id]
    found: list[str] = []
    for piece in match[2].split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", piece)
        if ends:
            last = int(ends[2] or ends[1])
            found.extend(f"{match[1]}_{n}" for n in range(int(ends[1]), last + 1, int(ends[3] or 1)))
    return found


@dataclass(frozen=True)
class JobRow:
    """A job with the ids under which it may be asked for: its own, the raw one, the array's or first part's."""

    info: JobInfo
    raw_id: str
    base_id: str


def parse_squeue(text: str) -> list[JobRow]:
    """The jobs of `commands.squeue_jobs`."""
    rows = []
    for values in _records(text, len(SQUEUE_FIELDS)):
        job_id, raw, base, state_text, reason, submitted, started, ends, *rest = values
        limit, partition, nodes, comment, name = rest
        state = parse_state(state_text)
        begun = state is not JobState.PENDING
        for one in expand_array(job_id):
            info = JobInfo(
                job_id=one,
                state=state,
                reason="" if reason == "None" else reason,
                name=name,
                partition=partition,
                nodes=expand_nodes(nodes),
                submitted=parse_time(submitted),
                started=parse_time(started),
                ends=parse_time(ends) if begun else None,
                time_limit_s=parse_clock(limit),
                source="squeue",
                comment="" if comment == "(null)" else comment,
            )
            # Of an array's and a het job's part squeue's %F is the part's own; the id tells.
            rows.append(JobRow(info, raw, re.split(r"[_+]", one)[0] or base))
    return rows


def parse_sacct(text: str) -> list[JobRow]:
    """The jobs of `commands.sacct_jobs`, each with what its steps used."""
    rows: dict[str, JobRow] = {}
    rss: dict[str, float] = {}
    for values in _records(text, len(SACCT_FIELDS), steps=True):
        field = dict(zip(SACCT_FIELDS, values, strict=True))
        job_id, dot, _ = field["JobID"].partition(".")
        if dot:
            size = parse_size(field["MaxRSS"])
            if size is not None:
                rss[job_id] = max(size, rss.get(job_id, 0.0))
            continue
        for one in expand_array(job_id):
            rows[one] = JobRow(_accounted(one, field), field["JobIDRaw"], re.split(r"[_+]", one)[0])
    for job_id, size in rss.items():
        if job_id in rows:
            row = rows[job_id]
            used = (*row.info.used, ("max_rss_bytes", size))
            rows[job_id] = replace(row, info=replace(row.info, used=used))
    return list(rows.values())


def _accounted(job_id: str, field: dict[str, str]) -> JobInfo:
    code, _, sign = field["ExitCode"].partition(":")
    state = parse_state(field["State"])
    ended = bool(state.ended)
    minutes = field["TimelimitRaw"]
    used: dict[str, float] = {}
    if (cpu := parse_cpu(field["TotalCPU"])) is not None:
        used["cpu_s"] = cpu
    if field["ElapsedRaw"].isdigit():
        used["elapsed_s"] = float(field["ElapsedRaw"])
    for name, count in parse_tres(field["AllocTRES"]):
        key = {"cpu": "cpus", "node": "nodes", "mem": "memory_asked_bytes", "gres/gpu": "gpus"}.get(name)
        if key:
            used[key] = float(count) * (1024**2 if name == "mem" else 1)
    return JobInfo(
        job_id=job_id,
        state=state,
        reason="" if field["Reason"] == "None" else field["Reason"],
        name=field["JobName"],
        partition=field["Partition"],
        nodes=() if field["NodeList"] == "None assigned" else expand_nodes(field["NodeList"]),
        submitted=parse_time(field["Submit"]),
        started=parse_time(field["Start"]),
        ends=parse_time(field["End"]) if ended else None,
        time_limit_s=int(minutes) * 60 if minutes.isdigit() else None,
        exit_code=int(code) if ended and code.isdigit() else None,
        signal=int(sign) if ended and sign.isdigit() and sign != "0" else None,
        used=tuple(used.items()),
        source="sacct",
    )


def _records(text: str, count: int, *, steps: bool = False) -> Iterator[list[str]]:
    for record in _RECORD.split(text):
        values = record.split(SEPARATOR, count - 1)
        if len(values) == count and _ID.fullmatch(values[0].split(".")[0] if steps else values[0]):
            yield [*values[:-1], values[-1].partition("\n")[0]]


def parse_start(text: str) -> float | None:
    """The start of `sbatch --test-only`'s answer, `Job 7 to start at TIME using …`, in epoch seconds."""
    match = re.search(r"to start at (\S+)", text)
    return None if match is None else parse_time(match[1])


def parse_now(text: str) -> float | None:
    """The controller's time in sdiag's answer, `sdiag output at Wed Feb 23 01:39:54 2022 (1645609194)`."""
    match = re.search(r"sdiag output at [^\n]*\((\d+)\)", text)
    return None if match is None else float(match[1])


def parse_job_id(text: str) -> str | None:
    """The id of `sbatch --parsable`'s answer (`123` or `123;cluster`), whatever a site prints around it."""
    for line in reversed(text.splitlines()):
        if match := re.fullmatch(r"(\d+)(?:;\S*)?", line.strip()):
            return match[1]
    match = re.search(r"Submitted batch job (\d+)", text)
    return None if match is None else match[1]
