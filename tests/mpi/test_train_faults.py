"""Ranks that die, raise or are asked to stop, and runs that go on from there."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmass.files import Owner, replace_json

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


def launch(argv: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


SHORT_LEASE = """
import runpy, sys
from hpcmass.files import Lease
from hpcmass.runs import RunFolder
RunFolder.lease = lambda self: Lease(self.path / "lease", ttl_s=0.5)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_all_ranks_end_when_another_process_has_taken_the_run_over(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.checkpoint_every_steps=1", "train.epochs=10000"]
    (root / "short.py").write_text(SHORT_LEASE)
    command = tools.words(root, "r", *sets)
    argv = tools.mpiexec(2, [command[0], str(root / "short.py"), *command[1:]])
    process = launch(argv, tools.environment(root, SLOW="0.1"))
    try:
        commits = root / "runs" / "r" / "checkpoints"
        tools.wait_for(lambda: len(list(commits.glob("*.json"))) >= 2, process)
        owner = Owner("some-other-host", 4711, 1, "another-boot", None, time.time())
        replace_json(root / "runs" / "r" / "lease.2.json", vars(owner))
        output = process.communicate(timeout=300)[0]  # both end by themselves, and in order
    finally:
        tools.end_group(process)
    assert process.returncode == 2, output
    assert output.count("another process has taken this run over") == 1
    assert tools.status(root, "r")["state"] == "RUNNING", output
    assert not (root / "runs" / "r" / "errors").exists(), tools.errors(root, "r")


@pytest.mark.parametrize("victim", [1, 0])
def test_killed_rank_and_going_on_with_three(victim: int, tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.checkpoint_every_steps=1", "train.epochs=1"]
    argv = tools.mpiexec(2, tools.words(root, "r", *sets))
    # The other one waits for it in its fifth step, in MPI.
    process = launch(argv, tools.environment(root, HOLD_AT="5", HOLD_RANK=str(victim)))
    try:
        commits = root / "runs" / "r" / "checkpoints"
        tools.wait_for(lambda: len(list(commits.glob("*.json"))) >= 2, process)
        os.kill(tools.seen(root)[victim][0]["pid"], signal.SIGKILL)
        output = process.communicate(timeout=300)[0]  # it ends by itself
    finally:
        tools.end_group(process)
    assert process.returncode != 0
    said = tools.status(root, "r")
    assert said["state"] == "FAILED", output
    assert f"rank {victim} died" in said["reason"]
    died = [e for e in tools.errors(root, "r") if e["rank"] == victim]
    assert [e["kind"] for e in died] == ["signal"]
    assert "killed" in died[0]["message"]

    env = tools.environment(root, TRY="2")
    done = tools.run(tools.mpiexec(3, tools.words(root, "r", *sets)), env)
    assert done.returncode == 0, done.stdout
    (resume,) = tools.records(root, "r", "resume")
    assert resume["ranks"] == 3
    assert 2 <= resume["from_step"] < 6
    ids = []
    for lines in tools.seen(root).values():  # one call a step on every rank
        ids += [i for line in lines[: resume["from_step"]] for i in line["ids"]]
    second = tools.seen(root, "2")
    assert sorted(second) == [0, 1, 2]
    assert {line["world"] for lines in second.values() for line in lines} == {3}
    for lines in second.values():
        ids += [i for line in lines for i in line["ids"]]
    assert sorted(ids) == list(range(tools.SAMPLES)), "not each sample once"
    assert {len(line["ids"]) for lines in second.values() for line in lines} == {3, 4}
    assert tools.status(root, "r")["state"] == "COMPLETED"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_recipe_raises_on_one_rank(rank: str, tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    argv = tools.mpiexec(2, tools.words(root, "r", "train.backend=mpi"))
    done = tools.run(argv, tools.environment(root, RAISE_AT="3", RAISE_RANK=rank))
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("the recipe is at its end") == 1, done.stdout
    assert "recipe.py:" in done.stdout
    assert "Traceback" not in done.stdout
    said = tools.status(root, "r")
    assert said["state"] == "FAILED"
    assert said["reason"].startswith(f"rank {rank}: ")
    first = min(tools.errors(root, "r"), key=lambda e: e["time"])
    assert (first["rank"], first["error"], first["kind"]) == (int(rank), "RecipeError", "exception")


def test_nan_on_one_rank_is_agreed(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.checkpoint_every_steps=3"]
    env = tools.environment(root, NAN_AT="5", NAN_RANK="1")
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets)), env)
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("the loss is NaN or infinite at step 5") == 1, done.stdout
    said = tools.status(root, "r")
    assert said["state"] == "FAILED"
    assert "at step 5" in said["reason"]
    (found,) = tools.records(root, "r", "bad-loss")
    mine = tools.seen(root)[1][4]["ids"]
    assert [(one["rank"], one["batch"]) for one in found["ranks"]] == [(1, mine)]
    assert [p.name for p in (root / "runs/r/checkpoints").glob("*.json")] == ["step-000000003.json"]
    assert [e["rank"] for e in tools.errors(root, "r")] == [0]


def test_user_signal_makes_a_checkpoint(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.epochs=10000"]
    process = launch(tools.mpiexec(2, tools.words(root, "r", *sets)), tools.environment(root, SLOW="0.2"))
    try:
        tools.wait_for(lambda: len(tools.seen(root).get(1, [])) >= 4, process)
        for lines in tools.seen(root).values():  # as scancel does: all ranks, not mpiexec
            os.kill(lines[0]["pid"], signal.SIGTERM)
        output = process.communicate(timeout=300)[0]
    finally:
        tools.end_group(process)
    said = tools.status(root, "r")
    assert said["state"] == "STOPPED", output
    assert "SIGTERM" in said["reason"]
    commit = root / "runs" / "r" / "checkpoints" / f"step-{said['step']:09d}.json"
    assert commit.exists()
    assert not (root / "runs" / "r" / "errors").exists() or tools.errors(root, "r") == []
    assert process.returncode == 0


def test_stop_file_ends_all_ranks(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.epochs=10000"]
    process = launch(tools.mpiexec(2, tools.words(root, "r", *sets)), tools.environment(root, SLOW="0.05"))
    try:
        tools.wait_for(lambda: (root / "runs/r/metrics.jsonl").exists(), process)
        (root / "stop").write_text("pruned\n")
        (root / "stop").rename(root / "runs/r/stop")  # whole at once: the ranks look at any time
        output = process.communicate(timeout=300)[0]
    finally:
        tools.end_group(process)
    assert process.returncode == 0, output
    said = tools.status(root, "r")
    assert (said["state"], said["reason"]) == ("STOPPED", "pruned")
    done = tools.run(tools.words(root, "r", "train.epochs=10000", "train.max_steps=1"), tools.environment(root))
    assert done.returncode == 2
    assert "train.max_steps" in done.stdout


# Rank 0 is slow to write the reason: it waits until rank 1 waits for it, which it must not leave without.
SLOW_WORDS = """
import os, runpy, sys, time
from pathlib import Path
from hpcmass.runs import RunFolder
from hpcmass.train.comm.torch_dist import TorchCommunicator
waits = Path(os.environ["TELL"]) / "waits"
if os.environ["RANK"] == "0":
    record = RunFolder.record_exception
    def slowly(self, *args):
        while not waits.exists():
            time.sleep(0.02)
        record(self, *args)
    RunFolder.record_exception = slowly
else:
    barrier = TorchCommunicator.barrier
    def told(self):
        waits.touch()
        barrier(self)
    TorchCommunicator.barrier = told
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_rank_that_leaves_in_order_is_not_taken_for_dead(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    (root / "slow.py").write_text(SLOW_WORDS)
    command = tools.words(root, "r", "train.backend=torch")
    argv = [command[0], str(root / "slow.py"), *command[1:]]
    port = str(tools.free_port())
    more = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = tools.environment(root, NAN_AT="3", NAN_RANK="1", **more)
    ranks = [launch(argv, {**env, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            tools.end_group(rank)
    said = tools.status(root, "r")
    assert said["state"] == "FAILED", outputs
    assert "the loss is NaN or infinite at step 3" in said["reason"], said["reason"]
    assert [(e["rank"], e["kind"]) for e in tools.errors(root, "r")] == [(0, "exception")], outputs
    assert "".join(outputs).count("the loss is NaN or infinite at step 3") == 1, outputs


@pytest.mark.parametrize("backend", ["mpi", "torch", "horovod"])
def test_ranks_whose_models_differ_are_refused(backend: str, tmp_path: Path) -> None:
    if backend == "horovod":
        pytest.importorskip("horovod")
    root = tools.make_project(tmp_path / "p")
    recipe = (root / "recipe.py").read_text()
    assert "torch.nn.Linear(8, 2), Lame()" in recipe
    (root / "recipe.py").write_text(
        recipe.replace(
            "torch.nn.Linear(8, 2), Lame()",
            'torch.nn.Linear(8, 2), Lame(), *([torch.nn.Linear(2, 2)] if RANK == "1" else [])',
        )
    )
    argv = tools.mpiexec(2, tools.words(root, "r", f"train.backend={backend}"))
    done = tools.run(argv, tools.environment(root), timeout=300)
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("rank 1 builds another model than rank 0") == 1, done.stdout
    assert "'4.weight' is of shape (2, 2) and float32 there, and missing here" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (root / "runs" / "r").exists()


@pytest.mark.parametrize(
    "more",
    [[], pytest.param(["train.compression=bf16"], marks=pytest.mark.soak), ["train.reproducible=true"]],
)
def test_whether_a_loss_diverges_does_not_depend_on_the_ranks(more: list[str], tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.optimizer=SGD", "train.lr=1e-9", "train.max_steps=2", *more]
    more = ["train.micro_batches=2"] if "train.reproducible=true" in more else []
    env = tools.environment(root)
    done = tools.run(tools.mpiexec(1, tools.words(root, "one", *sets, *more)), env)
    assert done.returncode == 0, done.stdout
    first, second = (record["loss"] for record in tools.records(root, "one", "train"))
    most = max(first, 0.9 * first + 0.1 * second)  # of the two ranks one has more, the other less
    for limit, code in ((1.0001 * most, 0), (0.9999 * first, 2)):
        words = tools.words(root, f"two-{code}", *sets, *more, f"train.max_loss={limit}")
        done = tools.run(tools.mpiexec(2, words), env)
        assert done.returncode == code, done.stdout
    assert "the loss diverges" in done.stdout
    assert "at step 1 " in done.stdout
    (found,) = tools.records(root, "two-2", "bad-loss")
    assert [one["rank"] for one in found["ranks"]] == [0, 1]
    assert sum(one["loss"] for one in found["ranks"]) / 2 == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("backend", ["mpi", "horovod", "torch"])
def test_a_rank_that_hangs_ends_all_and_says_where(backend: str, tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = [f"train.backend={backend}", "train.checkpoint_every_steps=1", "train.hang_s=10"]
    argv = tools.mpiexec(2, tools.words(root, "r", *sets))
    done = tools.run(argv, tools.environment(root, WAIT_AT="5", WAIT_RANK="1", WAIT_S="3600"))
    assert done.returncode != 0
    said = tools.status(root, "r")
    assert said["state"] == "FAILED", done.stdout
    assert "rank 1" in said["reason"]
    assert "it hangs in" in said["reason"]
    assert "recipe.py:" in said["reason"]
    assert "time.sleep" in next(e["traceback"] for e in tools.errors(root, "r") if e["rank"] == 1)
    # It goes on from where it was.
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets[:2])), tools.environment(root))
    assert done.returncode == 0, done.stdout


def test_the_first_step_of_a_resumed_run_has_its_time_too(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.hang_s=10"]
    argv = tools.mpiexec(2, tools.words(root, "r", *sets))
    tools.run(argv, tools.environment(root, RAISE_AT="8", RAISE_RANK="1"))
    assert tools.status(root, "r")["state"] == "FAILED"
    done = tools.run(argv, tools.environment(root, WAIT_AT="1", WAIT_RANK="1", WAIT_S="22", TRY="2"))
    assert done.returncode == 0, done.stdout  # as while a model is compiled
    assert tools.records(root, "r", "resume")


def test_a_rank_whose_validation_takes_long_is_waited_for(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p", samples=160)
    sets = ["train.backend=mpi", "train.epochs=1", "train.hang_s=5"]
    argv = tools.mpiexec(2, tools.words(root, "r", *sets))
    # Of 16 batches; the other rank has said long before that it waits.
    done = tools.run(argv, tools.environment(root, CHECK_RANK="1", CHECK_S="3.5"))
    assert done.returncode == 0, done.stdout
    assert tools.status(root, "r")["state"] == "COMPLETED"
    assert not (root / "runs" / "r" / "waiting").exists()


def test_a_rank_that_is_stopped_is_known_by_its_silence(tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.checkpoint_every_steps=1", "train.hang_s=10"]
    argv = tools.mpiexec(3, tools.words(root, "r", *sets))
    process = launch(argv, tools.environment(root, HOLD_AT="5", HOLD_RANK="0"))
    try:
        commits = root / "runs" / "r" / "checkpoints"
        tools.wait_for(lambda: len(list(commits.glob("*.json"))) >= 2, process)
        os.kill(tools.seen(root)[0][0]["pid"], signal.SIGSTOP)
        output = process.communicate(timeout=300)[0]  # it ends by itself
    finally:
        tools.end_group(process)
    assert process.returncode != 0
    said = tools.status(root, "r")
    assert said["state"] == "FAILED", output
    assert "rank 0 on" in said["reason"]
    assert "is silent: stopped, or out of reach" in said["reason"]
