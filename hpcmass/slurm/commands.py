"""The words of every Slurm command that hpcmass runs, and the environment they run in. Pure.

Formats are made for `hpcmass.slurm.parse`: fields are parted by the ASCII unit separator, which no name
holds, and a name, which may hold anything else, comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SEPARATOR = "\x1f"

# Id, raw id, array's or first id, state, reason, submit, start, end, limit, partition, nodes, comment, name.
SQUEUE_FIELDS = ("%i", "%A", "%F", "%T", "%r", "%V", "%S", "%e", "%l", "%P", "%N", "%k", "%j")
SACCT_FIELDS = (
    "JobID",
    "JobIDRaw",
    "State",
    "ExitCode",
    "Submit",
    "Start",
    "End",
    "TimelimitRaw",
    "ElapsedRaw",
    "AllocCPUS",
    "TotalCPU",
    "MaxRSS",
    "AllocTRES",
    "Partition",
    "NodeList",
    "Reason",
    "JobName",
)
QOS_FIELDS = (
    "Name",
    "Priority",
    "MaxWall",
    "MaxTRES",
    "MaxTRESPU",
    "MaxJobsPU",
    "MaxSubmitJobsPU",
    "GrpTRES",
    "Preempt",
    "Flags",
)

# The kernel takes 128 KiB a word; Slurm's own readers take this.
_WORD = 100_000

# Variables that change what a Slurm command prints or asks for, whoever set them.
_STEERS = ("SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_", "SBATCH_", "SALLOC_", "SPRIO_")
# SLURM_* that say how Slurm is reached; the others describe the job around us and would leak into the next one.
_REACH = {
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_CLUSTERS",
    "SLURM_JWT",
    "SLURMRESTD_JWT",
    "SLURM_DEBUG_FLAGS",
}


def query_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command that asks: nothing filters its answer, and times are epoch seconds."""
    kept = {name: value for name, value in env.items() if not name.startswith(_STEERS)}
    return {**kept, "SLURM_TIME_FORMAT": "%s"}


def submit_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: what stands in the script counts, and nothing of a job around us leaks in.

    `SBATCH_*` would win over the script's own lines; `SLURM_*`, `PMI*` and `PMIX_*` of an enclosing job would
    be handed on to the new one and mislead its `srun`.
    """
    gone = (*_STEERS, "SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_", "OMPI_COMM_WORLD_", "HYDRA_", "SRUN_")
    return {name: value for name, value in env.items() if name in _REACH or not name.startswith(gone)}


def base_ids(ids: Sequence[str]) -> list[str]:
    """The jobs that ids belong to, each once: `7` for `7_3`, `7_[0-9]` and `7+1`."""
    return list(dict.fromkeys(one.split("_")[0].split("+")[0].split(".")[0] for one in ids))


def _words(values: Sequence[str]) -> list[str]:
    """Comma lists of the values, each short enough for one word of a command line."""
    lists, size = [[]], 0  # type: list[list[str]], int
    for value in values:
        if size + len(value) + 1 > _WORD:
            lists.append([])
            size = 0
        lists[-1].append(value)
        size += len(value) + 1
    return [",".join(part) for part in lists if part]


def squeue_jobs(ids: Sequence[str], *, uid: int) -> list[str]:
    """One squeue for any number of jobs, with those that have ended lately.

    squeue takes one list of ids; a list too long for a command line is replaced by all jobs of the user.
    """
    lists = _words(base_ids(ids))
    whose = ["--jobs", lists[0]] if len(lists) == 1 else ["--user", str(uid)]
    return [
        "squeue",
        "--noheader",
        "--array",
        "--states",
        "all",
        *whose,
        "--format",
        SEPARATOR.join(SQUEUE_FIELDS),
    ]


def squeue_user(uid: int) -> list[str]:
    """All jobs of a user that Slurm has in mind, with their comments before the name."""
    fields = ("%i", "%T", "%V", "%k")
    return ["squeue", "--noheader", "--states", "all", "--user", str(uid), "--format", SEPARATOR.join(fields)]


def squeue_pending() -> list[str]:
    """Partition and reason of every pending job, whoever's; of an array one line."""
    fields = ("%P", "%r")
    return ["squeue", "--noheader", "--states", "PENDING", "--format", SEPARATOR.join(fields)]


def sacct_jobs(ids: Sequence[str]) -> list[str]:
    """One sacct for any number of jobs, with their steps: memory is measured by step."""
    jobs = [word for part in _words(base_ids(ids)) for word in ("--jobs", part)]
    return [
        "sacct",
        "--noheader",
        "--parsable2",
        f"--delimiter={SEPARATOR}",
        "--noconvert",
        *jobs,
        "--format",
        ",".join(SACCT_FIELDS),
    ]


def sbatch(script: Path | str) -> list[str]:
    """Submit a script file as it stands."""
    return ["sbatch", "--parsable", str(script)]


def sbatch_test(script: Path | str) -> list[str]:
    """Ask when a script would start, without submitting it."""
    return ["sbatch", "--test-only", str(script)]


def requeue(job_id: str) -> list[str]:
    """Put a job back into the queue."""
    return ["scontrol", "requeue", job_id]


def cancel(ids: Sequence[str]) -> list[str]:
    """Cancel jobs."""
    return ["scancel", *ids]


def show_partitions() -> list[str]:
    """All partitions, one a line."""
    return ["scontrol", "show", "partition", "--oneliner", "--all"]


def show_nodes() -> list[str]:
    """All nodes, one a line."""
    return ["scontrol", "show", "node", "--oneliner", "--all"]


def diagnose() -> list[str]:
    """The controller's own time, beside its statistics."""
    return ["sdiag"]


def show_config() -> list[str]:
    """Slurm's configuration."""
    return ["scontrol", "show", "config"]


def show_qos() -> list[str]:
    """All QOS with their limits."""
    return ["sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(QOS_FIELDS)}"]
