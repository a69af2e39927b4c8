"""A real Slurm for the tests: one cluster for all of them, private ones where a test needs other options.

After a test that used `cluster`, its jobs are cancelled (but the module's `KEEP_JOBS`, by name), what the test
killed is started again, and the next test begins when Slurm has nothing left of the jobs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmass.devcluster import Cluster, missing_packages
from hpcmass.errors import HpcmassError

# What a busy machine needs: a process may get no core for seconds. Between SIGTERM and SIGKILL a run writes its
# checkpoint and hands itself on (sites give 30 s for that), and a daemon that is late is no node that is lost.
KILL_WAIT_S, SLURMD_TIMEOUT_S = 60, 30
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


CLUSTERS: list[Cluster] = []  # those that are up


def start(**options: Any) -> Cluster:
    """A cluster in a new folder with a short name; skips where Slurm is not installed."""
    missing = missing_packages()
    if missing:
        pytest.skip(f"no Slurm here: apt-get install {' '.join(missing)}")
    options = {"slurmd_timeout_s": SLURMD_TIMEOUT_S, **options}
    cluster = Cluster.up(Path(tempfile.mkdtemp(prefix="hpcmass-slurm-")), **options)
    conf = cluster.folder / "etc" / "slurm.conf"
    text = conf.read_text()
    assert "KillWait=2\n" in text
    conf.write_text(text.replace("KillWait=2\n", f"KillWait={KILL_WAIT_S}\n"))
    done = cluster.run("scontrol", "reconfigure")
    assert done.returncode == 0, done.stderr
    CLUSTERS.append(cluster)
    return cluster


def end(cluster: Cluster) -> None:
    CLUSTERS.remove(cluster)
    cluster.down()
    shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of this session; with accounting where MariaDB and slurmdbd are installed."""
    cluster = start()
    yield cluster
    end(cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With a failure goes what the cluster said of itself then: nodes, jobs, and the end of the controller's log."""
    report = yield
    if report.failed:
        for cluster in CLUSTERS:
            report.sections.append((f"cluster {cluster.folder}", state_of(cluster)))
    return report


def state_of(cluster: Cluster) -> str:
    parts = []
    for words in (("sinfo", "-N", "-o", "%N %P %T %E"), ("squeue", "-o", "%A %j %T %r %N %S")):
        try:
            done = cluster.run(*words, timeout_s=20)
            parts.append(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
        except HpcmassError as error:
            parts.append(f"$ {' '.join(words)}\n{error.message}")
    log = cluster.folder / "log" / "slurmctld.log"
    lines = log.read_text(errors="replace").splitlines()[-40:] if log.exists() else []
    return "\n".join([*parts, "slurmctld.log:", *lines])


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
    cancel_all(cluster, keep)
    for node in cluster.nodes:
        if not cluster.processes[f"slurmd-{node}"].alive:
            cluster.start_node(node)
    # Jobs that are still completing hold their nodes, and what they were may come back as a successor.
    until = time.monotonic() + 240
    while cancel_all(cluster, keep) and time.monotonic() < until:
        time.sleep(0.2)


def cancel_all(cluster: Cluster, keep: Sequence[str]) -> list[str]:
    """Cancel all jobs but those of some names; the ids of those that are there, also of those that are ending."""
    lines = cluster.run("squeue", "-h", "-o", "%A %j").stdout.splitlines()
    ids = sorted({line.split()[0] for line in lines if line.split()[1] not in keep})
    if ids:
        cluster.run("scancel", *ids)
    return ids


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
