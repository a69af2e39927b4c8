import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmass.runs import State
from hpcmass.sweep.records import read_trials

DRIVER = Path(__file__).with_name("toy_driver.py")


def start(folder, marked, **settings):
    arguments = [sys.executable, str(DRIVER), str(folder), json.dumps(settings)]
    log = open(folder.parent / f"driver-{time.monotonic_ns()}.log", "w+")  # noqa: SIM115
    process = subprocess.Popen(arguments, env=marked.env(), stdout=log, stderr=subprocess.STDOUT)
    process.log = log
    return process


def output(process):
    process.log.flush()
    return Path(process.log.name).read_text()


def lines(folder):
    return [line for log in sorted(folder.glob("trials/*/own.log")) for line in log.read_text().splitlines()]


def wait_for(condition, process, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, output(process)
        assert process.poll() is None, output(process)
        time.sleep(0.02)


def finish(process, seconds=400):
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(output(process))
    return code, json.loads(output(process).rpartition("RESULT ")[2] or "null")


@pytest.mark.parametrize(
    ("kills", "trials"),
    [(2, 5), pytest.param(12, 30, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_a_driver_killed_again_and_again_loses_nothing_and_runs_nothing_twice(kills, trials, tmp_path, marked):
    folder, chance = tmp_path / "study", random.Random()
    settings = {"trials": trials, "sampler": "tpe", "params": {"epochs": 4, "seconds": 0.3}, "retries": 0}
    for _ in range(kills):
        seen = len(lines(folder))
        process = start(folder, marked, **settings)
        goal = seen + chance.choice([1, 2, 3])
        while len(lines(folder)) < goal and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is not None:  # All are done: it was not looked at for long.
            assert process.returncode == 0, output(process)
            break
        time.sleep(chance.random() * 0.6)
        marked.note(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if chance.random() < 0.6:  # Else the next driver comes while the old workers are still ending.
            assert marked.gone() == []
    process = start(folder, marked, **settings)
    code, result = finish(process)
    assert (code, result["counts"]) == (0, {"complete": trials, "pruned": 0, "failed": 0, "unfinished": 0})
    assert marked.gone() == []
    for spec, outcome in read_trials(folder):
        own = (spec.path / "own.log").read_text().splitlines()
        assert own.count("completed") == 1
        assert own[-1] == "completed"
        steps = [record["step"] for record in spec.run.records("report")]
        assert sorted(set(steps)) == [1, 2, 3, 4]
        assert outcome.state == "complete"
        assert spec.run.status().state is State.COMPLETED


def test_a_lost_worker_is_replaced_and_its_trial_goes_on(tmp_path, marked):
    folder = tmp_path / "study"
    process = start(folder, marked, trials=3, params={"epochs": 6, "seconds": 0.3, "go": str(tmp_path / "go")})
    wait_for(lambda: lines(folder).count("start") >= 2, process)
    owner = read_trials(folder)[0][0].run.lease().owner()
    os.kill(owner.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    code, result = finish(process)
    assert (code, result["counts"]["complete"]) == (0, 3), output(process)
    assert "retried 0" in output(process)
    assert read_trials(folder)[0][1].attempts == 2
    assert marked.gone() == []


def test_two_drivers_at_once_the_second_is_refused(tmp_path, marked):
    folder = tmp_path / "study"
    first = start(folder, marked, trials=2, params={"epochs": 2, "seconds": 0.2, "go": str(tmp_path / "go")})
    wait_for(lambda: "opened" in output(first), first)
    second = start(folder, marked, trials=2)
    assert second.wait(300) != 0
    assert f"another driver works on this study (is in use by process {first.pid}" in output(second)
    (tmp_path / "go").touch()
    code, result = finish(first)
    assert (code, result["counts"]["complete"]) == (0, 2)


def test_sigterm_ends_the_driver_in_order_and_it_goes_on_later(tmp_path, marked):
    folder = tmp_path / "study"
    params = {"epochs": 4, "seconds": 0.3, "go": str(tmp_path / "go")}
    process = start(folder, marked, trials=3, params=params)
    wait_for(lambda: "start" in lines(folder), process)
    marked.note(process.pid)
    process.send_signal(signal.SIGTERM)
    code, result = finish(process)
    assert (code, result["signal"]) == (0, signal.SIGTERM)
    assert marked.alive() == []
    assert result["counts"]["unfinished"] >= 1
    (tmp_path / "go").touch()
    code, result = finish(start(folder, marked, trials=3, params=params))
    assert (code, result["counts"]["complete"]) == (0, 3)
    assert lines(folder).count("completed") == 3


def test_without_its_interchange_a_driver_says_so_and_ends(tmp_path, marked):
    folder = tmp_path / "study"
    process = start(
        folder, marked, trials=9, params={"epochs": 2, "go": str(tmp_path / "go"), "seconds": 0.3}, retries=0
    )
    wait_for(lambda: "start" in lines(folder), process)
    marked.note(process.pid)
    (pid,) = [pid for pid, words in marked.alive() if int(pid) in marked.children and "interchange" in words]
    os.kill(int(pid), signal.SIGKILL)
    process.wait(300)
    assert "interchange ended (exit code -9)" in output(process)
    assert marked.gone() == []
