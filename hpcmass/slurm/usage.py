"""What running jobs use, as `sstat` measures it, and what energy ended ones took. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcmass.slurm.values import parse_cpu, parse_size

_NO_VALS = {0xFFFFFFFE, 0xFFFFFFFF, 2**64 - 2, 2**64 - 1}  # what Slurm says for "not known"


@dataclass(frozen=True)
class Used:
    """What a job has used so far, over all of its tasks.

    Attributes:
        cpu_s: CPU seconds.
        memory_bytes: Resident memory at its highest, the tasks' added up.
    """

    cpu_s: float = 0.0
    memory_bytes: float = 0.0


def sstat(ids: Sequence[str]) -> list[str]:
    """The command that asks about any number of running jobs, with all their steps."""
    fields = "JobID,TRESUsageInTot"
    return ["sstat", "--allsteps", "--noheader", "--parsable2", "--format", fields, "--jobs", ",".join(ids)]


def parse_sstat(text: str) -> dict[str, Used]:
    """Usage by job, its steps added up; a line that says nothing is skipped."""
    found: dict[str, Used] = {}
    for line in text.splitlines():
        step, bar, usage = line.partition("|")
        job = step.partition(".")[0]
        if not bar or not job or job == step:
            continue
        values = dict(part.partition("=")[::2] for part in usage.split(","))
        cpu = parse_cpu(values.get("cpu", ""))
        memory = parse_size(values.get("mem", ""))
        if cpu is None and memory is None:
            continue
        old = found.get(job, Used())
        found[job] = Used(old.cpu_s + (cpu or 0.0), old.memory_bytes + (memory or 0.0))
    return found


def sacct_energy(ids: Sequence[str]) -> list[str]:
    """The command that asks for the energy of any number of jobs that are over, with their steps."""
    fields = "JobID,ConsumedEnergyRaw"
    return ["sacct", "--noheader", "--parsable2", "--format", fields, "--jobs", ",".join(ids)]


def parse_energy(text: str) -> dict[str, float]:
    """Joules by job; a job whose cluster does not measure energy (0, nothing, Slurm's NO_VAL) is left out.

    A job's own line adds its steps up; where only the steps say something, they are added here.
    """
    jobs: dict[str, float] = {}
    steps: dict[str, float] = {}
    for line in text.splitlines():
        name, bar, energy = line.strip().partition("|")
        job, dot, _ = name.partition(".")
        if not bar or not job or not energy.isdecimal() or int(energy) in {0, *_NO_VALS}:
            continue
        found = steps if dot else jobs
        found[job] = found.get(job, 0.0) + float(energy)
    return {**steps, **jobs}
