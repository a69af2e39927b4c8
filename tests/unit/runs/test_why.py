"""`why`: the cause before the echoes, the last step, and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.errors import NotFound, TrainError
from hpcmass.runs import RankError, RunFolder, State, explain, first_error, is_lost_peer, log_tail


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "my-run")
    folder.create('name = "my-run"\n', "")
    folder.update(attempt=1, state=State.FAILED, backend="mpi", step=40)
    return folder


def word(rank: int, kind: str, error: str, message: str, time: float) -> RankError:
    return RankError(attempt=1, rank=rank, kind=kind, error=error, message=message, time=time, host="node1")


def test_the_exception_counts_before_the_signals_of_the_survivors() -> None:
    errors = [
        word(0, "signal", "SIGTERM", "rank 0 was killed by signal 15 (SIGTERM)", 1.0),
        word(1, "exception", "ValueError", "bad batch", 2.0),
    ]
    found = first_error(errors)
    assert found is not None
    assert found.rank == 1


def test_a_lost_peer_is_no_cause() -> None:
    errors = [
        word(0, "exception", "RuntimeError", "Connection closed by peer [127.0.0.1]:1194.", 1.0),
        word(2, "exception", "HorovodInternalError", "Horovod has been shut down.", 1.5),
        word(1, "signal", "SIGKILL", "rank 1 was killed by signal 9 (SIGKILL)", 2.0),
    ]
    found = first_error(errors)
    assert found is not None
    assert found.rank == 1


def test_only_echoes_then_the_first_of_them_and_none_of_none() -> None:
    echoes = [word(1, "signal", "SIGTERM", "ended", 2.0), word(0, "signal", "SIGTERM", "ended", 1.0)]
    found = first_error(echoes)
    assert found is not None
    assert found.rank == 0
    assert first_error([]) is None


def test_of_two_exceptions_the_earlier() -> None:
    errors = [
        word(0, "exception", "ValueError", "later", 2.0),
        word(1, "exception", "ValueError", "earlier", 1.0),
    ]
    found = first_error(errors)
    assert found is not None
    assert found.message == "earlier"


def test_a_failed_run(run: RunFolder) -> None:
    run.append({"kind": "train", "step": 43})
    run.record_exception(1, 1, TrainError("the loss is not finite (nan)", hint="look at shard 3"), step=43)
    (run.path / "logs").mkdir()
    run.log_file(1, 1).write_text("epoch 1\n 10%\r 90%\rdone\n\n")
    (run.path / "checkpoints").mkdir()
    for step in (20, 40):
        (run.path / "checkpoints" / f"step-{step:09d}.json").write_text("{}")
    told = explain(run)
    assert told.state is State.FAILED
    assert told.headline == "rank 1: the loss is not finite (nan)"
    assert (told.last_step, told.attempts) == (43, 1)
    assert told.advice[0] == "look at shard 3"
    assert "lower lr" in told.advice[1]
    assert told.advice[-1].endswith("the checkpoint of step 40")
    assert told.log_tail == "epoch 1\ndone"
    text = "\n".join(told.lines())
    assert "my-run: FAILED: rank 1: the loss is not finite (nan)" in text


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "smaller global_batch"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "smaller global_batch"),
        ("cannot write the file: No space left on device", "free space"),
        ("shard-00000.h5 does not fit its checksum", "verify"),
        ("No module named 'foo'", "install"),
        ("rank 1 was killed by signal 9 (SIGKILL)", "short of memory"),
        ("rank 1 was killed by signal 11 (SIGSEGV)", "native code"),
    ],
)
def test_advice(run: RunFolder, message: str, advice: str) -> None:
    run.record_error(word(1, "exception", "E", message, 1.0))
    assert any(advice in line for line in explain(run).advice)


def test_errors_of_earlier_attempts_are_not_this_ones(run: RunFolder) -> None:
    run.record_exception(1, 0, ValueError("old"))
    run.update(attempt=2, reason="the disk is full")
    told = explain(run)
    assert told.first_error is None
    assert told.headline == "the disk is full"
    assert told.attempts == 2


def test_processes_that_are_gone_are_unknown(run: RunFolder) -> None:
    code = """
import os, sys
from hpcmass.runs import RunFolder, State
run = RunFolder(sys.argv[1])
run.lease().acquire()
run.update(state=State.RUNNING, step=50)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    told = explain(run)
    assert told.state is State.UNKNOWN
    assert "gone" in told.headline
    assert any("nothing is known" in line for line in told.advice)


def test_it_only_reads(run: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))}
    explain(run)
    assert {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))} == before


def test_running_completed_stopped(run: RunFolder) -> None:
    run.update(state=State.COMPLETED)
    assert explain(run).advice == []
    run.update(state=State.STOPPED, reason="pruned")
    assert explain(run).headline == "pruned"
    assert any("again" in line for line in explain(run).advice)
    with run.lease():
        run.update(state=State.RUNNING)
        assert str(os.getpid()) in explain(run).headline


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        explain(RunFolder(tmp_path / "none"))


def test_log_tail_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d \xff" % n for n in range(100_000)))
    assert log_tail(log, 2).split("\n")[1].startswith("line 99999")
    assert log_tail(tmp_path / "none") == ""


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: [/x/pair.cc:553] Connection closed by peer [127.0.0.1]:1194.",
        "RuntimeError: [/x/pair.cc:537] Read error [127.0.0.1]:51848: Connection reset by peer.",
        "horovod.common.exceptions.HorovodInternalError: Horovod has been shut down. This was caused by",
    ],
)
def test_lost_peers(text: str) -> None:
    assert is_lost_peer(text)
    assert not is_lost_peer("ValueError: bad batch")
