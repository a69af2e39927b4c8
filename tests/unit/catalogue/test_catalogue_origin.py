"""Lineage from a run folder; and that the catalogue stays light."""

import json
import os
import subprocess
import sys

import pytest

from hpcmass.catalogue import Catalogue, git_commit, lineage
from hpcmass.errors import CorruptError, NotFound


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text('name = "m"\n[train]\nlr = 0.1\nstart = 2026-01-02\n')
    (folder / "status.json").write_text(
        json.dumps({"format": 1, "state": "COMPLETED", "metrics": {"loss": 0.5}})
    )
    return folder


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


def test_lineage_of_a_run(run_dir, tmp_path):
    found = lineage(run_dir, datasets={"train": "abc"}, parent="m@1")
    assert found["job"] == {"name": "m", "train": {"lr": 0.1, "start": "2026-01-02"}}
    assert found["metrics"] == {"loss": 0.5}
    assert (found["run"], found["parent"], found["datasets"]) == (str(run_dir), "m@1", {"train": "abc"})
    assert found["environment"]["python"].count(".") == 2
    assert "numpy" in found["environment"]["packages"]
    catalogue = Catalogue(tmp_path / "c")
    assert catalogue.register("m", run_dir, metrics={}, lineage=found).lineage == found


def test_the_commit_and_whether_it_is_all(run_dir):
    assert git_commit(run_dir.parent) is None
    git(run_dir, "init", "-q")
    git(run_dir, "add", "-A")
    git(run_dir, "commit", "-qm", "x")
    commit = git_commit(run_dir)
    assert len(commit) == 40
    assert lineage(run_dir)["commit"] == commit
    (run_dir / "job.toml").write_text("name = 'n'\n")
    assert git_commit(run_dir) == f"{commit}+changes"


def test_no_run(tmp_path):
    with pytest.raises(NotFound):
        lineage(tmp_path)
    (tmp_path / "job.toml").write_text("= 3")
    with pytest.raises(CorruptError):
        lineage(tmp_path)


def test_nothing_heavy_is_imported():
    script = (
        "import sys, hpcmass.catalogue as c; c.environment();"
        "print([m for m in ('torch','numpy','pydantic','h5py','sklearn','pickle') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
