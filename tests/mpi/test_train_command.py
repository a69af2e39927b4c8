"""`hpcmass train --ranks` and `mpiexec … hpcmass train`, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpcmass.launch import find_mpiexec, hpcmass_command

pytestmark = pytest.mark.mpi
HOME = Path(__file__).parents[2]

RECIPE = """\
from torch import nn


def build_model(params):
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
"""

JOB = """\
name = "tiny"
recipe = "recipe.py"

[data]
train = "data/tiny/train"
valid = "data/tiny/valid"

[train]
backend = "mpi"
epochs = 2
global_batch = 16
lr = 0.01
"""


def hpcmass(
    root: Path, *words: str, before: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *hpcmass_command(), *words],
        cwd=root,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert hpcmass(tmp_path, "init", "lab", "--bare").returncode == 0
    lab = tmp_path / "lab"
    rng = np.random.default_rng(0)
    label = np.arange(100) % 3
    np.savez(lab / "tiny.npz", x=rng.normal(size=(100, 8)).astype("f4") + label[:, None], label=label)
    (lab / "recipe.py").write_text(RECIPE)
    (lab / "job.toml").write_text(JOB)
    done = hpcmass(
        lab, "shard", "tiny.npz", "--out", "data/tiny", "--split", "train=0.7,valid=0.3", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    return lab


def steps(run: Path) -> int:
    return int(json.loads((run / "status.json").read_text())["step"])


def test_ranks_complete_resume_and_refuse(root: Path) -> None:
    (root / "h5py.py").write_text("raise RuntimeError('the working folder is on the path of a rank')")
    (root / "click.py").write_text("raise RuntimeError('the working folder is on the path of a rank')")
    done = hpcmass(root, "train", "job.toml", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completed:") == 1
    assert steps(root / "runs/tiny") == 10
    again = hpcmass(root, "train", "job.toml", "--ranks", "2")
    assert again.returncode == 0, again.stderr
    assert "completed already" in again.stdout + again.stderr
    longer = hpcmass(root, "train", "job.toml", "--ranks", "3", "--set", "train.epochs=3")
    assert longer.returncode == 0, longer.stderr
    assert "going on from step 10 on 3 ranks" in longer.stdout + longer.stderr
    assert steps(root / "runs/tiny") == 15
    other = hpcmass(root, "train", "job.toml", "--ranks", "2", "--set", "train.lr=0.5")
    assert other.returncode == 2
    assert "train.lr" in other.stderr
    assert other.stderr.count("error:") == 1


def test_a_promise_that_no_launcher_keeps_is_refused(root: Path) -> None:
    done = hpcmass(root, "train", "job.toml", HPCMASS_RANKS="2")
    assert done.returncode == 2
    assert "2" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((root / "runs").iterdir()) == []


def test_under_the_user_s_own_mpiexec(root: Path) -> None:
    flavour = find_mpiexec()
    assert flavour is not None
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    before = (str(flavour.path), "-n", "2", "--oversubscribe")
    done = hpcmass(root, "train", "job.toml", before=before, **as_root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completed:") == 1
    assert "2 ranks (mpi)" in done.stderr


def test_on_a_terminal_ranks_show_a_progress_line_too(root: Path) -> None:
    words = " ".join([*(f"'{word}'" for word in hpcmass_command()[:1]), "-m", "hpcmass", "train", "job.toml"])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        ["script", "-qec", f"{words} --ranks 2", "/dev/null"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "\u2501" in done.stdout  # the bar
    assert done.stdout.count("completed:") == 1
    log = (root / "runs/tiny/logs/attempt-1-rank-0.log").read_text()
    assert "\u2501" not in log
    assert "epoch 1" in log


@pytest.mark.horovod
def test_a_profile_of_every_rank_and_of_horovod(root: Path) -> None:
    done = hpcmass(
        root,
        "train",
        "job.toml",
        "--ranks",
        "2",
        "--backend",
        "horovod",
        "--profile",
        "--set",
        "train.epochs=6",
    )
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in (root / "runs/tiny/profile").iterdir()}
    assert sorted(found) == ["horovod-timeline.json", "trace-rank-0.json", "trace-rank-1.json"]
    for rank in (0, 1):
        events = json.loads(found[f"trace-rank-{rank}.json"])["traceEvents"]
        assert len({e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep#")}) == 10
    assert "ALLREDUCE" in found["horovod-timeline.json"]
