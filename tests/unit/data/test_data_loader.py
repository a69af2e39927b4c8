"""The loader: exactly what plain h5py reads, whatever the shards, types, batches, way of reading and depth."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmass.data import Dataset, Loader, Plan, concat, epoch_ids, open_dataset, rank_slice, shard
from hpcmass.data.reading import rows as rows_module
from hpcmass.errors import CorruptError, DataError, HpcmassError

WAYS = ["map", "pread", "block", "direct", "memory"]


def plain(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The samples as h5py alone reads them."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path, "r") as file:
            for name in file:
                parts.setdefault(name, []).append(file[name][()])
    return {name: np.concatenate(arrays)[ids] for name, arrays in parts.items()}


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 samples in three shards: a label, odd rows, rows that are staged, rows wide enough to be advised."""
    base = tmp_path_factory.mktemp("loader")
    random = np.random.default_rng(0)
    np.savez(
        base / "a.npz",
        label=np.arange(700) % 5,
        odd=random.integers(0, 9, (700, 3)).astype(np.int16),
        middle=random.random((700, 37)),
        wide=random.random((700, 9000)).astype(np.float32),
    )
    shard(base / "a.npz", base / "out", shards=3)
    return base / "out"


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], int]:
    samples = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    fields = {}
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(["u1", "i2", "f4", "f8", "i8", "f2", "?"]))
        shape = draw(st.sampled_from([(), (1,), (3,), (5, 7), (300,), (2, 20, 50)]))
        fields[f"f{number}"] = random.integers(0, 2 if dtype == "?" else 100, (samples, *shape)).astype(dtype)
    return fields, draw(st.integers(1, min(samples, 5)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), made=datasets(), way=st.sampled_from(WAYS), keep=st.integers(1, 4))
def test_any_dataset_any_batches(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, made: tuple[Any, int], way: str, keep: int
) -> None:
    fields, shards = made
    base = tmp_path_factory.mktemp("any")
    np.savez(base / "a.npz", **fields)
    shard(base / "a.npz", base / "out", shards=shards, workers=1)
    dataset = open_dataset(base / "out")
    numbers = st.lists(st.integers(0, len(dataset) - 1), max_size=40)
    plan = data.draw(st.lists(numbers, max_size=12))
    loader = Loader(
        dataset, plan, read=way, keep=keep,
        depth=data.draw(st.none() | st.integers(1, 3)), threads=data.draw(st.none() | st.integers(1, 3)),
        unit_bytes=data.draw(st.none() | st.sampled_from([1, 1000, 100_000])),
        block=data.draw(st.none() | st.integers(1, 9)), pool_bytes=data.draw(st.sampled_from([1, 9_000, 1 << 22])),
    )  # fmt: skip
    held = []
    for ids, batch in loader:
        held.append((ids, batch))
        for old, arrays in held[-keep:]:  # these are still to be valid
            same(arrays, plain(base / "out", old))
    assert [ids.tolist() for ids, _ in held] == plan


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["global", "sequential"])
def test_an_epoch_in_every_way(folder: Path, dataset: Dataset, way: str, order: str) -> None:
    plan = Plan(lambda a, b: epoch_ids(order, 700, 3, 1, a, b), 0, 700, 64)
    with Loader(dataset, plan, read=way) as loader:
        seen = []
        for ids, batch in loader:
            same(batch, plain(folder, ids))
            seen += ids.tolist()
    assert seen == epoch_ids(order, 700, 3, 1, 0, 700).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_dense_numbers_with_gaps_and_repeats(folder: Path, dataset: Dataset, way: str) -> None:
    random = np.random.default_rng(5)
    plan = [
        random.choice(700, 400),
        random.permutation(700)[:350],
        np.arange(699, -1, -2),
        np.zeros(9, np.int64),
    ]
    for ids, batch in Loader(dataset, plan, read=way):
        same(batch, plain(folder, ids))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 300), batch=st.integers(1, 70), size=st.integers(1, 5), parts=st.integers(1, 4),
    data=st.data(),
)  # fmt: skip
def test_a_plan_is_what_the_ranks_take(n: int, batch: int, size: int, parts: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n))
    order = np.random.default_rng(n).permutation(n)
    expected: dict[int, list[list[int]]] = {rank: [] for rank in range(size)}
    for low in range(start, n, batch):
        for rank in range(size):
            begin, end = rank_slice(low, min(low + batch, n), rank, size)
            pieces = [rank_slice(begin, end, part, parts) for part in range(parts)]
            expected[rank] += [order[a:b].tolist() for a, b in pieces if b > a]
    for rank in range(size):
        plan = Plan(lambda a, b: order[a:b], start, n, batch, rank, size, parts)
        assert [ids.tolist() for ids in plan] == expected[rank]
        assert [ids.tolist() for ids in plan] == expected[rank]


def block_order(n: int, block: int, window: int) -> np.ndarray:
    """Blocks in random order, mixed within windows of them."""
    random = np.random.default_rng(1)
    blocks = random.permutation(-(-n // block))
    windows = [blocks[low : low + window] for low in range(0, len(blocks), window)]
    ids = [np.concatenate([np.arange(b * block, min(n, (b + 1) * block)) for b in one]) for one in windows]
    return np.concatenate([random.permutation(one) for one in ids])


@pytest.mark.parametrize("threads", [1, 4])
def test_every_block_is_read_once_into_a_bounded_pool(folder: Path, dataset: Dataset, threads: int) -> None:
    order = block_order(700, 10, 6)
    plan = Plan(lambda a, b: order[a:b], 0, 700, 16)
    pool_bytes = 2 * 6 * 10 * dataset.row_bytes
    loader = Loader(dataset, plan, read="block", block=10, pool_bytes=pool_bytes, threads=threads, unit_bytes=1)
    seen = []
    for ids, batch in loader:
        same(batch, plain(folder, ids))
        seen += ids.tolist()
        assert loader._pool is not None
        pool = loader._pool
        assert pool.bytes <= pool_bytes
    assert seen == order.tolist()
    assert pool.places < 70  # not all fit
    assert pool.reads == 70


def test_a_concatenation(folder: Path, dataset: Dataset) -> None:
    both = concat([dataset, dataset.subset_shards([1])])
    ids = np.random.default_rng(0).permutation(len(both))[:300]
    for way in WAYS:
        ((_, batch),) = Loader(both, [ids], read=way)
        same(batch, both.batch(ids))


def test_buffers_are_used_again_and_bounded(dataset: Dataset) -> None:
    plan = [np.arange(at % 700, at % 700 + 7) for at in range(0, 7000, 7)]
    for keep in (1, 3):
        loader = Loader(dataset, plan, read="pread", keep=keep, depth=2, threads=1, unit_bytes=1)
        places = set()
        most = 0
        for _, batch in loader:
            places.add(batch["wide"].ctypes.data)
            most = max(most, loader.buffer_bytes)
        assert len(places) <= 2 + keep
        assert most <= (2 + keep) * (7 * dataset.row_bytes + 64 * 5)


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("batches", [1, 3])
def test_no_thread_writes_where_a_batch_is_still_valid(dataset: Dataset, keep: int, batches: int) -> None:
    plan = [np.arange(at, at + 4) for at in range(0, 600, 4)]
    loader = Loader(dataset, plan, keep=keep, read="map", unit_bytes=4 * batches * dataset.row_bytes)
    valid: list[np.ndarray] = []
    for _, batch in loader:
        valid = [*valid, batch["wide"]][-keep:]
        writing = [unit.arrays["wide"] for unit in loader._pending]
        assert not any(np.may_share_memory(old, new) for old in valid for new in writing)
    assert len(loader._pending) == 0


def test_an_allocator_is_used(dataset: Dataset) -> None:
    made = []

    def allocate(size: int) -> np.ndarray:
        made.append(np.zeros(size, np.uint8))
        return made[-1]

    with Loader(dataset, [[1, 2], [3]], allocate=allocate) as loader:
        for _, batch in loader:
            assert any(np.shares_memory(batch["wide"], memory) for memory in made)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hpcmass-read"]


def test_threads_end(dataset: Dataset) -> None:
    before = len(threads())
    loader = Loader(dataset, [[1]] * 1000, threads=2)
    next(loader)
    assert len(threads()) == before + 2
    loader.close()
    loader.close()
    assert len(threads()) == before
    with pytest.raises(StopIteration):
        next(loader)
    for _ in Loader(dataset, [[1]] * 3):
        pass
    assert len(threads()) == before
    forgotten = Loader(dataset, [[1]] * 1000)
    next(forgotten)
    del forgotten
    gc.collect()
    assert len(threads()) == before


def test_no_names_in_shared_memory_and_no_processes(dataset: Dataset) -> None:
    names = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    children = set(multiprocessing.active_children())  # of libraries that other tests used
    with Loader(dataset, [[1]] * 10) as loader:
        next(loader)
        assert not set(multiprocessing.active_children()) - children
        if names:
            mine = f"{os.getpid()}"
            assert not any(mine in name for name in set(os.listdir("/dev/shm")) - names)


def go_on(loader: Loader) -> list[tuple[list[int], bytes]]:
    return [(ids.tolist(), batch["wide"].tobytes()) for ids, batch in loader]


def in_child(loader: Loader, queue: Any) -> None:
    queue.put(go_on(loader))


def test_after_pickling_it_begins_anew(dataset: Dataset) -> None:
    plan = Plan(lambda_free_order, 0, 700, 50)
    loader = Loader(dataset, plan, read="pread")
    next(loader)
    again = pickle.loads(pickle.dumps(loader))
    assert go_on(again) == go_on(Loader(dataset, plan))
    loader.close()


def lambda_free_order(start: int, stop: int) -> np.ndarray:
    return epoch_ids("global", 700, 0, 0, start, stop)


@pytest.mark.parametrize("way", WAYS)
def test_after_a_fork_the_child_goes_on(dataset: Dataset, way: str) -> None:
    context = multiprocessing.get_context("fork")
    plan = Plan(lambda_free_order, 0, 700, 50)
    expected = go_on(Loader(dataset, plan))
    loader = Loader(dataset, plan, read=way)
    for _ in range(3):
        next(loader)
    queue = context.Queue()
    child = context.Process(target=in_child, args=(loader, queue))
    child.start()
    assert queue.get(timeout=400) == expected[3:]
    child.join(240)
    assert child.exitcode == 0
    assert go_on(loader) == expected[3:]


def test_what_the_plan_raises_and_wrong_numbers(dataset: Dataset) -> None:
    def plan() -> Any:
        yield [1]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(Loader(dataset, plan()))
    for wrong in (700, -1):
        with pytest.raises(IndexError, match="not all within"):
            list(Loader(dataset, [[wrong]]))
    with pytest.raises(DataError, match="map, pread, block, direct, memory"):
        next(Loader(dataset, [[1]], read="guess"))
    with pytest.raises(ValueError, match="at least 1"):
        Loader(dataset, [], keep=0)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A dataset to be damaged: rows of 32 KiB, 60 in each of three shards."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((180, 4096)))
    shard(tmp_path / "x.npy", tmp_path / "out", shards=3)
    return tmp_path / "out"


DAMAGE = """
import os, sys, time
import numpy as np
from hpcmass.data import Loader, open_dataset
from hpcmass.errors import HpcmassError
folder, way, what = sys.argv[1:]
dataset = open_dataset(folder)
ids = np.random.default_rng(0).permutation(180)
# The victim's rows come only later: the damage is done when no page of them is being read.
calm, late = ids[ids < 120], ids[ids >= 120]
plan = [calm[i : i + 10] for i in range(0, 110, 10)] + [late[i : i + 10] for i in range(0, 60, 10)] * 200
victim = os.path.join(folder, "shard-00002.h5")
# A pool too small for all the victim's blocks, or they would need no reading any more.
loader = Loader(
    dataset, plan, read=way, threads=1, depth=1, unit_bytes=1, block=2, pool_bytes=24 * 2 * dataset.row_bytes
)
try:
    for number, (rows, batch) in enumerate(loader):
        assert number > 3 or (batch["x"] == dataset.batch(rows)["x"]).all()
        if number == 3:
            if what == "truncated":
                os.truncate(victim, os.path.getsize(victim) // 2)
            else:
                os.unlink(victim)
        if number > 20:
            time.sleep(0.01)  # a look at a file that is open comes once a second
except HpcmassError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("what", ["truncated", "removed"])
@pytest.mark.parametrize("way", ["map", "pread", "block", "direct"])
def test_a_shard_damaged_on_the_way_ends_with_its_name(mine: Path, way: str, what: str) -> None:
    # dataset.batch maps all shards first, as a run that has begun has.
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(mine), way, what], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "shard-00002.h5" in done.stdout
    assert done.stdout.startswith("CorruptError") or (what == "removed" and done.stdout.startswith("NotFound"))


def test_rows_cut_off_while_they_are_read_are_an_error_not_a_signal(mine: Path) -> None:
    """The file is open and was looked at: only the read itself can tell."""
    dataset = open_dataset(mine)
    loader = Loader(dataset, [[5], [175]], read="pread", threads=1, depth=1, unit_bytes=1)
    reader = rows_module.PreadReader({"x": rows_module.Column(dataset.extents("x"), 32768)}, {})
    out = {"x": np.empty((1, 4096))}
    reader.read(np.array([121]), out)
    victim = mine / "shard-00002.h5"
    os.truncate(victim, victim.stat().st_size - 1000)
    with pytest.raises(CorruptError, match="cut off while it was read") as caught:
        reader.read(np.array([179]), out)
    assert caught.value.where == str(victim)
    with pytest.raises(HpcmassError, match="shard-00002"):
        list(loader)


def test_threads_copy_without_the_interpreters_lock(tmp_path: Path) -> None:
    """While a thread copies, this one counts: it could not if the copy held the lock all the time."""
    np.save(tmp_path / "x.npy", np.zeros((64, 1 << 20), np.uint8))
    shard(tmp_path / "x.npy", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    for way in ("map", "pread"):
        for _ in range(50):  # On a busy machine this one may get no core while the other one has one.
            counted = 0
            loader = Loader(dataset, [np.arange(64)], read=way, threads=1)
            loader._begin()
            loader._fill()
            while not loader._pending[0].done():
                counted += 1
            loader.close()
            if counted > 100:
                break
        assert counted > 100, way
