"""Hops over two nodes, with each way to start their ranks: all stop at one step, and the next hop goes on from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder
from hpcmass.slurm.records import Hop, read_hops

sys.path.append(str(Path(__file__).parent))
from outliving_tools import Bench, job_of, preempt, steps_begun, steps_of_ranks, wait_ended, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
LAUNCHERS = {
    "mpiexec": 'launcher = "mpiexec"',
    "srun-pmix": 'launcher = "srun"\npmi = "pmix"',
    "srun": 'launcher = "spawn"',  # plain processes that meet through torch
}
MPI = ["mpiexec", "srun-pmix"]


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A project and a site whose targets are called as what starts the ranks; their partition is preempted."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    bench = Bench(cluster, tmp_path / "project", epochs=4)
    with open(bench.site, "a") as site:
        for name, keys in LAUNCHERS.items():
            site.write(f'\n[targets.{name}]\nkind = "slurm"\npartition = "preempt"\ncores = 4\n{keys}\n')
    return bench


def begin(bench: Bench, launcher: str, pause: float = 0.3) -> RunFolder:
    """A run of two ranks on two nodes, somewhere in its second epoch."""
    backend = "torch" if launcher == "srun" else "mpi"
    run = bench.submit("run", pause=pause, backend=backend, resources={"target": launcher, "nodes": 2})
    wait_until(lambda: steps_begun(run) > 13, lambda: f"13 steps\n{bench.told(run)}")
    assert len(set(read_hops(run.path)[0].nodes)) == 2
    return run


def check_went_on(bench: Bench, run: RunFolder, cause: str) -> Hop:
    """It stopped at one step of all ranks, between two epochs' ends, and went on exactly there."""
    last = wait_ended(bench, run, 400)
    hops = read_hops(run.path)
    first = hops[0]
    assert (first.cause, first.state, first.next) == (cause, "STOPPED", "requeue"), bench.told(run)
    assert first.step is not None
    assert first.step > 10
    assert steps_of_ranks(run, first) == {0: first.step, 1: first.step}
    assert hops[1].from_step == first.step
    assert last.cause == "completed"
    assert run.errors() == []
    bench.check_same(run)
    return first


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sigterm_to_every_process_of_the_job(bench: Bench, launcher: str) -> None:
    """As `scontrol requeue` sends it: to launcher, daemons, keepers, ranks, and the batch script, at once."""
    run = begin(bench, launcher)
    bench.cluster.run("scontrol", "requeue", job_of(run))
    check_went_on(bench, run, "signal")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
def test_preempted_without_grace(bench: Bench, launcher: str) -> None:
    run = begin(bench, launcher)
    preempt(bench, run)
    check_went_on(bench, run, "preempted")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
def test_the_time_limit(bench: Bench, launcher: str) -> None:
    run = begin(bench, launcher, pause=1.6)
    bench.cluster.run("scontrol", "update", f"JobId={job_of(run)}", "TimeLimit=1")
    check_went_on(bench, run, "time-limit")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", MPI)
@pytest.mark.parametrize("with_script", [False, True], ids=["another node", "the script's node"])
def test_a_node_fails(bench: Bench, launcher: str, with_script: bool) -> None:
    """There is nobody to agree with: the last checkpoint counts, and nobody's failure is counted."""
    run = begin(bench, launcher)
    first = read_hops(run.path)[0]
    node = next(name for name in first.nodes if (name == first.host) is with_script)
    bench.cluster.kill_node(node)
    last = wait_ended(bench, run, 400)
    hops = read_hops(run.path)
    assert last.cause == "completed"
    assert {hop.next for hop in hops[:-1]} == {"requeue"}
    assert not {"failed", "no-progress"} & {hop.cause for hop in hops}, bench.told(run)
    assert hops[1].from_step >= 10
    assert node not in hops[-1].nodes
    bench.check_same(run)
