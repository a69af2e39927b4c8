"""What a run is, from what its folder proves and what Slurm says. Pure.

The run folder counts first: only it proves success, and a lease that is renewed proves that it runs. Slurm
says what the folder cannot: that a job waits, was killed, or is about to begin again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from hpcmass.runs import State
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.reasons import plain_end, plain_reason


class Phase(str, Enum):
    """What a run is to whoever looks at it.

    `REQUEUED` is between two hops: it waits to go on. `UNKNOWN` is said wherever nothing better is known.
    """

    CREATED = "CREATED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    REQUEUED = "REQUEUED"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    Attributes:
        folder: The state in its status file; `UNKNOWN` where its owner is gone without a last word.
        reason: The status file's reason.
        updated: When the status was last written; seconds since the epoch.
        held: Whether its lease is held and renewed.
        lease_job: The Slurm job in which the holder of the newest lease runs, or ran.
        jobs: Its Slurm jobs that matter (the newest last); empty for a run without Slurm.
        silent: Why Slurm did not answer; empty where it did.
        accounting: Whether Slurm keeps a record of jobs that have ended; None where that was not asked.
        hops: Hops begun.
        hop_began: When the newest hop began, where it has not ended.
        hop_next: What the newest hop that ended said comes next: `requeue`, `successor`, `none`, or empty.
        hop_cause: Why it ended.
        hop_error: What the newest job's hop said when it failed; empty where it did not, or has not ended.
        cancelled: Who cancelled it and why, where somebody did.
        submitted: Of a submission whose outcome is not written down: `under way`, or `cut off`; else empty.
    """

    folder: State
    reason: str = ""
    updated: float = 0.0
    held: bool = False
    lease_job: str = ""
    jobs: Sequence[JobInfo] = ()
    silent: str = ""
    accounting: bool | None = None
    hops: int = 0
    hop_began: float | None = None
    hop_next: str = ""
    hop_cause: str = ""
    hop_error: str = ""
    cancelled: str | None = None
    submitted: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a run is.

    Attributes:
        reason: One clause.
        job: The Slurm job that the verdict speaks of.
        advice: What to do, where the state itself asks for something.
        notes: What else there is to say.
        final: Whether nothing more will come of it by itself.
    """

    phase: Phase
    reason: str = ""
    job: JobInfo | None = None
    advice: str = ""
    notes: list[str] = field(default_factory=list)
    final: bool = False


_AT_WORK = (JobState.RUNNING, JobState.COMPLETING, JobState.SUSPENDED)
_WAITING = (JobState.PENDING, JobState.REQUEUED)


def judge(facts: Facts) -> Verdict:
    """Say what a run is."""
    job = _job_that_counts(facts)
    if facts.folder is State.COMPLETED:
        return _completed(facts, job)
    if not facts.jobs and not facts.submitted:
        return _without_slurm(facts)
    if facts.silent and (job is None or job.state is JobState.UNKNOWN):
        return _silent(facts, job)
    if job is not None and job.state in _WAITING:
        return _waiting(facts, job)
    if job is not None and job.state in _AT_WORK:
        return _at_work(facts, job)
    if facts.held and (job is None or job.state is JobState.UNKNOWN or facts.lease_job != _base(job.job_id)):
        # Somebody trains it outside of the jobs that hpcmass submitted for it.
        return Verdict(Phase.RUNNING, facts.reason)
    if facts.submitted == "under way":
        begun = facts.hops > 0 or facts.folder is not State.CREATED
        return Verdict(Phase.REQUEUED if begun else Phase.CREATED, "it is being submitted", job)
    return _over(facts, job)


def _base(job_id: str) -> str:
    return job_id.partition("_")[0].partition("+")[0]


def _job_that_counts(facts: Facts) -> JobInfo | None:
    """The job at work, else one that waits, else the newest, known or not: how one before it ended is past."""
    for states in (_AT_WORK, _WAITING):
        for job in reversed(facts.jobs):
            if job.state in states:
                return job
    return next(reversed(facts.jobs), None)


def _completed(facts: Facts, job: JobInfo | None) -> Verdict:
    notes = []
    if job is not None and job.state.ended and job.state is not JobState.COMPLETED:
        notes.append(
            f"Slurm calls job {job.job_id} {job.state.value}; that the run is complete is proved by its folder"
        )
    return Verdict(Phase.COMPLETED, facts.reason, job, notes=notes, final=True)


def _without_slurm(facts: Facts) -> Verdict:
    if facts.folder is State.RUNNING:
        return Verdict(Phase.RUNNING, facts.reason)
    if facts.folder is State.CREATED:
        return Verdict(Phase.CREATED, "it was laid down and never started", final=True)
    if facts.cancelled is not None:
        return Verdict(Phase.CANCELLED, facts.cancelled, final=True)
    return Verdict(Phase(facts.folder.value), facts.reason, final=True)


def _silent(facts: Facts, job: JobInfo | None) -> Verdict:
    """Slurm does not answer: only what the folder itself proves is said."""
    notes = [f"Slurm does not answer ({facts.silent})"]
    if facts.folder is State.RUNNING and facts.held:
        return Verdict(Phase.RUNNING, facts.reason, job, notes=[*notes, "its lease shows that it runs"])
    over = facts.hop_next == "none" and facts.hop_began is None
    if over and facts.hop_error and facts.folder is State.CREATED:
        return Verdict(Phase.FAILED, facts.hop_error, job, notes=notes, final=True)
    if facts.folder in (State.FAILED, State.STOPPED) and over:
        phase = Phase.CANCELLED if facts.cancelled is not None else Phase(facts.folder.value)
        return Verdict(phase, facts.cancelled or facts.reason, job, notes=notes, final=True)
    return Verdict(Phase.UNKNOWN, f"Slurm does not answer ({facts.silent})", job)


def _waiting(facts: Facts, job: JobInfo) -> Verdict:
    why = plain_reason(job.reason, job.job_id)
    begun = facts.hops > 0 or facts.folder is not State.CREATED
    phase = Phase.REQUEUED if begun else Phase.QUEUED
    notes = []
    if facts.cancelled is not None:
        notes.append(f"it is to be cancelled ({facts.cancelled}): its next hop ends at once")
    if why.hopeless:
        notes.append("as it stands it will not start")
    text = why.text
    if phase is Phase.REQUEUED and facts.hop_cause in _CAUSES:
        text = f"it goes on after {_CAUSES[facts.hop_cause]}; {text}"
    return Verdict(phase, text, job, why.advice, notes)


_CAUSES = {
    "time-limit": "the time limit",
    "preempted": "a preemption",
    "signal": "a signal",
    "failed": "a failure",
    "node-failure": "a node's failure",
}


def _at_work(facts: Facts, job: JobInfo) -> Verdict:
    if job.state is JobState.SUSPENDED:
        return Verdict(Phase.RUNNING, "Slurm has suspended it", job)
    if facts.folder is State.RUNNING and facts.held:
        return Verdict(Phase.RUNNING, facts.reason, job)
    began = max(facts.hop_began or 0.0, job.started or 0.0)
    if facts.folder is State.CREATED or began > facts.updated:
        return Verdict(Phase.RUNNING, "it starts up", job)
    if facts.folder in (State.STOPPED, State.FAILED):
        what = "stopped" if facts.folder is State.STOPPED else "failed"
        text = f"its ranks {what} ({facts.reason or 'no reason is known'}); its job is ending"
        return Verdict(Phase.RUNNING, text, job)
    return Verdict(
        Phase.UNKNOWN,
        f"nothing is heard of its ranks, while Slurm calls job {job.job_id} {job.state.value}: "
        "a node may be down",
        job,
    )


def _over(facts: Facts, job: JobInfo | None) -> Verdict:
    """No job of it is alive, and it is not complete."""
    if job is None or job.state is JobState.UNKNOWN:
        return _forgotten(facts, job)
    if facts.cancelled is not None or job.state is JobState.CANCELLED:
        # What it said before somebody ended it is still its own reason, where it is more than that.
        by = facts.cancelled or _ended_words(job)
        failed = facts.folder is State.FAILED and job.state is not JobState.CANCELLED
        return Verdict(Phase.FAILED if failed else Phase.CANCELLED, by, job, final=True)
    if facts.folder in (State.STOPPED, State.FAILED):
        notes = []
        if facts.hop_next in ("requeue", "successor") and facts.hop_began is None:
            notes.append(f"it was to go on by a {facts.hop_next}, but no such job is there")
        if job.state not in (JobState.COMPLETED, JobState.FAILED):
            notes.append(f"job {job.job_id}: {plain_end(job)}")
        return Verdict(Phase(facts.folder.value), facts.reason, job, notes=notes, final=True)
    if job.state is JobState.COMPLETED:
        said = "never started" if facts.folder is State.CREATED else "did not say that it is complete"
        text = f"Slurm calls job {job.job_id} COMPLETED, but the run {said}: that is no success"
        return Verdict(Phase.FAILED, text, job, final=True)
    return Verdict(Phase.FAILED, facts.hop_error or _ended_words(job), job, final=True)


def _ended_words(job: JobInfo) -> str:
    return f"job {job.job_id}: {plain_end(job)}"


def _forgotten(facts: Facts, job: JobInfo | None) -> Verdict:
    """Slurm answers and knows none of its jobs (any more)."""
    if facts.submitted and job is None:
        text = "its submit was cut off: Slurm may have the job or not"
        return Verdict(Phase.UNKNOWN, text, advice="hpcmass submit finds the job, or submits anew", final=True)
    name = f"job {job.job_id}" if job else "its job"
    why = f"{name}: {job.reason}" if job and job.reason else f"Slurm no longer knows {name}"
    if facts.accounting is False:
        why += "; it keeps no accounting, so how the job ended cannot be learnt"
    if facts.folder in (State.STOPPED, State.FAILED):
        phase = Phase.CANCELLED if facts.cancelled is not None else Phase(facts.folder.value)
        return Verdict(phase, facts.cancelled or facts.reason, job, notes=[why], final=True)
    if facts.cancelled is not None:
        return Verdict(Phase.CANCELLED, facts.cancelled, job, notes=[why], final=True)
    if facts.hop_error and facts.hop_next == "none":
        return Verdict(Phase.FAILED, facts.hop_error, job, notes=[why], final=True)
    return Verdict(Phase.UNKNOWN, why, job, final=True)
