"""Supervision of plain processes: every rank's end known, none left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.errors import ConfigError, LaunchError
from hpcmass.launch import Outcome, plan_ranks, supervise

RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
here = Path(sys.argv[1])
def pid(name, number):
    (here / f".{name}").write_text(str(number))
    os.replace(here / f".{name}", here / f"{name}.pid")
pid(f"rank-{rank}", os.getpid())
def meet(name="rank"):
    # One that is late could be ended before it is what the test is about.
    while len(list(here.glob(f"{name}-*.pid"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
"""


def launch(
    tmp_path: Path, code: str, *, ranks: int = 2, env: dict[str, str] | None = None, **options: float
) -> Outcome:
    plan = plan_ranks(
        [sys.executable, "-c", RANK + code, str(tmp_path)],
        ranks,
        Target(launcher="spawn"),
        threads_per_rank=1,
        cores=2,
        mpiexec=None,
        env={**os.environ, **(env or {})},
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


def test_environment_as_torchruns_and_a_log_a_rank(tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK NODE_RANK MASTER_ADDR OMP_NUM_THREADS"
    code = (
        f"print([os.environ[n] for n in '{names}'.split()]); print(os.environ['MASTER_PORT'], file=sys.stderr)"
    )
    outcome = launch(
        tmp_path, code, ranks=3, env={"RANK": "7", "SLURM_PROCID": "5", "MASTER_ADDR": "elsewhere"}
    )
    assert outcome.ok
    assert outcome.first_failure is None
    logs = [(tmp_path / f"{rank}.log").read_text().splitlines() for rank in range(3)]
    for rank, lines in enumerate(logs):
        assert lines[0] == str([str(rank), str(rank), "3", "3", "0", "0", "127.0.0.1", "1"])
    ports = {lines[1] for lines in logs}
    assert len(ports) == 1
    assert 1024 < int(ports.pop()) < 65536


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "meet(); sys.exit(3) if rank == 1 else time.sleep(600)", ranks=3)
    assert not outcome.ok
    assert outcome.first_failure is not None
    assert (outcome.first_failure.rank, outcome.first_failure.exit_code) == (1, 3)
    assert outcome.first_failure.text() == "rank 1 ended with exit code 3"
    assert [(outcome.exits[rank].signal, outcome.exits[rank].ended_by_us) for rank in (0, 2)] == [
        (15, True)
    ] * 2
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "meet(); os.kill(os.getpid(), 9) if rank == 1 else time.sleep(600)")
    assert outcome.first_failure is not None
    assert outcome.first_failure.text() == "rank 1 was killed by signal 9 (SIGKILL)"


def test_a_rank_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = """
signal.signal(15, signal.SIG_IGN)
pid(f"deaf-{rank}", os.getpid())
meet("deaf")
sys.exit(1) if rank == 1 else time.sleep(600)
"""
    outcome = launch(tmp_path, code, grace_s=0.2)
    assert outcome.exits[0].signal == 9
    assert all(gone(pid) for pid in pids(tmp_path))


def test_what_a_rank_left_behind_is_ended_too(tmp_path: Path) -> None:
    code = """
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
left = subprocess.Popen([sys.executable, "-c", code])
pid(f"left-{rank}", left.pid)
"""
    outcome = launch(tmp_path, code, ranks=1)
    assert outcome.ok
    (left,) = [int(file.read_text()) for file in tmp_path.glob("left-*.pid")]
    wait_for(lambda: gone(left), "a rank's own child outlived the run")


def test_a_keeper_that_is_killed_takes_its_rank_along(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "os.kill(os.getppid(), 9) if rank == 1 else None; time.sleep(600)", grace_s=0.2)
    assert outcome.first_failure is not None
    assert (outcome.first_failure.rank, outcome.first_failure.signal) == (1, 9)
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)), "a rank outlived its keeper")


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    plan = plan_ranks(
        ["/no/such/program"], 2, Target(), threads_per_rank=1, cores=2, mpiexec=None, env=os.environ
    )
    outcome = supervise(plan, log_file=lambda rank: tmp_path / f"{rank}.log")
    assert outcome.first_failure is not None
    assert outcome.first_failure.exit_code == 127
    assert "cannot start '/no/such/program'" in (tmp_path / "0.log").read_text()


def test_no_shell_reads_the_words(tmp_path: Path) -> None:
    hostile = ["$(touch evil)", "; touch evil", "`touch evil`", "a b", "*", "", "'", "\n", "${HOME}"]
    code = "import sys; print(sys.argv[1:])"
    plan = plan_ranks(
        [sys.executable, "-c", code, *hostile],
        2,
        Target(),
        threads_per_rank=1,
        cores=2,
        mpiexec=None,
        env=os.environ,
    )
    assert supervise(plan, log_file=lambda rank: tmp_path / f"{rank}.log", cwd=tmp_path).ok
    assert (tmp_path / "1.log").read_text() == f"{hostile}\n"
    assert sorted(os.listdir(tmp_path)) == ["0.log", "1.log"]


def test_rank_0_is_shown_and_only_rank_0(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = plan_ranks(
        [sys.executable, "-c", "import os; print('this is rank', os.environ['RANK'])"],
        2,
        Target(),
        threads_per_rank=1,
        cores=2,
        mpiexec=None,
        env=os.environ,
    )
    assert supervise(plan, log_file=lambda rank: tmp_path / f"{rank}.log", console=True).ok
    assert capfd.readouterr().out == "this is rank 0\n"


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text("before\n")
    launch(tmp_path, "print('after')", ranks=1)
    assert (tmp_path / "0.log").read_text() == "before\nafter\n"


def test_the_ranks_errors_come_as_data(tmp_path: Path) -> None:
    code = """
from hpcmass.errors import ConfigError
from hpcmass.launch import leave_word
assert leave_word(ConfigError("unknown key", where="job.toml:3", hint="did you mean lr?"))
sys.exit(2)
"""
    outcome = launch(tmp_path, code)
    assert set(outcome.words) == {0, 1}
    error = outcome.words[1]
    assert isinstance(error, ConfigError)
    assert (error.message, error.where, error.hint) == ("unknown key", "job.toml:3", "did you mean lr?")


def test_without_a_supervisor_a_last_word_is_not_taken() -> None:
    from hpcmass.launch import leave_word

    assert leave_word(ConfigError("x"), {}) is False
    assert leave_word(ConfigError("x"), {"HPCMASS_KEEPER": "/no/such/folder", "HPCMASS_RANK": "0"}) is False


DRIVER = """
import os, sys
from pathlib import Path
from hpcmass.config import Target
from hpcmass.launch import find_mpiexec, plan_ranks, supervise
here = Path(sys.argv[1])
mpiexec = find_mpiexec() if sys.argv[2] == "mpiexec" else None
plan = plan_ranks([sys.executable, "-c", sys.argv[3], str(here)], 2, Target(launcher=sys.argv[2]),
                  threads_per_rank=1, cores=2, mpiexec=mpiexec, env=os.environ)
outcome = supervise(plan, log_file=lambda rank: here / f"{rank}.log", stop_grace_s=float(sys.argv[4]))
exits = [outcome.exits[rank] for rank in (0, 1)]
print(outcome.signalled, [end.exit_code for end in exits], [end.signal for end in exits])
"""


def driver(
    tmp_path: Path, code: str, launcher: str = "spawn", stop_grace_s: float = 60.0
) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), launcher, RANK + code, str(stop_grace_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("up-*.pid"))) == 2, "the ranks did not come up")
    return process


def test_kill_9_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    code = """
signal.signal(15, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pid(f"worker-{rank}", worker.pid)
pid(f"up-{rank}", os.getpid())
time.sleep(600)
"""
    process = driver(tmp_path, code)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)), "orphans")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_every_rank_once(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
got = []
signal.signal({int(number)}, lambda n, f: got.append(n))
pid(f"up-{{rank}}", os.getpid())
while not got: time.sleep(0.01)
time.sleep(0.5)
sys.exit(len(got) + 40)
"""
    process = driver(tmp_path, code)
    process.send_signal(number)
    said, _ = process.communicate()
    assert said == f"{int(number)} [41, 41] [None, None]\n"


def test_a_second_sigint_kills(tmp_path: Path) -> None:
    code = """
signal.signal(2, lambda n, f: pid(f"had-{rank}", os.getpid()))
pid(f"up-{rank}", os.getpid())
while True: time.sleep(0.05)
"""
    process = driver(tmp_path, code)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: len(list(tmp_path.glob("had-*.pid"))) == 2, "the first SIGINT did not arrive")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert said == "2 [None, None] [9, 9]\n"


def test_ranks_that_do_not_end_when_asked_are_killed(tmp_path: Path) -> None:
    code = "signal.signal(15, signal.SIG_IGN); pid(f'up-{rank}', os.getpid()); time.sleep(600)"
    process = driver(tmp_path, code, stop_grace_s=0.3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert said == "15 [None, None] [9, 9]\n"


def test_a_launcher_that_is_missing(tmp_path: Path) -> None:
    plan = plan_ranks(["true"], 1, Target(), threads_per_rank=1, cores=1, mpiexec=None, env=os.environ)
    plan.argv[0] = "/no/such/python"
    with pytest.raises(LaunchError, match="cannot start"):
        supervise(plan, log_file=lambda rank: tmp_path / f"{rank}.log")


def test_a_world_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    """As when a rank's environment says one rank where two were promised (a launcher that does not fit)."""
    plan = plan_ranks(["true"], 2, Target(), threads_per_rank=1, cores=1, mpiexec=None, env=os.environ)
    folder = tmp_path / "keeper"
    folder.mkdir()
    (folder / "settings.json").write_text('{"ranks": 2, "logs": ["/dev/null", "/dev/null"]}')
    env = {**plan.env, "HPCMASS_KEEPER": str(folder)}
    done = subprocess.run(plan.argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rank 0 of 1" in done.stderr
    assert os.listdir(folder) == ["settings.json"]


def test_what_a_killed_supervisor_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    code = (
        "import sys, tempfile; from hpcmass.launch.notes import notes_folder; tempfile.tempdir = sys.argv[1]; "
    )
    words = [sys.executable, "-c", f"{code}print(notes_folder(None), flush=True); sys.stdin.read()", str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    old = time.time() - 3600
    with (
        subprocess.Popen(words, text=True, **pipes) as dead,
        subprocess.Popen(words, text=True, **pipes) as alive,
    ):
        folders = []
        for process in (dead, alive):
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        dead.kill()
        dead.wait()
        others = [place / "hpcmass-launch-nobodys", place / "hpcmass-launch-just-now"]
        for folder in others:
            folder.mkdir()
        (others[1] / "owner.json").write_bytes((folders[0] / "owner.json").read_bytes())
        for folder in (*folders, others[0]):
            os.utime(folder, (old, old))
        log = tmp_path / "log"
        plan = plan_ranks(["true"], 1, Target(), threads_per_rank=1, cores=1, mpiexec=None, env=os.environ)
        assert supervise(plan, log_file=lambda _: log).ok
        assert {folder.name for folder in place.iterdir()} == {
            folders[1].name,
            *(other.name for other in others),
        }
        alive.kill()
