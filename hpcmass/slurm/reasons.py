"""Why a job waits, or how Slurm says it ended, as plain sentences with what to do. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcmass.slurm.jobs import JobInfo, JobState


@dataclass(frozen=True)
class Plain:
    """A reason in plain words.

    Attributes:
        text: A clause without a full stop, such as `other jobs are ahead of it`.
        advice: What to do; empty where there is nothing but to wait.
        hopeless: Whether the job will not start as it stands.
    """

    text: str
    advice: str = ""
    hopeless: bool = False


_ASK_LESS = "ask for less (resources.*), or name another target"
_SITE = "ask the site's support: it is nothing that a job can change"

_REASONS: dict[str, Plain] = {
    "None": Plain("Slurm has not looked at it yet"),
    "": Plain("Slurm names no reason"),
    "Resources": Plain("it is next, and waits for nodes to become free"),
    "Priority": Plain(
        "other jobs are ahead of it", "a shorter wall time (resources.time) or fewer nodes may fit in between"
    ),
    "Dependency": Plain("it waits for a job that it was submitted after"),
    "DependencyNeverSatisfied": Plain(
        "the job that it was to follow ended in a way that never lets this one start",
        "cancel it (hpcmass cancel RUN), and submit it again without --after",
        hopeless=True,
    ),
    "JobHeldUser": Plain("it is held by its owner", "let it go with: scontrol release {job}", hopeless=True),
    "JobHeldAdmin": Plain(
        "it is held by an administrator",
        "an administrator can let it go with: scontrol release {job}; ask the site's support why it is held",
        hopeless=True,
    ),
    "BeginTime": Plain("its begin time has not come (after a requeue Slurm waits for a while)"),
    "PartitionDown": Plain("its partition is down", "wait, or name another target"),
    "PartitionInactive": Plain("its partition takes no jobs to run now", "wait, or name another target"),
    "PartitionNodeLimit": Plain(
        "it asks for a number of nodes that its partition does not allow", _ASK_LESS, hopeless=True
    ),
    "PartitionTimeLimit": Plain(
        "it asks for more wall time than its partition allows",
        "lower resources.time: a run goes on over any number of hops",
        hopeless=True,
    ),
    "PartitionConfig": Plain("its partition cannot give what it asks for", _ASK_LESS, hopeless=True),
    "ReqNodeNotAvail": Plain(
        "nodes that it needs are down, drained or reserved (maintenance, perhaps)",
        "a wall time that ends before a reservation begins may let it start (scontrol show reservation)",
    ),
    "Nodes_required_for_job_are_DOWN": Plain(
        "nodes that it needs are down, drained, or kept for partitions of higher priority",
        "wait, or name another target (sinfo -R says why nodes are down)",
    ),
    "NodeDown": Plain("a node that it needs is down", "wait, or name another target (sinfo -R says why)"),
    "Reservation": Plain("it waits for its reservation to begin"),
    "ReservationDeleted": Plain("its reservation is gone", "submit it again without one", hopeless=True),
    "Licenses": Plain("it waits for a licence"),
    "BadConstraints": Plain(
        "no node has what it asks for (constraint, memory, GPUs)", _ASK_LESS, hopeless=True
    ),
    "InvalidAccount": Plain("its account is not valid", "mend the target's account", hopeless=True),
    "InvalidQOS": Plain("its QOS is not valid for this account", "mend the target's qos", hopeless=True),
    "AccountNotAllowed": Plain(
        "its partition does not take this account", "mend the target's account or partition", hopeless=True
    ),
    "QOSNotAllowed": Plain(
        "its partition or account does not take this QOS", "mend the target's qos or partition", hopeless=True
    ),
    "AssociationJobLimit": Plain("the account has as many jobs as it may have", "wait for some to end"),
    "AssociationResourceLimit": Plain("the account uses as much as it may use", "wait for jobs to end"),
    "AssociationTimeLimit": Plain("the account's time limit is reached", _ASK_LESS),
    "QOSJobLimit": Plain("the QOS has as many jobs as it may have", "wait for some to end"),
    "QOSResourceLimit": Plain("the QOS uses as much as it may use", "wait for jobs to end"),
    "QOSTimeLimit": Plain("the QOS's time limit is reached", _ASK_LESS),
    "QOSUsageThreshold": Plain("the QOS's usage threshold is reached", "wait, or name another qos"),
    "JobArrayTaskLimit": Plain("as many elements of its array run as may run at once"),
    "JobLaunchFailure": Plain(
        "Slurm could not start it (a file system, the working folder, a node's prolog)",
        "look at the job's output; then submit it again: hpcmass rerun RUN",
    ),
    "launch_failed_requeued_held": Plain(
        "Slurm could not start it, and holds it",
        "let it go with: scontrol release {job}; again and again: ask the site's support",
        hopeless=True,
    ),
    "job_requeued_in_held_state": Plain(
        "it was requeued and is held", "let it go with: scontrol release {job}", hopeless=True
    ),
    "Cleaning": Plain("its last start is still being cleaned up"),
    "Prolog": Plain("the site's prolog runs on its nodes"),
    "Preempted": Plain("it was preempted and waits to start again"),
    "FrontEndDown": Plain("the cluster's front end is down", "wait"),
    "SystemFailure": Plain("a part of Slurm or of the machine failed", _SITE),
    "InactiveLimit": Plain("it was inactive for longer than allowed", _SITE),
    "NodeFail": Plain("a node failed"),
    "FedJobLock": Plain("clusters of the federation are settling who runs it"),
    "MaxMemPerLimit": Plain("it asks for more memory a CPU or node than allowed", _ASK_LESS, hopeless=True),
    "DeadLine": Plain("it cannot end before its deadline", _ASK_LESS, hopeless=True),
    "BurstBufferResources": Plain("it waits for room in the burst buffer"),
    "BurstBufferStageIn": Plain("its files are being staged in"),
}

# QOSMaxCpuPerUserLimit, AssocGrpCPUMinutesLimit, MaxNodePerAccount …: whose limit, of what, for whom.
_LIMIT = re.compile(
    r"^(?P<whose>QOS|Assoc)?(?P<kind>Grp|Max|Min)(?P<what>[A-Za-z]+?)(?P<span>RunMinutes|Minutes)?"
    r"(?P<per>Per(User|Account|Job|Node))?(Limit|NotSatisfied)?$"
)
_WHOSE = {"QOS": "the QOS", "Assoc": "your account", None: "Slurm"}
_WHAT = {
    "cpu": "CPUs",
    "node": "nodes",
    "nodes": "nodes",
    "mem": "memory",
    "memory": "memory",
    "gres": "GPUs or other generic resources",
    "jobs": "running jobs",
    "submitjobs": "submitted jobs",
    "wall": "wall time",
    "wallduration": "wall time",
    "walldurationpj": "wall time",
    "billing": "billing units",
    "bb": "burst buffer",
    "license": "licences",
    "energy": "energy",
}


def plain_reason(reason: str, job_id: str = "") -> Plain:
    """A pending job's reason in plain words; an unknown one is passed on as Slurm says it."""
    word = re.split(r"[,:( ]", reason.strip(" ()"), maxsplit=1)[0]
    found = _REASONS.get(word) or _limit(word) or Plain(f"Slurm says: {reason}")
    detail = re.search(r"UnavailableNodes:(\S+)", reason)
    text = f"{found.text}: {detail[1].rstrip(')')}" if detail else found.text
    return Plain(text, found.advice.replace("{job}", job_id or "JOBID"), found.hopeless)


def _limit(word: str) -> Plain | None:
    match = _LIMIT.match(word)
    thing = None if match is None else _WHAT.get(match["what"].lower())
    if match is None or thing is None:
        return None
    whose, per = _WHOSE[match["whose"]], match["per"] or ""
    if match["span"]:
        unit = thing.removesuffix("s")
        if match["span"] == "Minutes":
            text = f"{whose} has no {unit} minutes left: the budget is used up"
            return Plain(text, "ask for more, or name another account")
        return Plain(f"{whose} limits {unit} minutes of jobs at once", "wait for jobs to end")
    if match["kind"] == "Min":
        return Plain(f"{whose} wants more {thing} in a job", "name another target", hopeless=True)
    if per in ("PerJob", "PerNode") or (thing == "wall time" and match["kind"] == "Max"):
        span = "one node" if per == "PerNode" else "one job"
        return Plain(f"it asks for more {thing} than {whose} allows {span}", _ASK_LESS, hopeless=True)
    if thing == "wall time":
        return Plain(
            f"{whose} has no wall time left: the budget is used up", "ask for more, or name another account"
        )
    whom = {"PerUser": "you", "PerAccount": "your account"}.get(per, "all of its jobs")
    advice = "wait for jobs to end, or name another qos or target"
    return Plain(f"{whose} limits {thing} for {whom}, and that much is in use", advice)


_ENDED = {
    JobState.FAILED: "its batch script failed",
    JobState.CANCELLED: "it was cancelled",
    JobState.TIMEOUT: "it ran into its time limit",
    JobState.NODE_FAIL: "one of its nodes failed",
    JobState.BOOT_FAIL: "a node did not boot for it",
    JobState.PREEMPTED: "it was preempted by another job",
    JobState.OUT_OF_MEMORY: "it used more memory than it had asked for, and was ended (OUT_OF_MEMORY)",
    JobState.DEADLINE: "it could not end before its deadline",
    JobState.COMPLETED: "its batch script ended with exit code 0",
}


def plain_end(job: JobInfo) -> str:
    """How Slurm says that a job ended, in plain words with its exit code or signal."""
    text = _ENDED.get(job.state, f"Slurm says {job.state.value}")
    if job.state is JobState.FAILED and job.reason == "JobLaunchFailure":
        return _REASONS["JobLaunchFailure"].text
    if job.state is JobState.CANCELLED and job.reason == "DependencyNeverSatisfied":
        return "Slurm cancelled it, for the job that it was to follow did not end well"
    if job.state is JobState.CANCELLED and job.reason == "Dependency":
        return "it was cancelled while it waited for another job"
    if job.state is JobState.FAILED and job.signal:
        return f"{text} (signal {job.signal})"
    if job.state is JobState.FAILED and job.exit_code:
        return f"{text} with exit code {job.exit_code}"
    return text


_GOES_ON = ": it goes on from its last checkpoint"
_NEXT = {
    JobState.TIMEOUT: f"hpcmass rerun RUN{_GOES_ON}; a longer resources.time takes fewer hops",
    JobState.NODE_FAIL: f"hpcmass rerun RUN{_GOES_ON}",
    JobState.PREEMPTED: f"hpcmass rerun RUN{_GOES_ON}",
    JobState.BOOT_FAIL: "hpcmass rerun RUN",
    JobState.OUT_OF_MEMORY: "more memory (resources.memory_gb), more nodes, a smaller global_batch or model; "
    "then hpcmass rerun RUN",
    JobState.DEADLINE: "submit it again with a shorter resources.time",
    JobState.CANCELLED: f"hpcmass rerun RUN{_GOES_ON}",
}


def next_step(state: JobState, *, begun: bool) -> str:
    """What to do about a job that ended so; empty where the run's own error says it.

    Args:
        state: How it ended.
        begun: Whether its run has done anything yet.
    """
    text = _NEXT.get(state, "")
    return text if begun else text.replace(_GOES_ON, "")
