"""What is said where an MPI library and its launcher do not fit."""

from __future__ import annotations

import pytest

from hpcmass.launch.advice import (
    daemon_failed,
    launcher_hint,
    misfit,
    never_fits,
    right_launcher,
    size_hint,
    started_by,
)

MPICH = "MPICH Version:      5.0.2\nMPICH ABI: ..."
OPENMPI = "Open MPI v5.0.11, package: Open MPI"
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"OMPI_COMM_WORLD_RANK": "0", **STEP}, "Open MPI's mpiexec"),
        ({"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, "MPICH's mpiexec"),
        ({**STEP, "PMIX_RANK": "0", "PMIX_NAMESPACE": "x"}, "srun --mpi=pmix"),
        ({**STEP, "PMI_RANK": "0"}, "srun --mpi=pmi2"),
        ({**STEP, "SLURM_MPI_TYPE": "cray_shasta"}, "srun --mpi=cray_shasta"),
        (STEP, "srun --mpi=none"),
        ({}, "plain processes"),
    ],
)
def test_who_started_it(env: dict[str, str], words: str) -> None:
    assert started_by(env) == words


@pytest.mark.parametrize(
    ("library", "flag"),
    [
        (OPENMPI, "--mpi=pmix"),
        (MPICH, "--mpi=pmi2"),
        ("MPI VERSION : CRAY MPICH version 8", "--mpi=cray_shasta"),
    ],
)
def test_what_starts_it_rightly(library: str, flag: str) -> None:
    assert flag in right_launcher(library)
    assert "srun --mpi=none" in size_hint(library, STEP)


def test_mpich_is_not_initialised_under_pmix() -> None:
    under = {**STEP, "PMIX_RANK": "0", "PMIX_NAMESPACE": "x"}
    assert misfit(MPICH, under) == "MPICH was not built for PMIx, which srun --mpi=pmix offers"
    assert misfit(OPENMPI, under) is None
    assert misfit(MPICH + " --with-pmix", under) is None
    assert misfit(MPICH, {**under, "PMI_RANK": "0"}) is None


def test_complaints_of_launchers() -> None:
    assert "srun --mpi=list" in str(
        launcher_hint("srun: error: Couldn't find the specified plugin name for mpi/x", "x")
    )
    said = "srun returned non-zero exit status (54528) from launching\nthe per-node daemon. You may debug"
    assert daemon_failed(said)
    assert "start it again" in str(launcher_hint(said, None))
    assert launcher_hint("Killed", None) is None


def test_what_a_launcher_would_say_again() -> None:
    assert never_fits("srun: error: cannot find mpi plugin for mpi/nonsense")
    # As where a node went down while the ranks began.
    assert not never_fits("Fatal error in internal_Init: Other MPI error, PMI2_Init failed")
    assert not never_fits("srun returned non-zero exit status (54528) from launching\nthe per-node daemon.")
