"""`start_ranks`: ranks that lay the run folder down themselves, and how they end."""

import os
import sys
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.errors import ConfigError, LaunchError, RankFailed
from hpcmass.launch import find_mpiexec
from hpcmass.runs import RunFolder, State, Status
from hpcmass.train.start import start_ranks

pytestmark = pytest.mark.mpi
BACKENDS = ["mpi", "torch"] if find_mpiexec() else ["torch"]

# What a rank of `hpcmass train` does to the run folder, with nothing trained.
RANK = """
import os, signal, sys, time
from hpcmass.errors import ConfigError, TrainError
from hpcmass.files import process_start
from hpcmass.launch import detect_ranks, leave_word
from hpcmass.runs import RunFolder, State
run, how = RunFolder(sys.argv[1]), sys.argv[2]
rank = detect_ranks(os.environ).rank
assert detect_ranks(os.environ).size == 2 == int(os.environ["HPCMASS_RANKS"])
print("rank", rank, "as", detect_ranks(os.environ).source, flush=True)
if how == "refuse":
    leave_word(ConfigError("the dataset is missing", where="data.train", hint="hpcmass shard"))
    sys.exit(2)
if how == "refuse plainly":
    print("error: data.train: the dataset is missing\\n  hint: hpcmass shard", file=sys.stderr)
    sys.exit(2)
attempt = int(sys.argv[3])
if rank == 0:
    if not run.exists():
        run.create('name = "r"\\n', "")
    lease = run.lease()
    lease.acquire()
    run.update(state=State.RUNNING, attempt=attempt, ranks=2, step=7)
else:
    while not run.exists() or run.status().attempt < attempt:
        time.sleep(0.02)
    time.sleep(0.5)
if how == "complete":
    if rank == 0:
        run.update(state=State.COMPLETED)
        lease.release()
elif how == "kill" and rank == 1:
    os.kill(os.getpid(), 9)
elif how == "raise" and rank == 1:
    run.record_exception(attempt, rank, TrainError("the loss is not finite"), step=7)
    sys.exit(1)
elif how == "echo" and rank == 1:
    (run.path / ".me").write_text(str(process_start(os.getpid())) + " " + str(os.getpid()))
    (run.path / ".me").rename(run.path / "me")
    os.kill(os.getpid(), 9)
elif how == "echo":
    while not (run.path / "me").exists():
        time.sleep(0.02)
    start, pid = map(int, (run.path / "me").read_text().split())
    while process_start(pid) == start:  # None of one that is gone
        time.sleep(0.02)
    time.sleep(0.3)  # a second after that death this one is told to end
    run.record_exception(attempt, rank, RuntimeError("Connection closed by peer"))
    run.update(state=State.FAILED, reason="Connection closed by peer")
    sys.exit(1)
else:
    time.sleep(600)
"""


def start(tmp_path: Path, how: str, backend: str, console: bool = False) -> tuple[RunFolder, Status]:
    run = RunFolder(tmp_path / "runs" / "r")
    attempt = run.status().attempt + 1 if run.exists() else 1
    status = start_ranks(
        [sys.executable, "-c", RANK, str(run.path), how, str(attempt)],
        run=run,
        ranks=2,
        target=Target(),
        threads_per_rank=1,
        backend=backend,
        console=console,
    )
    return run, status


@pytest.mark.parametrize("backend", BACKENDS)
def test_completed(tmp_path: Path, backend: str) -> None:
    run, status = start(tmp_path, "complete", backend)
    assert status.state is State.COMPLETED
    source = "hpcmass" if backend == "torch" else {"openmpi": "openmpi", "mpich": "pmi"}[find_mpiexec().kind]  # type: ignore[union-attr]
    for rank in (0, 1):
        assert run.log_file(1, rank).read_text() == f"rank {rank} as {source}\n"
    assert os.listdir(tmp_path / "runs") == ["r"]
    assert run.errors() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_that_is_killed_is_in_status_and_errors(tmp_path: Path, backend: str) -> None:
    run, status = start(tmp_path, "kill", backend)
    assert (status.state, status.reason) == (State.FAILED, "rank 1 was killed by signal 9 (SIGKILL)")
    (error,) = run.errors()
    assert (error.rank, error.kind, error.error, error.step) == (1, "signal", "SIGKILL", 7)
    assert run.lease().owner() is None
    assert run.log_file(1, 1).exists()
    # The next attempt keeps its own logs and errors.
    run, status = start(tmp_path, "complete", backend)
    assert (status.state, status.attempt) == (State.COMPLETED, 2)
    assert run.log_file(2, 0).exists()


def test_a_ranks_own_exception_is_the_reason(tmp_path: Path) -> None:
    run, status = start(tmp_path, "raise", "torch")
    assert (status.state, status.reason) == (State.FAILED, "the loss is not finite")
    assert [(error.rank, error.kind) for error in run.errors()] == [(1, "exception")]


def test_the_killed_rank_counts_before_the_one_that_lost_it(tmp_path: Path) -> None:
    run, status = start(tmp_path, "echo", "torch")
    assert status.reason == "rank 1 was killed by signal 9 (SIGKILL)"
    assert {error.rank for error in run.errors()} == {0, 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refusal_is_raised_once_and_leaves_nothing(
    tmp_path: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, "refuse", backend, console=True)
    error = caught.value
    assert (error.message, error.where, error.hint) == ("the dataset is missing", "data.train", "hpcmass shard")
    assert error.exit_code == 2
    assert not error.data.get("told")
    assert os.listdir(tmp_path) == []
    assert "missing" not in capfd.readouterr().out


@pytest.mark.parametrize("console", [True, False])
def test_a_refusal_in_words_only(tmp_path: Path, console: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankFailed) as caught:
        start(tmp_path, "refuse plainly", "torch", console=console)
    assert caught.value.message == "data.train: the dataset is missing\n  hint: hpcmass shard"
    assert caught.value.data["told"] is console
    assert ("missing" in capfd.readouterr().out) is console
    assert os.listdir(tmp_path) == []


def test_mpiexec_is_needed_and_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no mpiexec"):
        start(tmp_path, "complete", "mpi")
    assert os.listdir(tmp_path) == []
