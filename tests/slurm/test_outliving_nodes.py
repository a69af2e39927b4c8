"""Hops over two nodes, with each way to start their ranks: all stop at one step, and the next hop goes on from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder
from hpcmass.slurm.records import Hop, read_hops

sys.path.append(str(Path(__file__).parent))
from outliving_tools import (
    HOLD,
    Bench,
    hop_ended,
    job_of,
    let_go,
    preempt,
    steps_of_ranks,
    wait_ended,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
LAUNCHERS = {
    "mpiexec": 'launcher = "mpiexec"',
    "srun-pmix": 'launcher = "srun"\npmi = "pmix"',
    "srun": 'launcher = "spawn"',  # plain processes that meet through torch
}
MPI = ["mpiexec", "srun-pmix"]


def project_on(cluster: Cluster, root: Path, patch: pytest.MonkeyPatch) -> Bench:
    """A project and a site whose targets are called as what starts the ranks; their partition is preempted."""
    for name in ("SLURM_CONF", "PATH"):
        patch.setenv(name, cluster.env[name])
    bench = Bench(cluster, root, epochs=4)
    with open(bench.site, "a") as site:
        for name, keys in LAUNCHERS.items():
            site.write(f'\n[targets.{name}]\nkind = "slurm"\npartition = "preempt"\ncores = 4\n{keys}\n')
    return bench


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return project_on(cluster, tmp_path / "project", monkeypatch)


@pytest.fixture
def patient_bench(
    cluster_factory: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """On a cluster of the test's own."""
    return project_on(cluster_factory(accounting=False), tmp_path / "project", monkeypatch)


def begin(bench: Bench, launcher: str, pause: float = 0.3, breaks: str = HOLD) -> tuple[RunFolder, Hop]:
    """A run of two ranks on two nodes, somewhere in its second epoch, and the hop that it is in.

    That is the first one, but on a machine so busy that a launcher gives up a node.
    """
    backend = "torch" if launcher == "srun" else "mpi"
    resources = {"target": launcher, "nodes": 2}
    run = bench.submit("run", pause=pause, breaks=breaks, backend=backend, resources=resources)
    wait_until(lambda: steps_of(run, 0) > 15, lambda: f"15 steps of a hop\n{bench.told(run)}")
    hop = read_hops(run.path)[-1]
    assert len(set(hop.nodes)) == 2
    return run, hop


def steps_of(run: RunFolder, rank: int) -> int:
    """Steps that a rank has begun in the newest hop."""
    hops = read_hops(run.path)
    return steps_of_ranks(run, hops[-1]).get(rank, 0) - hops[-1].from_step if hops else 0


def check_went_on(bench: Bench, run: RunFolder, cut: Hop, cause: str) -> None:
    """It stopped at one step of all ranks, between two epochs' ends, and went on exactly there."""
    wait_until(lambda: hop_ended(run, cut.hop), lambda: f"the hop's end\n{bench.told(run)}")
    let_go(run)
    last = wait_ended(bench, run, 400)
    hops = {hop.hop: hop for hop in read_hops(run.path)}
    cut = hops[cut.hop]
    assert (cut.cause, cut.state, cut.next) == (cause, "STOPPED", "requeue"), bench.told(run)
    assert cut.step is not None
    assert cut.step > 10
    assert steps_of_ranks(run, cut) == {0: cut.step, 1: cut.step}
    assert hops[cut.hop + 1].from_step == cut.step
    assert last.cause == "completed"
    assert run.errors() == []
    bench.check_same(run)


@pytest.mark.parametrize(
    "launcher", ["mpiexec", *(pytest.param(name, marks=pytest.mark.soak) for name in ("srun-pmix", "srun"))]
)
def test_sigterm_to_every_process_of_the_job(patient_bench: Bench, launcher: str) -> None:
    """As `scontrol requeue` sends it: to launcher, daemons, keepers, ranks, and the batch script, at once.

    A step takes longer than launchers leave their ranks that are told to end.
    """
    bench = patient_bench
    run, hop = begin(bench, launcher, pause=0.1, breaks=HOLD.replace("sleep(2)", "sleep(3)"))
    bench.cluster.run("scontrol", "requeue", job_of(run))
    check_went_on(bench, run, hop, "signal")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
def test_preempted_without_grace(bench: Bench, launcher: str) -> None:
    run, hop = begin(bench, launcher)
    preempt(bench, run)
    check_went_on(bench, run, hop, "preempted")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
def test_the_time_limit(bench: Bench, launcher: str) -> None:
    """Slurm's own warning of a limit that was shortened may come half a minute late."""
    run, hop = begin(bench, launcher, pause=3.0)
    bench.cluster.run("scontrol", "update", f"JobId={job_of(run)}", "TimeLimit=2")
    check_went_on(bench, run, hop, "time-limit")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
@pytest.mark.parametrize("with_script", [False, True], ids=["another node", "the script's node"])
def test_a_node_fails(bench: Bench, launcher: str, with_script: bool) -> None:
    """There is nobody to agree with: the last checkpoint counts, and nobody's failure is counted."""
    run, hop = begin(bench, launcher)
    node = next(name for name in hop.nodes if (name == hop.host) is with_script)
    bench.cluster.kill_node(node)
    let_go(run)
    last = wait_ended(bench, run, 400)
    cut, *after = [one for one in read_hops(run.path) if one.hop >= hop.hop]
    assert last.cause == "completed"
    assert (cut.cause, cut.next) == ("lost" if with_script else "node-failure", "requeue"), bench.told(run)
    assert after[0].from_step >= 10
    assert node not in last.nodes
    bench.check_same(run)
