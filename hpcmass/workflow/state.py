"""What runs are: their folders and Slurm, looked at together.

`read_run` looks at one folder, `ask` asks Slurm once for any number of runs, `observe` does both. The verdict
itself is `hpcmass.slurm.judge`, which is pure.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import Owner, read_last_records
from hpcmass.runs import RunFolder, State, Status
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.judge import Facts, Phase, Verdict, judge
from hpcmass.slurm.reasons import plain_reason
from hpcmass.slurm.records import Hop, SubmissionRecord, numbers, read_hops, read_submissions
from hpcmass.slurm.send import under_way

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm

FORMAT = 1
_SECONDS_APART = 5.0  # Clocks of a login node and of compute nodes.
_LAST_JOBS = 3  # Submissions of a run that are asked about: a hop, its successor, and one that was cut off.


@dataclass(frozen=True)
class Reading:
    """What a run's folder says.

    Attributes:
        owner: Who holds its lease.
        jobs: Ids of the Slurm jobs that matter, oldest first.
        cancelled: The text of its cancel file, or of a stop by `hpcmass cancel`.
        intent: Whether a submission was begun that was never written down.
        submitting: Whether that may be under way at this moment.
        loss, samples_per_s, steps_per_s: Of the last records; None where there are none.
    """

    run: RunFolder
    status: Status
    owner: Owner | None = None
    submissions: tuple[SubmissionRecord, ...] = ()
    hops: tuple[Hop, ...] = ()
    jobs: tuple[str, ...] = ()
    cancelled: str | None = None
    intent: bool = False
    submitting: bool = False
    loss: float | None = None
    samples_per_s: float | None = None
    steps_per_s: float | None = None

    def jobs_in(self, answer: Answer) -> list[JobInfo]:
        """Its jobs as Slurm tells them, oldest first; UNKNOWN those that it says nothing of."""
        records = {one.slurm_id: one for one in self.submissions}
        return [
            records[job].job_in(answer.jobs)
            if job in records
            else answer.jobs.get(job) or JobInfo(job, JobState.UNKNOWN)
            for job in self.jobs
        ]


@dataclass(frozen=True)
class Answer:
    """What Slurm said to one look.

    Attributes:
        silent: Why it did not answer; empty where it did.
        accounting: Whether it keeps records of jobs that have ended; None where that was not asked.
        asked: When, in seconds since the epoch; 0.0: never.
    """

    jobs: Mapping[str, JobInfo] = field(default_factory=dict)
    silent: str = ""
    accounting: bool | None = None
    asked: float = 0.0


@dataclass(frozen=True)
class RunView:
    """One run as it is shown. Times are seconds since the epoch.

    Attributes:
        name: A run's name, or STUDY/NUMBER of a trial.
        nodes: Where it runs, or ran last.
        expected_start: Slurm's guess, of a job that waits.
        ends: When the time limit of its job ends, while it runs.
        left_s: Seconds that its steps will take yet, by the speed of late; None where that is not known.
        next_hop: What happens at the end of this hop, or of the wait.
        last_known: Of an `UNKNOWN` run what was known last, one sentence.
    """

    name: str
    verdict: Verdict
    reading: Reading
    nodes: tuple[str, ...] = ()
    expected_start: float | None = None
    ends: float | None = None
    left_s: float | None = None
    next_hop: str = ""
    last_known: str = ""

    @property
    def phase(self) -> Phase:
        """The state that is shown."""
        return self.verdict.phase

    @property
    def job(self) -> JobInfo | None:
        """The Slurm job that counts, or None."""
        return self.verdict.job

    @property
    def status(self) -> Status:
        """The run folder's own status."""
        return self.reading.status

    def as_json(self) -> dict[str, Any]:
        """The documented form of `hpcmass status --json` (docs/state.md)."""
        status, job, read = self.status, self.job, self.reading
        return {
            "name": self.name,
            "path": str(read.run.path.absolute()),
            "state": self.phase.value,
            "reason": self.verdict.reason,
            "advice": self.verdict.advice,
            "notes": list(self.verdict.notes),
            "last_known": self.last_known or None,
            "final": self.verdict.final,
            "folder_state": status.state.value,
            "step": status.step,
            "total_steps": status.total_steps or None,
            "epoch": status.epoch,
            "attempt": status.attempt,
            "loss": _finite(read.loss),
            "samples_per_s": _finite(read.samples_per_s),
            "metrics": {name: _finite(value) for name, value in status.metrics.items()},
            "ranks": status.ranks,
            "backend": status.backend,
            "nodes": list(self.nodes),
            "started": status.started,
            "updated": status.updated,
            "ended": status.ended,
            "left_s": self.left_s,
            "job": None if job is None else _job_json(job),
            "target": read.submissions[-1].target if read.submissions else None,
            "submitted": read.submissions[-1].submitted if read.submissions else None,
            "expected_start": self.expected_start,
            "ends": self.ends,
            "hops": len(read.hops),
            "next_hop": self.next_hop or None,
        }


def _job_json(job: JobInfo) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "state": job.state.value,
        "reason": job.reason,
        "partition": job.partition,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "used": dict(job.used),
        "source": job.source,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def observe(runs: Sequence[RunFolder], slurm: Slurm | None) -> list[RunView]:
    """Look at runs: their folders, and Slurm once for all of them.

    Args:
        runs: In the order in which the views are returned.
        slurm: None where there is no Slurm; runs that were submitted are then `UNKNOWN` where their folder
            proves nothing. Runs that never were are not asked about.

    Raises:
        NotFound: A folder is no run.
        CorruptError: A status cannot be read.
    """
    readings = [read_run(run) for run in runs]
    answer = ask(readings, slurm)
    return [view(reading, answer) for reading in readings]


def read_run(run: RunFolder) -> Reading:
    """Look at a run's folder; Slurm is not asked.

    Raises:
        NotFound: There is no such run.
        CorruptError: Its status or a submission cannot be read.
    """
    status = run.status()
    owner = run.lease().owner() if status.state is State.RUNNING else None
    submissions, hops = tuple(read_submissions(run.path)), tuple(read_hops(run.path))
    jobs = [one.slurm_id for one in submissions[-_LAST_JOBS:]]
    if hops and hops[-1].job_id and not submissions:
        jobs.append(hops[-1].job_id)
    if owner is not None and owner.slurm_job_id and not jobs:
        jobs.append(owner.slurm_job_id)  # An sbatch script of the user's own.
    pending = set(numbers(run.path)) - {one.number for one in submissions}
    intent = bool(pending) and max(pending) > max((one.number for one in submissions), default=0)
    loss, samples, steps = _speed(run)
    return Reading(
        run=run,
        status=status,
        owner=owner,
        submissions=submissions,
        hops=hops,
        jobs=tuple(dict.fromkeys(jobs)),
        cancelled=read_cancel(run),
        intent=intent,
        submitting=intent and under_way(run.path),
        loss=loss,
        samples_per_s=samples,
        steps_per_s=steps,
    )


def read_cancel(run: RunFolder) -> str | None:
    """Who cancelled a run and why, or None; starting it again takes it back."""
    try:
        text = (run.path / "slurm" / "cancel").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        said = run.asked_to_stop()
        return said if said is not None and said.startswith("cancelled by ") else None
    return text or "cancelled"


def _speed(run: RunFolder) -> tuple[float | None, float | None, float | None]:
    """Loss, samples a second and steps a second, out of the last records."""
    records = read_last_records(run.metrics_file)
    begins = [at for at, record in enumerate(records) if record.get("kind") in ("start", "resume")]
    # Of this attempt only: a wait between two hops is no slow step.
    mine = records[begins[-1] + 1 :] if begins else records
    told = [record for record in records if record.get("kind") in ("train", "report")]
    if not told:
        return None, None, None
    rate = None
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        steps = [(one["step"], one["time"]) for one in mine if one.get("kind") in ("train", "report")]
        recent = [one for one in steps if steps[-1][1] - one[1] <= 600]
        if len(recent) > 1 and recent[-1][0] > recent[0][0]:
            rate = (recent[-1][0] - recent[0][0]) / (recent[-1][1] - recent[0][1])
    return _number(told[-1].get("loss")), _number(told[-1].get("samples_per_s")), rate


def _number(value: Any) -> float | None:
    """A number out of a record, where NaN and infinities are texts."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def ask(readings: Sequence[Reading], slurm: Slurm | None) -> Answer:
    """Ask Slurm about all runs at once: one squeue and at most one sacct; complete runs need neither."""
    ids = [job for reading in readings if reading.status.state is not State.COMPLETED for job in reading.jobs]
    return ask_jobs(ids, slurm)


def ask_jobs(ids: Sequence[str], slurm: Slurm | None) -> Answer:
    """As `ask`, by the ids of jobs."""
    if not ids:
        return Answer()
    now = time.time()
    if slurm is None:
        return Answer(silent="there is no Slurm on this machine", asked=now)
    try:
        jobs = slurm.jobs(list(dict.fromkeys(ids)))
    except SlurmError as error:
        return Answer(silent=error.message, asked=now)
    if slurm.silent:
        return Answer(jobs, silent=slurm.silent, asked=now)
    accounting = None
    if any(job.state is JobState.UNKNOWN for job in jobs.values()):
        with contextlib.suppress(SlurmError):
            accounting = slurm.has_accounting()
    return Answer(jobs, accounting=accounting, asked=now)


def view(reading: Reading, answer: Answer, *, last: RunView | None = None) -> RunView:
    """The view of a run, from what its folder and Slurm said.

    Args:
        reading: What its folder said.
        answer: What Slurm said.
        last: The view before, from when Slurm still answered.
    """
    verdict = judge(_facts(reading, answer))
    job, hop, status = verdict.job, reading.hops[-1] if reading.hops else None, reading.status
    at_work = verdict.phase is Phase.RUNNING
    nodes = job.nodes if job is not None and job.nodes else hop.nodes if hop else ()
    if not nodes and reading.owner is not None:
        nodes = (reading.owner.host,)
    ends = None
    if at_work and (job is None or job.state is not JobState.COMPLETING):
        ends = job.ends if job is not None and job.ends else hop.ends if hop and hop.ended is None else None
    left = None
    starting = hop is not None and (hop.began or 0.0) > (status.updated or 0.0)
    working = at_work and status.state is State.RUNNING and not starting
    if working and reading.steps_per_s and status.total_steps > status.step:
        left = (status.total_steps - status.step) / reading.steps_per_s
    waits = job is not None and verdict.phase in (Phase.QUEUED, Phase.REQUEUED)
    # Slurm may guess a start of a job that is held, too.
    expected = job.started if job is not None and waits and not plain_reason(job.reason).hopeless else None
    return RunView(
        name=name_of(reading.run),
        verdict=verdict,
        reading=reading,
        nodes=tuple(nodes),
        expected_start=expected,
        ends=ends,
        left_s=left,
        next_hop=_next_hop(reading, verdict, ends, left),
        last_known=_last_known(reading, last) if verdict.phase is Phase.UNKNOWN else "",
    )


def name_of(run: RunFolder) -> str:
    """A run's name as people write it: STUDY/NUMBER for a trial."""
    path = run.path.absolute()
    if path.parent.name == "trials" and path.name.isdigit():
        return f"{path.parent.parent.name}/{int(path.name)}"
    return path.name


def _facts(reading: Reading, answer: Answer) -> Facts:
    status, hop = reading.status, reading.hops[-1] if reading.hops else None
    ended = [one for one in reading.hops if one.ended is not None]
    owner = reading.owner
    lease_job = owner.slurm_job_id or "" if owner is not None else ""
    newest = reading.submissions[-1] if reading.submissions else None
    if lease_job and newest is not None and newest.array_index is not None:
        # An element of an array has a number of its own inside the job.
        lease_job = newest.job_id
    return Facts(
        folder=status.state,
        reason=status.reason or "",
        updated=status.updated or 0.0,
        held=owner is not None,
        lease_job=lease_job,
        jobs=reading.jobs_in(answer),
        silent=answer.silent,
        accounting=answer.accounting,
        hops=len(reading.hops),
        hop_began=hop.began if hop is not None and hop.ended is None else None,
        hop_next=ended[-1].next if ended else "",
        hop_cause=ended[-1].cause if ended else "",
        hop_error=_hop_error(hop, newest),
        cancelled=reading.cancelled,
        submitted="under way" if reading.submitting else "cut off" if reading.intent else "",
    )


def _hop_error(hop: Hop | None, newest: SubmissionRecord | None) -> str:
    """What failed in the newest job, where it got as far as a hop: that of an earlier job is another story."""
    if hop is None or newest is None or hop.cause not in ("failed", "no-progress"):
        return ""
    return hop.reason if (hop.began or 0.0) > newest.submitted - _SECONDS_APART else ""


def _next_hop(reading: Reading, verdict: Verdict, ends: float | None, left_s: float | None) -> str:
    if verdict.phase is Phase.REQUEUED:
        return f"hop {len(reading.hops) + 1}, when the job starts again"
    if verdict.phase is not Phase.RUNNING or verdict.job is None:
        return ""
    if reading.cancelled is not None:
        return "none: it was cancelled"
    if not reading.hops:
        return "none: not started by hpcmass submit"
    if ends is None:
        return "where its time limit asks for one"
    if left_s is not None and time.time() + left_s < ends:
        return "none needed: it completes before its time limit"
    return f"hop {len(reading.hops) + 1}, shortly before {clock(ends)}"


def clock(seconds: float | None) -> str:
    """A moment as people say it; `?` where it is not known."""
    if seconds is None:
        return "?"
    form = "%H:%M" if abs(seconds - time.time()) < 12 * 3600 else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(seconds))


def _last_known(reading: Reading, last: RunView | None) -> str:
    if last is not None and last.phase is not Phase.UNKNOWN:
        return f"it was {last.phase.value}" + (f" ({last.verdict.reason})" if last.verdict.reason else "")
    status, hop = reading.status, reading.hops[-1] if reading.hops else None
    if hop is not None and hop.ended is None and (hop.began or 0.0) >= (status.updated or 0.0):
        on = f" on {', '.join(hop.nodes)}" if hop.nodes else ""
        return f"hop {hop.hop} began at {clock(hop.began or 0.0)}{on}"
    if status.attempt and status.updated:
        return f"at step {status.step} at {clock(status.updated)}"
    if reading.submissions:
        one = reading.submissions[-1]
        return f"submitted at {clock(one.submitted)} as job {one.slurm_id}"
    return ""


def look(run: RunFolder) -> Reading | HpcmassError:
    """As `read_run`, with the error instead of raising it: one damaged run hides no other."""
    try:
        return read_run(run)
    except HpcmassError as error:
        return error
