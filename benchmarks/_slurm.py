"""What the benchmarks on a real Slurm share: a cluster of their own, and a small project on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcmass.config import Project
from hpcmass.data import shard
from hpcmass.devcluster import Cluster

RECIPE = """
import torch

def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
"""


@contextlib.contextmanager
def cluster(**options: int | bool) -> Iterator[Cluster]:
    """A development cluster; this process's environment speaks to it."""
    folder = Path(tempfile.mkdtemp(prefix="hpcmass-slurm-"))
    started = Cluster.up(folder, **options)  # type: ignore[arg-type]
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ.update({name: started.env[name] for name in before})
    try:
        yield started
    finally:
        started.down()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def project(samples: int = 1200) -> Iterator[Project]:
    """A project with a dataset of two classes and a recipe, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hpcmass-bench-") as scratch:
        made = Project.create(Path(scratch) / "project", "bench")
        x = np.random.default_rng(0).normal(size=(samples, 6)).astype("float32")
        np.savez(made.root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
        for split in ("train", "valid"):
            shard(
                made.root / "raw.npz",
                made.data / "tiny" / split,
                inputs=["x"],
                targets=["y"],
                shards=3,
                workers=1,
            )
        (made.root / "recipe.py").write_text(RECIPE)
        yield made
