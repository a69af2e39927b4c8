"""The ways that a probe tries to start ranks, and what it says came of one."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmass.launch.attempts import attempts, best, verdict
from hpcmass.launch.mpi import MpiFlavour


def records(*ranks_and_sizes: tuple[int, int], **more: Any) -> list[dict[str, Any]]:
    return [{"rank": rank, "size": size, **more} for rank, size in ranks_and_sizes]


WHOLE = records((0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize(
    ("left", "code", "said", "right", "words"),
    [
        (WHOLE, 0, "", True, "3 ranks of size 3"),
        (records((0, 1), (0, 1), (0, 1)), 0, "", False, "3 runs of one rank"),
        (records((0, 1)), 1, "x", False, "1 runs of one rank"),
        ([], 16, "srun: error: no PMIx", False, "no rank met another; ended with 16 (srun: error: no PMIx)"),
        ([{"step": "started"}] * 3, None, "", False, "hung: 0 of 3 ranks met"),
        (WHOLE[:2], None, "", False, "hung: 2 of 3 ranks met"),
        (WHOLE, None, "", False, "3 ranks of size 3, then: hung afterwards"),
        (WHOLE, 139, "", False, "3 ranks of size 3, then: ended with 139"),
        (records((0, 3), (0, 3), (2, 3)), 0, "", False, "3 of 3 ranks met; ended with 0"),
        ([*WHOLE[:2], {"error": "ImportError: libmpi"}], 1, "", False, "ImportError: libmpi"),
        ([*WHOLE, {"rank": 0, "size": 1}], 0, "", False, "4 of 3 ranks met; ended with 0"),
    ],
)
def test_verdicts(left: list[dict[str, Any]], code: int | None, said: str, right: bool, words: str) -> None:
    assert verdict(left, 3, code, said) == (right, words)


def test_every_pmi_and_the_mpiexec_are_tried_and_none_comes_last() -> None:
    mpiexec = MpiFlavour("/env/bin/mpiexec", "openmpi", "5.0.11")
    found = attempts(
        nodes=2, ranks=4, per_node=2, threads=3, pmis=("none", "pmix_v4", "pmi2", "pmix"), mpiexec=mpiexec
    )
    assert [one.name for one in found] == [
        "srun --mpi=pmi2", "srun --mpi=pmix", "srun --mpi=none", "mpiexec (openmpi 5.0.11)",
    ]  # fmt: skip
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3"} < set(found[0].prefix)
    assert all(
        "--export=ALL" in one.prefix for one in found[:3]
    )  # as in a run, else a right PMI is called wrong
    assert found[-1].prefix == ("/env/bin/mpiexec", "-n", "4", "--map-by", "ppr:2:node", "--bind-to", "none")


def test_mpich_places_ranks_by_its_own_words() -> None:
    (found,) = attempts(nodes=2, ranks=4, per_node=2, threads=1, pmis=(), mpiexec=MpiFlavour("m", "mpich", "5"))
    assert found.prefix == ("m", "-n", "4", "-ppn", "2", "-bind-to", "none")
    (found,) = attempts(nodes=1, ranks=2, per_node=2, threads=1, pmis=(), mpiexec=MpiFlavour("m", "mpich", "5"))
    assert found.prefix == ("m", "-n", "2", "-launcher", "fork", "-bind-to", "none")


def test_srun_is_preferred_among_those_that_are_right() -> None:
    def result(launcher: str, right: bool) -> dict[str, Any]:
        return {"launcher": launcher, "right": right}

    wrong, mpiexec, srun = result("srun", False), result("mpiexec", True), result("srun", True)
    assert best([wrong, mpiexec, srun]) is srun
    assert best([wrong, mpiexec]) is mpiexec
    assert best([wrong]) is None
