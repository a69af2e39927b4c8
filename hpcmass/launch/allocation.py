"""What a Slurm batch script was given: read from its environment. Pure.

Inside a step (a task that `srun` started) there is nothing to give out: the step is one rank already, and
a launcher that starts from it must not take the rest of the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmass.errors import LaunchError
from hpcmass.launch.ranks import in_slurm_step

_GROUP = re.compile(r"([^,\[\]]*)((?:\[[^\[\]]*\][^,\[\]]*)*)(?:,|$)")
_MOST_NODES = 100_000


@dataclass(frozen=True)
class Allocation:
    """The nodes of a Slurm job, seen from its batch script (or from `salloc`).

    Attributes:
        nodes: Their names, in Slurm's order; of a heterogeneous job all groups' one after the other.
        job_id: The job's id.
        host: The node that this process runs on, or "" where it runs on none of them (a login node).
        cpus: CPUs of the job on each node, or () where Slurm does not say.
        gpus: GPUs of the job on this node.
        tasks: Tasks that sbatch was asked for (`--ntasks`), or None.
        groups: Nodes of each group of a heterogeneous job; () for an ordinary one.
        cpus_per_task: What sbatch was asked for (`--cpus-per-task`), or None.
    """

    nodes: tuple[str, ...]
    job_id: str
    host: str
    cpus: tuple[int, ...] = ()
    gpus: int = 0
    tasks: int | None = None
    groups: tuple[tuple[str, ...], ...] = ()
    cpus_per_task: int | None = None

    @property
    def cores(self) -> int | None:
        """CPUs that every node has at least, or None where Slurm does not say."""
        return min(self.cpus) if self.cpus else None


def read_allocation(env: Mapping[str, str]) -> Allocation | None:
    """The allocation that this process may start ranks in; None outside of one, and inside a step.

    Args:
        env: The environment, as `os.environ`.

    Raises:
        LaunchError: Slurm's variables cannot be read.
    """
    job_id = env.get("SLURM_JOB_ID")
    if not job_id or in_slurm_step(env):
        return None
    groups: tuple[tuple[str, ...], ...] = ()
    cpus: tuple[int, ...]
    if (size := env.get("SLURM_HET_SIZE", "")).isdigit() and int(size) > 1:
        numbers = range(int(size))
        groups = tuple(expand_nodes(env.get(f"SLURM_JOB_NODELIST_HET_GROUP_{n}", "")) for n in numbers)
        nodes = tuple(node for group in groups for node in group)
        cpus = tuple(
            cpu for n in numbers for cpu in expand_counts(env.get(f"SLURM_JOB_CPUS_PER_NODE_HET_GROUP_{n}", ""))
        )
    else:
        nodes = expand_nodes(env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or "")
        cpus = expand_counts(env.get("SLURM_JOB_CPUS_PER_NODE", ""))
    if not nodes:
        return None
    host = env.get("SLURMD_NODENAME", "")
    tasks, per_task = env.get("SLURM_NTASKS", ""), env.get("SLURM_CPUS_PER_TASK", "")
    return Allocation(
        nodes=nodes,
        job_id=job_id,
        host=host if host in nodes else "",
        cpus=cpus if len(cpus) == len(nodes) else (),
        gpus=_gpus(env),
        tasks=int(tasks) if tasks.isdigit() and not groups else None,
        groups=groups,
        cpus_per_task=int(per_task) or None if per_task.isdigit() and not groups else None,
    )


def _gpus(env: Mapping[str, str]) -> int:
    said = env.get("SLURM_GPUS_ON_NODE", "")
    if said.isdigit():
        return int(said)
    return len([part for part in env.get("SLURM_JOB_GPUS", "").split(",") if part.strip()])


def share_out(ranks: int, room: Sequence[int]) -> tuple[int, ...]:
    """How many ranks each node gets, as Slurm shares tasks out: one a node, round after round.

    Args:
        ranks: Over all nodes.
        room: The most ranks of each node.

    Raises:
        LaunchError: There is room for fewer.
    """
    if sum(room) < ranks:
        raise LaunchError(f"{ranks} ranks, but the nodes have room for {sum(room)}", where="ranks")
    counts = [0] * len(room)
    while ranks:
        for node, most in enumerate(room):
            if ranks and counts[node] < most:
                counts[node] += 1
                ranks -= 1
    return tuple(counts)


def expand_nodes(text: str) -> tuple[str, ...]:
    """The names in Slurm's short form: `cn[1-2,05],gn1` is cn1, cn2, cn05, gn1.

    Raises:
        LaunchError: It is not such a list.
    """
    names: list[str] = []
    place = 0
    while place < len(text):
        found = _GROUP.match(text, place)
        if found is None or found.end() == place:
            raise LaunchError(f"{text!r} is not a list of nodes", where="SLURM_JOB_NODELIST")
        place = found.end()
        made = [found[1]]
        for inside, after in re.findall(r"\[([^\[\]]*)\]([^,\[\]]*)", found[2]):
            made = [name + number + after for name in made for number in _numbers(inside, text)]
            if len(made) + len(names) > _MOST_NODES:
                raise LaunchError("names too many nodes", where="SLURM_JOB_NODELIST")
        names += [name for name in made if name]
    return tuple(names)


def _numbers(inside: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in inside.split(","):
        low, dash, high = part.partition("-")
        if not (low.isdigit() and (high.isdigit() or not dash)):
            raise LaunchError(f"{text!r} is not a list of nodes", where="SLURM_JOB_NODELIST")
        last = int(high) if dash else int(low)
        if last - int(low) >= _MOST_NODES:
            raise LaunchError("names too many nodes", where="SLURM_JOB_NODELIST")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), last + 1)]
    return numbers


def expand_counts(text: str) -> tuple[int, ...]:
    """Slurm's numbers a node: `4(x2),1` is 4, 4, 1; what is no such text is ()."""
    counts: list[int] = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"\s*(\d+)(?:\(x(\d+)\))?\s*", part)
        if found is None or int(found[2] or 1) > _MOST_NODES:
            return ()
        counts += [int(found[1])] * int(found[2] or 1)
    return tuple(counts)
