import os
import sys
import time
import uuid
from pathlib import Path

import pytest

SWEEP_TESTS = Path(__file__).parents[1] / "sweep"
sys.path.insert(0, str(SWEEP_TESTS))


class Marked:
    """Processes that were started, at whatever depth, with this environment: seen from outside."""

    def __init__(self):
        self.mark = f"HPCMASS_TEST_MARK={uuid.uuid4().hex}"

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
        return found

    def gone(self, within_s):
        until = time.monotonic() + within_s
        while time.monotonic() < until and self.alive():
            time.sleep(0.1)
        return self.alive()


@pytest.fixture
def marked():
    return Marked()
