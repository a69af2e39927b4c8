"""The text of the cluster's files. Pure: settings in, text out.

Three points make slurmd run in a container, without systemd, cgroups or root: processes are tracked by
`linuxproc`, tasks are not bound, and the cgroup plugin is one that does nothing until asked.
"""

from __future__ import annotations

from hpcmass.devcluster.nodes import NODES, PARTITIONS, Node, Partition
from hpcmass.devcluster.settings import Settings

ACCOUNT = "dev"
# Jobs start within a second; a requeued one is looked at again at once.
_SCHEDULER = (
    "batch_sched_delay=0,sched_min_interval=1000,sched_interval=1,bf_interval=1,bf_continue,"
    "default_queue_depth=1000,partition_job_depth=1000"
)


def slurm_conf(s: Settings) -> str:
    """slurm.conf: daemons, scheduling, accounting, nodes, partitions."""
    return "\n".join(
        [
            "# Written by `hpcmass slurm up`; each `up` writes it anew.",
            *_daemons(s),
            *_jobs(s),
            *_accounting(s),
            *(_node(s, index, node) for index, node in enumerate(NODES)),
            *(_partition(s, partition) for partition in PARTITIONS),
            "",
        ]
    )


def _daemons(s: Settings) -> list[str]:
    folder = s.folder
    return [
        "ClusterName=devcluster",
        f"SlurmctldHost={s.host}({s.controller_address})",
        f"SlurmctldPort={s.controller_port}",
        f"SlurmUser={s.user}",
        f"SlurmdUser={s.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # A requeued job waits until its old credential is out of date.
        f"AuthInfo=socket={s.munge_socket},cred_expire=5",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        # Where PMIx puts a step's sockets: one folder a node, for /tmp is that of all nodes.
        f"TmpFS={folder}/tmp/%n",
        f"TaskProlog={folder}/etc/task-prolog",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        *([f"PluginDir={s.plugins}"] if s.plugins else []),
        f"PlugStackConfig={folder}/etc/plugstack.conf",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "ReturnToService=2",
        "SlurmctldTimeout=10",
        f"SlurmdTimeout={s.slurmd_timeout_s}",
        "BatchStartTimeout=60",
        "InactiveLimit=0",
        "PropagateResourceLimits=NONE",
        # Nodes have the cores and the memory that stand here, whatever the machine has.
        "SlurmdParameters=config_overrides",
    ]


def _jobs(s: Settings) -> list[str]:
    return [
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=256",
        "GresTypes=gpu,fpga",
        "MaxArraySize=5001",
        "MinJobAge=300",
        "JobRequeue=1",
        "KillWait=2",
        "KillOnBadExit=1",
        "WaitTime=0",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "SlurmctldParameters=preempt_send_user_signal",
        "PriorityType=priority/basic",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={_SCHEDULER}",
    ]


def _accounting(s: Settings) -> list[str]:
    if not s.accounting:
        return ["JobAcctGatherType=jobacct_gather/none", "AccountingStorageType=accounting_storage/none"]
    return [
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=5",
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={s.controller_address}",
        f"AccountingStoragePort={s.accounting_port}",
        f"AccountingStoragePass={s.munge_socket}",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStorageTRES=gres/gpu,gres/fpga",
    ]


def _node(s: Settings, index: int, node: Node) -> str:
    words = [
        f"NodeName={node.name}",
        f"NodeHostname={node.name if s.network else s.host}",
        f"NodeAddr={s.node_address(index)}",
        f"Port={s.node_port(index)}",
        f"CPUs={node.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={node.cpus} ThreadsPerCore=1",
        f"RealMemory={node.memory_mb}",
        f"Feature={node.gres[0][0] if node.gres else 'cpu'}",
    ]
    return " ".join([*words, *([f"Gres={node.gres_text}"] if node.gres else [])])


def _partition(s: Settings, p: Partition) -> str:
    words = [
        f"PartitionName={p.name} Nodes={','.join(p.nodes)} Default={'YES' if p.default else 'NO'}",
        f"MaxTime=INFINITE DefaultTime=10 PriorityTier={p.tier}",
        f"PreemptMode=REQUEUE GraceTime={s.grace_s}" if p.preemptible else "PreemptMode=OFF",
    ]
    return " ".join(words)


def task_prolog(s: Settings) -> str:
    """Gives each node a TMPDIR of its own.

    /tmp is that of all nodes, and of all clusters on this machine, and process ids are those of a node where it
    has a namespace of its own: Open MPI's daemons, which call their folders by them, would meet.
    """
    return f'#!/bin/sh\necho "export TMPDIR={s.folder}/tmp/$SLURMD_NODENAME"\n'


def gres_conf(s: Settings) -> str:
    """gres.conf. Slurm wants device files; links to /dev/null serve (`device_files`)."""
    lines = []
    for node in NODES:
        for name, kind, count in node.gres:
            last = f"[0-{count - 1}]" if count > 1 else "0"
            words = [f"NodeName={node.name} Name={name}", *([f"Type={kind}"] if kind else [])]
            lines.append(" ".join([*words, f"File={s.folder}/dev/{name}{last}"]))
    return "\n".join([*lines, ""])


def device_files() -> list[str]:
    """Names of the device files that `gres_conf` speaks of."""
    return sorted({f"{name}{i}" for node in NODES for name, _, count in node.gres for i in range(count)})


def cgroup_conf(s: Settings) -> str:
    """cgroup.conf: no cgroups at all. Plugin v1 does nothing until asked; v2 needs systemd."""
    if s.version >= (23, 11):
        return "CgroupPlugin=disabled\n"
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def slurmdbd_conf(s: Settings, password: str) -> str:
    """slurmdbd.conf; it holds the database's password, so nobody else may read it."""
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo={s.munge_socket}",
            f"DbdHost={s.host}",
            f"DbdAddr={s.controller_address}",
            f"DbdPort={s.accounting_port}",
            f"SlurmUser={s.user}",
            *([f"PluginDir={s.plugins}"] if s.plugins else []),
            "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1",
            f"StoragePort={s.database_port}",
            "StorageUser=slurm",
            f"StoragePass={password}",
            "StorageLoc=slurm_acct_db",
            f"PidFile={s.folder}/run/slurmdbd.pid",
            f"LogFile={s.folder}/log/slurmdbd.log",
            "CommitDelay=1",
            "",
        ]
    )


def hosts(s: Settings, present: str) -> str:
    """/etc/hosts of the nodes: the machine's own, and each node by name.

    The machine's name is taken out of its own lines, which say 127.0.0.1: to a node it is another host.
    """
    kept = []
    for line in present.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        others = [name for name in names if name.split(".")[0] != s.host]
        if others:
            kept.append(" ".join([address, *others]))
    nodes = [f"{s.node_address(index)} {node.name}" for index, node in enumerate(NODES)]
    return "\n".join([*kept, f"{s.controller_address} {s.host}", *nodes, ""])


def resolv_conf() -> str:
    """/etc/resolv.conf of the nodes, whose namespace reaches no name server.

    A closed port answers at once; otherwise each look-up of an address (torch makes some) waits 10 s.
    """
    return "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def site_toml() -> str:
    """The cluster as a site file of hpcmass: one target a partition."""
    return SITE


SITE = """\
# The development cluster that `hpcmass slurm up` starts on this machine: a real Slurm of six small nodes.
name = "devcluster"
default_target = "cpu"
max_array_size = 5001

[targets.cpu]          # cn1 … cn3
kind = "slurm"
partition = "cpu"
cores = 4
memory_gb = 4.0
max_nodes = 3
default_time = "10m"
launcher = "mpiexec"
price_per_node_hour = 1.0

[targets.gpu]          # gn1, gn2: two GRES gpu each (there is no GPU behind them)
kind = "slurm"
partition = "gpu"
cores = 8
memory_gb = 8.0
gpus = 2
max_nodes = 2
default_time = "10m"
launcher = "mpiexec"
price_per_node_hour = 4.0

[targets.fpga]         # fn1: one GRES fpga
kind = "slurm"
partition = "fpga"
cores = 4
memory_gb = 4.0
gres = { fpga = 1 }
max_nodes = 1
default_time = "10m"
launcher = "mpiexec"

[targets.preempt]      # the nodes of cpu and gpu, given up when those partitions want them
kind = "slurm"
partition = "preempt"
cores = 4
memory_gb = 4.0
max_nodes = 5
default_time = "10m"
launcher = "mpiexec"
preemptible = true
price_per_node_hour = 0.5
"""
