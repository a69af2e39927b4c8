"""What hpcmass uses of Parsl that is private to it: a new version has to pass this before it is taken."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("parsl")

from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput import executor as htex
from parsl.executors.high_throughput import interchange as parsl_interchange
from parsl.executors.high_throughput.errors import (
    CommandClientBadError,
    CommandClientTimeoutError,
    ManagerLost,
)
from parsl.executors.high_throughput.zmq_pipes import CommandClient
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState

from hpcmass.config import Resources, Target
from hpcmass.errors import LaunchError, SlurmError
from hpcmass.workflow import parsl_site
from hpcmass.workflow.block_shape import block_shape
from hpcmass.workflow.blocks import BlockBook
from hpcmass.workflow.executors import BlockExecutor
from hpcmass.workflow.interchange import Questions
from hpcmass.workflow.pilot import pool_command
from hpcmass.workflow.pool import open_pool


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_version_is_of_the_tested_range() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (asked,) = (Requirement(words) for words in re.findall(r'"(parsl[<>=~!][^"]*)"', text))
    assert version("parsl") in asked.specifier
    assert {each.operator for each in asked.specifier} == {">=", "<"}


def test_the_private_methods_are_there() -> None:
    assert parameters(BlockProviderExecutor._launch_block) == ["self", "block_id"]
    assert parameters(BlockProviderExecutor.scale_out_facade) == ["self", "n"]
    assert parameters(BlockProviderExecutor.scale_in_facade) == ["self", "n", "max_idletime"]
    assert parameters(BlockProviderExecutor.status) == ["self"]
    assert parameters(BlockProviderExecutor.set_bad_state_and_fail_all) == ["self", "exception"]
    assert parameters(BlockProviderExecutor._filter_scale_in_ids) == ["self", "to_kill", "killed"]
    assert parameters(HighThroughputExecutor.scale_in) == ["self", "blocks", "max_idletime"]
    assert parameters(HighThroughputExecutor._hold_block) == ["self", "block_id"]
    assert parameters(HighThroughputExecutor.initialize_scaling) == ["self"]
    assert parameters(HighThroughputExecutor.submit)[:3] == ["self", "func", "resource_specification"]
    assert parameters(CommandClient.run) == ["self", "message", "max_retries", "timeout_s"]
    assert parameters(ManagerLost.__init__)[2] == "hostname"
    assert issubclass(HighThroughputExecutor, BlockProviderExecutor)
    assert {JobState.FAILED, JobState.MISSING, JobState.TIMEOUT, JobState.SCALED_IN} <= set(TERMINAL_STATES)
    assert callable(DataFlowKernel.atexit_cleanup)
    assert Path(parsl_interchange.__file__).name == "interchange.py"


def test_parsls_launch_command_is_what_ours_takes_the_place_of() -> None:
    assert htex.DEFAULT_LAUNCH_CMD.split(" ", 1)[0] == "process_worker_pool.py"
    ours = parsl_site._launch_command(["A=b c"])
    assert ours.endswith(htex.DEFAULT_LAUNCH_CMD.split(" ", 1)[1])
    assert "process_worker_pool.py" in ours


def test_the_worker_pool_has_every_option_that_the_pilot_gives_and_needs_no_other() -> None:
    spec = {
        "slots": 2, "gpus_per_slot": 1, "time_s": 60, "drain_s": 5, "whole": False, "nodes": 1, "threads": 1,
        "addresses": ["192.0.2.1"], "poll_ms": 10, "port": 9, "cert_dir": "None", "logdir": "x", "heartbeat_s": 5,
        "lost_after_s": 60, "pool": parsl_site._program("process_worker_pool"),
    }  # fmt: skip
    words = pool_command(spec, "0", {}, now=time.time(), cores=2)
    help_text = _run([*words, "--help"]).stdout
    assert all(word in help_text for word in words if word.startswith("-"))
    assert "required" not in _run([*words, "--no-such-option"]).stderr  # Its only complaint is that one.
    assert "--no-such-option" in _run([*words, "--no-such-option"]).stderr


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=400)


def test_workers_as_the_interchange_tells_them_and_questions_that_end_with_it(tmp_path: Path) -> None:
    with open_pool(Target(), parallel=1, folder=tmp_path, grace_s=5) as pool:
        assert pool.run(sys.getrecursionlimit).result(timeout=400) > 0
        (lane,) = pool.lanes.values()
        executor = lane.executor
        client = executor.command_client
        assert isinstance(client.run, Questions)  # It took the place of Parsl's own.
        assert client.ok
        assert {"acquire", "release"} <= set(dir(client._lock))
        (manager,) = executor.connected_managers()
        assert isinstance(manager["block_id"], str)
        assert (manager["worker_count"], manager["tasks"]) == (1, 0)
        assert isinstance(manager["idle_duration"], float)
        assert (manager["active"], manager["draining"]) == (True, False)
        executor._hold_block(manager["block_id"])
        (manager,) = executor.connected_managers()
        assert manager["active"] is False
        executor.interchange_proc.kill()
        executor.interchange_proc.wait()
        with pytest.raises(CommandClientTimeoutError):
            executor.connected_managers()
        assert not client.ok
        with pytest.raises(CommandClientBadError):
            executor.connected_managers()


@pytest.fixture
def executor(tmp_path: Path) -> BlockExecutor:
    """Of a target of Slurm, not started; nothing is submitted that the test does not let be."""
    target = Target(kind="slurm", partition="cpu", cores=4, max_nodes=4)
    made = parsl_site.slurm_executor(
        block_shape(Resources(), target, name="cpu"), target,
        book=BlockBook(tmp_path, "d"), run_dir=tmp_path, environment={}, grace_s=1,
    )  # fmt: skip
    made.run_dir = str(tmp_path)
    return made


def refused(kind: str, stderr: str, *, transient: bool = False) -> SlurmError:
    data = {"argv": ["sbatch"], "exit_code": 1, "stderr": stderr, "kind": kind, "unsure": False}
    return SlurmError("no", transient=transient, **data)


def test_scaling_calls_our_launch_and_keeps_what_failed_where_we_look(executor, monkeypatch) -> None:
    answers: list[object] = ["7", refused("limit", "AssocMaxSubmitJobLimit"), "8"]

    def submit(*_: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(executor._blocks, "submit", submit)
    assert executor.interchange_proc is None
    assert executor.scale_out_facade(3) == ["0"]  # The limit ended it: what was taken has to do.
    assert answers == ["8"]
    assert (executor.blocks_to_job_id, executor.job_ids_to_block) == ({"0": "7"}, {"7": "0"})
    assert set(executor.status_facade) == set(executor._status) == {"0"}
    assert executor._simulated_status == {}
    assert executor.scale_out_facade(1) == []  # It is held off.
    executor._hold_until = 0.0
    answers[:] = [refused("account", "Invalid account")]
    assert executor.scale_out_facade(2) == []
    assert executor._simulated_status["2"].state is JobState.FAILED
    assert isinstance(executor.refused["2"], SlurmError)


def test_an_executor_that_is_given_up_says_so_where_we_look(executor) -> None:
    assert (executor.bad_state_is_set, executor.executor_exception) == (False, None)
    error = LaunchError("broken")
    executor.set_bad_state_and_fail_all(error)
    assert executor.bad_state_is_set
    assert executor.executor_exception is error
    assert executor.scale_out_facade(1) == []
    with pytest.raises(LaunchError) as caught:  # What was under way ends with a BadStateException instead.
        executor.submit(len, {}, [])
    assert caught.value is error
    assert parameters(BadStateException.__init__) == ["self", "executor", "exception"]


DRIVER = """
import shlex, subprocess, sys, time
from pathlib import Path
from parsl.dataflow.dflow import DataFlowKernel
from hpcmass.workflow.parsl_site import _program, config_of, local_executor
from hpcmass.workflow.pilot import _OURS

here = Path(sys.argv[1])
executor = local_executor(label="t", parallel=2, environment={})
executor.heartbeat_threshold = 3
theirs = shlex.quote(_program("process_worker_pool"))
assert theirs in executor.launch_cmd
executor.launch_cmd = executor.launch_cmd.replace(theirs, f"-c {shlex.quote('import sys; ' + _OURS)}")
kernel = DataFlowKernel(config_of([executor], here))
work = "echo begin >> item; while [ ! -e go ]; do sleep 0.1; done; echo end >> item"
executor.submit(subprocess.call, {}, ["sh", "-c", f"cd {shlex.quote(str(here))}; {work}"])
print(executor.interchange_proc.pid, flush=True)
time.sleep(600)
"""


def test_an_item_of_our_worker_pool_outlives_its_driver_and_the_pool_ends_with_it(tmp_path: Path) -> None:
    """Parsl's own ends its workers; what ours changes of it is private to it."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    interchange = int(driver.stdout.readline())

    def wait_for(condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.1)

    item, logs = tmp_path / "item", lambda: "".join(f.read_text() for f in tmp_path.rglob("manager.log"))
    wait_for(item.exists, "the item does not begin")
    driver.kill()
    driver.wait()
    os.kill(interchange, signal.SIGKILL)
    wait_for(lambda: "the driver is gone" in logs(), "the pool does not notice")
    assert item.read_text().split() == ["begin"]
    (tmp_path / "go").touch()
    wait_for(lambda: "process_worker_pool ran for" in logs(), "the pool does not end")
    assert item.read_text().split() == ["begin", "end"]
