"""Which rank made a step slow, of real ranks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import train_tools as tools

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("backend", ["mpi", "horovod"])
def test_a_slow_step_is_attributed(backend: str, tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p", samples=120)
    sets = [f"train.backend={backend}", "train.log_every_steps=6"]
    env = tools.environment(root, WAIT_AT="15", WAIT_RANK="1", WAIT_S="4")
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets)), env)
    assert done.returncode == 0, done.stdout
    found = {record["step"]: record for record in tools.records(root, "r", "slow-step")}
    assert 15 in found, found
    said = found[15]
    assert (said["rank"], said["part"], said["epoch"]) == (1, "input", 1)
    assert said["seconds"] > 4
    assert 3.5 < said["part_s"] <= said["seconds"]
    assert said["host"]
    record = tools.records(root, "r", "train")[0]
    assert {"input_s", "compute_s", "reduction_s", "checkpoint_s"} <= set(record)
    why = tools.run([sys.executable, "-m", "hpcmass", "why", str(root / "runs" / "r")], tools.environment(root))
    assert why.returncode == 0, why.stdout
    assert f"step 15 took {said['seconds']:.2g} s" in why.stdout
    assert f"input of rank 1 on {said['host']}" in why.stdout


def test_a_rank_that_is_always_slower_is_named(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.log_every_steps=6"]
    env = tools.environment(root, LAME_RANK="1", LAME_S="0.2")
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets)), env)
    assert done.returncode == 0, done.stdout
    named = [record for record in tools.records(root, "r", "slow-rank") if record["rank"] is not None]
    assert (1, "compute") in {(record["rank"], record["part"]) for record in named}
    assert "rank 1 on " in done.stdout
