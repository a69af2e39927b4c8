"""What is written of a run whose ranks are all gone, where they did not say it themselves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpcmass.config import Site, job_from_values, job_to_toml, site_to_toml
from hpcmass.launch import Outcome, RankExit
from hpcmass.runs import RunFolder, State
from hpcmass.train.start import settle

HERE = socket.gethostname()
DONE = RankExit(0, 0, None, host=HERE)
KILLED = RankExit(1, None, 9, time=1.0, host="other")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    job = job_from_values({"name": "run", "command": ["true"]})
    run.create(job_to_toml(job), site_to_toml(Site.local()), None)
    run.update(state=State.RUNNING, attempt=1, step=7)
    return run


@pytest.mark.parametrize("launcher_exit", [0, 1])
def test_a_rank_whose_node_says_nothing_any_more_is_lost(run: RunFolder, launcher_exit: int) -> None:
    outcome = Outcome(3, hosts={0: HERE, 1: HERE, 2: "other"}, exits={0: DONE}, launcher_exit=launcher_exit)
    assert outcome.lost == (2, "other")
    status = settle(run, outcome)
    assert status.state is State.FAILED
    assert status.reason is not None
    assert status.reason.startswith("rank 2 on other was lost")
    (error,) = run.errors(1)
    assert (error.rank, error.host, error.kind, error.step) == (2, "other", "signal", 7)


def test_a_rank_that_was_seen_to_end_is_not_lost(run: RunFolder) -> None:
    outcome = Outcome(2, hosts={0: HERE, 1: "other"}, exits={0: DONE, 1: KILLED}, first_failure=KILLED)
    assert outcome.lost is None
    assert settle(run, outcome).reason == "rank 1 on other was killed by signal 9 (SIGKILL)"


def test_nobody_said_anything_is_no_run_that_goes_on(run: RunFolder) -> None:
    outcome = Outcome(2, hosts={0: HERE, 1: HERE}, exits={0: DONE})
    assert outcome.lost is None
    status = settle(run, outcome)
    assert (status.state, status.reason) == (State.FAILED, "the ranks ended without saying why")
