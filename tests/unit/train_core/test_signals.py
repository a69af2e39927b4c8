"""What a rank writes down when it is told to stop, and takes back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace

import pytest

from hpcmass.runs import RunFolder
from hpcmass.train.signals import Peer, Watch


def two_ranks() -> list[Peer]:
    here = Peer.this(0)
    return [here, replace(here, rank=1)]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_feared_is_forgotten_by_a_rank_that_ends_well(
    run: RunFolder, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCMASS_STOP_GRACE_S", "3600")  # it does not give up, however slow this test is
    with contextlib.suppress(InterruptedError), Watch(run, 1, 1, two_ranks()) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 240
        while not run.errors(1):
            assert time.monotonic() < until
            time.sleep(0.01)
        if fails:
            raise InterruptedError("another rank is gone")
        watch.advance(8)  # it may end before the thread looks again, or after
    assert [error.message for error in run.errors(1)] == (
        ["ended by SIGTERM, probably because another rank died"] if fails else []
    )
