"""Which rank made a step slow, of real ranks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import functools
import operator

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
    sets = ["train.backend=mpi", "train.log_every_steps=6", "train.epochs=3"]
    env = tools.environment(root, LAME_RANK="1", LAME_S="0.2")
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets)), env)
    assert done.returncode == 0, done.stdout
    named = [record for record in tools.records(root, "r", "slow-rank") if record["rank"] is not None]
    assert (1, "compute") in {(record["rank"], record["part"]) for record in named}
    assert "rank 1 on " in done.stdout


def test_shares_follow_the_ranks_speed(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.log_every_steps=3", "train.epochs=6"]
    # A sample takes one rank eight times as long as the other's whole part.
    env = tools.environment(root, LAME_RANK="1", LAME_SAMPLE_S="0.1")
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets, "train.shares=measured")), env)
    assert done.returncode == 0, done.stdout
    shares = [record["shares"] for record in tools.records(root, "r", "shares")]
    assert shares, done.stdout
    assert all(abs(sum(one) - 1) < 1e-3 for one in shares)
    assert shares[-1][0] > 0.7
    seen = tools.seen(root)
    last = [len(seen[rank][-1]["ids"]) for rank in (0, 1)]
    assert sum(last) == 10
    assert last[0] >= 7
    # Every step takes the samples that it takes with equal shares, and comes to the same weights.
    steps = [
        sorted(functools.reduce(operator.iadd, (seen[rank][step]["ids"] for rank in (0, 1)), []))
        for step in range(36)
    ]
    for epoch in range(6):
        assert sorted(functools.reduce(operator.iadd, steps[6 * epoch : 6 * epoch + 6], [])) == list(
            range(tools.SAMPLES)
        )
    done = tools.run(tools.mpiexec(2, tools.words(root, "equal", *sets)), tools.environment(root))
    assert done.returncode == 0, done.stdout
    assert not tools.records(root, "equal", "shares")
    losses = [[r["loss"] for r in tools.records(root, name, "train")] for name in ("r", "equal")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
