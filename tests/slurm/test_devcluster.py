"""The development cluster itself: starts whole, is several hosts, breaks on purpose, ends without a trace."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.config import load_site
from hpcmass.devcluster import Cluster

pytestmark = pytest.mark.slurm


def until(true: Callable[[], object], what: str, patience_s: float = 120.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.1)


def output(cluster: Cluster, *argv: str) -> str:
    done = cluster.run(*argv)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    file = folder / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    return output(cluster, "sbatch", "--parsable", f"--chdir={folder}", *options, str(file)).strip()


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T").stdout.strip()


def hpcmass(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcmass", *words], capture_output=True, text=True, check=False, timeout=240
    )


def test_it_is_up_and_its_site_file_is_true(cluster: Cluster) -> None:
    found = cluster.status()
    assert found.up
    assert not found.down
    assert found.jobs == 0
    assert found.states == dict.fromkeys(cluster.nodes, "idle")
    targets = load_site(cluster.site_file).targets
    rows = [line.split() for line in output(cluster, "sinfo", "-h", "-N", "-o", "%R %N %c %m %G").splitlines()]
    for name, target in targets.items():
        nodes = [row for row in rows if row[0] == target.partition]
        assert (target.max_nodes, target.cores) == (len(nodes), min(int(row[2]) for row in nodes)), name
        assert target.memory_gb * 1e9 <= min(int(row[3]) for row in nodes) * 2**20, name
        for gres, count in {**target.gres, "gpu": target.gpus}.items():
            assert all(count == 0 or re.search(rf"{gres}:(\w+:)?{count}\b", row[4]) for row in nodes), name


def test_nodes_are_hosts_of_their_own(cluster: Cluster) -> None:
    lines = output(cluster, "srun", "-N2", "-n4", "--ntasks-per-node=2", "hostname").split()
    expected = ["cn1", "cn1", "cn2", "cn2"] if cluster.has_network else lines[:1] * 4
    assert sorted(lines) == expected
