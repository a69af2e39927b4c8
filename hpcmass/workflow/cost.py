"""What a run cost: node-hours, processor time and energy, as far as anybody wrote it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import read_json, read_records
from hpcmass.runs import RunFolder
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobInfo
from hpcmass.slurm.records import Hop, SubmissionRecord, read_hops, read_submissions
from hpcmass.slurm.usage import parse_energy, sacct_energy


@dataclass(frozen=True)
class Cost:
    """What a run cost; None is what nobody knows, which is not 0.

    Attributes:
        wall_hours: Its ranks' time, all attempts that were written down.
        node_hours: Time of whole nodes; None of a run in a slot, which shares its node.
        cpu_hours: Processor time that its processes used, as Slurm accounts it.
        gpu_hours: Time of the GPUs that it had.
        energy_joules: As Slurm accounts it, where the cluster measures it.
        source: Who says so.
    """

    wall_hours: float | None = None
    node_hours: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    energy_joules: float | None = None
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in a version's lineage."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Cost | None:
        """Out of a lineage that somebody wrote; None where there is nothing of use."""
        if not isinstance(raw, dict):
            return None
        keys = ("wall_hours", "node_hours", "cpu_hours", "gpu_hours", "energy_joules")
        numbers = {key: _positive(raw.get(key)) for key in keys}
        if all(value is None for value in numbers.values()):
            return None
        return cls(**numbers, source=str(raw.get("source", "")))


def cost_of(run: RunFolder, slurm: Slurm | None) -> Cost:
    """What a run cost, from its folder, and from Slurm where that is asked.

    Args:
        run: The run.
        slurm: Asked for processor time and energy; None: nobody is.
    """
    try:
        submissions, hops = read_submissions(run.path), read_hops(run.path)
    except HpcmassError:
        return Cost()
    if submissions or hops:
        return _of_slurm(submissions, hops, slurm)
    slots = _slot_hours(run)
    if slots is not None:
        return Cost(wall_hours=slots, source="the run's slots")
    return _without_slurm(run)


def _of_slurm(submissions: Sequence[SubmissionRecord], hops: Sequence[Hop], slurm: Slurm | None) -> Cost:
    wall, nodes = _hours(hops)
    source = "the run's hops" if wall is not None else ""
    jobs, energy = _asked(submissions, slurm)
    used = [dict(job.used) for job in jobs]
    # Of a job that was requeued accounting tells the last start alone.
    once = all(hop.restart == 0 for hop in hops)
    cpu = _sum([one.get("cpu_s") for one in used]) if once else None
    gpus = (
        _sum([one.get("gpus", 0.0) * one["elapsed_s"] for one in used if "elapsed_s" in one]) if once else None
    )
    if wall is None and once:
        wall = _sum([one.get("elapsed_s") for one in used], 3600.0)
        nodes = _sum(
            [one["elapsed_s"] * one.get("nodes", 1.0) if "elapsed_s" in one else None for one in used], 3600.0
        )
    if used:
        source = f"{source} and Slurm's accounting" if source else "Slurm's accounting"
    return Cost(
        wall_hours=wall,
        node_hours=nodes,
        cpu_hours=None if cpu is None else cpu / 3600,
        gpu_hours=gpus / 3600 if gpus else None,
        energy_joules=energy if once else None,
        source=source,
    )


def _hours(hops: Sequence[Hop]) -> tuple[float | None, float | None]:
    """Wall and node-hours of hops; None where one has no end, since nobody noted when it was lost."""
    if not hops or any(hop.began is None or hop.ended is None for hop in hops):
        return None, None
    each = [max(0.0, (hop.ended or 0.0) - (hop.began or 0.0)) / 3600 for hop in hops]
    return sum(each), sum(hours * max(1, len(hop.nodes)) for hours, hop in zip(each, hops, strict=True))


def _asked(submissions: Sequence[SubmissionRecord], slurm: Slurm | None) -> tuple[list[JobInfo], float | None]:
    """The jobs as accounting has them (none unless it has all), and their energy in joules."""
    ids = [one.slurm_id for one in submissions]
    if slurm is None or not ids:
        return [], None
    try:
        known = slurm.jobs(ids)
        jobs = [one.job_in(known) for one in submissions]
        if not all(job.used for job in jobs):
            return [], None
    except SlurmError:
        return [], None
    try:
        energies = parse_energy(slurm.run(sacct_energy(ids), patience_s=0.0))
    except SlurmError:
        energies = {}
    return jobs, _sum([energies.get(one) for one in ids])


def _slot_hours(run: RunFolder) -> float | None:
    """Hours of the slots that a run had in blocks; None where it had none, or one has no end."""
    begun: dict[tuple[Any, ...], float] = {}
    total, any_slot = 0.0, False
    try:
        for record in read_records(run.path / "slots.jsonl"):
            key = tuple(record.get(name) for name in ("attempt", "job_id", "host", "slot"))
            if record.get("kind") == "begin":
                any_slot, begun[key] = True, float(record["time"])
            elif key in begun:
                total += float(record["time"]) - begun.pop(key)
    except (HpcmassError, KeyError, TypeError, ValueError):
        return None
    return total / 3600 if any_slot and not begun else None


def _without_slurm(run: RunFolder) -> Cost:
    try:
        status = run.status()
    except HpcmassError:
        return Cost()
    if status.started is None or status.ended is None or status.attempt != 1:
        return Cost()  # of a run that went on, nobody noted when it stood still
    hours = max(0.0, status.ended - status.started) / 3600
    try:
        ranks = read_json(run.path / "ranks" / "attempt-1.json")["ranks"]
        hosts = len({str(one["host"]) for one in ranks})
    except (HpcmassError, KeyError, TypeError):
        hosts = 0
    return Cost(wall_hours=hours, node_hours=hours * hosts if hosts else None, source="the run's status")


def _sum(values: Sequence[float | None], per: float = 1.0) -> float | None:
    """The sum, or None where one of them is not known or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / per if known and len(known) == len(values) else None


def _positive(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        return None
    return float(value)
