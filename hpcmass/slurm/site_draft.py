"""A site file drafted from what Slurm says; every value with a comment that says where it came from. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hpcmass.config import slurm_time
from hpcmass.slurm.parse import NodeInfo, PartitionInfo
from hpcmass.slurm.site_facts import SlurmFacts, cpus_per_core, is_device, parse_mpi_default, usable_cores_of

_PMIS = ("pmix", "cray_shasta", "pmi2")


@dataclass(frozen=True)
class _Kind:
    """Nodes that are alike.

    Attributes:
        constraint: A feature, or several joined by `&`, that tells them from the partition's other nodes.
        also: What the constraint cannot tell from them, in words.
    """

    nodes: tuple[NodeInfo, ...]
    suffix: str = ""
    constraint: str | None = None
    also: str = ""

    @property
    def first(self) -> NodeInfo:
        return self.nodes[0]


_Line = tuple[str, object, str]  # key, value, where it came from


def draft_site(facts: SlurmFacts, *, by: str, has_mpiexec: bool) -> str:
    """The text of a site file.

    Args:
        facts: What Slurm says.
        by: Who asked and when, for the heading.
        has_mpiexec: Whether this environment has an mpiexec of its own, which then belongs to its MPI.
    """
    config = dict(facts.config or {})
    tables: list[tuple[str, str, list[_Line]]] = []
    for partition in facts.partitions:
        nodes = facts.nodes_in(partition)
        if partition.root_only or not nodes:
            continue
        for kind in kinds_of(nodes):
            name = _unique(_target_name(partition.name + kind.suffix), [table[0] for table in tables])
            head = f"{_names(kind.nodes)}" + (f"; {kind.also}" if kind.also else "")
            tables.append((name, head, list(_target(partition, kind, facts, has_mpiexec))))
    default = _default_target(facts, tables)
    cluster = config.get("ClusterName", "cluster")
    lines: list[_Line] = [
        ("name", cluster, "ClusterName of scontrol show config"),
        ("default_target", default, "the first target of Slurm's default partition"),
        ("verified", False, "drafted, not tried: hpcmass site probe FILE --write"),
    ]
    if config.get("MaxArraySize", "").isdigit():
        lines.append(("max_array_size", int(config["MaxArraySize"]), "MaxArraySize of scontrol show config"))
    text = [
        f"# Drafted by hpcmass site init {by}, from Slurm's own words. Look through it: what a draft cannot",
        "# know are modules, prices, node-local folders and containers.",
        *_render(lines),
    ]
    for name, head, table in tables:
        text += ["", f"[targets.{_key(name)}]", f"# {head}", *_render(table)]
    return "\n".join(text) + "\n"


def kinds_of(nodes: Sequence[NodeInfo]) -> list[_Kind]:
    """Nodes of a partition parted by what a job must know: cores, memory, generic resources.

    Kinds that no feature and no resource tells apart are one, described by the poorest of its nodes.
    """
    groups: dict[tuple[object, ...], list[NodeInfo]] = {}
    for node in nodes:
        # What is not drafted tells no kinds apart.
        gres = tuple(sorted(each for each in node.gres if each[0] == "gpu" or is_device(each[0], each[2])))
        groups.setdefault((gres, usable_cores_of(node), node.memory_mb), []).append(node)
    if len(groups) == 1:
        return [_Kind(tuple(nodes))]
    ordered = sorted(groups.values(), key=len, reverse=True)
    kinds: list[_Kind] = []
    unnamed: dict[tuple[tuple[str, str], ...], list[NodeInfo]] = {}
    for group in ordered:
        others = [node for other in ordered if other is not group for node in other]
        feature = _telling_feature(group, others)
        if feature is not None:
            kinds.append(_Kind(tuple(group), f"-{_suffix(group[0], feature)}", feature))
        else:
            resources = {(n, k) for n, k, count in group[0].gres if n == "gpu" or is_device(n, count)}
            unnamed.setdefault(tuple(sorted(resources)), []).extend(group)
    for named, group in unnamed.items():
        poorest = sorted(group, key=lambda node: (usable_cores_of(node), node.memory_mb))
        suffix = "".join(f"-{kind or name}" for name, kind in named)
        also = (
            ""
            if len({(usable_cores_of(n), n.memory_mb) for n in group}) == 1
            else ("they differ in cores or memory, and no feature tells them apart: the poorest is described")
        )
        kinds.append(_Kind(tuple(poorest), suffix, None, also))
    return kinds


def _telling_feature(group: Iterable[NodeInfo], others: Sequence[NodeInfo]) -> str | None:
    common = set.intersection(*(set(node.features) for node in group))
    telling = sorted(feature for feature in common if not any(feature in node.features for node in others))
    # A short word of letters is more likely meant for people than a serial number.
    return min(telling, key=lambda word: (len(word), word)) if telling else None


def _suffix(node: NodeInfo, feature: str) -> str:
    return feature if re.fullmatch(r"[\w.-]+", feature) else f"{usable_cores_of(node)}c"


def _target(partition: PartitionInfo, kind: _Kind, facts: SlurmFacts, has_mpiexec: bool) -> Iterator[_Line]:
    config = dict(facts.config or {})
    yield "kind", "slurm", ""
    yield "partition", partition.name, "scontrol show partition"
    if kind.constraint:
        yield "constraint", kind.constraint, "the feature that these nodes have and the partition's others lack"
    account = facts.default_account
    if account and (partition.accounts is None or account in partition.accounts):
        yield "account", account, "your default account, sacctmgr show user"
    yield from _hardware(partition, kind)
    most = partition.max_nodes
    count = len(kind.nodes)
    if most is not None and most < count:
        yield "max_nodes", most, "MaxNodes of scontrol show partition"
    else:
        yield "max_nodes", count, "how many there are in scontrol show node"
    yield from _times(partition, facts)
    if partition.exclusive:
        yield "exclusive", True, "OverSubscribe=EXCLUSIVE of scontrol show partition"
    yield from _preemption(partition, facts)
    yield from _launcher(facts, config, has_mpiexec)


def _hardware(partition: PartitionInfo, kind: _Kind) -> Iterator[_Line]:
    node = kind.first
    threads = max(cpus_per_core(each) for each in kind.nodes)
    cores = usable_cores_of(node)
    if partition.max_cpus_per_node is not None:
        cores = max(1, min(cores, partition.max_cpus_per_node // threads))
    note = f" ({threads} hardware threads each)" if threads > 1 else ""
    yield "cores", cores, f"CPUEfctv / ThreadsPerCore of {node.name}{note}"
    mib = min([node.memory_mb] + [m for m in [partition.max_memory_per_node_mb] if m is not None])
    if mib:
        # Rounded down: a job that asks for all of it must fit.
        yield "memory_gb", int(mib * 2**20 / 1e8) / 10, f"RealMemory={mib} MiB of {node.name}, in 10^9 bytes"
    gpus = min(each.gres_count("gpu") for each in kind.nodes)
    if gpus:
        yield "gpus", gpus, f"Gres of {node.name}"
        types = {k for each in kind.nodes for name, k, _ in each.gres if name == "gpu" and k}
        if len(types) == 1:
            yield "gpu_type", types.pop(), f"Gres of {node.name}"
    other = {name: node.gres_count(name) for name, _, _ in node.gres if name != "gpu"}
    devices = {name: count for name, count in other.items() if is_device(name, count)}
    if devices:
        yield "gres", devices, f"Gres of {node.name}"
    if left := {name: count for name, count in other.items() if name not in devices}:
        yield (
            "# gres",
            {**devices, **left},
            f"Gres of {node.name}: every job would ask for all of it; {', '.join(left)} left out",
        )
    if threads > 1:
        yield "sbatch", {"hint": "nomultithread"}, "one rank or thread a core, not a hardware thread"


def _times(partition: PartitionInfo, facts: SlurmFacts) -> Iterator[_Line]:
    qos = next((qos for qos in facts.qos or () if qos.name == partition.qos), None)
    limits = [(partition.max_time_s, "MaxTime of scontrol show partition")]
    if qos is not None:
        limits.append((qos.max_wall_s, f"MaxWall of its QOS {qos.name}"))
    known = [(seconds, source) for seconds, source in limits if seconds]
    if known:
        seconds, source = min(known)
        yield "max_time", slurm_time(seconds), source
    if partition.default_time_s and not (known and partition.default_time_s > min(known)[0]):
        yield "default_time", slurm_time(partition.default_time_s), "DefaultTime of scontrol show partition"


def _preemption(partition: PartitionInfo, facts: SlurmFacts) -> Iterator[_Line]:
    from hpcmass.slurm.site_check import may_be_preempted

    if (why := may_be_preempted(partition, facts)) is not None:
        yield "preemptible", True, why
        if "CANCEL" in partition.preempt_mode:
            yield "requeue", False, f"PreemptMode={partition.preempt_mode}"


def _launcher(facts: SlurmFacts, config: dict[str, str], has_mpiexec: bool) -> Iterator[_Line]:
    """A guess, which `site probe` replaces by what it saw."""
    default = parse_mpi_default(config)
    have = [name for name in _PMIS if name in (facts.pmi or ())]
    if has_mpiexec:
        yield (
            "launcher",
            "mpiexec",
            "a guess: this Python has an mpiexec of its own; hpcmass site probe tries all",
        )
    elif default is not None or have:
        pmi = default if default in _PMIS or default is not None else have[0]
        source = "MpiDefault" if default is not None else "srun --mpi=list"
        yield "launcher", "srun", "a guess; hpcmass site probe tries all"
        yield "pmi", re.sub(r"_v\d+$", "", pmi or have[0]), f"{source}; a guess likewise"
    else:
        yield "launcher", "mpiexec", "a guess: srun --mpi=list has none of pmix, pmi2, cray_shasta"


def _default_target(facts: SlurmFacts, tables: list[tuple[str, str, list[_Line]]]) -> str:
    default = facts.partition(None)
    for name, _, lines in tables:
        if default is not None and ("partition", default.name, "scontrol show partition") in lines:
            return name
    return tables[0][0] if tables else ""


def _render(lines: Iterable[_Line]) -> list[str]:
    listed = [(f"{key} = {_value(value)}", source) for key, value, source in lines]
    width = max((len(text) for text, source in listed if source and len(text) < 40), default=0)
    return [f"{text:<{width}}  # {source}" if source else text for text, source in listed]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which may not stand there as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _target_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


def _unique(name: str, taken: list[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found


def _names(nodes: Sequence[NodeInfo]) -> str:
    names = [node.name for node in nodes]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} nodes)"
