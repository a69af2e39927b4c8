"""Not in the page cache: blocks in random order against sequential reading of the same files; memory meanwhile.

    python benchmarks/loader_cold.py [--quick]

A dataset of 3x32x32 uint8 rows in eight shards is dropped from the page cache (POSIX_FADV_DONTNEED) before
each reading. Sequential: the files one after the other in reads of 4 MiB on one thread, and, for comparison,
files shared out among as many threads as the loader has; and bare reads of the same blocks in random order by as
many threads, which is what the disk gives at most where nothing is read in sequence. The loader: the way `block`, through the page
cache, and the way `direct`, past it; its pool a twentieth of the data,
blocks of 512 KiB in random order and mixed within windows of them. They take turns, each time in another order;
the ratio is the median over rounds of `block` to the better of the sequential two. The memory is this process's
anonymous memory (RssAnon), at every tenth of the last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hpcmass.data import Dataset, Loader, Plan, open_dataset, shard
from hpcmass.data.orders import make_order

GOAL = 0.9
SHAPE = (3, 32, 32)
BATCH = 256
THREADS = 4


def make(folder: Path, n: int) -> Dataset:
    rows = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (n, *SHAPE))
    rng = np.random.default_rng(0)
    for low in range(0, n, 10_000):
        rows[low : low + 10_000] = rng.integers(0, 255, rows[low : low + 10_000].shape, np.uint8)
    del rows
    shard(folder / "x.npy", folder / "out", shards=8, workers=1)
    (folder / "x.npy").unlink()
    return open_dataset(folder / "out")


def drop(files: list[Path]) -> None:
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def sequential(files: list[Path], threads: int) -> float:
    def work(first: int) -> None:
        buffer = bytearray(4 << 20)
        for path in files[first::threads]:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    drop(files)
    crew = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
    began = time.perf_counter()
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    return time.perf_counter() - began


def bare_blocks(dataset: Dataset, files: list[Path], turn: int) -> float:
    """Seconds to read all blocks of the loader's size in random order, and nothing else."""
    size = make_order("block", dataset, batch=BATCH, lanes=1).block * dataset.row_bytes
    places = [(path, at) for path in files for at in range(4096, path.stat().st_size - size, size)]
    random.Random(turn).shuffle(places)
    share, pool, taking = iter(places), memoryview(bytearray(size * 60)), threading.Lock()

    def work() -> None:
        handles = {path: os.open(path, os.O_RDONLY) for path in files}
        while True:
            with taking:
                path, at = next(share, (None, 0))
            if path is None:
                break
            begin = at // size % 60 * size
            os.preadv(handles[path], [pool[begin : begin + size]], at)
        for handle in handles.values():
            os.close(handle)

    drop(files)
    crew = [threading.Thread(target=work) for _ in range(THREADS)]
    began = time.perf_counter()
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    read = len(places) * size
    return (time.perf_counter() - began) * len(dataset) * dataset.row_bytes / read


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def blocks(dataset: Dataset, files: list[Path], pool: int, epoch: int, way: str) -> tuple[float, list[float]]:
    order = make_order("block", dataset, batch=BATCH, lanes=1)  # one window at a time: the pool is small
    n, block = order.n, order.block
    drop(files)
    plan = Plan(partial(order.ids, epoch), 0, n, BATCH)
    memory: list[float] = []
    began = time.perf_counter()
    with Loader(dataset, plan, read=way, block=block, pool_bytes=pool, threads=THREADS) as loader:
        for number, _ in enumerate(loader):
            if number % max(1, n // BATCH // 10) == 0:
                memory.append(anonymous_mb())
        return time.perf_counter() - began, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half the data, three rounds")
    quick = parser.parse_args().quick
    n, rounds = (200_000, 3) if quick else (400_000, 5)
    folder = Path(tempfile.mkdtemp(dir="."))
    try:
        dataset = make(folder, n)
        files = sorted((folder / "out").glob("shard-*.h5"))
        total = n * dataset.row_bytes
        turns: dict[str, Callable[[int], float]] = {
            "sequential, 1 thread": lambda _: sequential(files, 1),
            f"sequential, {THREADS} threads": lambda _: sequential(files, THREADS),
            f"bare blocks, {THREADS} threads": lambda turn: bare_blocks(dataset, files, turn),
            "blocks, page cache": lambda turn: blocks(dataset, files, total // 20, turn, "block")[0],
        }
        took: dict[str, list[float]] = {name: [] for name in [*turns, "blocks, direct"]}
        memory: list[float] = []
        for turn in range(rounds):
            names = list(took)
            random.Random(turn).shuffle(names)
            for name in names:
                if name in turns:
                    took[name].append(turns[name](turn))
                else:
                    seconds, memory = blocks(dataset, files, total // 20, turn, "direct")
                    took[name].append(seconds)
    finally:
        shutil.rmtree(folder)
    for name, seconds_each in took.items():
        print(f"{name:24} {total / statistics.median(seconds_each) / 1e6:8.0f} MB/s")
    rows = list(zip(*took.values(), strict=True))
    direct = statistics.median(min(row[:2]) / row[4] for row in rows)
    print(f"past the page cache {direct:.3f} of sequential")
    bare = [statistics.median(row[2] / row[way] for row in rows) for way in (3, 4)]
    print(f"of bare reads of the same blocks: {bare[0]:.3f}, past the page cache {bare[1]:.3f}")
    print(
        f"anonymous memory at tenths, pool {total / 20e6:.0f} MB of {total / 1e6:.0f}: {[round(m) for m in memory]} MB"
    )
    late = memory[2:]
    print(
        f"load {os.getloadavg()[0]:.1f}; memory grew by {max(late) - min(late):.1f} MB over the last eight tenths"
    )
    ratio = round(statistics.median(min(row[:2]) / row[3] for row in rows), 3)
    print(
        json.dumps(
            {"name": "loader_cold", "ratio": ratio, "unit": "of sequential", "goal": GOAL, "met": ratio >= GOAL}
        )
    )


if __name__ == "__main__":
    main()
