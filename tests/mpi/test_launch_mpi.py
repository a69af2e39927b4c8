"""Ranks under a real mpiexec: as with plain processes, every end is known and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.launch import Outcome, find_mpiexec, plan_ranks, supervise

MPIEXEC = find_mpiexec()
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec")]

RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
here = Path(sys.argv[1])
def pid(name, number):
    (here / f".{name}").write_text(str(number))
    os.replace(here / f".{name}", here / f"{name}.pid")
pid(f"rank-{rank}", os.getpid())
"""
MEET = """
from mpi4py import MPI
comm = MPI.COMM_WORLD
assert (comm.rank, comm.size) == (rank, int(os.environ["WORLD_SIZE"])), (comm.rank, comm.size)
assert comm.allreduce(1) == comm.size
"""


def launch(tmp_path: Path, code: str, ranks: int = 2, **options: float) -> Outcome:
    plan = plan_ranks(
        [sys.executable, "-c", RANK + code, str(tmp_path)],
        ranks,
        Target(launcher="mpiexec"),
        threads_per_rank=1,
        cores=2,
        mpiexec=MPIEXEC,
        env=os.environ,
    )
    return supervise(plan, log_file=lambda rank: tmp_path / f"{rank}.log", **options)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pids(tmp_path: Path) -> list[int]:
    return [int(file.read_text()) for file in tmp_path.glob("*.pid")]


def test_ranks_find_each_other_through_mpi(tmp_path: Path) -> None:
    outcome = launch(tmp_path, MEET + "print('met', comm.rank)", ranks=3)
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(3)]
    assert outcome.ok, (outcome, logs)
    assert logs == ["met 0\n", "met 1\n", "met 2\n"]


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os.kill(os.getpid(), 9)", "rank 1 was killed by signal 9 (SIGKILL)"),
        ("os.kill(os.getpid(), 11)", "rank 1 was killed by signal 11 (SIGSEGV)"),
        ("os._exit(3)", "rank 1 ended with exit code 3"),
        ("comm.Abort(5)", "rank 1 ended with exit code 5"),
    ],
)
def test_a_rank_that_ends_badly_in_mpi_ends_the_others(tmp_path: Path, end: str, text: str) -> None:
    outcome = launch(tmp_path, MEET + f"{end} if rank == 1 else comm.Barrier()")
    assert outcome.first_failure is not None
    assert outcome.first_failure.text() == text
    assert not outcome.ok
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)), "a rank outlived the run")


def test_a_failure_without_mpi_ends_the_others(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "sys.exit(3) if rank == 1 else time.sleep(600)")
    assert outcome.first_failure is not None
    assert outcome.first_failure.text() == "rank 1 ended with exit code 3"


def test_a_keeper_that_is_killed_is_named_by_mpiexec(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "os.kill(os.getppid(), 9) if rank == 1 else None; time.sleep(600)")
    assert not outcome.ok
    assert outcome.first_failure is not None
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)), "a rank outlived its keeper")
    if MPIEXEC is not None and MPIEXEC.kind == "openmpi":
        assert outcome.first_failure.text() == "rank 1 was killed by signal 9 (SIGKILL)"


DRIVER = """
import os, sys
from pathlib import Path
from hpcmass.config import Target
from hpcmass.launch import find_mpiexec, plan_ranks, supervise
here = Path(sys.argv[1])
plan = plan_ranks([sys.executable, "-c", sys.argv[2], str(here)], 2, Target(launcher="mpiexec"),
                  threads_per_rank=1, cores=2, mpiexec=find_mpiexec(), env=os.environ)
outcome = supervise(plan, log_file=lambda rank: here / f"{rank}.log")
print(outcome.signalled, [outcome.exits[rank].exit_code for rank in (0, 1)])
"""
STAY = """
signal.signal(15, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pid(f"worker-{rank}", worker.pid)
pid(f"up-{rank}", os.getpid())
time.sleep(600)
"""


def driver(tmp_path: Path, code: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), RANK + code], stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(tmp_path.glob("up-*.pid"))) == 2, "the ranks did not come up")
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("victim", ["supervisor", "mpiexec"])
def test_kill_9_leaves_nothing(tmp_path: Path, victim: str) -> None:
    process = driver(tmp_path, STAY)
    (mpiexec,) = children(process.pid)
    os.kill(process.pid if victim == "supervisor" else mpiexec, signal.SIGKILL)
    process.wait()
    wait_for(lambda: gone(mpiexec) and all(gone(pid) for pid in pids(tmp_path)), "orphans")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_every_rank_once(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
got = []
signal.signal({int(number)}, lambda n, f: got.append(n))
pid(f"up-{{rank}}", os.getpid())
while not got: time.sleep(0.01)
time.sleep(0.5)
print("had", got)
"""
    process = driver(tmp_path, code)
    process.send_signal(number)
    said, _ = process.communicate()
    assert said == f"{int(number)} [0, 0]\n"
    assert (tmp_path / "1.log").read_text() == f"had [{int(number)}]\n"


def test_inside_another_job(tmp_path: Path) -> None:
    """As a rank that starts ranks itself: the outer job's variables must not reach them."""
    assert MPIEXEC is not None
    outer = plan_ranks(
        [sys.executable, "-c", DRIVER, str(tmp_path), RANK + MEET],
        1,
        Target(launcher="mpiexec"),
        threads_per_rank=1,
        cores=2,
        mpiexec=MPIEXEC,
        env=os.environ,
    )
    assert supervise(outer, log_file=lambda rank: tmp_path / "outer.log").ok
    assert (tmp_path / "outer.log").read_text() == "None [0, 0]\n"
    assert len(pids(tmp_path)) == 2
