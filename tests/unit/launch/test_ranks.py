"""Rank detection from the environments that real launchers leave."""

import pytest

from hpcmass.errors import LaunchError
from hpcmass.launch import RankEnv, describe, detect_ranks, promised_ranks, start_id
from hpcmass.launch.ranks import gpu_share

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "prterun-node-6222@1",
}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_FD": "9", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SLURM_STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
SLURM_BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, RankEnv(0, 1, 0, 1, "none")),
        (OPENMPI, RankEnv(1, 4, 1, 2, "openmpi")),
        (MPICH, RankEnv(2, 4, 0, 2, "pmi")),
        (SLURM_STEP, RankEnv(3, 5, 1, 2, "slurm", 1, 3)),
        (TORCHRUN, RankEnv(1, 2, 1, 2, "torchrun")),
        ({"HPCMASS_RANK": "0", "HPCMASS_SIZE": "2"}, RankEnv(0, 2, 0, 2, "hpcmass")),
        ({**SLURM_STEP, "PMIX_RANK": "3"}, RankEnv(3, 5, 1, 2, "pmix", 1, 3)),
        ({**SLURM_STEP, "PMI_RANK": "3", "PMI_SIZE": "5"}, RankEnv(3, 5, 1, 2, "pmi", 1, 3)),
        # The nearest launcher counts.
        ({**SLURM_STEP, **OPENMPI}, RankEnv(1, 4, 1, 2, "openmpi")),
        ({**SLURM_STEP, **TORCHRUN}, RankEnv(1, 2, 1, 2, "torchrun")),
        # A batch script is not a rank, whatever step number it carries.
        (SLURM_BATCH, RankEnv(0, 1, 0, 1, "none")),
        ({**SLURM_BATCH, "SLURM_STEP_ID": "4294967291"}, RankEnv(0, 1, 0, 1, "none")),
        ({**SLURM_BATCH, "SLURM_STEP_ID": "batch"}, RankEnv(0, 1, 0, 1, "none")),
        # Half of a pair says nothing.
        ({"RANK": "1"}, RankEnv(0, 1, 0, 1, "none")),
        ({"HPCMASS_RANKS": "4"}, RankEnv(0, 1, 0, 1, "none")),
    ],
)
def test_detect(env: dict[str, str], expected: RankEnv) -> None:
    assert detect_ranks(env) == expected


@pytest.mark.parametrize(
    ("env", "promised"),
    [({}, None), (SLURM_BATCH, None), (OPENMPI, 4), (SLURM_STEP, 5), ({**OPENMPI, "HPCMASS_RANKS": "8"}, 8)],
)
def test_promised(env: dict[str, str], promised: int | None) -> None:
    assert promised_ranks(env) == promised


@pytest.mark.parametrize(
    "env",
    [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}],
)
def test_nonsense_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(LaunchError):
        detect_ranks(env)


@pytest.mark.parametrize("value", ["0", "two", ""])
def test_promise_must_be_a_number(value: str) -> None:
    with pytest.raises(LaunchError, match="HPCMASS_RANKS"):
        promised_ranks({"HPCMASS_RANKS": value})


# As Slurm sets them where gres.conf has no AutoDetect, whoever made the GPUs.
ALL = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"), "4,5,6,7")


def seen_by_hip(env: dict[str, str]) -> list[str]:
    """The node's GPUs that HIP finds: ROCR's list, of which its own variable takes places; [] from a wrong one."""
    rocr = env["ROCR_VISIBLE_DEVICES"].split(",")
    own = env.get("HIP_VISIBLE_DEVICES", env.get("CUDA_VISIBLE_DEVICES"))
    places = range(len(rocr)) if own is None else [int(word) for word in own.split(",")]
    found = []
    for place in places:
        if place >= len(rocr):
            break
        found.append(rocr[place])
    return found


@pytest.mark.parametrize("more", [{}, {"HIP_VISIBLE_DEVICES": "4,5,6,7"}])
@pytest.mark.parametrize(("ranks", "per_rank"), [(4, 1), (2, 2)])
def test_each_rank_sees_its_own_gpus_on_amds_too(ranks: int, per_rank: int, more: dict[str, str]) -> None:
    env = {**ALL, **more}
    found = []
    for rank in range(ranks):
        inside = env | gpu_share(env, RankEnv(rank, ranks, rank, ranks, "slurm"), per_rank, own=True, amd=True)
        mine = seen_by_hip(inside)
        assert len(mine) == per_rank
        assert inside["HPCMASS_OWN_GPUS"] == str(per_rank)
        record = describe(inside, RankEnv(rank, ranks, rank, ranks, "slurm"), host="h", pid=1, cpus=1, at=0.0)
        assert record["cuda_visible_devices"] == ",".join(mine)
        found += mine
    assert found == ["4", "5", "6", "7"]


def test_what_slurm_gave_a_task_alone_is_counted_from_zero_on_amds() -> None:
    env = dict.fromkeys(ALL, "2")
    place = RankEnv(2, 4, 2, 4, "slurm")
    share = gpu_share({**env, "HPCMASS_LAUNCHER": "srun"}, place, 1, own=True, amd=True)
    assert seen_by_hip(env | share) == ["2"]
    assert share["HPCMASS_OWN_GPUS"] == "1"
    # A choice among them is the user's.
    assert "HIP_VISIBLE_DEVICES" not in gpu_share(
        {**ALL, "HIP_VISIBLE_DEVICES": "1"}, place, 1, own=False, amd=True
    )


def test_elsewhere_every_variable_has_the_nodes_own_numbers() -> None:
    share = gpu_share(ALL, RankEnv(2, 4, 2, 4, "slurm"), 1, own=True)
    assert share == {**dict.fromkeys(ALL, "6"), "HPCMASS_OWN_GPUS": "1"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, ""),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, ""),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "PMIX_NAMESPACE": "p@1",
                "SLURM_STEP_ID": "3",
            },
            "PMIX_NAMESPACE=p@1",
        ),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "3", "SLURM_JOB_ID": "7"},
            "SLURM_JOB_ID=7 SLURM_STEP_ID=3",
        ),
        (
            {"HPCMASS_RANK": "1", "HPCMASS_SIZE": "2", "HPCMASS_SOURCE": "openmpi", "HPCMASS_KEEPER": "/k"},
            "HPCMASS_KEEPER=/k",
        ),
    ],
)
def test_ranks_of_one_start_have_a_text_in_common(environment: dict[str, str], says: str) -> None:
    assert start_id(environment) == says
