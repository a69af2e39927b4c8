"""`srun hpcmass shard` over two nodes, which have hosts and processes of their own: the bytes of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import shard
from hpcmass.devcluster import Cluster

pytestmark = pytest.mark.slurm

RANK = Path(__file__).parents[1] / "mpi" / "shard_rank.py"
N = 1_000_000  # rows of 5 bytes: four blocks, each a stretch


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "s.npz"
    np.savez(path, x=rng.normal(size=N).astype("float32"), label=rng.integers(0, 3, N).astype("uint8"))
    return path


def srun(
    cluster: Cluster, source: Path, out: str, what: str = "nothing", rank: int = 0
) -> subprocess.CompletedProcess[str]:
    words = [
        "shard",
        str(source),
        "--out",
        str(source.parent / out),
        "--shards",
        "3",
        "--strategy",
        "stratified",
    ]
    argv = [
        "srun",
        "-N2",
        "-n2",
        "--ntasks-per-node=1",
        "--mpi=none",
        "--kill-on-bad-exit=0",
        sys.executable,
        str(RANK),
        what,
        str(rank),
    ]
    return cluster.run(*argv, *words, timeout_s=600)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.h5")}


@pytest.mark.usefixtures("slurm_env")
def test_two_nodes_make_what_one_process_makes(cluster: Cluster, source: Path) -> None:
    (alone,) = shard(source, source.parent / "alone", shards=3, strategy="stratified", workers=1)
    refused = srun(cluster, source, "both", "refuse", 1)
    assert refused.returncode != 0
    assert "the disk of this node is full" in refused.stdout + refused.stderr
    assert not (source.parent / "both").exists()
    done = srun(cluster, source, "both")
    assert done.returncode == 0, done.stdout + done.stderr
    assert alone.id[:12] in done.stdout
    assert content(source.parent / "both") == content(source.parent / "alone")
    assert list(source.parent.glob(".*")) == []


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("slurm_env")
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_node_finds_that_a_rank_was_killed(cluster: Cluster, source: Path, victim: int) -> None:
    """No launcher ends it, and its process cannot be looked at: it renews its lease no more."""
    (alone,) = shard(source, source.parent / "alone", shards=3, strategy="stratified", workers=1)
    cut = srun(cluster, source, "both", "die", victim)
    assert cut.returncode != 0
    assert f"rank {victim} of 2 has ended without a word" in cut.stdout + cut.stderr
    assert not (source.parent / "both").exists()
    done = srun(cluster, source, "both")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on where it was interrupted" in done.stdout
    assert alone.id[:12] in done.stdout
    assert content(source.parent / "both") == content(source.parent / "alone")
