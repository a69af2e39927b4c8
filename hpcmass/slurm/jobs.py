"""What is known of a Slurm job. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobState(str, Enum):
    """Slurm's own states, in short; `UNKNOWN` where Slurm does not answer or does not know the job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETING = "COMPLETING"
    REQUEUED = "REQUEUED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE = "DEADLINE"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool | None:
        """Whether the job will do nothing more; None where that cannot be known."""
        if self is JobState.UNKNOWN:
            return None
        return self not in _ALIVE


_ALIVE = {
    JobState.PENDING,
    JobState.RUNNING,
    JobState.SUSPENDED,
    JobState.COMPLETING,
    JobState.REQUEUED,
}


@dataclass(frozen=True)
class JobInfo:
    """One job as `squeue` or `sacct` tells it.

    Attributes:
        job_id: `123`, `123_4` (an element of an array), `123+1` (a part of a heterogeneous job).
        reason: Slurm's reason, such as `Priority`, `ReqNodeNotAvail`, `BeginTime`; empty where there is none.
        nodes: Names of its nodes.
        submitted, started, ends: Seconds since the epoch. `started` of a pending job is Slurm's guess;
            `ends` is the time limit's end while it runs, and when it ended afterwards.
        time_limit_s: Wall time in seconds; None where there is no limit or it is not known.
        exit_code, signal: How the batch script ended.
        comment: What it was submitted with, as far as squeue tells it.
        gone: Of an UNKNOWN job: the controller answers and does not have it any more: it neither waits
            nor runs; how it ended nobody can say.
        used: What accounting measured, such as `{"cpu_s": 120.0, "max_rss_bytes": 1e9}`; empty without it.
        source: `squeue`, `sacct`, or empty where nobody knew it.
    """

    job_id: str
    state: JobState
    reason: str = ""
    name: str = ""
    partition: str = ""
    nodes: tuple[str, ...] = ()
    submitted: float | None = None
    started: float | None = None
    ends: float | None = None
    time_limit_s: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    used: tuple[tuple[str, float], ...] = ()
    source: str = ""
    comment: str = ""
    gone: bool = False
