"""A site file held against what Slurm says. Pure: from a site and the facts to a list of findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpcmass.config import Site, Target, nearest, parse_duration, slurm_time
from hpcmass.slurm.parse import NodeInfo, PartitionInfo, QosInfo
from hpcmass.slurm.site_facts import (
    SlurmFacts,
    has_features,
    matching_nodes,
    parse_mpi_default,
    usable_cores_of,
)

_MIB = 2**20
_PMIS = ("pmix", "pmi2", "cray_shasta")


@dataclass(frozen=True)
class Finding:
    """One difference between a site file and Slurm.

    Attributes:
        target: The target's name, or empty for a key of the site itself.
        key: The key of the site file.
        value: What the file says, or `-` where it says nothing.
        slurm: What Slurm says.
        wrong: Whether jobs would be refused, or wait for ever, or run where the file says they do not;
            otherwise it is worth knowing and no error.
    """

    target: str
    key: str
    value: str
    slurm: str
    wrong: bool = True


def check_site(site: Site, facts: SlurmFacts) -> list[Finding]:
    """Every difference, those of the site first, then target by target."""
    findings = list(_site(site, facts))
    for name, target in site.targets.items():
        if target.kind == "slurm":
            findings += [Finding(name, *rest) for rest in _target(target, facts)]
    return findings


_Found = tuple[str, str, str, bool]


def _site(site: Site, facts: SlurmFacts) -> Iterator[Finding]:
    if facts.config is None:
        return
    text = facts.config.get("MaxArraySize", "")
    most = int(text) if text.isdigit() else None
    if most is not None and site.max_array_size is not None and site.max_array_size > most:
        yield Finding("", "max_array_size", str(site.max_array_size), f"MaxArraySize={most}")
    elif most is not None and site.max_array_size != most:
        value = "-" if site.max_array_size is None else str(site.max_array_size)
        yield Finding("", "max_array_size", value, f"MaxArraySize={most}", wrong=False)


def _target(target: Target, facts: SlurmFacts) -> Iterator[_Found]:
    partition = facts.partition(target.partition)
    if partition is None and facts.partitions:
        yield _no_partition(target, facts)
    if partition is not None:
        yield from _partition(target, partition, facts)
        everywhere = facts.nodes_in(partition)
        nodes = matching_nodes(target, everywhere)
        if everywhere and not nodes:
            yield from _no_nodes(target, everywhere, partition)
        elif nodes:
            yield from _nodes(target, nodes, partition)
    yield from _times(target, partition, facts)
    yield from _accounting(target, partition, facts)
    yield from _launch(target, facts)


def _no_partition(target: Target, facts: SlurmFacts) -> _Found:
    names = [p.name for p in facts.partitions]
    if target.partition is None:
        return "partition", "-", f"there is no default partition; there are: {', '.join(names)}", True
    like = nearest(target.partition, names)
    hint = f"; did you mean {like}?" if like else f"; there are: {', '.join(names)}"
    return "partition", target.partition, f"no such partition{hint}", True


def _partition(target: Target, partition: PartitionInfo, facts: SlurmFacts) -> Iterator[_Found]:
    value = target.partition or "-"
    if not partition.up:
        yield "partition", value, f"State={partition.state}: jobs do not start there", True
    if (
        target.max_nodes is not None
        and partition.max_nodes is not None
        and target.max_nodes > partition.max_nodes
    ):
        yield "max_nodes", str(target.max_nodes), f"MaxNodes={partition.max_nodes}", True
    if target.max_nodes is not None and target.max_nodes < partition.min_nodes:
        yield "max_nodes", str(target.max_nodes), f"MinNodes={partition.min_nodes}", True
    if partition.exclusive and not target.exclusive:
        yield "exclusive", "false", "OverSubscribe=EXCLUSIVE: jobs get whole nodes, and are charged so", False
    ends = may_be_preempted(partition, facts)
    if ends and not target.preemptible:
        yield "preemptible", "false", ends, True
    elif target.preemptible and facts.config is not None and ends is None:
        yield "preemptible", "true", f"PreemptMode={partition.preempt_mode}, nothing goes before it", False
    if ends and target.requeue and "CANCEL" in partition.preempt_mode:
        yield "requeue", "true", f"PreemptMode={partition.preempt_mode}: preempted jobs are not requeued", True


def may_be_preempted(partition: PartitionInfo, facts: SlurmFacts) -> str | None:
    """Slurm's words for it when jobs of this partition give way to those of another, else None."""
    config = facts.config or {}
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


def _no_nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    """Which of the selections leaves no node."""
    where = f"no node of partition {partition.name} has it"
    if target.constraint is not None and not any(
        has_features(n, target.constraint) is not False for n in nodes
    ):
        known = ", ".join(sorted({feature for node in nodes for feature in node.features})) or "none"
        yield "constraint", target.constraint, f"{where}; features there: {known}", True
        return
    gres = sorted({f"{name}:{kind}" if kind else name for node in nodes for name, kind, _ in node.gres})
    have = f"{where}; Gres there: {', '.join(gres) or 'none'}"
    if target.gpus and not any(node.gres_count("gpu") for node in nodes):
        yield "gpus", str(target.gpus), have, True
    elif target.gpu_type and target.gpu_type not in {
        k for n in nodes for name, k, _ in n.gres if name == "gpu"
    }:
        yield "gpu_type", target.gpu_type, have, True
    else:
        missing = [name for name in target.gres if not any(node.gres_count(name) for node in nodes)]
        key = f"gres.{missing[0]}" if missing else "constraint"
        value = str(target.gres[missing[0]]) if missing else (target.constraint or "-")
        yield key, value, have if missing else "no node has all that this target asks for", True


def _nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    least = min(nodes, key=usable_cores_of)
    cores = usable_cores_of(least)
    threads = least.threads_per_core or 1
    if partition.max_cpus_per_node is not None and partition.max_cpus_per_node // threads < cores:
        cores = partition.max_cpus_per_node // threads
    said = f"{cores} cores on {least.name}" + (f" ({least.cpus} hardware threads)" if threads > 1 else "")
    if target.cores is not None and target.cores > cores:
        # Where threads are counted as CPUs, Slurm would grant more, two ranks to a core.
        yield "cores", str(target.cores), said, target.cores > cores * threads
    elif target.cores is not None and target.cores < cores:
        yield "cores", str(target.cores), said, False
    yield from _memory(target, nodes, partition)
    if target.gpus:
        poorest = min(nodes, key=lambda node: node.gres_count("gpu"))
        gpus = poorest.gres_count("gpu")
        if target.gpus != gpus:
            yield "gpus", str(target.gpus), f"{gpus} on {poorest.name}", target.gpus > gpus
    elif all(node.gres_count("gpu") for node in nodes):
        yield "gpus", "0", f"{nodes[0].name} has {nodes[0].gres_count('gpu')}, which would lie idle", False
    for name, count in target.gres.items():
        poorest = min(nodes, key=lambda node: node.gres_count(name))
        if count > poorest.gres_count(name):
            yield f"gres.{name}", str(count), f"{poorest.gres_count(name)} on {poorest.name}", True
    if target.max_nodes is not None and target.max_nodes > len(nodes):
        yield "max_nodes", str(target.max_nodes), f"{len(nodes)} nodes of this kind in {partition.name}", True
    if not any(node.usable for node in nodes):
        states = ", ".join(sorted({"+".join([node.state, *node.flags]) for node in nodes}))
        yield "partition", partition.name, f"none of its {len(nodes)} nodes is usable now ({states})", False


def _memory(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    poorest = min(nodes, key=lambda node: node.memory_mb)
    mib = poorest.memory_mb
    if partition.max_memory_per_node_mb is not None:
        mib = min(mib, partition.max_memory_per_node_mb)
    if target.memory_gb is None or not mib:
        return
    if target.memory_gb * 1e9 > mib * _MIB:
        yield (
            "memory_gb",
            f"{target.memory_gb:g}",
            f"{mib * _MIB / 1e9:.3g} GB ({mib} MiB) on {poorest.name}",
            True,
        )
    elif target.memory_gb * 1e9 < 0.8 * mib * _MIB:
        yield "memory_gb", f"{target.memory_gb:g}", f"{mib * _MIB / 1e9:.3g} GB on {poorest.name}", False


def _times(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[_Found]:
    limits: list[tuple[int, str]] = []
    if partition is not None and partition.max_time_s is not None:
        limits.append((partition.max_time_s, f"MaxTime={slurm_time(partition.max_time_s)} of {partition.name}"))
    for name in filter(None, [target.qos, partition.qos if partition else ""]):
        if (qos := _qos(facts, name)) is not None and qos.max_wall_s is not None:
            limits.append((qos.max_wall_s, f"MaxWall={slurm_time(qos.max_wall_s)} of QOS {name}"))
    if not limits:
        return
    most, said = min(limits)
    for key, text in (("max_time", target.max_time), ("default_time", target.default_time)):
        if text is not None and parse_duration(text) > most:
            yield key, text, said, True
    if target.max_time is None:
        yield "max_time", "-", f"{said}: a job that asks for more is refused only there", False


def _qos(facts: SlurmFacts, name: str) -> QosInfo | None:
    return next((qos for qos in facts.qos or () if qos.name == name), None)


def _accounting(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[_Found]:
    if target.qos is not None and facts.qos is not None:
        yield from _qos_limits(target, partition, facts, target.qos)
    if partition is not None and target.account is not None:
        if partition.accounts is not None and target.account not in partition.accounts:
            yield "account", target.account, f"AllowAccounts={','.join(partition.accounts)}", True
        elif target.account in partition.denied_accounts:
            yield "account", target.account, f"DenyAccounts={','.join(partition.denied_accounts)}", True
    enforced = (facts.config or {}).get("AccountingStorageEnforce", "none") not in ("", "none")
    mine = facts.associations
    if not mine:
        return
    accounts = sorted({association.account for association in mine})
    if target.account is not None and target.account not in accounts:
        yield "account", target.account, f"your accounts: {', '.join(accounts)}", enforced
    elif target.account is None and enforced and not facts.default_account:
        yield "account", "-", f"you have no default account; yours: {', '.join(accounts)}", True
    account = target.account or facts.default_account
    allowed = {q for a in mine if a.account == account for q in a.qos}
    known = facts.qos is None or _qos(facts, target.qos or "") is not None
    if target.qos is not None and known and allowed and target.qos not in allowed:
        yield "qos", target.qos, f"with account {account} you may use: {', '.join(sorted(allowed))}", enforced


def _qos_limits(
    target: Target, partition: PartitionInfo | None, facts: SlurmFacts, name: str
) -> Iterator[_Found]:
    qos = _qos(facts, name)
    if qos is None:
        known = ", ".join(q.name for q in facts.qos or ())
        yield "qos", name, f"no such QOS; there are: {known}", True
        return
    if partition is not None and partition.qos_allowed is not None and name not in partition.qos_allowed:
        yield "qos", name, f"AllowQos={','.join(partition.qos_allowed)} of {partition.name}", True
    for what, limits in (("a job", qos.max_per_job), ("a user", qos.max_per_user), ("all", qos.max_of_all)):
        most = dict(limits)
        if "node" in most and target.max_nodes is not None and target.max_nodes > most["node"]:
            yield "max_nodes", str(target.max_nodes), f"QOS {name}: {most['node']} nodes {what}", True
        if "cpu" in most and target.cores is not None and target.cores > most["cpu"]:
            yield "cores", str(target.cores), f"QOS {name}: {most['cpu']} CPUs {what}", True
        if "gres/gpu" in most and target.gpus > most["gres/gpu"]:
            yield "gpus", str(target.gpus), f"QOS {name}: {most['gres/gpu']} GPUs {what}", True


def _launch(target: Target, facts: SlurmFacts) -> Iterator[_Found]:
    if facts.pmi is not None and target.pmi is not None and target.pmi not in facts.pmi:
        yield "pmi", target.pmi, f"srun --mpi=list has {', '.join(facts.pmi)}", True
    if target.launcher == "srun" and target.pmi is None and facts.config is not None:
        default = parse_mpi_default(facts.config)
        if default is None:
            have = [name for name in facts.pmi or () if name in _PMIS]
            said = "MpiDefault=none: srun starts N runs of one rank; " + (
                f"name one of {', '.join(have)}" if have else 'use launcher = "mpiexec"'
            )
            yield "pmi", "-", said, True
    known = facts.reservations
    if target.reservation is not None and known is not None and target.reservation not in known:
        said = f"no such reservation; there are: {', '.join(known) or 'none'}"
        yield "reservation", target.reservation, said, True
