"""What several tests of a rank's training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmass.config import Site, job_from_values, job_to_toml, site_to_toml
from hpcmass.runs import RunFolder, State


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run in its first attempt, at step 7."""
    run = RunFolder(tmp_path / "run")
    job = job_from_values({"name": "run", "command": ["true"]})
    run.create(job_to_toml(job), site_to_toml(Site.local()), None)
    run.update(state=State.RUNNING, attempt=1, step=7)
    return run
