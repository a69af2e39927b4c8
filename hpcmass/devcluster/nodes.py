"""The nodes and partitions of the development cluster. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One node, as Slurm believes it to be; the machine below has fewer cores and no accelerator.

    Attributes:
        name: Its name, and as root its hostname.
        cpus: Cores.
        memory_mb: Memory in MiB that jobs may ask for; nothing enforces it.
        gres: Accelerators: (name, type or empty, how many).
    """

    name: str
    cpus: int
    memory_mb: int
    gres: tuple[tuple[str, str, int], ...] = ()

    @property
    def gres_text(self) -> str:
        """As slurm.conf says it: `gpu:a100:2`."""
        return ",".join(":".join([name, *([kind] if kind else []), str(n)]) for name, kind, n in self.gres)


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        tier: Jobs of a higher tier take the nodes of lower ones.
        preemptible: Whether its jobs are then requeued.
    """

    name: str
    nodes: tuple[str, ...]
    tier: int = 10
    preemptible: bool = False
    default: bool = False


_CPU = tuple(Node(f"cn{i}", 4, 4000) for i in (1, 2, 3))
_GPU = tuple(Node(f"gn{i}", 8, 8000, (("gpu", "a100", 2),)) for i in (1, 2))
_FPGA = (Node("fn1", 4, 4000, (("fpga", "", 1),)),)

NODES: tuple[Node, ...] = (*_CPU, *_GPU, *_FPGA)

PARTITIONS: tuple[Partition, ...] = (
    Partition("cpu", tuple(n.name for n in _CPU), default=True),
    Partition("gpu", tuple(n.name for n in _GPU)),
    Partition("fpga", tuple(n.name for n in _FPGA)),
    Partition("preempt", tuple(n.name for n in (*_CPU, *_GPU)), tier=1, preemptible=True),
)
