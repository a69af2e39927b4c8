"""How a run outlives its job: when to stop, why a job ended, whether and how to go on. Pure.

A *hop* is one life of a batch script: a job, or a requeued job's next life. What hops did stands in the run
folder (`slurm/hops.jsonl`), so every decision here is a function of what lies there and of what Slurm says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hpcmass.slurm.records import Hop, SubmissionRecord

# The stop is asked for this long before the time limit, and for some checkpoints' time more; a short job, of
# which that would be most, gives a share.
FLOOR_S = 45.0
SAFETY = 3.0
SHARE, SHARE_OF_LONG_CHECKPOINTS = 0.25, 0.5
# Ranks that are still there are ended so long before the limit that the hop itself can go on.
RESERVE_S = 15.0
# Slurm may send the signal of `--signal` a minute early (sbatch's manual).
SIGNAL_EARLY_S = 65.0
# Failures at one step, with no progress between them, after which a run is not begun again.
FAILURES = 2
# Hops that lost a node at one step, likewise: a run that takes its nodes down must not go through them all.
NODE_FAILURES = 3


@dataclass(frozen=True)
class Times:
    """Moments of a hop, in seconds since the epoch.

    Attributes:
        stop: The ranks are asked to stop.
        end: Ranks that are still there get SIGTERM.
        kill: Ranks that are still there are killed.
        limit: Slurm's time limit.
    """

    stop: float
    end: float
    kill: float
    limit: float


def times(began: float, limit: float, *, checkpoint_s: float = 0.0, step_s: float = 0.0) -> Times:
    """When to stop a hop that began at `began` and may last until `limit`.

    The margin is a floor plus three times what a step and a checkpoint take (they vary, and a stop waits for
    the end of a step), but at most a quarter of the hop, so that a short one still gets somewhere; up to half
    of it where a checkpoint takes that long.
    """
    whole = max(0.0, limit - began)
    work = checkpoint_s + step_s
    margin = min(
        FLOOR_S + SAFETY * work, max(SHARE * whole, min(SHARE_OF_LONG_CHECKPOINTS * whole, 1.5 * work))
    )
    reserve = min(RESERVE_S, margin / 3)
    return Times(limit - margin, limit - 1.5 * reserve, limit - reserve, limit)


def is_early_warning(now: float, when: Times | None, signal_s: int | None) -> bool:
    """Whether a SIGUSR1 is Slurm's warning of the time limit, come before the hop itself would stop."""
    if when is None or not signal_s or now >= when.stop:
        return False
    return now >= when.limit - signal_s - SIGNAL_EARLY_S


def signal_of_script(text: str) -> int | None:
    """N of `#SBATCH --signal=B:USR1@N`, or None."""
    found = re.search(r"^#SBATCH --signal=\"?B:USR1@(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


# -- why a job ends ----------------------------------------------------------------------------------------
class Fate(str, Enum):
    """What Slurm is doing with the job: lets it run, begins it again by itself, or has ended it, and why."""

    RUNNING = "running"
    REQUEUED = "requeued"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    NODE_FAIL = "node-failure"
    TIMEOUT = "time-limit"
    UNKNOWN = "unknown"


_SHOWN = re.compile(r"(?:^|\s)(JobState|Reason|Restarts|Requeue|EndTime|PreemptTime)=(\S+)")
_SAID = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+ (?:DUE TO ([A-Z ]+))?")
_BY_WORD = {
    "TIME LIMIT": Fate.TIMEOUT,
    "PREEMPTION": Fate.PREEMPTED,
    "NODE FAILURE": Fate.NODE_FAIL,
    "JOB REQUEUE": Fate.REQUEUED,
    "": Fate.CANCELLED,
}


def parse_shown(text: str) -> dict[str, str]:
    """The few fields of `scontrol show job` that tell what becomes of it; the job's name is passed over."""
    lines = [line for line in text.splitlines() if not line.startswith("JobId=")]
    found: dict[str, str] = {}
    for name, value in _SHOWN.findall("\n".join(lines)):
        found.setdefault(name, value)
    return found


def parse_said(text: str) -> Fate | None:
    """What slurmstepd wrote into the job's output when it ended the job; None where it did not."""
    found = list(_SAID.finditer(text))
    if not found:
        return None
    word = (found[-1][1] or "").strip()
    return next(
        (fate for start, fate in _BY_WORD.items() if start and word.startswith(start)), _BY_WORD.get(word)
    )


def fate_of(shown: Mapping[str, str] | None, said: Fate | None, restart: int) -> Fate:
    """What Slurm is doing with the job, out of both sources.

    While a job is completing, its state does not tell a cancelled one from a requeued one. The number of
    restarts does: it is raised at once where Slurm puts the job back into the queue. This matters, since
    `scontrol requeue` brings a cancelled job back.

    Args:
        shown: `parse_shown` of the job, or None where Slurm does not answer.
        said: `parse_said` of the job's own output.
        restart: How often the job had been begun again when this hop began.
    """
    if not shown or "JobState" not in shown:
        # A requeue and a preemption look alike from here: only Slurm knows whether it begins the job again.
        return said if said in (Fate.CANCELLED, Fate.TIMEOUT) else Fate.UNKNOWN
    restarts = shown.get("Restarts", "")
    if restarts.isdigit() and int(restarts) > restart:
        return Fate.REQUEUED
    state, reason = shown["JobState"], shown.get("Reason", "")
    if state in ("RUNNING", "SUSPENDED"):
        return Fate.RUNNING
    if state == "NODE_FAIL" or reason == "NodeDown":
        return Fate.NODE_FAIL
    if state == "TIMEOUT" or reason == "TimeLimit":
        return Fate.TIMEOUT
    if state == "PREEMPTED":
        return Fate.PREEMPTED
    if state in ("CANCELLED", "DEADLINE", "OUT_OF_MEMORY"):
        return Fate.CANCELLED
    return said or Fate.UNKNOWN


def preempted_soon(shown: Mapping[str, str] | None) -> bool:
    """Whether Slurm has given the running job notice (its partition's GraceTime)."""
    return bool(shown) and (shown or {}).get("PreemptTime", "None") not in ("None", "N/A", "Unknown", "0")


_NODE_TROUBLE = re.compile(
    r"timed? ?out|time ?out|node[ _]?fail|not responding|(?:communication|connection|shutdown).{0,20}"
    r"(?:failure|failed|refused|reset|lost|closed)|no route to host|unreachable|required node not available"
    r"|(?:receive|send) failure",
    re.IGNORECASE,
)


def is_node_trouble(kind: str, stderr: str) -> bool:
    """Whether srun failed as it does where a node is gone: no answer, no connection, Slurm's word.

    Args:
        kind: Of `messages.Trouble`; `timeout` also where srun had to be ended.
        stderr: What srun wrote.
    """
    return kind == "timeout" or _NODE_TROUBLE.search(stderr) is not None


# -- what to do next ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Seen:
    """What is known once a hop's ranks are gone.

    Attributes:
        state: What the run folder says: `COMPLETED`, `STOPPED`, `FAILED`, or anything else where its ranks
            ended without a last word.
        reason: The run folder's, or of ranks that did not begin.
        step: The step that the next hop would go on from; None where the run keeps no steps (a script).
        from_step: The step that this hop went on from.
        fault: Of a run that failed: `own` (an exception of its own), `transient` (the error says so, a rank was
            lost), or empty.
        asked: Why the hop asked its ranks to stop: `time-limit`, `signal` (SIGUSR1), `term` (SIGTERM), or
            empty.
        stop_file: The reason in the run folder's stop file, where it is not the hop's own.
        cancel: What `RUN/slurm/cancel` says, or None.
        fate: What Slurm is doing with the job.
        said: What slurmstepd said.
    """

    state: str
    reason: str | None = None
    step: int | None = None
    from_step: int = 0
    fault: str = ""
    asked: str = ""
    stop_file: str | None = None
    cancel: str | None = None
    fate: Fate = Fate.RUNNING
    said: Fate | None = None


@dataclass(frozen=True)
class Decision:
    """What a hop does at its end.

    Attributes:
        cause: `completed`, `time-limit`, `preempted`, `node-failure`, `signal`, `cancelled`, `failed`, or
            `no-progress`.
        go_on: Whether the run is to have another hop.
        by_slurm: Whether Slurm has put the job back into the queue itself.
        reason: One sentence.
        exit_code: Of the batch script: 0 only where the run is completed, or the job goes on as itself.
    """

    cause: str
    go_on: bool
    reason: str
    exit_code: int = 1
    by_slurm: bool = False


# A hop's last step may differ by so much from that of the hop before, where both did the same.
_JITTER = 1.05


def chain(hops: Sequence[Hop], submissions: Sequence[SubmissionRecord], job_id: str) -> list[Hop]:
    """The earlier hops that count with those of this job: its own, and those of the jobs that it succeeds.

    What failed before somebody submitted the run anew is forgiven.
    """
    ids = {job_id}
    for record in reversed(submissions):
        if record.slurm_id in ids and record.by == "successor":
            ids |= {after.rpartition(":")[2] for after in record.after}
    return [hop for hop in hops if hop.job_id in ids]


def decide(seen: Seen, past: Sequence[Hop]) -> Decision:
    """What to do now.

    Args:
        seen: What is known.
        past: Earlier hops of this chain, oldest first.
    """
    if seen.cancel is not None:
        return Decision("cancelled", False, seen.cancel or "cancelled")
    if seen.state == "COMPLETED":
        return Decision("completed", False, seen.reason or "completed", 0)
    if seen.fate is Fate.CANCELLED:
        return Decision("cancelled", False, "the job was cancelled (scancel)")
    interrupted = bool(seen.asked) or seen.fate not in (Fate.RUNNING, Fate.UNKNOWN)
    if seen.state == "STOPPED" and seen.stop_file is not None and not interrupted:
        return Decision("cancelled", False, seen.stop_file)
    if seen.fault == "own" or not (interrupted or seen.state == "STOPPED"):
        return _failed(seen, past)
    return _interrupted(seen, past)


def _interrupted(seen: Seen, past: Sequence[Hop]) -> Decision:
    cause, reason = _cause(seen)
    if seen.fate is Fate.UNKNOWN and seen.asked == "term":
        reason += "; Slurm does not say why, so it is left to Slurm whether the job is begun again"
        return Decision(cause, False, reason)
    if cause == "time-limit" and _stuck(seen, past):
        return Decision(
            "no-progress",
            False,
            f"two hops in a row ended at their time limit and got no further than step {seen.step}: a longer "
            "resources.time, or more frequent checkpoints (train.checkpoint_every_steps); a script of your own "
            "has to go on from what it kept",
        )
    if cause == "node-failure" and (stopped := worn_out(seen.step, past, 1)) is not None:
        return stopped
    return Decision(cause, True, reason, 0, by_slurm=seen.fate is Fate.REQUEUED)


def worn_out(step: int | None, past: Sequence[Hop], now: int = 0) -> Decision | None:
    """The end of a run whose latest hops each lost a node and got no further; None where it may go on.

    Args:
        step: The step that the next hop goes on from.
        past: Earlier hops of this chain, oldest first.
        now: 1 where the present hop lost a node too, 0 where it has not begun.
    """
    if lost_at(step, past) + now < NODE_FAILURES:
        return None
    where = "" if step is None else f" at step {step}"
    return Decision(
        "no-progress",
        False,
        f"{NODE_FAILURES} hops in a row lost a node{where} without progress: does the run take its nodes down "
        "(memory, a driver)? 'sinfo -R' says what Slurm knows of them; more frequent checkpoints "
        "(train.checkpoint_every_steps) get past nodes that fail by chance",
    )


def _cause(seen: Seen) -> tuple[str, str]:
    fate = seen.said if seen.fate is Fate.REQUEUED and seen.said is not None else seen.fate
    if fate is Fate.PREEMPTED:
        return "preempted", "the job was preempted"
    if fate is Fate.NODE_FAIL:
        return "node-failure", "a node of the job failed"
    if fate is Fate.TIMEOUT or seen.asked == "time-limit":
        return "time-limit", "the time limit was near"
    if fate is Fate.REQUEUED:
        return "signal", "the job was requeued"
    if fate is Fate.RUNNING and seen.asked:
        return "signal", f"{'SIGTERM' if seen.asked == 'term' else 'SIGUSR1'} asked for a stop"
    return "signal", seen.reason or "stopped by a signal"


def _stuck(seen: Seen, past: Sequence[Hop]) -> bool:
    """Whether this hop and the one before it got no further than the best before them.

    A script that begins anew in every hop ends each a step earlier or later; one whose steps begin anew with a
    phase of its own gets on by more than that.
    """
    if seen.step is None or not past or past[-1].cause != "time-limit" or past[-1].step is None:
        return False
    before = past[-1].step
    best = max(past[-1].from_step or 0, *(hop.step or 0 for hop in past[:-1]), 0)
    return before <= best and seen.step <= max(best, before) and seen.step <= before * _JITTER


def _failed(seen: Seen, past: Sequence[Hop]) -> Decision:
    why = seen.reason or "the ranks ended without saying why"
    if failures_at(seen.step, past) + 1 >= FAILURES:
        where = "" if seen.step is None else f" at step {seen.step}"
        return Decision("no-progress", False, f"failed twice{where} without progress: {why}")
    if seen.fault == "own":
        return Decision("failed", False, why)
    return Decision("failed", True, why)


def failures_at(step: int | None, past: Sequence[Hop]) -> int:
    """How many of the latest hops failed at this step, with no progress since; lost hops do not count."""
    return sum(hop.cause in ("failed", "no-progress") for hop in _without_progress(step, past))


def lost_at(step: int | None, past: Sequence[Hop]) -> int:
    """How many of the latest hops lost a node at this step, with no progress since.

    Of a script that reports no steps nobody knows how far it came: only those count that follow each other.
    """
    count = 0
    for hop in _without_progress(step, past):
        if hop.cause in ("node-failure", "lost"):
            count += 1
        elif step is None:
            break
    return count


def _without_progress(step: int | None, past: Sequence[Hop]) -> Iterator[Hop]:
    """The latest hops that got no further than this step, newest first."""
    for hop in reversed(past):
        reached = hop.step if hop.step is not None else hop.from_step
        if (step or 0) != (reached or 0):
            break
        yield hop
