"""A caller that owns the signals sends them to the ranks itself, and alone decides when they are ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from hpcmass.config import Target
from hpcmass.launch import Control, Outcome, plan_ranks, supervise

# Ends at the second SIGUSR1, whatever else comes.
SCRIPT = """
import pathlib, signal, sys, time
got = []
def take(number, frame):
    got.append(number)
    pathlib.Path(f"{sys.argv[1]}-{len(got)}").touch()
signal.signal(signal.SIGUSR1, take)
signal.signal(signal.SIGTERM, lambda n, f: None)
pathlib.Path(sys.argv[1]).touch()
while len(got) < 2:
    time.sleep(0.02)
"""
SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def start(
    tmp_path: Path, script: str, control: Control, *, ignore_usr1: bool = False
) -> tuple[threading.Thread, list[Outcome]]:
    ready = tmp_path / "ready"
    plan = plan_ranks(
        [sys.executable, "-c", script, str(ready)],
        1,
        Target(),
        threads_per_rank=1,
        cores=1,
        mpiexec=None,
        # Of an outer run it would be that run's alone.
        env={**os.environ, "HPCMASS_IGNORE_USR1": "1"},
    )
    plan = replace(plan, ignore_usr1=ignore_usr1)
    found: list[Outcome] = []
    log = tmp_path / "log"
    thread = threading.Thread(
        target=lambda: found.append(supervise(plan, log_file=lambda _: log, control=control))
    )
    thread.start()
    wait_for(ready)
    return thread, found


def wait_for(file: Path) -> None:
    until = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_signals_go_to_the_ranks_each_once_and_nobody_is_killed_for_being_slow(tmp_path: Path) -> None:
    control = Control()
    thread, found = start(tmp_path, SCRIPT, control)
    control.send(signal.SIGTERM)
    control.send(signal.SIGTERM)  # without a control the second one would kill
    control.send(signal.SIGUSR1)
    wait_for(tmp_path / "ready-1")  # two of one kind that wait are one
    time.sleep(0.5)
    assert thread.is_alive()
    control.send(signal.SIGUSR1)
    thread.join(240)
    assert found[0].ok
    assert found[0].signalled == signal.SIGTERM


def test_kill_ends_them_at_once(tmp_path: Path) -> None:
    control = Control()
    thread, found = start(tmp_path, SLEEP, control)
    control.kill()
    thread.join(240)
    assert found[0].exits[0].signal == signal.SIGKILL


def test_a_script_that_knows_no_sigusr1_does_not_die_of_it_where_that_is_asked_for(tmp_path: Path) -> None:
    control = Control()
    thread, found = start(tmp_path, SLEEP, control, ignore_usr1=True)
    control.send(signal.SIGUSR1)
    time.sleep(0.5)
    assert thread.is_alive()
    control.send(signal.SIGTERM)
    thread.join(240)
    assert found[0].exits[0].signal == signal.SIGTERM


def test_it_dies_of_it_otherwise(tmp_path: Path) -> None:
    control = Control()
    thread, found = start(tmp_path, SLEEP, control)
    control.send(signal.SIGUSR1)
    thread.join(240)
    assert found[0].exits[0].signal == signal.SIGUSR1
