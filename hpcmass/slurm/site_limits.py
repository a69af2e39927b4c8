"""The limits of partitions, QOS and accounts, held against a target. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hpcmass.config import Target, parse_duration, slurm_time
from hpcmass.slurm.parse import PartitionInfo, QosInfo
from hpcmass.slurm.site_facts import SlurmFacts
from hpcmass.slurm.site_finding import Found, line, one_of


def times(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[Found]:
    """Wall times of a target above those that Slurm allows."""
    limits: list[tuple[int, str]] = []
    deciding = _deciding(target, partition, facts)
    own = _qos(facts, qos_name(target, partition, facts))
    lifted = own is not None and "PartitionTimeLimit" in own.flags
    if partition is not None and partition.max_time_s is not None and not lifted:
        limits.append((partition.max_time_s, f"MaxTime={slurm_time(partition.max_time_s)} of {partition.name}"))
    walls = [(qos.max_wall_s, qos.name) for qos in deciding if qos.max_wall_s is not None]
    if walls and _limited(facts):
        seconds, name = walls[0]
        limits.append((seconds, f"MaxWall={slurm_time(seconds)} of QOS {name}"))
    if not limits:
        return
    most, said = min(limits)
    for key, text in (("max_time", target.max_time), ("default_time", target.default_time)):
        if text is not None and parse_duration(text) > most:
            yield key, text, said, True, line(key, slurm_time(most))
    if target.max_time is None:
        said = f"{said}: a job that asks for more is refused only there"
        yield "max_time", "-", said, False, line("max_time", slurm_time(most))


def qos_name(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> str:
    """The QOS of a job on a target: the one it names, else the default of its account, or empty."""
    if target.qos is not None:
        return target.qos
    account = target.account or facts.default_account
    there = {"", partition.name} if partition is not None else {""}
    mine = [a for a in facts.associations or () if a.account == account and a.partition in there]
    # What is said of one partition goes before what is said of all.
    return max(mine, key=lambda a: len(a.partition)).default_qos if mine else ""


def _deciding(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> list[QosInfo]:
    """The QOS of a job and of its partition; of a limit that both have, that of the first one counts."""
    own = _qos(facts, qos_name(target, partition, facts))
    of_partition = _qos(facts, partition.qos) if partition is not None else None
    ordered = [own, of_partition] if own is not None and "OverPartQOS" in own.flags else [of_partition, own]
    return list(dict.fromkeys(qos for qos in ordered if qos is not None))


def _limited(facts: SlurmFacts) -> bool:
    """Whether Slurm holds jobs to the limits of QOS and accounts."""
    enforced = (facts.config or {}).get("AccountingStorageEnforce", "none").split(",")
    return bool({"limits", "safe", "all"} & set(enforced))


def _qos(facts: SlurmFacts, name: str) -> QosInfo | None:
    return next((qos for qos in facts.qos or () if qos.name == name), None)


def accounting(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[Found]:
    """Account and QOS of a target, and the QOS's counts."""
    if facts.qos is not None:
        yield from _qos_limits(target, partition, facts)
    if partition is not None and target.account is not None:
        if partition.accounts is not None and target.account not in partition.accounts:
            write = one_of("account", target.account, partition.accounts)
            yield "account", target.account, f"AllowAccounts={','.join(partition.accounts)}", True, write
        elif target.account in partition.denied_accounts:
            said = f"DenyAccounts={','.join(partition.denied_accounts)}"
            yield "account", target.account, said, True, "another account"
    enforced = (facts.config or {}).get("AccountingStorageEnforce", "none") not in ("", "none")
    mine = facts.associations
    if not mine:
        return
    accounts = sorted({association.account for association in mine})
    write = one_of("account", target.account, accounts)
    if target.account is not None and target.account not in accounts:
        yield "account", target.account, f"your accounts: {', '.join(accounts)}", enforced, write
    elif target.account is None and enforced and not facts.default_account:
        yield "account", "-", f"you have no default account; yours: {', '.join(accounts)}", True, write
    account = target.account or facts.default_account
    allowed = {q for a in mine if a.account == account for q in a.qos}
    known = facts.qos is None or _qos(facts, target.qos or "") is not None
    if target.qos is not None and known and allowed and target.qos not in allowed:
        said = f"with account {account} you may use: {', '.join(sorted(allowed))}"
        yield "qos", target.qos, said, enforced, one_of("qos", target.qos, sorted(allowed))


def _qos_limits(target: Target, partition: PartitionInfo | None, facts: SlurmFacts) -> Iterator[Found]:
    name = qos_name(target, partition, facts)
    known = [qos.name for qos in facts.qos or ()]
    if target.qos is not None and target.qos not in known:
        said = f"no such QOS; there are: {', '.join(known)}"
        yield "qos", target.qos, said, True, one_of("qos", target.qos, known)
        return
    allowed = partition.qos_allowed if partition is not None else None
    if partition is not None and allowed is not None and name and name not in allowed:
        said = f"AllowQos={','.join(allowed)} of {partition.name}"
        yield "qos", target.qos or "-", said, True, one_of("qos", target.qos, allowed)
    if not _limited(facts):
        return
    yield from _limits(target, _deciding(target, partition, facts))


def _limits(target: Target, deciding: list[QosInfo]) -> Iterator[Found]:
    """Counts of a target above those of a QOS; a job of one whole node must fit, and one of all nodes too."""
    wanted = (
        ("node", "max_nodes", target.max_nodes or 0, "nodes"),
        ("cpu", "cores", target.cores or 0, "CPUs"),
        ("gres/gpu", "gpus", target.gpus, "GPUs"),
    )
    for what, limits in (
        ("a job", [(qos.name, qos.max_per_job) for qos in deciding]),
        ("a user", [(qos.name, qos.max_per_user) for qos in deciding]),
        ("all", [(qos.name, qos.max_of_all) for qos in deciding]),
    ):
        for kind, key, value, word in wanted:
            counts = [(dict(pairs)[kind], name) for name, pairs in limits if kind in dict(pairs)]
            if counts and value > counts[0][0]:
                most, name = counts[0]
                yield key, str(value), f"QOS {name}: {most} {word} {what}", True, line(key, most)
