"""`mpiexec -n N hpcmass shard`: the same bytes for any number of ranks, killed ones and refused ones among them."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

RANK = Path(__file__).with_name("shard_rank.py")
N = 1_500_000  # rows of 5 bytes: six blocks, each a stretch
OPTIONS = ["--split", "train=0.8,valid=0.2", "--shards", "2", "--strategy", "stratified", "--seed", "3"]

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("shard")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "s.npz", x=rng.normal(size=N).astype("float32"), label=rng.integers(0, 3, N).astype("uint8")
    )
    done = tools.run([sys.executable, "-m", "hpcmass", *words(folder, "one")], tools.environment(folder))
    assert done.returncode == 0, done.stdout
    return folder


def words(root: Path, out: str, *more: str) -> list[str]:
    return ["shard", str(root / "s.npz"), "--out", str(root / out), *OPTIONS, *more]


def start(root: Path, ranks: int, out: str, what: str = "nothing", rank: int = 0) -> list[str]:
    return tools.mpiexec(ranks, [sys.executable, str(RANK), what, str(rank), *words(root, out)])


def content(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        value = {**json.loads(data), "created": 0} if path.suffix == ".json" else data
        found[str(path.relative_to(folder))] = value
    return found


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 2), (4, 1)])
def test_neither_ranks_nor_workers_show(root: Path, ranks: int, workers: int) -> None:
    out = f"by-{ranks}"
    argv = [sys.executable, "-m", "hpcmass", *words(root, out, "--workers", str(workers))]
    done = tools.run(tools.mpiexec(ranks, argv), tools.environment(root))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1200000") == 1, "one rank tells of the result"
    assert content(root / out) == content(root / "one")
    assert not list(root.glob(f".{out}*"))


@pytest.mark.parametrize(("ranks", "victim", "then"), [(2, 0, 3), (3, 2, 2)])
def test_a_killed_rank_ends_all_and_other_ranks_go_on(root: Path, ranks: int, victim: int, then: int) -> None:
    out = f"killed-{victim}"
    cut = tools.run(start(root, ranks, out, "die", victim), tools.environment(root))
    assert cut.returncode != 0
    assert not (root / out).exists()
    assert list(root.glob(f".{out}.sharding/work-*/stretch-*.json"))
    again = tools.run(start(root, then, out), tools.environment(root))
    assert again.returncode == 0, again.stdout
    assert "goes on where it was interrupted" in again.stdout
    assert content(root / out) == content(root / "one")
    assert not list(root.glob(f".{out}*"))


def test_the_reason_of_one_rank_is_told(root: Path) -> None:
    done = tools.run(start(root, 2, "refused", "refuse", 1), tools.environment(root))
    assert done.returncode != 0
    assert "the disk of this node is full" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (root / "refused").exists()


def test_a_wrong_command_is_refused_and_leaves_nothing(root: Path) -> None:
    argv = [sys.executable, "-m", "hpcmass", *words(root, "wrong", "--target", "nothing")]
    done = tools.run(tools.mpiexec(2, argv), tools.environment(root))
    assert done.returncode != 0
    assert "no field 'nothing'" in done.stdout
    assert not list(root.glob("*wrong*"))


def test_all_are_told_to_end_and_the_second_start_is_refused_meanwhile(root: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        start(root, 2, "ended", "wait", 1),
        env=tools.environment(root),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        tools.wait_for((tmp_path / "here").exists, process)
        second = tools.run(start(root, 2, "ended"), tools.environment(root))
        assert second.returncode != 0
        assert "is being written by others at this moment (is in use by process" in second.stdout
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=300)
    finally:
        tools.end_group(process)
    assert not (root / "ended").exists()
    until = time.monotonic() + 120
    while (again := tools.run(start(root, 2, "ended"), tools.environment(root))).returncode:
        assert "in use by" in again.stdout, again.stdout  # ranks that are still ending
        assert time.monotonic() < until
    assert "goes on where it was interrupted" in again.stdout
    assert content(root / "ended") == content(root / "one")
