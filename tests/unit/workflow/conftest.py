import os
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from hpcmass.files import process_start

SWEEP_TESTS = Path(__file__).parents[1] / "sweep"
sys.path[:0] = [str(SWEEP_TESTS), str(Path(__file__).parent)]


class Marked:
    """Processes that a driver started, seen from outside: by an environment variable, and as its children.

    The variable reaches every depth, but a process may write over it (setproctitle does).
    """

    def __init__(self):
        self.mark = f"HPCMASS_TEST_MARK={uuid.uuid4().hex}"
        self.children = {}

    def note(self, pid):
        """Remember the children that a driver has now."""
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue  # A thread that ended meanwhile.
            self.children.update((int(child), process_start(int(child))) for child in children)

    def env(self, **more):
        root = Path(__file__).parents[3]
        path = os.pathsep.join([str(root), str(SWEEP_TESTS), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PYTHONPATH": path, **dict([self.mark.split("=")]), **more}

    def alive(self):
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found += [(entry.name, words)] if state not in "ZX" else []
            except OSError:
                continue
        children = [c for c, start in self.children.items() if start and process_start(c) == start]
        return found + [(str(child), "a child") for child in children]

    def gone(self, within_s=120):
        """What is left once nothing is, or after `within_s`: on a busy machine an orderly end takes its time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until and self.alive():
            time.sleep(0.1)
        return self.alive()


@pytest.fixture
def marked():
    return Marked()


@pytest.fixture
def project(tmp_path):
    from study_jobs import RECIPE, SCRIPT

    from hpcmass.config import Project
    from hpcmass.workflow.sharding import shard

    project = Project.create(tmp_path / "project", "test")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 4)).astype(np.float32)
    np.savez(tmp_path / "raw.npz", x=features, y=(features[:, 0] > 0).astype(np.int64))
    shard(
        [str(tmp_path / "raw.npz")], project.data / "toy",
        strategy="stratified", by="y", splits={"train": 0.6, "valid": 0.2, "test": 0.2}, shards=4,
    )  # fmt: skip
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "train.py").write_text(SCRIPT)
    return project
