"""What a Slurm of a few partitions says, for tests: in the words of `scontrol` of 22.05 and of larger sites."""

from __future__ import annotations

from dataclasses import replace

from hpcmass.slurm.parse import QosInfo, parse_config, parse_nodes, parse_partitions
from hpcmass.slurm.site_facts import Association, SlurmFacts

PARTITIONS = """\
PartitionName=cpu AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A DefaultTime=00:10:00 MaxNodes=2 MaxTime=1-00:00:00 MinNodes=0 Nodes=cn[1-3] PriorityTier=10 OverSubscribe=NO PreemptMode=OFF State=UP TotalCPUs=12 TotalNodes=3
PartitionName=gpu AllowAccounts=proj AllowQos=normal Default=NO QoS=gpuqos DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 Nodes=gn[1-2],big1 PriorityTier=10 OverSubscribe=EXCLUSIVE PreemptMode=OFF State=UP TotalCPUs=24 TotalNodes=3
PartitionName=spare AllowAccounts=ALL AllowQos=ALL Default=NO QoS=N/A DefaultTime=00:10:00 MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 Nodes=cn[1-3] PriorityTier=1 OverSubscribe=NO PreemptMode=CANCEL State=UP TotalCPUs=12 TotalNodes=3
PartitionName=old AllowAccounts=ALL AllowQos=ALL Default=NO QoS=N/A DefaultTime=00:10:00 MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 Nodes=cn[1-3] PriorityTier=10 OverSubscribe=NO PreemptMode=OFF State=DOWN TotalCPUs=12 TotalNodes=3
"""
_CN = "NodeName=cn{} CPUEfctv=4 CPUTot=4 CoresPerSocket=4 Sockets=1 ThreadsPerCore=1 ActiveFeatures=cpu,amd Gres=(null) RealMemory=4000 State=IDLE Partitions=cpu,spare,old\n"
_GN = "NodeName=gn{} CPUEfctv=16 CPUTot=16 CoresPerSocket=8 Sockets=1 ThreadsPerCore=2 ActiveFeatures=gpu,hbm40g Gres=gpu:a100:4(S:0-1) RealMemory=256000 State=MIXED Partitions=gpu\n"
_BIG = "NodeName=big1 CPUEfctv=64 CPUTot=64 CoresPerSocket=32 Sockets=1 ThreadsPerCore=2 ActiveFeatures=gpu,hbm80g Gres=gpu:a100:8 RealMemory=1024000 State=IDLE Partitions=gpu\n"
NODES = "".join(_CN.format(n) for n in (1, 2, 3)) + "".join(_GN.format(n) for n in (1, 2)) + _BIG
CONFIG = """\
Configuration data as of 2026-11-25T04:22:22
AccountingStorageEnforce = associations,limits
ClusterName             = lab
MaxArraySize            = 1001
MpiDefault              = none
PreemptType             = preempt/partition_prio
"""
FACTS = SlurmFacts(
    partitions=tuple(parse_partitions(PARTITIONS)),
    nodes=tuple(parse_nodes(NODES)),
    config=parse_config(CONFIG),
    qos=(
        QosInfo("normal"),
        QosInfo("gpuqos", max_wall_s=7200),
        QosInfo("short", max_wall_s=600, max_per_job=(("node", 1), ("gres/gpu", 2))),
    ),
    pmi=("pmix", "none", "pmi2"),
    associations=(Association("proj", qos=("normal", "short")),),
    default_account="proj",
    reservations=("school",),
)


def without(**changes: object) -> SlurmFacts:
    """The facts with some of them other."""
    return replace(FACTS, **changes)  # type: ignore[arg-type]
