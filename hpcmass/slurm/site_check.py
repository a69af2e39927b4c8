"""A site file held against what Slurm says. Pure: from a site and the facts to a list of findings.

A finding ends with the line to write instead, where there is one that is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
        write: The line of the site file that would be right, as TOML; or what else to do; or empty.
    """

    target: str
    key: str
    value: str
    slurm: str
    wrong: bool = True
    write: str = ""

    @property
    def shown(self) -> str:
        """Table, key and value as a person reads them."""
        table = f"[targets.{self.target}] " if self.target else ""
        return f"{table}no {self.key}" if self.value == "-" else f"{table}{self.key} = {self.value}"


def check_site(site: Site, facts: SlurmFacts) -> list[Finding]:
    """Every difference, those of the site first, then target by target."""
    findings = list(_site(site, facts))
    for name, target in site.targets.items():
        if target.kind == "slurm":
            findings += [Finding(name, *rest) for rest in _target(target, facts)]
    return findings


_Found = tuple[str, str, str, bool, str]


def _is(key: str, value: object) -> str:
    """A line of a site file."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def _one_of(key: str, value: str | None, options: Iterable[str]) -> str:
    """The line with the only option, or with the one most like the value; else to choose."""
    known = list(options)
    like = nearest(value, known) if value else None
    if like is None and len(known) == 1:
        like = known[0]
    if like is not None:
        return _is(key, like)
    return f'{key} = "…", one of those' if known else f"remove {key}"


def _site(site: Site, facts: SlurmFacts) -> Iterator[Finding]:
    if facts.config is None:
        return
    text = facts.config.get("MaxArraySize", "")
    most = int(text) if text.isdigit() else None
    if most is not None and site.max_array_size is not None and site.max_array_size > most:
        write = _is("max_array_size", most)
        yield Finding("", "max_array_size", str(site.max_array_size), f"MaxArraySize={most}", True, write)
    elif most is not None and site.max_array_size != most:
        value = "-" if site.max_array_size is None else str(site.max_array_size)
        yield Finding("", "max_array_size", value, f"MaxArraySize={most}", False, _is("max_array_size", most))


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
    write = _one_of("partition", target.partition, names)
    if target.partition is None:
        return "partition", "-", f"there is no default partition; there are: {', '.join(names)}", True, write
    return "partition", target.partition, f"no such partition; there are: {', '.join(names)}", True, write


def _partition(target: Target, partition: PartitionInfo, facts: SlurmFacts) -> Iterator[_Found]:
    value = target.partition or "-"
    if not partition.up:
        yield "partition", value, f"State={partition.state}: jobs do not start there", True, "another partition"
    if (
        target.max_nodes is not None
        and partition.max_nodes is not None
        and target.max_nodes > partition.max_nodes
    ):
        write = _is("max_nodes", partition.max_nodes)
        yield "max_nodes", str(target.max_nodes), f"MaxNodes={partition.max_nodes}", True, write
    if target.max_nodes is not None and target.max_nodes < partition.min_nodes:
        write = _is("max_nodes", partition.min_nodes)
        yield "max_nodes", str(target.max_nodes), f"MinNodes={partition.min_nodes}", True, write
    if partition.exclusive and not target.exclusive:
        said = "OverSubscribe=EXCLUSIVE: jobs get whole nodes, and are charged so"
        yield "exclusive", "false", said, False, _is("exclusive", True)
    yield from _preemption(target, partition, facts)


def _preemption(target: Target, partition: PartitionInfo, facts: SlurmFacts) -> Iterator[_Found]:
    ends = may_be_preempted(partition, facts, qos_name(target, partition, facts))
    by_qos = "qos" in (facts.config or {}).get("PreemptType", "")
    mode = (facts.config or {}).get("PreemptMode", "") if by_qos else partition.preempt_mode
    if ends and not target.preemptible:
        yield "preemptible", "false", ends, True, _is("preemptible", True)
    elif (
        target.preemptible and facts.config is not None and ends is None and not (by_qos and facts.qos is None)
    ):
        said = f"PreemptMode={mode or 'OFF'}, nothing goes before it"
        yield "preemptible", "true", said, False, _is("preemptible", False)
    if ends and target.requeue and "CANCEL" in mode:
        said = f"PreemptMode={mode}: preempted jobs are not requeued"
        yield "requeue", "true", said, True, _is("requeue", False)


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


def _no_nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    """Which of the selections leaves no node."""
    where = f"no node of partition {partition.name} has it"
    if target.constraint is not None and not any(
        has_features(n, target.constraint) is not False for n in nodes
    ):
        known = ", ".join(sorted({feature for node in nodes for feature in node.features})) or "none"
        features = sorted({feature for node in nodes for feature in node.features})
        write = _one_of("constraint", target.constraint, features)
        yield "constraint", target.constraint, f"{where}; features there: {known}", True, write
        return
    gres = sorted({f"{name}:{kind}" if kind else name for node in nodes for name, kind, _ in node.gres})
    have = f"{where}; Gres there: {', '.join(gres) or 'none'}"
    if target.gpus and not any(node.gres_count("gpu") for node in nodes):
        yield "gpus", str(target.gpus), have, True, _is("gpus", 0)
    elif target.gpu_type and target.gpu_type not in {
        k for n in nodes for name, k, _ in n.gres if name == "gpu"
    }:
        kinds = sorted({kind for n in nodes for name, kind, _ in n.gres if name == "gpu" and kind})
        yield "gpu_type", target.gpu_type, have, True, _one_of("gpu_type", target.gpu_type, kinds)
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


def _nodes(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    least = min(nodes, key=usable_cores_of)
    cores = usable_cores_of(least)
    threads = least.threads_per_core or 1
    if partition.max_cpus_per_node is not None and partition.max_cpus_per_node // threads < cores:
        cores = partition.max_cpus_per_node // threads
    said = f"{cores} cores on {least.name}" + (f" ({least.cpus} hardware threads)" if threads > 1 else "")
    if target.cores is not None and target.cores > cores:
        # Where threads are counted as CPUs, Slurm would grant more, two ranks to a core.
        yield "cores", str(target.cores), said, target.cores > cores * threads, _is("cores", cores)
    elif target.cores is not None and target.cores < cores:
        yield "cores", str(target.cores), said, False, _is("cores", cores)
    yield from _memory(target, nodes, partition)
    if target.gpus:
        poorest = min(nodes, key=lambda node: node.gres_count("gpu"))
        gpus = poorest.gres_count("gpu")
        if target.gpus != gpus:
            wrong = target.gpus > gpus
            yield "gpus", str(target.gpus), f"{gpus} on {poorest.name}", wrong, _is("gpus", gpus)
    elif all(node.gres_count("gpu") for node in nodes):
        gpus = min(node.gres_count("gpu") for node in nodes)
        said = f"{nodes[0].name} has {nodes[0].gres_count('gpu')}, which would lie idle"
        yield "gpus", "0", said, False, _is("gpus", gpus)
    for name, count in target.gres.items():
        poorest = min(nodes, key=lambda node: node.gres_count(name))
        if count > poorest.gres_count(name):
            has = poorest.gres_count(name)
            yield f"gres.{name}", str(count), f"{has} on {poorest.name}", True, _gres(target, name, has)
    if target.max_nodes is not None and target.max_nodes > len(nodes):
        said = f"{len(nodes)} nodes of this kind in {partition.name}"
        yield "max_nodes", str(target.max_nodes), said, True, _is("max_nodes", len(nodes))
    if not any(node.usable for node in nodes):
        states = ", ".join(sorted({"+".join([node.state, *node.flags]) for node in nodes}))
        said = f"none of its {len(nodes)} nodes is usable now ({states})"
        yield "partition", partition.name, said, False, ""


def _memory(target: Target, nodes: list[NodeInfo], partition: PartitionInfo) -> Iterator[_Found]:
    poorest = min(nodes, key=lambda node: node.memory_mb)
    mib = poorest.memory_mb
    if partition.max_memory_per_node_mb is not None:
        mib = min(mib, partition.max_memory_per_node_mb)
    if target.memory_gb is None or not mib:
        return
    has = mib * _MIB / 1e9
    # Rounded down: a job that asks for all of it must fit.
    write = _is("memory_gb", int(has * 10) / 10)
    if target.memory_gb > has:
        said = f"{has:.3g} GB ({mib} MiB) on {poorest.name}"
        yield "memory_gb", f"{target.memory_gb:g}", said, True, write
    elif target.memory_gb < 0.8 * has:
        yield "memory_gb", f"{target.memory_gb:g}", f"{has:.3g} GB on {poorest.name}", False, write


def _times(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[_Found]:
    limits: list[tuple[int, str]] = []
    if partition is not None and partition.max_time_s is not None:
        limits.append((partition.max_time_s, f"MaxTime={slurm_time(partition.max_time_s)} of {partition.name}"))
    names = {qos_name(target, partition, facts): None, partition.qos if partition else "": None}
    for name in filter(None, names):
        if (qos := _qos(facts, name)) is not None and qos.max_wall_s is not None and _limited(facts):
            limits.append((qos.max_wall_s, f"MaxWall={slurm_time(qos.max_wall_s)} of QOS {name}"))
    if not limits:
        return
    most, said = min(limits)
    for key, text in (("max_time", target.max_time), ("default_time", target.default_time)):
        if text is not None and parse_duration(text) > most:
            yield key, text, said, True, _is(key, slurm_time(most))
    if target.max_time is None:
        said = f"{said}: a job that asks for more is refused only there"
        yield "max_time", "-", said, False, _is("max_time", slurm_time(most))


def qos_name(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> str:
    """The QOS of a job on a target: the one it names, else the default of its account, or empty."""
    if target.qos is not None:
        return target.qos
    account = target.account or facts.default_account
    there = {"", partition.name} if partition is not None else {""}
    mine = [a for a in facts.associations or () if a.account == account and a.partition in there]
    # What is said of one partition goes before what is said of all.
    return max(mine, key=lambda a: len(a.partition)).default_qos if mine else ""


def _limited(facts: SlurmFacts) -> bool:
    """Whether Slurm holds jobs to the limits of QOS and accounts."""
    enforced = (facts.config or {}).get("AccountingStorageEnforce", "none").split(",")
    return bool({"limits", "safe", "all"} & set(enforced))


def _qos(facts: SlurmFacts, name: str) -> QosInfo | None:
    return next((qos for qos in facts.qos or () if qos.name == name), None)


def _accounting(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[_Found]:
    if facts.qos is not None:
        yield from _qos_limits(target, partition, facts)
    if partition is not None and target.account is not None:
        if partition.accounts is not None and target.account not in partition.accounts:
            write = _one_of("account", target.account, partition.accounts)
            yield "account", target.account, f"AllowAccounts={','.join(partition.accounts)}", True, write
        elif target.account in partition.denied_accounts:
            said = f"DenyAccounts={','.join(partition.denied_accounts)}"
            yield "account", target.account, said, True, "another account"
    enforced = (facts.config or {}).get("AccountingStorageEnforce", "none") not in ("", "none")
    mine = facts.associations
    if not mine:
        return
    accounts = sorted({association.account for association in mine})
    write = _one_of("account", target.account, accounts)
    if target.account is not None and target.account not in accounts:
        yield "account", target.account, f"your accounts: {', '.join(accounts)}", enforced, write
    elif target.account is None and enforced and not facts.default_account:
        yield "account", "-", f"you have no default account; yours: {', '.join(accounts)}", True, write
    account = target.account or facts.default_account
    allowed = {q for a in mine if a.account == account for q in a.qos}
    known = facts.qos is None or _qos(facts, target.qos or "") is not None
    if target.qos is not None and known and allowed and target.qos not in allowed:
        said = f"with account {account} you may use: {', '.join(sorted(allowed))}"
        yield "qos", target.qos, said, enforced, _one_of("qos", target.qos, sorted(allowed))


def _qos_limits(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[_Found]:
    name = qos_name(target, partition, facts)
    known = [qos.name for qos in facts.qos or ()]
    if target.qos is not None and target.qos not in known:
        said = f"no such QOS; there are: {', '.join(known)}"
        yield "qos", target.qos, said, True, _one_of("qos", target.qos, known)
        return
    allowed = partition.qos_allowed if partition is not None else None
    if partition is not None and allowed is not None and name and name not in allowed:
        said = f"AllowQos={','.join(allowed)} of {partition.name}"
        yield "qos", target.qos or "-", said, True, _one_of("qos", target.qos, allowed)
    if not _limited(facts):
        return
    for each in dict.fromkeys(filter(None, [name, partition.qos if partition else ""])):
        if (qos := _qos(facts, each)) is not None:
            yield from _limits(target, qos)


def _limits(target: Target, qos: QosInfo) -> Iterator[_Found]:
    """Counts of a target above those of a QOS; a job of one whole node must fit, and one of all nodes too."""
    for what, limits in (("a job", qos.max_per_job), ("a user", qos.max_per_user), ("all", qos.max_of_all)):
        for kind, key, value, word in (
            ("node", "max_nodes", target.max_nodes or 0, "nodes"),
            ("cpu", "cores", target.cores or 0, "CPUs"),
            ("gres/gpu", "gpus", target.gpus, "GPUs"),
        ):
            most = dict(limits).get(kind)
            if most is not None and value > most:
                yield key, str(value), f"QOS {qos.name}: {most} {word} {what}", True, _is(key, most)


def _launch(target: Target, facts: SlurmFacts) -> Iterator[_Found]:
    if facts.pmi is not None and target.pmi is not None and target.pmi not in facts.pmi:
        yield "pmi", target.pmi, f"srun --mpi=list has {', '.join(facts.pmi)}", True, _pmi(facts)
    if target.launcher == "srun" and target.pmi is None and facts.config is not None:
        default = parse_mpi_default(facts.config)
        if default is None:
            have = [name for name in facts.pmi or () if name in _PMIS]
            said = "MpiDefault=none: srun starts N runs of one rank; " + (
                f"name one of {', '.join(have)}" if have else 'use launcher = "mpiexec"'
            )
            yield "pmi", "-", said, True, _pmi(facts)
    known = facts.reservations
    if target.reservation is not None and known is not None and target.reservation not in known:
        said = f"no such reservation; there are: {', '.join(known) or 'none'}"
        yield "reservation", target.reservation, said, True, _one_of("reservation", target.reservation, known)


def _pmi(facts: SlurmFacts) -> str:
    """A likely line; which of several is right depends on the MPI, and `site probe` finds out."""
    have = [name for name in _PMIS if name in (facts.pmi or ())]
    if not have:
        return _is("launcher", "mpiexec")
    return _is("pmi", have[0]) + ("" if len(have) == 1 else "; which is right, hpcmass site probe finds out")
