"""Allocations read from Slurm's variables, and the words of srun and mpiexec over their nodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.config import Layout, Target
from hpcmass.errors import LaunchError
from hpcmass.launch import Allocation, LaunchPlan, MpiFlavour, plan_ranks, read_allocation
from hpcmass.launch.allocation import expand_counts, expand_nodes, share_out
from hpcmass.launch.plan import keeper

OPENMPI = MpiFlavour("/opt/mpi/bin/mpiexec", "openmpi", "5.0.11")
MPICH = MpiFlavour("/opt/mpich/bin/mpiexec", "mpich", "5.0.2")
JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "cn[1-2]", "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "2", "SLURMD_NODENAME": "cn1", "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS_PER_NODE": "2", "SLURM_MEM_PER_CPU": "100",
    "SLURM_EXPORT_ENV": "NONE", "SLURM_PROCID": "0", "SLURM_CPU_BIND": "quiet", "PATH": "/bin",
}  # fmt: skip
COMMON = ["--export=ALL", "--kill-on-bad-exit=1", "--wait=0", "--input=none"]


def planned(
    ranks: int = 4, layout: Layout | None = None, env: dict[str, str] | None = None, **keys: Any
) -> LaunchPlan:
    env = {**JOB, **(env or {})}
    layout = layout or Layout(2, 4, 2, 2, 0, None, 600)
    target = Target(kind="slurm", cores=4, **{key: keys.pop(key) for key in ("pmi", "launcher") if key in keys})
    found = read_allocation(env)
    return plan_ranks(
        keys.pop("command", ["python", "x.py"]), ranks, target, threads_per_rank=None, cores=1,
        mpiexec=keys.pop("mpiexec", OPENMPI), env=env, layout=layout, allocation=found, **keys,
    )  # fmt: skip


def test_what_a_batch_script_was_given() -> None:
    assert read_allocation(JOB) == Allocation(
        ("cn1", "cn2"), "7", "cn1", cpus=(4, 4), gpus=0, tasks=4, cpus_per_task=2
    )
    assert read_allocation({**JOB, "SLURM_STEP_ID": "0"}) is None
    assert read_allocation({}) is None


def test_a_heterogeneous_job_is_all_its_groups() -> None:
    env = {
        "SLURM_JOB_ID": "7", "SLURM_HET_SIZE": "2", "SLURM_JOB_NODELIST_HET_GROUP_0": "cn1",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "gn[1-2]", "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "2",
        "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "8(x2)", "SLURM_NTASKS": "2", "SLURMD_NODENAME": "cn1",
    }  # fmt: skip
    found = read_allocation(env)
    assert found is not None
    assert (found.nodes, found.cpus, found.tasks) == (("cn1", "gn1", "gn2"), (2, 8, 8), None)
    assert found.groups == (("cn1",), ("gn1", "gn2"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cn[1-2,05],gn1", ["cn1", "cn2", "cn05", "gn1"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a-b.c", ["a-b.c"]),
        ("", []),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert list(expand_nodes(text)) == names


@pytest.mark.parametrize("text", ["cn[", "cn]", "cn[a-b]", "cn[1-]", "cn[1-9999999]"])
def test_what_is_no_list_of_nodes(text: str) -> None:
    with pytest.raises(LaunchError):
        expand_nodes(text)


def test_counts() -> None:
    assert expand_counts("4(x2),1") == (4, 4, 1)
    assert expand_counts("4,x") == expand_counts("") == ()


@pytest.mark.parametrize(
    ("ranks", "room", "counts"),
    [
        (4, [9, 9, 9], (2, 1, 1)),
        (6, [6] * 5, (2, 1, 1, 1, 1)),
        (5, [4, 1], (4, 1)),
        (6, [8, 4], (3, 3)),
        (0, [1], (0,)),
    ],
)
def test_ranks_are_shared_out_as_slurm_does(ranks: int, room: list[int], counts: tuple[int, ...]) -> None:
    assert share_out(ranks, room) == counts


@given(st.integers(0, 60), st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_no_node_gets_more_than_it_has_room_for(ranks: int, room: list[int]) -> None:
    if sum(room) < ranks:
        with pytest.raises(LaunchError, match="room for"):
            share_out(ranks, room)
        return
    counts = share_out(ranks, room)
    assert sum(counts) == ranks
    assert all(count <= most for count, most in zip(counts, room, strict=True))


@pytest.mark.parametrize(
    ("keys", "pmi"),
    [
        ({"pmi": "pmix"}, "pmix"),
        ({"pmi": "pmi2"}, "pmi2"),
        ({"pmi": "cray_shasta"}, "cray_shasta"),
        ({"launcher": "spawn"}, "none"),
    ],
)
def test_srun(keys: dict[str, str], pmi: str) -> None:
    made = planned(**keys)
    words = ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2", f"--mpi={pmi}", "--cpus-per-task=2", *COMMON]
    assert made.argv == ["srun", *words, *keeper(), "python", "x.py"]
    assert (made.launcher, made.nodes, made.host) == ("srun", ("cn1", "cn2"), "cn1")


def test_srun_on_some_of_the_nodes() -> None:
    made = planned(
        ranks=3, layout=Layout(2, 3, 2, 1, 0, None, 600), env={"SLURM_JOB_NODELIST": "cn[1-3]"}, pmi="pmix"
    )
    assert made.argv[1:4] == ["--nodes=2", "--ntasks=3", "--nodelist=cn1,cn2"]


def test_mpiexec_of_openmpi() -> None:
    made = planned(launcher="mpiexec")
    placed = ["--host", "cn1:2,cn2:2", "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    assert made.argv == [OPENMPI.path, "-n", "4", *placed, *keeper(), "python", "x.py"]
    assert made.env["PRTE_MCA_prte_launch_agent"].endswith("child.py shield /opt/mpi/bin/prted")


def test_mpiexec_of_mpich_on_unequal_nodes() -> None:
    layout = Layout(2, 5, 4, 1, 0, None, 600)
    made = planned(5, layout, {"SLURM_JOB_CPUS_PER_NODE": "4,1"}, launcher="mpiexec", mpiexec=MPICH)
    assert made.argv[:8] == [
        MPICH.path, "-n", "5", "-launcher", "slurm", "-hosts", "cn1:4,cn2:1", "-bind-to",
    ]  # fmt: skip


def test_options_of_sbatch_do_not_reach_srun_nor_the_step_above() -> None:
    env = planned(pmi="pmix").env
    kept = {name for name in env if name.startswith("SLURM_")}
    assert kept == {
        "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE", "SLURM_NNODES", "SLURM_TASKS_PER_NODE",
    }  # fmt: skip
    assert env["OMP_NUM_THREADS"] == "2"
    assert env["HPCMASS_PATIENT"] == "1"


@pytest.mark.parametrize(
    "keys", [{"pmi": "pmix"}, {"launcher": "mpiexec"}, {"launcher": "mpiexec", "mpiexec": MPICH}]
)
def test_a_colon_among_the_words_does_not_end_the_command(keys: dict[str, Any]) -> None:
    """srun and mpiexec would begin another program there."""
    made = planned(command=["python", "x.py", ":", "é"], **keys)
    assert made.argv[-2:] == ["rank-json", '["python", "x.py", ":", "\\u00e9"]']
    assert ":" not in made.argv


def test_an_allocation_too_small() -> None:
    with pytest.raises(LaunchError, match=r"6 ranks need 3 nodes, but the Slurm job 7 has 2"):
        planned(6, Layout(3, 6, 2, 1, 0, None, 600))
