"""What a run cost, held against what it did: on a real Slurm with its accounting."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from hpcmass.config import Project
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.workflow.cost import cost_of
from hpcmass.workflow.submit import submit

pytestmark = pytest.mark.slurm

BURN = """
import time
begin = time.process_time()
while time.process_time() - begin < 3:
    pass
"""


def until(condition: object, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.3)


def test_node_hours_and_processor_time(project: Path, cluster: Cluster, slurm_env: dict[str, str]) -> None:
    (project / "hpcmass.toml").write_text(f'name = "tests"\nsite = "{cluster.site_file}"\n')
    (project / "burn.py").write_text(BURN)
    (project / "burn.toml").write_text(
        f'name = "burn"\ncommand = "{sys.executable} burn.py"\n[resources]\nranks = 1\n'
    )
    submit(project / "burn.toml", Project(project))
    run, slurm = RunFolder(project / "runs" / "burn"), Slurm(patience_s=240)
    until(lambda: run.status().state is State.COMPLETED)
    until(lambda: cost_of(run, None).wall_hours is not None)  # the hop's last word
    alone = cost_of(run, None)
    assert alone.source == "the run's hops"
    assert alone.node_hours == alone.wall_hours > 3 / 3600
    assert (alone.cpu_hours, alone.energy_joules) == (None, None), "nobody asked Slurm"
    if not slurm.has_accounting():
        pytest.skip("no accounting: apt-get install slurmdbd mariadb-server")
    until(lambda: cost_of(run, slurm).cpu_hours)  # sacct lags
    whole = cost_of(run, slurm)
    assert 3 <= whole.cpu_hours * 3600 < 30
    assert whole.node_hours == alone.node_hours
    assert whole.energy_joules is None, "this cluster measures none, which is not 0"
