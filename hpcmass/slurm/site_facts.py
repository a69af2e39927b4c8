"""What a Slurm says of itself, in one value, and which nodes a target means. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmass.config import Target
from hpcmass.slurm.parse import NodeInfo, PartitionInfo, QosInfo

ASSOC_FIELDS = ("Account", "Partition", "QOS", "DefaultQOS")
_FEATURES = re.compile(r"[\w.+:@-]+(?:[&|][\w.+:@-]+)*")


@dataclass(frozen=True)
class Association:
    """An account that the user may charge, on one partition or (empty) on all.

    Attributes:
        qos: Those allowed with it.
        default_qos: Taken where a job names none; empty where there is none.
    """

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""


@dataclass(frozen=True)
class SlurmFacts:
    """The answers that a site file is held against; None where Slurm was not asked or did not answer.

    Attributes:
        pmi: What `srun --mpi=` takes.
        associations: The user's own; empty where accounting knows none.
        default_account: The account of a job that names none.
        reservations: Names.
        unknown: What could not be asked, and why, one sentence each.
    """

    partitions: tuple[PartitionInfo, ...] = ()
    nodes: tuple[NodeInfo, ...] = ()
    config: Mapping[str, str] | None = None
    qos: tuple[QosInfo, ...] | None = None
    pmi: tuple[str, ...] | None = None
    associations: tuple[Association, ...] | None = None
    default_account: str = ""
    reservations: tuple[str, ...] | None = None
    unknown: tuple[str, ...] = ()

    def partition(self, name: str | None) -> PartitionInfo | None:
        """The partition of a name, or for None Slurm's default."""
        return next((p for p in self.partitions if (p.default if name is None else p.name == name)), None)

    def nodes_in(self, partition: PartitionInfo) -> list[NodeInfo]:
        """A partition's nodes."""
        return [node for node in self.nodes if partition.name in node.partitions]


def cpus_per_core(node: NodeInfo) -> int:
    """What Slurm counts as CPUs of a core: its hardware threads, or 1 where the site has it count cores."""
    if node.sockets and node.cores_per_socket and node.cpus <= node.sockets * node.cores_per_socket:
        return 1
    return node.threads_per_core or 1


def usable_cores_of(node: NodeInfo) -> int:
    """Physical cores that jobs may use: hardware threads count once."""
    return max(1, node.cpus // cpus_per_core(node))


# Beside `gpu` Slurm refuses these two; the network's is given to all; disk is given out in bytes.
_SHARED = {"mps", "shard", "craynetwork", "bandwidth", "hbm"}
_DISK = re.compile(r"disk|scratch|tmp|nvme|ssd|storage|bb|burst", re.IGNORECASE)
_MOST_DEVICES = 64


def is_device(name: str, count: int) -> bool:
    """Whether a generic resource beside GPUs is likely devices, which a whole-node job wants all of."""
    return name not in _SHARED and not _DISK.search(name) and count <= _MOST_DEVICES


def has_features(node: NodeInfo, constraint: str) -> bool | None:
    """Whether a node fits a constraint such as `gpu&hbm80g|a100`; None for forms that Slurm alone reads."""
    if not _FEATURES.fullmatch(constraint):
        return None
    have = set(node.features)
    return any(set(part.split("&")) <= have for part in constraint.split("|"))


def matching_nodes(target: Target, nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    """Those nodes that have the target's features and, if it has any, GPUs and other resources of its kinds."""
    found = []
    for node in nodes:
        if target.constraint is not None and has_features(node, target.constraint) is False:
            continue
        if target.gpus and not node.gres_count("gpu"):
            continue
        if target.gpu_type and not any(
            name == "gpu" and kind == target.gpu_type for name, kind, _ in node.gres
        ):
            continue
        if any(count and not node.gres_count(name) for name, count in target.gres.items()):
            continue
        found.append(node)
    return found


def parse_pmi(text: str) -> tuple[str, ...]:
    """The names that `srun --mpi=list` prints, without its headings."""
    names = []
    for line in text.splitlines():
        word = line.strip()
        if re.fullmatch(r"[a-z][a-z0-9_]*", word):
            names.append(word)
        elif word.startswith("specific pmix plugin versions"):
            names += [w for w in re.findall(r"pmix_v\d+", word) if w not in names]
    return tuple(dict.fromkeys(names))


def parse_associations(text: str) -> tuple[Association, ...]:
    """The lines of `sacctmgr --noheader --parsable2 show assoc format=` ASSOC_FIELDS."""
    found = []
    for line in text.splitlines():
        values = line.split("|")
        if len(values) == len(ASSOC_FIELDS) and values[0]:
            account, partition, qos, default = values
            found.append(Association(account, partition, tuple(filter(None, qos.split(","))), default))
    return tuple(found)


def parse_reservations(text: str) -> tuple[str, ...]:
    """The names in `scontrol show reservation --oneliner`."""
    return tuple(re.findall(r"ReservationName=(\S+)", text))


def parse_mpi_default(config: Mapping[str, str]) -> str | None:
    """`MpiDefault` of the configuration, None for `none`."""
    name = config.get("MpiDefault", "")
    return None if name in ("", "none") else name
