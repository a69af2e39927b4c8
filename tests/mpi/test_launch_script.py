"""`run_script` with real scripts: PyTorch's DDP idiom and Horovod, on two ranks."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.errors import NotFound
from hpcmass.files import read_records
from hpcmass.launch import find_mpiexec
from hpcmass.runs import RunFolder, State, Status, explain
from hpcmass.train.script import fill_command, run_script

pytestmark = pytest.mark.mpi
LAUNCHERS = ["mpiexec", "spawn"] if find_mpiexec() else ["spawn"]
PLAIN = Path(__file__).parents[2] / "workflows" / "own-script" / "train_plain.py"

DDP = """
import os, sys, time
import torch, torch.distributed as dist
import hpcmass
dist.init_process_group("gloo")
rank = dist.get_rank()
dist.all_reduce(torch.ones(1))
hpcmass.report(step=5, loss=torch.tensor(0.5))
print("rank", rank, "ready")
if rank == 1:
    if sys.argv[1] == "raise":
        raise ValueError("rank one is unwell")
    os.kill(os.getpid(), 9)
dist.all_reduce(torch.ones(1))
"""

STAY = """
import sys
from hpcmass.runs import RunFolder
from hpcmass.train.script import run_script
stay = "import time; print('up'); time.sleep(600)"
run_script([sys.executable, "-c", stay], run=RunFolder(sys.argv[1]), ranks=2)
"""


def script(
    tmp_path: Path, code: str, *words: str, launcher: str = "auto", ranks: int = 2
) -> tuple[RunFolder, Status]:
    file = tmp_path / "script.py"
    file.write_text(code)
    run = RunFolder(tmp_path / "runs" / "r")
    target = Target(launcher=launcher)  # type: ignore[arg-type]
    status = run_script(
        ["python", "script.py", *words],
        run=run,
        ranks=ranks,
        target=target,
        threads_per_rank=1,
        cwd=tmp_path,
        console=False,
    )
    return run, status


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ddp_on_two_ranks(tmp_path: Path, launcher: str) -> None:
    run = RunFolder(tmp_path / "r")
    status = run_script(
        ["python", str(PLAIN), "--epochs", "2"],
        run=run,
        ranks=2,
        target=Target(launcher=launcher),  # type: ignore[arg-type]
        threads_per_rank=1,
        console=False,
    )
    logs = [run.log_file(1, rank).read_text() for rank in (0, 1)]
    assert (status.state, status.ranks, status.backend) == (State.COMPLETED, 2, "script"), logs
    assert status.step == 44  # 1,400 samples over two ranks in batches of 32, twice
    assert status.metrics["accuracy"] > 0.6
    reports = list(run.records("report"))
    assert [record["step"] for record in reports] == [22, 44]
    # Both ranks hold the same model: they report the same numbers.
    others = list(read_records(run.path / "metrics-rank-1.jsonl"))
    assert [record["loss"] for record in others] == [record["loss"] for record in reports]
    assert logs[0].count("accuracy") == 2
    assert logs[1] == ""
    assert "train_plain.py" in run.job_file.read_text()
    assert explain(run).headline == "it completed"


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("how", "reason", "kind"),
    [
        ("raise", "rank 1 ended with exit code 1: ValueError: rank one is unwell", "exit"),
        ("kill", "rank 1 was killed by signal 9 (SIGKILL)", "signal"),
    ],
)
def test_the_rank_that_failed_is_named_not_the_one_that_lost_it(
    tmp_path: Path, launcher: str, how: str, reason: str, kind: str
) -> None:
    run, status = script(tmp_path, DDP, how, launcher=launcher)
    assert (status.state, status.reason) == (State.FAILED, reason)
    assert (status.step, status.metrics) == (5, {"loss": 0.5})
    (error,) = run.errors()
    assert (error.rank, error.kind) == (1, kind)
    told = explain(run)
    assert (told.headline, told.last_step) == (reason, 5)
    assert "rank 1 ready" in told.log_tail
    assert run.lease().owner() is None


@pytest.mark.horovod
@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed")
@pytest.mark.skipif("mpiexec" not in LAUNCHERS, reason="there is no mpiexec")
@pytest.mark.parametrize("fails", [False, True])
def test_horovod(tmp_path: Path, fails: bool) -> None:
    code = """
import sys, torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([float(hvd.rank() + 1)]), op=hvd.Sum, name="x")
print("rank", hvd.rank(), "of", hvd.size(), "sum", total.item())
if sys.argv[1] == "True" and hvd.rank() == 1:
    raise ValueError("rank one is unwell")
for step in range(20 if sys.argv[1] == "True" else 1):
    hvd.allreduce(torch.ones(3), name=f"step-{step}")
"""
    run, status = script(tmp_path, code, str(fails))
    assert run.log_file(1, 1).read_text().startswith("rank 1 of 2 sum 3.0\n")
    if fails:
        assert status.state is State.FAILED
        assert status.reason == "rank 1 ended with exit code 1: ValueError: rank one is unwell"
    else:
        assert status.state is State.COMPLETED


def test_parameters_never_reach_a_shell(tmp_path: Path) -> None:
    hostile = "$(touch evil); touch evil `touch evil` 'x' \"y\" | touch evil"
    words = fill_command("python script.py --note {note} {{note}} --lr={lr}", {"note": hostile, "lr": 0.1})
    code = "import sys; print(sys.argv[1:])"
    (tmp_path / "script.py").write_text(code)
    run = RunFolder(tmp_path / "runs" / "r")
    status = run_script(words, run=run, ranks=2, threads_per_rank=1, cwd=tmp_path, console=False)
    assert status.state is State.COMPLETED
    for rank in (0, 1):
        assert run.log_file(1, rank).read_text() == f"{['--note', hostile, '{note}', '--lr=0.1']}\n"
    assert sorted(os.listdir(tmp_path)) == ["runs", "script.py"]


def test_a_run_that_was_laid_down_before_is_used_and_tried_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "r")
    run.create('name = "trial"\n', "")
    code = "import os, sys; sys.exit(0 if os.environ['HPCMASS_ATTEMPT'] == '2' else 4)"
    run, status = script(tmp_path, code, ranks=1)
    assert (status.state, status.attempt) == (State.FAILED, 1)
    run.ask_to_stop("a word for the first attempt")
    run, status = script(tmp_path, code, ranks=1)
    assert (status.state, status.attempt, status.reason) == (State.COMPLETED, 2, None)
    assert run.job_file.read_text() == 'name = "trial"\n'
    done = script(tmp_path, "raise SystemExit('a completed run must not be run again')", ranks=1)[1]
    assert dataclasses.replace(done, updated=None) == dataclasses.replace(status, updated=None)


NESTED = """
import os, sys
from hpcmass.config import Target
from hpcmass.launch import plan_ranks, supervise
from pathlib import Path
code = "import os; print({n: os.environ.get(n) for n in ('HPCMASS_RUN_DIR', 'OMP_NUM_THREADS')})"
plan = plan_ranks([sys.executable, "-c", code], 2, Target(launcher="spawn"), threads_per_rank=None, cores=64,
                  mpiexec=None, env=os.environ)
assert supervise(plan, log_file=lambda rank: Path(f"inner-{rank}.log")).ok
"""


def test_a_run_within_a_run_leaves_the_outer_ones_records_alone_and_shares_its_cores(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "r")
    words = [sys.executable, "-c", NESTED]
    status = run_script(words, run=run, ranks=1, threads_per_rank=4, cwd=tmp_path, console=False)
    assert status.state is State.COMPLETED, run.log_file(1, 0).read_text()
    (record,) = [json.loads(file.read_text()) for file in (run.path / "ranks").iterdir()]
    assert (record["size"], record["cpus"]) == (1, 4)
    for rank in range(2):
        assert (tmp_path / f"inner-{rank}.log").read_text() == (
            "{'HPCMASS_RUN_DIR': None, 'OMP_NUM_THREADS': '2'}\n"
        )


def test_stopped_by_the_stop_file(tmp_path: Path) -> None:
    code = """
import os, time, hpcmass
from hpcmass.runs import RunFolder
RunFolder(os.environ["HPCMASS_RUN_DIR"]).ask_to_stop("pruned at step 1")
while not hpcmass.should_stop(): time.sleep(0.05)
"""
    _, status = script(tmp_path, code, ranks=1)
    assert (status.state, status.reason) == (State.STOPPED, "pruned at step 1")


def test_stopped_by_a_signal(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAY, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    process.wait()
    status = RunFolder(tmp_path / "r").status()
    assert (status.state, status.reason) == (State.STOPPED, "stopped by SIGTERM")


def test_kill_9_of_hpcmass_is_unknown_and_the_run_can_be_run_again(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAY, str(tmp_path / "runs" / "r")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    assert RunFolder(tmp_path / "runs" / "r").status().state is State.UNKNOWN
    _, status = script(tmp_path, "print('again')")
    assert (status.state, status.attempt) == (State.COMPLETED, 2)


@pytest.mark.parametrize("words", [["no-such-program"], ["python", "no_such_script.py"], ["./no-such-program"]])
def test_a_command_that_does_not_exist_creates_nothing(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(NotFound):
        run_script(words, run=RunFolder(tmp_path / "runs" / "r"), ranks=2, cwd=tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_run_is_held_meanwhile(tmp_path: Path) -> None:
    code = """
import json, os, sys
from hpcmass.runs import RunFolder
run = RunFolder(os.environ["HPCMASS_RUN_DIR"])
owner = run.lease().owner()
print(json.dumps([run.status().state.value, owner.pid]))
"""
    run, _ = script(tmp_path, code, ranks=1)
    assert json.loads(run.log_file(1, 0).read_text()) == ["RUNNING", os.getpid()]
