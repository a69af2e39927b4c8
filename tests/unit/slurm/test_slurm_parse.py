"""Slurm's answers, as they were seen on a real one (22.05), read back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.slurm.commands import SEPARATOR, base_ids, query_env, sacct_jobs, squeue_jobs, submit_env
from hpcmass.slurm.jobs import JobState
from hpcmass.slurm.parse import parse_config, parse_nodes, parse_oneline, parse_partitions, parse_qos
from hpcmass.slurm.parse_jobs import (
    expand_array,
    parse_job_id,
    parse_sacct,
    parse_squeue,
    parse_start,
    parse_state,
)
from hpcmass.slurm.values import (
    expand_nodes,
    parse_clock,
    parse_cpu,
    parse_gres,
    parse_size,
    parse_time,
    parse_tres,
)


def squeue_line(job_id: str = "10", state: str = "RUNNING", name: str = "x", **more: str) -> str:
    values = {
        "raw": job_id,
        "base": job_id,
        "reason": "None",
        "submit": "1795580555",
        "start": "1795580556",
        "end": "1795580855",
        "limit": "5:00",
        "partition": "cpu",
        "nodes": "cn[1-2]",
        "comment": "(null)",
        **more,
    }
    first, *rest = values.items()
    raw, base = first[1], dict(rest)["base"]
    keys = ("reason", "submit", "start", "end", "limit", "partition", "nodes", "comment")
    tail = [dict(rest)[key] for key in keys]
    return SEPARATOR.join([job_id, raw, base, state, *tail, name])


def test_squeue_running() -> None:
    [row] = parse_squeue(squeue_line() + "\n")
    info = row.info
    assert (info.job_id, info.state, info.reason, info.nodes) == ("10", JobState.RUNNING, "", ("cn1", "cn2"))
    assert (info.submitted, info.started, info.ends) == (1795580555.0, 1795580556.0, 1795580855.0)
    assert (info.time_limit_s, info.partition, info.comment, info.source) == (300, "cpu", "", "squeue")


def test_a_pending_job_has_a_guess_and_no_end() -> None:
    [row] = parse_squeue(
        squeue_line(state="PENDING", reason="(Nodes required are DOWN, DRAINED)", start="N/A", nodes="")
    )
    assert row.info.started is None
    assert row.info.ends is None
    assert row.info.nodes == ()
    assert row.info.reason == "(Nodes required are DOWN, DRAINED)"


@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_name_or_comment_disturbs_no_other_field(name: str) -> None:
    comment = name.replace(SEPARATOR, "")
    text = squeue_line("7", name=name) + "\n" + squeue_line("8", state="PENDING", comment=comment) + "\n"
    rows = {row.info.job_id: row.info for row in parse_squeue(text)}
    assert rows["7"].state is JobState.RUNNING
    assert rows["7"].name == name.split("\n")[0]
    assert rows["8"].state is JobState.PENDING
    assert rows["8"].name == "x"


def test_arrays_and_heterogeneous_jobs() -> None:
    text = "\n".join(
        [
            squeue_line("2_[0-2,7%2]", "PENDING", raw="2"),
            squeue_line("3_1", raw="5"),
            squeue_line("6+1", raw="7"),
        ]
    )
    rows = parse_squeue(text)
    assert [row.info.job_id for row in rows] == ["2_0", "2_1", "2_2", "2_7", "3_1", "6+1"]
    assert [row.base_id for row in rows] == ["2", "2", "2", "2", "3", "6"]
    assert rows[4].raw_id == "5"
    assert expand_array("9_[0-8:4%1]") == ["9_0", "9_4", "9_8"]
    assert expand_array("9_[0-1,3-...]") == ["9_0", "9_1"]
    assert expand_array("9_4") == ["9_4"]


SACCT = "\n".join(
    SEPARATOR.join(values)
    for values in [
        [
            "10",
            "10",
            "COMPLETED",
            "0:0",
            "1795580555",
            "1795580556",
            "1795580600",
            "5",
            "44",
            "4",
            "01:02:03",
            "",
            "billing=4,cpu=4,gres/gpu=2,mem=1024M,node=2",
            "cpu",
            "cn[1-2]",
            "None",
            "a|b c é",
        ],
        [
            "10.batch",
            "10.batch",
            "COMPLETED",
            "0:0",
            "1795580555",
            "1795580556",
            "1795580600",
            "",
            "44",
            "2",
            "00:00.5",
            "1234K",
            "cpu=2",
            "",
            "cn1",
            "",
            "batch",
        ],
        [
            "10.0",
            "10.0",
            "COMPLETED",
            "0:0",
            "1795580555",
            "1795580556",
            "1795580600",
            "",
            "44",
            "2",
            "00:01.250",
            "2G",
            "cpu=2",
            "",
            "cn[1-2]",
            "",
            "hop",
        ],
        [
            "11",
            "11",
            "CANCELLED by 1000",
            "0:15",
            "1795580555",
            "1795580556",
            "Unknown",
            "UNLIMITED",
            "1",
            "1",
            "00:00:00",
            "",
            "",
            "cpu",
            "None assigned",
            "JobHeldUser",
            "x",
        ],
        [
            "12_3",
            "15",
            "OUT_OF_MEMORY",
            "0:125",
            "1795580555",
            "1795580556",
            "1795580600",
            "5",
            "44",
            "4",
            "1-00:00:00",
            "",
            "",
            "cpu",
            "cn1",
            "None",
            "x\ny",
        ],
        [
            "13",
            "13",
            "RUNNING",
            "0:0",
            "1795580555",
            "1795580556",
            "Unknown",
            "5",
            "44",
            "4",
            "00:00:00",
            "",
            "",
            "cpu",
            "cn1",
            "None",
            "x",
        ],
    ]
)


def test_sacct() -> None:
    rows = {row.info.job_id: row for row in parse_sacct(SACCT)}
    assert list(rows) == ["10", "11", "12_3", "13"]
    done = rows["10"].info
    assert (done.state, done.exit_code, done.signal, done.ends, done.name) == (
        JobState.COMPLETED, 0, None, 1795580600.0, "a|b c é",
    )  # fmt: skip
    assert dict(done.used) == {
        "cpu_s": 3723.0,
        "elapsed_s": 44.0,
        "cpus": 4.0,
        "gpus": 2.0,
        "memory_asked_bytes": 2.0**30,
        "nodes": 2.0,
        "max_rss_bytes": 2.0 * 2**30,
    }
    cancelled = rows["11"].info
    assert (cancelled.state, cancelled.signal, cancelled.nodes) == (JobState.CANCELLED, 15, ())
    assert cancelled.time_limit_s is None
    assert rows["12_3"].raw_id == "15"
    assert rows["12_3"].base_id == "12"
    running = rows["13"].info
    assert (running.ends, running.exit_code) == (None, None)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("COMPLETED", "COMPLETED"),
        ("CANCELLED by 0", "CANCELLED"),
        ("CONFIGURING", "RUNNING"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("REQUEUE_HOLD", "PENDING"),
        ("RUNNING+", "RUNNING"),
        ("", "UNKNOWN"),
        ("SOMETHING_NEW", "UNKNOWN"),
    ],
)
def test_states(text: str, state: str) -> None:
    assert parse_state(text).value == state


def test_single_values() -> None:
    clocks = ["1-02:03:04", "02:03:04", "03:04", "4", "1-02", "1-02:03", "UNLIMITED", "INVALID", "x"]
    seconds = [93784, 7384, 184, 240, 93600, 93780, None, None, None]
    assert [parse_clock(text) for text in clocks] == seconds
    assert [parse_cpu(text) for text in ["00:00.500", "1-00:00:01", "00:00:02", ""]] == [
        0.5,
        86401.0,
        2.0,
        None,
    ]
    assert [parse_time(text) for text in ["1795580555", "N/A", "Unknown", "0", "junk"]] == [
        1795580555.0,
        *[None] * 4,
    ]
    now = int(time.time())
    assert parse_time(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))) == now
    assert [parse_size(text) for text in ["10", "2K", "1.5M", "3G", ""]] == [
        10,
        2048,
        1.5 * 2**20,
        3 * 2**30,
        None,
    ]
    assert parse_tres("cpu=4,mem=4000M,gres/gpu:a100=2") == (("cpu", 4), ("mem", 4000), ("gres/gpu:a100", 2))
    assert parse_gres("gpu:a100:2(S:0-1),fpga:1,nvme:x") == (
        ("gpu", "a100", 2),
        ("fpga", "", 1),
        ("nvme", "x", 1),
    )
    assert parse_gres("gpu:a100:1(IDX:0,1),lustre:no_consume:4K") == (
        ("gpu", "a100", 1),
        ("lustre", "no_consume", 4096),
    )
    assert parse_gres("(null)") == ()
    assert expand_nodes("cn[1-3,07-08],gn1,r[1-2]c[1,3]x") == (
        "cn1", "cn2", "cn3", "cn07", "cn08", "gn1", "r1c1x", "r1c3x", "r2c1x", "r2c3x",
    )  # fmt: skip
    assert expand_nodes("(null)") == ()


NODE = (
    "NodeName=gn1 Arch=x86_64 CoresPerSocket=8  CPUAlloc=2 CPUEfctv=8 CPUTot=8 CPULoad=0.30 "
    "AvailableFeatures=gpu,x "
    "ActiveFeatures=gpu,x Gres=gpu:a100:2 GresDrain=N/A GresUsed=gpu:a100:1(IDX:0) "
    "NodeAddr=10.0.0.14 NodeHostName=gn1 "
    "Version=22.05.8 OS=Linux 6.18.44 #1 SMP @0  RealMemory=8000 AllocMem=512 FreeMem=22098 Sockets=1 Boards=1 "
    "State={state} ThreadsPerCore=2 Partitions=gpu,preempt  BootTime=1795579483 "
    "CfgTRES=cpu=8,mem=8000M,billing=8 "
    "AllocTRES=cpu=2 Reason=disk is broken, see #12 [root@1795579483]"
)


def test_nodes() -> None:
    [node] = parse_nodes(NODE.format(state="MIXED"))
    assert (node.name, node.partitions, node.cpus) == ("gn1", ("gpu", "preempt"), 8)
    assert (node.memory_mb, node.threads_per_core) == (8000, 2)
    assert (node.features, node.gres_count("gpu")) == (("gpu", "x"), 2)
    assert node.usable
    assert not node.idle
    assert node.reason == "disk is broken, see #12 [root@1795579483]"


@pytest.mark.parametrize(
    ("state", "base", "usable", "idle"),
    [
        ("IDLE", "IDLE", True, True),
        ("IDLE+DRAIN", "IDLE", False, False),
        ("DOWN*", "DOWN", False, False),
        ("IDLE*", "IDLE", False, False),
        ("MIXED+COMPLETING", "MIXED", True, False),
        ("IDLE+PLANNED", "IDLE", True, False),
        ("IDLE+CLOUD+POWERED_DOWN", "IDLE", True, True),
        ("IDLE+DRAIN+NOT_RESPONDING", "IDLE", False, False),
    ],
)
def test_node_states(state: str, base: str, usable: bool, idle: bool) -> None:
    [node] = parse_nodes(NODE.format(state=state))
    assert (node.state, node.usable, node.idle) == (base, usable, idle)


def test_partitions_config_qos() -> None:
    line = (
        "PartitionName=gpu AllowGroups=ALL AllowAccounts=a,b AllowQos=ALL DenyAccounts=x "
        "Default=YES QoS=gpu_q "
        "DefaultTime=00:10:00 GraceTime=30 Hidden=NO MaxNodes=4 MaxTime=2-00:00:00 "
        "MinNodes=1 MaxCPUsPerNode=UNLIMITED "
        "Nodes=gn[1-2] PriorityTier=10 RootOnly=NO OverSubscribe=EXCLUSIVE "
        "PreemptMode=OFF State=UP TotalCPUs=16 "
        "TotalNodes=2 DefMemPerNode=UNLIMITED MaxMemPerNode=8000 TRES=cpu=16,mem=16000M"
    )
    [part] = parse_partitions(line + "\n")
    assert (part.name, part.default, part.up, part.exclusive, part.qos) == ("gpu", True, True, True, "gpu_q")
    assert (part.max_nodes, part.max_time_s, part.default_time_s) == (4, 172800, 600)
    assert (part.accounts, part.qos_allowed, part.denied_accounts) == (("a", "b"), None, ("x",))
    assert (part.max_cpus_per_node, part.max_memory_per_node_mb) == (None, 8000)
    assert not parse_partitions(line.replace("State=UP", "State=DRAIN"))[0].up
    config = "Configuration data\nMaxArraySize  = 5001\nMailProg = (null)\n\nSlurmctld(primary) at x is UP\n"
    assert parse_config(config) == {"MaxArraySize": "5001", "MailProg": ""}
    [qos] = parse_qos("short|10|02:00:00|node=4|gres/gpu=8|5|20|cpu=100|low|DenyOnLimit,NoReserve\n")
    assert (qos.name, qos.priority, qos.max_wall_s, qos.max_jobs_per_user) == ("short", 10, 7200, 5)
    assert (qos.max_per_job, qos.max_per_user, qos.max_of_all) == (
        (("node", 4),),
        (("gres/gpu", 8),),
        (("cpu", 100),),
    )
    assert (qos.preempts, qos.flags) == (("low",), ("DenyOnLimit", "NoReserve"))
    assert parse_oneline("A=1 Reason=a b=c d E=2")["E"] == "2"


def test_answers_of_sbatch() -> None:
    assert (
        parse_start("sbatch: Job 11 to start at 1795580556 using 1 processors on nodes cn1 in partition cpu")
        == 1795580556
    )
    assert parse_start("allocation failure: no") is None
    assert parse_job_id("123\n") == "123"
    assert parse_job_id("123;cluster\n") == "123"
    assert parse_job_id("welcome to mars\n  123\n") == "123"
    assert parse_job_id("Submitted batch job 77 on cluster x") == "77"
    assert parse_job_id("done") is None


def test_ten_thousand_ids_fit_a_command_line() -> None:
    ids = [str(n) for n in range(1_000_000, 1_050_000)]
    for argv in (squeue_jobs(ids, uid=7), sacct_jobs(ids)):
        assert max(map(len, argv)) < 128 * 1024  # the kernel's limit of one word
    assert squeue_jobs(ids, uid=7)[5:7] == ["--user", "7"]
    assert (
        ",".join(a for a, b in zip(sacct_jobs(ids)[1:], sacct_jobs(ids), strict=False) if b == "--jobs").split(
            ","
        )
        == ids
    )
    assert squeue_jobs([f"9_{n}" for n in range(5000)], uid=7)[5:7] == ["--jobs", "9"]
    assert base_ids(["9_1", "9_[2-3]", "7+1", "9.batch"]) == ["9", "7"]


def test_the_environment_of_commands() -> None:
    env = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/x",
        "SLURM_JOB_ID": "7",
        "SQUEUE_USERS": "me",
        "SBATCH_PARTITION": "p",
        "PMIX_RANK": "0",
        "SLURM_MEM_PER_CPU": "1",
        "HOME": "/h",
    }
    assert submit_env(env) == {"PATH": "/bin", "SLURM_CONF": "/etc/x", "HOME": "/h"}
    asked = query_env(env)
    assert asked["SLURM_TIME_FORMAT"] == "%s"
    assert "SQUEUE_USERS" not in asked
    assert asked["SLURM_JOB_ID"] == "7"
