"""What scontrol and sacctmgr tell of nodes, partitions, QOS and the configuration. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcmass.slurm.commands import QOS_FIELDS
from hpcmass.slurm.values import NOTHING, expand_nodes, parse_clock, parse_gres, parse_tres


@dataclass(frozen=True)
class NodeInfo:
    """One node as the controller sees it.

    Attributes:
        state: `IDLE`, `MIXED`, `ALLOCATED`, `DOWN` …: Slurm's base state.
        flags: What Slurm adds to it: `DRAIN`, `RESERVED`, `NOT_RESPONDING`, `PLANNED` …
        memory_mb: In MiB, as Slurm counts.
        gres: Name, type (or empty) and count.
        reason: Why an operator or Slurm took it out, or empty.
    """

    name: str
    partitions: tuple[str, ...] = ()
    state: str = "UNKNOWN"
    flags: tuple[str, ...] = ()
    cpus: int = 0
    memory_mb: int = 0
    sockets: int | None = None
    cores_per_socket: int | None = None
    threads_per_core: int | None = None
    gres: tuple[tuple[str, str, int], ...] = ()
    features: tuple[str, ...] = ()
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether jobs can run on it, now or when those before them have ended."""
        # A node that Slurm has powered down to save power is started for the job that gets it.
        gone = {"DRAIN", "NOT_RESPONDING", "FAIL", "MAINTENANCE", "MAINT", "REBOOT_ISSUED"}
        return self.state in {"IDLE", "MIXED", "ALLOCATED", "ALLOC"} and not gone & set(self.flags)

    @property
    def idle(self) -> bool:
        """Whether it could take a job for the whole node now."""
        return (
            self.usable and self.state == "IDLE" and not {"RESERVED", "PLANNED", "COMPLETING"} & set(self.flags)
        )

    def gres_count(self, name: str) -> int:
        """How many of a generic resource it has, over all types."""
        return sum(count for kind, _, count in self.gres if kind == name)


@dataclass(frozen=True)
class PartitionInfo:
    """One partition. Limits are None where there is none.

    Attributes:
        up: Whether it takes and starts jobs (`State=UP`); `state` has Slurm's word.
        accounts, qos_allowed: Those that may use it; None: all.
        exclusive: Whether jobs get whole nodes (`OverSubscribe=EXCLUSIVE`).
        qos: The partition's own QOS, whose limits hold for all its jobs, or empty.
        max_time_s, default_time_s: Seconds.
    """

    name: str
    default: bool = False
    state: str = "UP"
    nodes: tuple[str, ...] = ()
    min_nodes: int = 0
    max_nodes: int | None = None
    max_time_s: int | None = None
    default_time_s: int | None = None
    max_cpus_per_node: int | None = None
    max_memory_per_node_mb: int | None = None
    accounts: tuple[str, ...] | None = None
    denied_accounts: tuple[str, ...] = ()
    qos_allowed: tuple[str, ...] | None = None
    qos: str = ""
    priority_tier: int = 0
    preempt_mode: str = "OFF"
    exclusive: bool = False
    root_only: bool = False

    @property
    def up(self) -> bool:
        """Whether it takes and starts jobs."""
        return self.state == "UP"


@dataclass(frozen=True)
class QosInfo:
    """One QOS. Limits are None, or empty, where there is none.

    Attributes:
        max_wall_s: The longest wall time of a job, in seconds.
        max_per_job, max_per_user, max_of_all: Pairs such as `("node", 4)`, `("gres/gpu", 8)`.
        max_jobs_per_user, max_submit_per_user: Running, and running or pending.
        preempts: Names of the QOS whose jobs it may end.
    """

    name: str
    priority: int = 0
    max_wall_s: int | None = None
    max_per_job: tuple[tuple[str, int], ...] = ()
    max_per_user: tuple[tuple[str, int], ...] = ()
    max_of_all: tuple[tuple[str, int], ...] = ()
    max_jobs_per_user: int | None = None
    max_submit_per_user: int | None = None
    preempts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def parse_oneline(line: str) -> dict[str, str]:
    """The `Key=value` pairs of a line of `scontrol --oneliner`; a value may hold spaces."""
    keys = list(re.finditer(r"(?:^|\s)([A-Za-z][A-Za-z_:/]*)=", line))
    ends = [key.start() for key in keys[1:]] + [len(line)]
    found: dict[str, str] = {}
    for key, end in zip(keys, ends, strict=True):
        found.setdefault(key[1], line[key.end() : end].strip())
    return found


def parse_nodes(text: str) -> list[NodeInfo]:
    """The nodes of `commands.show_nodes`."""
    found = []
    for line in text.splitlines():
        field = parse_oneline(line)
        if "NodeName" not in field:
            continue
        state, *flags = field.get("State", "UNKNOWN").split("+")
        marks = {
            "*": "NOT_RESPONDING",
            "~": "POWERED_DOWN",
            "#": "POWERING_UP",
            "$": "MAINTENANCE",
            "-": "PLANNED",
        }
        for mark, flag in marks.items():
            flags += [flag] if mark in field.get("State", "") else []
        found.append(
            NodeInfo(
                name=field["NodeName"],
                partitions=_list(field.get("Partitions", "")),
                state=state.rstrip("".join(marks) + "@^%!"),
                flags=tuple(flag.rstrip("".join(marks) + "@^%!") for flag in flags),
                cpus=_int(field.get("CPUEfctv")) or _int(field.get("CPUTot")) or 0,
                memory_mb=_int(field.get("RealMemory")) or 0,
                sockets=_int(field.get("Sockets")),
                cores_per_socket=_int(field.get("CoresPerSocket")),
                threads_per_core=_int(field.get("ThreadsPerCore")),
                gres=parse_gres(field.get("Gres", "")),
                features=_list(field.get("ActiveFeatures", "")),
                reason=field.get("Reason", ""),
            )
        )
    return found


def parse_partitions(text: str) -> list[PartitionInfo]:
    """The partitions of `commands.show_partitions`."""
    found = []
    for line in text.splitlines():
        field = parse_oneline(line)
        if "PartitionName" not in field:
            continue
        found.append(
            PartitionInfo(
                name=field["PartitionName"],
                default=field.get("Default") == "YES",
                state=field.get("State", "UP"),
                nodes=expand_nodes(field.get("Nodes", "")),
                min_nodes=_int(field.get("MinNodes")) or 0,
                max_nodes=_int(field.get("MaxNodes")),
                max_time_s=parse_clock(field.get("MaxTime", "")),
                default_time_s=parse_clock(field.get("DefaultTime", "")),
                max_cpus_per_node=_int(field.get("MaxCPUsPerNode")),
                max_memory_per_node_mb=_int(field.get("MaxMemPerNode")),
                accounts=_allowed(field.get("AllowAccounts")),
                denied_accounts=_list(field.get("DenyAccounts", "")),
                qos_allowed=_allowed(field.get("AllowQos")),
                qos="" if field.get("QoS", "N/A") == "N/A" else field["QoS"],
                priority_tier=_int(field.get("PriorityTier")) or 0,
                preempt_mode=field.get("PreemptMode", "OFF"),
                exclusive=field.get("OverSubscribe", "").startswith("EXCLUSIVE"),
                root_only=field.get("RootOnly") == "YES",
            )
        )
    return found


def parse_config(text: str) -> dict[str, str]:
    """`scontrol show config` as names and values; `(null)` is empty."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() and " " not in name.strip():
            found[name.strip()] = "" if value.strip() == "(null)" else value.strip()
    return found


def parse_qos(text: str) -> list[QosInfo]:
    """The QOS of `commands.show_qos`."""
    found = []
    for line in text.splitlines():
        values = line.split("|")
        if len(values) != len(QOS_FIELDS) or not values[0]:
            continue
        field = dict(zip(QOS_FIELDS, values, strict=True))
        found.append(
            QosInfo(
                name=field["Name"],
                priority=_int(field["Priority"]) or 0,
                max_wall_s=parse_clock(field["MaxWall"]),
                max_per_job=parse_tres(field["MaxTRES"]),
                max_per_user=parse_tres(field["MaxTRESPU"]),
                max_of_all=parse_tres(field["GrpTRES"]),
                max_jobs_per_user=_int(field["MaxJobsPU"]),
                max_submit_per_user=_int(field["MaxSubmitJobsPU"]),
                preempts=_list(field["Preempt"]),
                flags=_list(field["Flags"]),
            )
        )
    return found


def _list(text: str) -> tuple[str, ...]:
    return () if text in NOTHING else tuple(part for part in text.split(",") if part)


def _allowed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None or text == "ALL" else _list(text)


def _int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
