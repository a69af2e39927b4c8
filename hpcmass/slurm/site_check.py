"""A site file held against what Slurm says. Pure: from a site and the facts to a list of findings.

A finding ends with the line to write instead, where there is one that is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from hpcmass.config import Site, Target, nearest
from hpcmass.slurm.parse import NodeInfo, PartitionInfo
from hpcmass.slurm.site_facts import (
    SlurmFacts,
    cpus_per_core,
    has_features,
    matching_nodes,
    parse_mpi_default,
    usable_cores_of,
)
from hpcmass.slurm.site_finding import Finding, Found, line, one_of
from hpcmass.slurm.site_limits import accounting, qos_name, times

_MIB = 2**20
_PMIS = ("pmix", "pmi2", "cray_shasta")


def check_site(site: Site, facts: SlurmFacts) -> list[Finding]:
    """Every difference, those of the site first, then target by target."""
    findings = list(_site(site, facts))
    for name, target in site.targets.items():
        if target.kind == "slurm":
            findings += [Finding(name, *rest) for rest in _target(target, facts)]
    return findings


def _site(site: Site, facts: SlurmFacts) -> Iterator[Finding]:
    if facts.config is None:
        return
    text = facts.config.get("MaxArraySize", "")
    most = int(text) if text.isdigit() else None
    if most is not None and site.max_array_size is not None and site.max_array_size > most:
        write = line("max_array_size", most)
        yield Finding("", "max_array_size", str(site.max_array_size), f"MaxArraySize={most}", True, write)
    elif most is not None and site.max_array_size != most:
        value = "-" if site.max_array_size is None else str(site.max_array_size)
        yield Finding("", "max_array_size", value, f"MaxArraySize={most}", False, line("max_array_size", most))


def _target(target: Target, facts: SlurmFacts) -> Iterator[Found]:
    names = target.partition.split(",") if target.partition else [None]
    known = [name for name in names if facts.partition(name) is not None]
    if facts.partitions:
        for name in names:
            if name not in known:
                yield _no_partition(target, name, facts)
    found = [list(_in_one(target, name, facts)) for name in known or names[:1]]
    # Of several partitions a job starts in one that takes it: what holds in all of them is told.
    for each in found[0]:
        if all(any(each[0] == other[0] for other in others) for others in found[1:]):
            yield each


def _in_one(target: Target, name: str | None, facts: SlurmFacts) -> Iterator[Found]:
    """What is found where all jobs go to one partition."""
    target = target.model_copy(update={"partition": name})
    partition = facts.partition(name)
    if partition is not None:
        yield from _partition(target, partition, facts)
        everywhere = facts.nodes_in(partition)
        nodes = matching_nodes(target, everywhere)
        if everywhere and not nodes:
            yield from _no_nodes(target, everywhere, partition)
        elif nodes:
            yield from _nodes(target, nodes, partition)
    yield from times(target, partition, facts)
    yield from accounting(target, partition, facts)
    yield from _launch(target, facts)


def _no_partition(target: Target, name: str | None, facts: SlurmFacts) -> Found:
    names = [p.name for p in facts.partitions]
    there = f"there are: {', '.join(names)}"
    if target.partition is None:
        said = f"there is no default partition; {there}"
        return "partition", "-", said, True, one_of("partition", None, names)
    if target.partition == name:
        said = f"no such partition; {there}"
        return "partition", name, said, True, one_of("partition", name, names)
    right = [nearest(each, names) if each == name else each for each in target.partition.split(",")]
    write = line("partition", ",".join(dict.fromkeys(each for each in right if each is not None)))
    return "partition", target.partition, f"no partition {name}; {there}", True, write


def _partition(target: Target, partition: PartitionInfo, facts: SlurmFacts) -> Iterator[Found]:
    value = target.partition or "-"
    if not partition.up:
        yield "partition", value, f"State={partition.state}: jobs do not start there", True, "another partition"
    lifted = {
        flag for qos in facts.qos or () if qos.name == qos_name(target, partition, facts) for flag in qos.flags
    }
    if (
        target.max_nodes is not None
        and partition.max_nodes is not None
        and target.max_nodes > partition.max_nodes
        and "PartitionMaxNodes" not in lifted
    ):
        write = line("max_nodes", partition.max_nodes)
        yield "max_nodes", str(target.max_nodes), f"MaxNodes={partition.max_nodes}", True, write
    few = target.max_nodes is not None and target.max_nodes < partition.min_nodes
    if few and "PartitionMinNodes" not in lifted:
        write = line("max_nodes", partition.min_nodes)
        yield "max_nodes", str(target.max_nodes), f"MinNodes={partition.min_nodes}", True, write
    if partition.exclusive and not target.exclusive:
        said = "OverSubscribe=EXCLUSIVE: jobs get whole nodes, and are charged so"
        yield "exclusive", "false", said, False, line("exclusive", True)
    yield from _preemption(target, partition, facts)


def _preemption(target: Target, partition: PartitionInfo, facts: SlurmFacts) -> Iterator[Found]:
    ends = may_be_preempted(partition, facts, qos_name(target, partition, facts))
    by_qos = "qos" in (facts.config or {}).get("PreemptType", "")
    mode = (facts.config or {}).get("PreemptMode", "") if by_qos else partition.preempt_mode
    if ends and not target.preemptible:
        yield "preemptible", "false", ends, True, line("preemptible", True)
    elif (
        target.preemptible and facts.config is not None and ends is None and not (by_qos and facts.qos is None)
    ):
        said = f"PreemptMode={mode or 'OFF'}, nothing goes before it"
        yield "preemptible", "true", said, False, line("preemptible", False)
    if ends and target.requeue and "CANCEL" in mode:
        said = f"PreemptMode={mode}: preempted jobs are not requeued"
        yield "requeue", "true", said, True, line("requeue", False)


def may_be_preempted(partition: PartitionInfo, facts: SlurmFacts, qos: str = "") -> str | None:
    """Slurm's words for it when jobs of this partition, or QOS, give way to those of another, else None."""
    config = facts.config or {}
    if "qos" in config.get("PreemptType", ""):
        over = [other.name for other in facts.qos or () if qos and qos in other.preempts]
        mode = config.get("PreemptMode", "")
        return f"PreemptMode={mode}: jobs give way to those of QOS {', '.join(over)}" if over else None
    if "partition_prio" not in config.get("PreemptType", "") or partition.preempt_mode in ("OFF", ""):
        return None
    mine = {node.name for node in facts.nodes_in(partition)}
    over = [
        other.name
        for other in facts.partitions
        if other.priority_tier > partition.priority_tier
        and mine & {node.name for node in facts.nodes_in(other)}
    ]
    if not over:
        return None
    return f"PreemptMode={partition.preempt_mode}: jobs give way to those of {', '.join(over)}"


def _no_nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[Found]:
    """Which of the selections leaves no node."""
    where = f"no node of partition {partition.name} has it"
    if target.constraint is not None and not any(
        has_features(n, target.constraint) is not False for n in nodes
    ):
        known = ", ".join(sorted({feature for node in nodes for feature in node.features})) or "none"
        features = sorted({feature for node in nodes for feature in node.features})
        write = one_of("constraint", target.constraint, features)
        yield "constraint", target.constraint, f"{where}; features there: {known}", True, write
        return
    gres = sorted({f"{name}:{kind}" if kind else name for node in nodes for name, kind, _ in node.gres})
    have = f"{where}; Gres there: {', '.join(gres) or 'none'}"
    if target.gpus and not any(node.gres_count("gpu") for node in nodes):
        yield "gpus", str(target.gpus), have, True, line("gpus", 0)
    elif target.gpu_type and target.gpu_type not in {
        k for n in nodes for name, k, _ in n.gres if name == "gpu"
    }:
        kinds = sorted({kind for n in nodes for name, kind, _ in n.gres if name == "gpu" and kind})
        yield "gpu_type", target.gpu_type, have, True, one_of("gpu_type", target.gpu_type, kinds)
    else:
        missing = [name for name in target.gres if not any(node.gres_count(name) for node in nodes)]
        key = f"gres.{missing[0]}" if missing else "constraint"
        value = str(target.gres[missing[0]]) if missing else (target.constraint or "-")
        if missing:
            yield key, value, have, True, _gres(target, missing[0], 0)
        else:
            yield (
                key,
                value,
                "no node has all that this target asks for",
                True,
                "a target for each kind of node",
            )


def _gres(target: Target, name: str, count: int) -> str:
    """The line of the generic resources with one of them changed, or without it."""
    wanted = {**target.gres, name: count}
    rest = ", ".join(f"{key} = {value}" for key, value in wanted.items() if value)
    return f"gres = {{ {rest} }}" if rest else "remove gres"


def _nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[Found]:
    least = min(nodes, key=usable_cores_of)
    cores = usable_cores_of(least)
    threads = cpus_per_core(least)
    if partition.max_cpus_per_node is not None and partition.max_cpus_per_node // threads < cores:
        cores = partition.max_cpus_per_node // threads
    said = f"{cores} cores on {least.name}" + (f" ({least.cpus} hardware threads)" if threads > 1 else "")
    if target.cores is not None and target.cores > cores:
        # Where threads are counted as CPUs, Slurm would grant more, two ranks to a core.
        yield "cores", str(target.cores), said, target.cores > cores * threads, line("cores", cores)
    elif target.cores is not None and target.cores < cores:
        yield "cores", str(target.cores), said, False, line("cores", cores)
    yield from _threads(target, nodes)
    yield from _memory(target, nodes, partition)
    if target.gpus:
        poorest = min(nodes, key=lambda node: node.gres_count("gpu"))
        gpus = poorest.gres_count("gpu")
        if target.gpus != gpus:
            wrong = target.gpus > gpus
            yield "gpus", str(target.gpus), f"{gpus} on {poorest.name}", wrong, line("gpus", gpus)
    elif all(node.gres_count("gpu") for node in nodes):
        gpus = min(node.gres_count("gpu") for node in nodes)
        said = f"{nodes[0].name} has {nodes[0].gres_count('gpu')}, which would lie idle"
        yield "gpus", "0", said, False, line("gpus", gpus)
    for name, count in target.gres.items():
        poorest = min(nodes, key=lambda node: node.gres_count(name))
        if count > poorest.gres_count(name):
            has = poorest.gres_count(name)
            yield f"gres.{name}", str(count), f"{has} on {poorest.name}", True, _gres(target, name, has)
    if target.max_nodes is not None and target.max_nodes > len(nodes):
        said = f"{len(nodes)} nodes of this kind in {partition.name}"
        yield "max_nodes", str(target.max_nodes), said, True, line("max_nodes", len(nodes))
    if not any(node.usable for node in nodes):
        states = ", ".join(sorted({"+".join([node.state, *node.flags]) for node in nodes}))
        said = f"none of its {len(nodes)} nodes is usable now ({states})"
        yield "partition", partition.name, said, False, ""


def _threads(target: Target, nodes: list[NodeInfo]) -> Iterator[Found]:
    """`cores` are physical; where Slurm counts hardware threads, it must be told to leave all but one alone."""
    most = max(nodes, key=cpus_per_core)
    threads = cpus_per_core(most)
    if threads < 2 or "hint" in target.sbatch or target.sbatch.get("threads-per-core") == "1":
        return
    said = f"{most.name} has {threads} hardware threads a core, and --cpus-per-task counts them: "
    said += f"ranks would get 1/{threads} of the cores that they are meant to have"
    wanted = {name: value for name, value in target.sbatch.items() if name != "threads-per-core"}
    pairs = [f"{name} = {json.dumps(value)}" for name, value in {**wanted, "hint": "nomultithread"}.items()]
    yield "sbatch.hint", "-", said, True, f"sbatch = {{ {', '.join(pairs)} }}"


def _memory(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[Found]:
    poorest = min(nodes, key=lambda node: node.memory_mb)
    mib = poorest.memory_mb
    if partition.max_memory_per_node_mb is not None:
        mib = min(mib, partition.max_memory_per_node_mb)
    if target.memory_gb is None or not mib:
        return
    has = mib * _MIB / 1e9
    # Rounded down: a job that asks for all of it must fit.
    write = line("memory_gb", int(has * 10) / 10)
    if target.memory_gb > has:
        said = f"{has:.3g} GB ({mib} MiB) on {poorest.name}"
        yield "memory_gb", f"{target.memory_gb:g}", said, True, write
    elif target.memory_gb < 0.8 * has:
        yield "memory_gb", f"{target.memory_gb:g}", f"{has:.3g} GB on {poorest.name}", False, write


def _launch(target: Target, facts: SlurmFacts) -> Iterator[Found]:
    if facts.pmi is not None and target.pmi is not None and target.pmi not in facts.pmi:
        yield "pmi", target.pmi, f"srun --mpi=list has {', '.join(facts.pmi)}", True, _pmi(facts)
    if target.launcher == "srun" and target.pmi is None and (facts.config is not None or facts.pmi is not None):
        # hpcmass's srun always says --mpi=…, so what Slurm would take by itself does not count.
        default = parse_mpi_default(facts.config or {})
        have = [name for name in facts.pmi or () if name in _PMIS]
        likely = [default] if default is not None else have
        said = f"MpiDefault={default or 'none'}, but without pmi ranks are started by srun --mpi=none, "
        said += "N runs of one rank; "
        said += f"name one of {', '.join(likely)}" if likely else 'use launcher = "mpiexec"'
        yield "pmi", "-", said, True, _pmi(facts)
    known = facts.reservations
    if target.reservation is not None and known is not None and target.reservation not in known:
        said = f"no such reservation; there are: {', '.join(known) or 'none'}"
        yield "reservation", target.reservation, said, True, one_of("reservation", target.reservation, known)


def _pmi(facts: SlurmFacts) -> str:
    """A likely line; which of several is right depends on the MPI, and `site probe` finds out."""
    if (default := parse_mpi_default(facts.config or {})) is not None and default in (facts.pmi or (default,)):
        return line("pmi", default)
    have = [name for name in _PMIS if name in (facts.pmi or ())]
    if not have:
        return line("launcher", "mpiexec")
    return line("pmi", have[0]) + ("" if len(have) == 1 else "; which is right, hpcmass site probe finds out")
