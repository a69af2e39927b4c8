"""Plans: the exact command and environment, for each launcher."""

import sys
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.errors import LaunchError
from hpcmass.launch import LaunchPlan, MpiFlavour, find_mpiexec, plan_ranks
from hpcmass.launch.mpi import parse_version
from hpcmass.launch.plan import keeper

OPENMPI = MpiFlavour("/opt/mpi/bin/mpiexec", "openmpi", "5.0.11")
MPICH = MpiFlavour("/opt/mpich/bin/mpiexec", "mpich", "5.0.2")
COMMAND = ["python", "train.py", "--note", "$(touch x); two words"]
DEFAULTS = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def threads(number: int) -> dict[str, str]:
    """A rank's threads as hpcmass sets them, with its own mark."""
    return {"OMP_NUM_THREADS": str(number), "HPCMASS_OMP": str(number)}


def plan(ranks: int = 2, **changes: object) -> LaunchPlan:
    arguments: dict[str, object] = {
        "threads_per_rank": None,
        "cores": 8,
        "mpiexec": None,
        "env": {"PATH": "/bin"},
        "target": Target(),
        **changes,
    }
    return plan_ranks(COMMAND, ranks, **arguments)  # type: ignore[arg-type]


def test_keeper_is_this_interpreter_running_a_file() -> None:
    words = keeper()
    assert words[0] == sys.executable
    assert words[1:3] == ["-I", "-S"]
    assert Path(words[3]).name == "child.py"
    assert Path(words[3]).is_file()


def test_openmpi() -> None:
    made = plan(mpiexec=OPENMPI)
    assert made.argv == [
        "/opt/mpi/bin/mpiexec", "-n", "2", "--oversubscribe", "--bind-to", "none", *keeper(), *COMMAND,
    ]  # fmt: skip
    assert made.env == {
        "PATH": "/bin",
        "HPCMASS_RANKS": "2",
        **threads(4),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **DEFAULTS,
    }
    assert (made.launcher, made.ranks) == ("openmpi", 2)


def test_mpich() -> None:
    made = plan(mpiexec=MPICH, threads_per_rank=3)
    assert made.argv == [
        "/opt/mpich/bin/mpiexec", "-n", "2", "-launcher", "fork", "-bind-to", "none", *keeper(), *COMMAND,
    ]  # fmt: skip
    assert made.env == {"PATH": "/bin", "HPCMASS_RANKS": "2", **threads(3), **DEFAULTS}
    assert made.launcher == "mpich"


def test_spawn() -> None:
    made = plan(ranks=3)
    assert made.argv == [*keeper(), *COMMAND]
    assert made.env == {"PATH": "/bin", "HPCMASS_RANKS": "3", **threads(2), **DEFAULTS}
    assert made.launcher == "spawn"


@pytest.mark.parametrize(
    ("changes", "launcher"),
    [
        ({"mpiexec": OPENMPI, "ranks": 1}, "spawn"),
        ({"mpiexec": OPENMPI, "ranks": 1, "launcher": "mpiexec"}, "openmpi"),
        ({"mpiexec": OPENMPI, "launcher": "spawn"}, "spawn"),
        ({"mpiexec": OPENMPI, "target": Target(launcher="spawn")}, "spawn"),
        ({"mpiexec": OPENMPI, "target": Target(launcher="spawn"), "launcher": "mpiexec"}, "openmpi"),
    ],
)
def test_which_launcher(changes: dict[str, object], launcher: str) -> None:
    assert plan(**changes).launcher == launcher


@pytest.mark.parametrize("changes", [{"launcher": "mpiexec"}, {"target": Target(launcher="mpiexec")}])
def test_mpiexec_is_asked_for_and_missing(changes: dict[str, object]) -> None:
    with pytest.raises(LaunchError, match="no mpiexec"):
        plan(**changes)


def test_no_ranks() -> None:
    with pytest.raises(LaunchError, match="0 ranks"):
        plan(ranks=0)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"ranks": 3, "cores": 8}, "2"),
        ({"ranks": 16, "cores": 8}, "1"),
        ({"target": Target(cores=4), "cores": 64}, "2"),
        ({"env": {"OMP_NUM_THREADS": "5"}}, "5"),
        ({"env": {"OMP_NUM_THREADS": "5"}, "threads_per_rank": 2}, "2"),
        # Within a rank that has 4 threads: its own cores are shared out, unless somebody chose another number.
        ({"env": threads(4), "ranks": 2, "cores": 64}, "2"),
        ({"env": threads(4), "ranks": 2, "target": Target(cores=64)}, "2"),
        ({"env": threads(64), "ranks": 2, "cores": 8}, "4"),
        ({"env": {**threads(4), "OMP_NUM_THREADS": "3"}, "ranks": 2}, "3"),
        ({"env": {"HPCMASS_OMP": "4"}, "ranks": 2, "cores": 8}, "4"),
    ],
)
def test_threads(changes: dict[str, object], number: str) -> None:
    assert plan(**changes).env["OMP_NUM_THREADS"] == number


def test_a_users_own_threads_are_not_taken_for_ours_further_in() -> None:
    assert "HPCMASS_OMP" not in plan(env={**threads(4), "OMP_NUM_THREADS": "3"}).env


def test_an_outer_launchers_variables_are_taken_out() -> None:
    outer = {
        "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "PMI_RANK": "0", "PMI_FD": "5", "PMIX_RANK": "0",
        "PMIX_NAMESPACE": "x", "PMIX_MCA_gds": "hash", "OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_num_procs": "2",
        "PRTE_LAUNCHED": "1", "HYDI_CONTROL_FD": "7", "MPI_LOCALRANKID": "0", "HPCMASS_RANK": "0",
        "HPCMASS_RANKS": "9", "HPCMASS_SIZE": "9", "HPCMASS_KEEPER": "/x", "HPCMASS_SOURCE": "openmpi",
        "RANK": "0", "WORLD_SIZE": "9", "LOCAL_RANK": "0", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "x", "HPCMASS_RUN_DIR": "/outer", "HPCMASS_ATTEMPT": "3",
    }  # fmt: skip
    kept = {"HPCMASS_PROJECT": "/p", "HOME": "/h", "MPICH_TUNING": "1", "HOROVOD_CYCLE_TIME": "1"}
    made = plan(env={**outer, **kept})
    where = {"HPCMASS_SLURM_JOB_ID": "7"}
    assert made.env == {**kept, **where, "HPCMASS_RANKS": "2", **threads(4), **DEFAULTS}


def test_a_users_mpi_tuning_stays_outside_of_a_job() -> None:
    tuning = {"OMPI_MCA_btl": "self,sm", "PRTE_MCA_x": "1", "PMIX_MCA_y": "1"}
    assert tuning.items() <= plan(env=tuning).env.items()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n", OPENMPI),
        (
            "HYDRA build details:\n    Version:                                 5.0.2\n    Release Date: x\n",
            MPICH,
        ),
        ("mpirun (SomethingElse) 1.0", None),
        ("", None),
    ],
)
def test_flavour_by_version(text: str, expected: MpiFlavour | None) -> None:
    found = parse_version(expected.path if expected else "/x", text)
    assert found == expected


def test_an_mpiexec_of_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    program = tmp_path / "mpiexec"
    program.write_text("#!/bin/sh\necho 'mpiexec (Open MPI) 4.1.4'\n")
    program.chmod(0o755)
    assert find_mpiexec({"PATH": str(tmp_path)}) == MpiFlavour(str(program), "openmpi", "4.1.4")
    assert find_mpiexec({"PATH": str(tmp_path / "none")}) is None
    beside = tmp_path / "bin" / "mpiexec"
    beside.parent.mkdir()
    beside.write_text("#!/bin/sh\necho 'HYDRA build details:'\necho '    Version: 5.0.2'\n")
    beside.chmod(0o755)
    assert find_mpiexec({"PATH": str(tmp_path)}) == MpiFlavour(str(beside), "mpich", "5.0.2")
