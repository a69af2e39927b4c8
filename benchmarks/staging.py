"""Staging a dataset to two nodes of a development cluster, against one plain copy of its files.

    python benchmarks/staging.py [--quick]

A run of two ranks on two nodes is submitted with `data.stage`, and without; what it takes longer until its data
is open is what staging took: each shard read once, sent to the other node, written there and here, and checked
against its checksum. The copy is `cp` of the same files to the same disk. Both nodes are this one machine, which
so writes twice what the copy does, and has the sending and two SHA-256 besides. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import _slurm
import numpy as np

from hpcmass.config import Project
from hpcmass.data import open_dataset, shard
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State

JOB = """\
name = "staging"
recipe = "recipe.py"

[data]
train = "data/big"
verify = "never"
read = "pread"

[train]
global_batch = 64
max_steps = 1

[resources]
ranks = 2
nodes = 2
threads_per_rank = 1
time = "10m"
"""
RECIPE = """
import torch

def build_model(params):
    return torch.nn.Linear(256, 2)
"""


def until_open_s(project: Project, cluster: Cluster, name: str, stage: bool) -> float:
    """Seconds that a run's rank 0 takes for its data."""
    words = [str(Path(sys.executable).parent / "hpcmass"), "submit", str(project.root / "job.toml")]
    words += ["--run", name, "--site", str(cluster.site_file), "--project", str(project.root)]
    words += ["--target", "cpu", "--set", f"data.stage={str(stage).lower()}"]
    done = subprocess.run(words, env=dict(os.environ), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    run, end = RunFolder(project.runs / name), time.monotonic() + 300
    while run.status().state is not State.COMPLETED:
        if time.monotonic() > end:
            raise SystemExit(f"{run.path}: {run.status()}")
        time.sleep(0.2)
    parts = next(run.records("start"))["parts"]
    return float(parts["data"] - parts["rendezvous"])


def forget(cluster: Cluster) -> int:
    """Remove what lies on the nodes; how many nodes had something."""
    found = list((cluster.folder / "tmp").glob("*/hpcmass-shards-*"))
    for folder in found:
        while folder.exists():  # a run that has said that it is complete may still take its mark away
            shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def copy_s(source: Path, target: Path) -> float:
    """Seconds of one plain copy."""
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    took = time.perf_counter() - began
    shutil.rmtree(target)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 MB and 3 rounds instead of 1 GB and 5")
    quick = parser.parse_args().quick
    rows, rounds = (250_000, 3) if quick else (1_000_000, 5)
    with _slurm.cluster() as cluster, _slurm.project() as project:
        x = np.random.default_rng(0).random((rows, 256), np.float32)
        np.savez(project.root / "big.npz", x=x, y=np.zeros(rows, np.int64))
        del x
        shard(project.root / "big.npz", project.data / "big", inputs=["x"], targets=["y"], shards=8)
        (project.root / "big.npz").unlink()
        (project.root / "recipe.py").write_text(RECIPE)
        (project.root / "job.toml").write_text(JOB)
        size = sum(one.bytes for one in open_dataset(project.data / "big").manifest.shards)
        (cluster.folder / "tmp").mkdir(exist_ok=True)
        staged, plain, copies = [], [], []
        for number in range(rounds):
            copies.append(copy_s(project.data / "big", cluster.folder / "tmp" / "copy"))
            plain.append(until_open_s(project, cluster, f"plain-{number}", stage=False))
            staged.append(until_open_s(project, cluster, f"staged-{number}", stage=True))
            if forget(cluster) != 2:
                raise SystemExit("not both nodes had the shards")
    took, copy = statistics.median(staged) - statistics.median(plain), statistics.median(copies)
    print(f"{size / 1e9:.2f} GB in 8 shards to two nodes, {rounds} rounds, medians")
    print(
        f"until the data is open: {statistics.median(staged):.2f} s staged, {statistics.median(plain):.2f} s not"
    )
    print(f"one plain copy: {copy:.2f} s; staging took {took:.2f} s")
    ratio = took / copy
    figure = {"name": "staging", "ratio": round(ratio, 3), "unit": "staging / one plain copy"}
    print(json.dumps({**figure, "goal": 1.2, "met": ratio <= 1.2}))


if __name__ == "__main__":
    main()
