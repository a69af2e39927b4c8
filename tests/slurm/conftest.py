"""A real Slurm for the tests: one cluster for all of them, private ones where a test needs other options.

After a test that used `cluster`, its jobs are cancelled (but the module's `KEEP_JOBS`, by name), and what the
test killed is started again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmass.devcluster import Cluster, missing_packages

RECIPE = """
import torch

def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(6, params.get("width", 8)), torch.nn.Tanh(),
                               torch.nn.Linear(params.get("width", 8), 2))
"""
JOB = """\
name = "job"
recipe = "recipe.py"

[data]
train = "data/tiny/train"
valid = "data/tiny/valid"

[train]
epochs = 2
global_batch = 12
lr = 0.05
log_every_steps = 1
"""


def start(**options: Any) -> Cluster:
    """A cluster in a new folder with a short name; skips where Slurm is not installed."""
    missing = missing_packages()
    if missing:
        pytest.skip(f"no Slurm here: apt-get install {' '.join(missing)}")
    return Cluster.up(Path(tempfile.mkdtemp(prefix="hpcmass-slurm-")), **options)


def end(cluster: Cluster) -> None:
    cluster.down()
    shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of this session; with accounting where MariaDB and slurmdbd are installed."""
    cluster = start()
    yield cluster
    end(cluster)


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cluster" not in request.fixturenames:
        return
    cluster = request.getfixturevalue("cluster")
    if not cluster.processes["slurmctld"].alive:
        cluster.start_controller()
    # A module may have a job in the background while its tests are at work.
    keep = getattr(request.module, "KEEP_JOBS", ())
    lines = cluster.run("squeue", "-h", "-o", "%A %j").stdout.splitlines()
    ids = [line.split()[0] for line in lines if line.split()[1] not in keep]
    if ids:
        cluster.run("scancel", *sorted(set(ids)))
    for node in cluster.nodes:
        if not cluster.processes[f"slurmd-{node}"].alive:
            cluster.start_node(node)


@pytest.fixture
def cluster_factory() -> Iterator[Callable[..., Cluster]]:
    """Starts private clusters: `cluster_factory(accounting=False, grace_s=8)`; the options of `Cluster.up`."""
    started: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        started.append(start(**options))
        return started[-1]

    yield make
    for each in started:
        end(each)


@pytest.fixture
def slurm_env(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process's environment speaks to the cluster, and is itself in no job."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "PMI", "HPCMASS_"))]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    return cluster.env


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that all nodes see: `data/tiny/{train,valid}`, `recipe.py`, `job.toml` (torch, 2 epochs)."""
    from hpcmass.config import Project
    from hpcmass.data import shard

    root = tmp_path / "project"
    project = Project.create(root, "tests")
    rng = np.random.default_rng(0)
    for split, samples in (("train", 120), ("valid", 36)):
        x = rng.normal(size=(samples, 6)).astype("float32")
        np.savez(root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
        shard(root / "raw.npz", project.data / "tiny" / split, inputs=["x"], targets=["y"], shards=3, workers=1)
    (root / "recipe.py").write_text(RECIPE)
    (root / "job.toml").write_text(JOB)
    return root
