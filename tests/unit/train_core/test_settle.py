"""What is written of a run whose ranks are all gone, where they did not say it themselves."""

from __future__ import annotations

import socket

import pytest

from hpcmass.launch import Outcome, RankExit, unheard_node
from hpcmass.runs import RunFolder, State
from hpcmass.train.start import settle

HERE = socket.gethostname()
DONE = RankExit(0, 0, None, host=HERE)
KILLED = RankExit(1, None, 9, time=1.0, host="other")


@pytest.mark.parametrize("launcher_exit", [0, 1])
def test_a_rank_whose_node_says_nothing_any_more_is_lost(run: RunFolder, launcher_exit: int) -> None:
    lost = unheard_node({0: (HERE, "cn1"), 1: (HERE, "cn1"), 2: ("other", "cn2"), 3: ("other", "cn2")}, {0})
    assert lost is not None
    assert (lost.node, lost.ranks) == ("cn2", (2, 3))
    status = settle(run, Outcome(4, exits={0: DONE}, launcher_exit=launcher_exit, lost=lost))
    assert status.state is State.FAILED
    assert status.reason is not None
    assert status.reason.startswith("node cn2 was lost with ranks 2, 3")
    (error,) = run.errors(1)
    assert (error.rank, error.host, error.kind, error.step) == (2, "cn2", "signal", 7)


def test_a_rank_that_was_seen_to_end_is_not_lost(run: RunFolder) -> None:
    assert unheard_node({0: (HERE, ""), 1: ("other", "")}, {0, 1}) is None
    outcome = Outcome(2, exits={0: DONE, 1: KILLED}, first_failure=KILLED)
    assert settle(run, outcome).reason == "rank 1 on other was killed by signal 9 (SIGKILL)"


def test_nobody_said_anything_is_no_run_that_goes_on(run: RunFolder) -> None:
    assert unheard_node({0: (HERE, ""), 1: (HERE, "")}, {0}) is None
    status = settle(run, Outcome(2, exits={0: DONE}))
    assert status.state is State.FAILED
    assert status.reason is not None
    assert status.reason.startswith("nothing is known of the end of rank 1")
