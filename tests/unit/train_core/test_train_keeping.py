"""Checkpoints in the background: a real copy, one at a time, committed before a stop, errors not lost."""

import errno
import json
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hpcmass.config import Job, job_from_values
from hpcmass.data.memory import memory_left
from hpcmass.errors import HpcmassError, LeaseHeld, StorageError, TrainError
from hpcmass.launch import RankEnv
from hpcmass.runs import RunFolder
from hpcmass.train import checkpoint, snapshot, tensorfile
from hpcmass.train.checkpoint import Best, Mark
from hpcmass.train.comm import open_communicator
from hpcmass.train.keeping import Keeper
from hpcmass.train.snapshot import Snapshot, Work, Worker


class Gate:
    """Holds the writing threads up until it is opened; the writing itself is the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        real = checkpoint.write_part

        def held(path: Path, pieces: Iterator[bytes | memoryview]) -> dict:
            if threading.current_thread() is not threading.main_thread():
                self.reached.set()
                assert self.opened.wait(240)
            return real(path, pieces)

        monkeypatch.setattr(checkpoint, "write_part", held)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(run: RunFolder, said: list[str]) -> Iterator[Callable[..., tuple[Keeper, dict]]]:
    made: list[Keeper] = []
    comm = open_communicator("single", RankEnv(0, 1, 0, 1, source="none"))

    def keeper(weights: tuple[str, ...] = ("w",), **train: object) -> tuple[Keeper, dict]:
        state = {"model": {"w": torch.zeros(3000, 5), "mask": torch.tensor([float("-inf")])}, "step": 0}
        job: Job = job_from_values({"name": "j", "command": ["true"], "train": train})
        made.append(Keeper(run, comm, job.train, lambda: state, weights, run.path / "recipe.py", said.append))
        return made[-1], state

    yield keeper
    for one in made:
        one.close(now=True)


def steps(run: RunFolder) -> list[int]:
    return [commit.step for commit in checkpoint.commits(run.checkpoints)]


def mark(step: int, best: Best | None = None) -> Mark:
    return Mark(step, 0, step, 1, best=best)


def set_to(state: dict, step: int) -> None:
    state["model"]["w"].fill_(step)
    state["step"] = step


def test_what_is_written_is_the_state_at_the_checkpoint(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    keeper, state = make()
    set_to(state, 1)
    keeper.keep(mark(1), wait=False)
    assert gate.reached.wait(240)
    assert (steps(run), keeper.flags(), keeper.kept) == ([], (1.0, 0.0), None)
    set_to(state, 2)  # training goes on while nothing of it is written yet
    assert not keeper.after_step(running=True, failed=False)
    gate.opened.set()
    keeper.finish()
    assert (steps(run), keeper.flags(), keeper.kept) == ([1], (0.0, 0.0), 1)
    loaded = checkpoint.load_latest(run.checkpoints)[1]
    assert loaded["step"] == 1
    assert bool((loaded["model"]["w"] == 1).all())


def test_the_next_one_waits_for_the_one_under_way(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())  # another test of this process may have left a lease
    gate = Gate(monkeypatch)
    keeper, state = make()
    keeper.keep(mark(1), wait=False)
    assert gate.reached.wait(240)
    opener = threading.Timer(0.3, gate.opened.set)
    opener.start()
    set_to(state, 2)
    keeper.keep(mark(2), wait=True)  # as a stop does
    opener.join()
    assert steps(run) == [1, 2]
    assert keeper.kept == 2
    keeper.keep(mark(2), wait=True)  # it is committed already
    keeper.close()
    assert not [t for t in threading.enumerate() if t not in before and t.name.startswith("hpcmass")]
    assert bool((checkpoint.load_latest(run.checkpoints)[1]["model"]["w"] == 2).all())


def test_memory_is_used_again(make: Callable[..., tuple[Keeper, dict]]) -> None:
    keeper, state = make()
    places = set()
    for step in (1, 2, 3):
        keeper.keep(mark(step), wait=False)
        keeper.finish()
        places.add(keeper._snapshot.tensors()["model/w"].data_ptr())
    assert len(places) == 1
    assert state["model"]["w"].data_ptr() not in places


@pytest.mark.parametrize("later", ["step", "keep", "finish"])
def test_an_error_of_the_thread_is_raised_at_the_next_step_or_checkpoint(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], later: str
) -> None:
    keeper, _ = make()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        keeper.keep(mark(1), wait=False)
        assert keeper._work._done.wait(240)
        assert keeper.flags() == (0.0, 1.0)
        meet = {
            "step": lambda: keeper.after_step(running=False, failed=True),
            "keep": lambda: keeper.keep(mark(2), wait=False),
            "finish": keeper.finish,
        }[later]
        with pytest.raises(HpcmassError, match="cannot write the file") as caught:
            meet()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(caught.value) is StorageError
    assert "ulimit" in caught.value.hint
    assert list(run.checkpoints.iterdir()) == []
    assert keeper.kept is None
    keeper.keep(mark(3), wait=False)
    keeper.finish()
    assert steps(run) == [3]


def test_the_lease_is_looked_at_before_the_commit(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    keeper, _ = make()
    lease = run.lease()
    lease.acquire()
    run.hold(lease)
    keeper.keep(mark(1), wait=False)
    assert gate.reached.wait(240)
    run.path.joinpath("lease.1.json").write_text(json.dumps({"host": "another"}))
    lease._look()
    gate.opened.set()
    with pytest.raises(LeaseHeld):
        keeper.finish()
    assert steps(run) == []
    lease.release()  # ends its thread, which another test would find


def test_given_up_nothing_is_committed(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    keeper, _ = make()
    keeper.keep(mark(1), wait=False)
    assert gate.reached.wait(240)
    job = keeper._work
    job._cancelled.set()
    gate.opened.set()
    keeper.close(now=True)
    assert steps(run) == []
    assert not job.running


def test_closing_lets_the_one_under_way_be_committed(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    keeper, _ = make()
    keeper.keep(mark(1), wait=False)
    assert gate.reached.wait(240)
    opener = threading.Timer(0.2, gate.opened.set)
    opener.start()
    keeper.close()  # as after an error of the recipe
    opener.join()
    assert steps(run) == [1]


@pytest.mark.parametrize("wait", [True, False])
def test_spoilt_weights_are_not_kept_and_other_tensors_may_be_infinite(
    run: RunFolder, make: Callable[..., tuple[Keeper, dict]], wait: bool
) -> None:
    keeper, state = make()
    keeper.keep(mark(1), wait=wait)
    state["model"]["w"][1234, 2] = float("nan")

    def spoil() -> None:
        keeper.keep(mark(2), wait=wait)
        keeper.finish()

    with pytest.raises(TrainError, match="weights 'w' are NaN or infinite after step 2") as caught:
        spoil()
    assert "the checkpoint of step 1 is kept" in caught.value.hint
    assert steps(run) == [1]


def test_without_memory_for_a_copy_training_waits(
    run: RunFolder,
    make: Callable[..., tuple[Keeper, dict]],
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.setattr(snapshot, "memory_left", lambda: 50_000)
    keeper, _ = make()
    for step in (1, 2):
        keeper.keep(mark(step), wait=False)
        assert keeper.kept == step
    assert steps(run) == [1, 2]
    assert len(said) == 1
    assert "memory" in said[0]


def test_synchronous_where_asked(run: RunFolder, make: Callable[..., tuple[Keeper, dict]]) -> None:
    keeper, _ = make(checkpoint_background=False)
    keeper.keep(mark(1), wait=False)
    assert steps(run) == [1]
    first = json.loads((run.checkpoints / "step-000000001.json").read_text())
    assert first["checkpoint_s"] == pytest.approx(first["blocked_s"], abs=1e-3)
    assert len(keeper._snapshot._flat) == 0


def test_the_best_one_stays(run: RunFolder, make: Callable[..., tuple[Keeper, dict]]) -> None:
    keeper, _ = make(keep_checkpoints=2)
    first, better = Best(2, "loss", 0.5), Best(5, "loss", 0.25)
    for step, best in ((1, None), (2, first), (3, first), (4, first), (5, better), (6, better), (7, better)):
        keeper.keep(mark(step, best), wait=False)
        keeper.finish()
        if step == 4:
            assert steps(run) == [2, 3, 4]
    assert steps(run) == [5, 6, 7]
    assert [c.best for c in checkpoint.commits(run.checkpoints)] == [better] * 3
    assert len(list(run.checkpoints.iterdir())) == 6


def test_work_in_a_thread_says_how_it_ended() -> None:
    worker = Worker("hpcmass-test")
    assert worker.start(lambda job: 3).result() == 3

    def full(_: Work) -> None:
        raise OSError(errno.ENOSPC, "full")

    work = worker.start(full)
    with pytest.raises(OSError, match="full"):
        work.result()
    assert work.failed
    worker.close()


def test_a_copy_of_every_layout() -> None:
    tensors = {
        "t": torch.arange(6.0).reshape(2, 3).t(),
        "b": torch.tensor([True, False]),
        "n": torch.tensor(3, dtype=torch.int64),
        "h": torch.ones(3, dtype=torch.bfloat16),
        "e": torch.zeros(0),
        "c": torch.ones(2, dtype=torch.complex64),
    }
    copy = Snapshot()
    assert copy.make_room(tensorfile.lay_out(tensors), torch.device("cpu"))
    copy.copy(tensors)
    for name, tensor in copy.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
        assert tensor.data_ptr() % tensor.element_size() == 0
    live = b"".join(bytes(piece) for piece in tensorfile.bodies(tensorfile.lay_out(tensors), tensors))
    assert b"".join(bytes(piece) for piece in copy.pieces()) == live
    copy.close()


@pytest.mark.parametrize("threads", [0, 1, 2, 6])
def test_memory_is_copied_by_several_threads(threads: int) -> None:
    sizes = [30 << 20, 0, 5, (20 << 20) + 1, 17]
    origin = [torch.randint(0, 255, (size,), dtype=torch.uint8) for size in sizes]
    copies = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    helpers = [Worker("hpcmass-copy") for _ in range(threads)]
    snapshot.move([(a.data_ptr(), b.data_ptr(), len(b)) for a, b in zip(copies, origin, strict=True)], helpers)
    assert all(torch.equal(a, b) for a, b in zip(copies, origin, strict=True))
    snapshot.move([], helpers)
    for helper in helpers:
        helper.close()


def test_parts_are_balanced_and_hold_each_tensor_once() -> None:
    tensors = {f"t{n}": torch.zeros(n * n % 97 + 1) for n in range(200)}
    dealt = tensorfile.share_out(tensors, 7)
    assert sorted(name for part in dealt for name in part) == sorted(tensors)
    sizes = [sum(tensors[name].numel() for name in part) for part in dealt]
    assert max(sizes) <= 1.05 * min(sizes)


def test_memory_within_the_groups_of_a_process(tmp_path: Path) -> None:
    assert memory_left() > 1 << 20
    assert memory_left(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert memory_left(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup/job"
    (group / "step").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    for folder, limit in ((group, "5000"), (group / "step", "max")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 2500\nactive_file 100\ninactive_file 400\n")
    assert memory_left(tmp_path) == 5000 - 3000 + 500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_spoilt_values_are_found_and_large_ones_are_not(value: float, dtype: torch.dtype) -> None:
    large = torch.full((70_000,), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    assert tensorfile.spoilt([("a", large), ("empty", torch.zeros(0))]) is None
    large[69_999] = value
    assert tensorfile.spoilt([("ok", torch.ones(3)), ("a", large)]) == "a"
