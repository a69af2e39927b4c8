"""Batches in global random order against batch-sized memcpys by as many threads, warm, in one interleaved run.

    python benchmarks/loader.py [--quick]

Case A: 60,000 images of 3x32x32 uint8, batches of 256 (goal 0.70). Case B: 20,000 fields of 128x128 float32,
batches of 64 (goal 0.95). Both in eight shards. The memcpy copies batches of consecutive rows, new ones each
time, into two buffers a thread in turn. Rounds of memcpy, loader and `ds.batch`, each of three epochs,
take turns; a ratio is the median over rounds. The order's numbers are worked out within the loader's time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcmass.data import Dataset, Loader, Plan, epoch_ids, open_dataset, shard

EPOCHS = 3
CASES = {
    "A 3x32x32 uint8": (60_000, (3, 32, 32), np.uint8, 256, 0.70),
    "B 128x128 float32": (20_000, (128, 128), np.float32, 64, 0.95),
}


def make(folder: Path, n: int, shape: tuple[int, ...], dtype: type) -> Dataset:
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 255, (n, *shape), np.uint8).astype(dtype))
    shard(folder / "x.npy", folder / "out", shards=8, workers=1)
    (folder / "x.npy").unlink()
    return open_dataset(folder / "out")


Took = tuple[float, float]  # seconds of the clock, and of the processors


def clocks() -> Took:
    return time.perf_counter(), time.process_time()


def since(began: Took) -> Took:
    now = clocks()
    return now[0] - began[0], now[1] - began[1]


def copies(rows: np.ndarray, size: int, threads: int) -> Took:
    """`threads` threads copy all rows, a batch at a time."""

    def work(first: int) -> None:
        buffers = [np.empty((size, *rows.shape[1:]), rows.dtype) for _ in range(2)]
        for number, low in enumerate(range(first * size, len(rows) - size + 1, threads * size)):
            np.copyto(buffers[number % 2], rows[low : low + size])

    began = clocks()
    for _ in range(EPOCHS):
        crew = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
    return since(began)


def loads(dataset: Dataset, size: int, threads: int, epoch: int, read: str = "auto") -> Took:
    """A loader, from its beginning to its end, hands out some epochs."""
    n = len(dataset)

    def plan() -> Iterator[np.ndarray]:
        for number in range(EPOCHS * epoch, EPOCHS * (epoch + 1)):
            yield from Plan(
                lambda a, b, e=number: epoch_ids("global", n, 0, e, a, b), 0, n // size * size, size
            )

    began = clocks()
    with Loader(dataset, plan(), threads=threads, read=read) as loader:
        for _ in loader:
            pass
        return since(began)


def calls(dataset: Dataset, size: int, epoch: int) -> Took:
    """`ds.batch` gives an epoch, on this thread."""
    n = len(dataset)
    ids = epoch_ids("global", n, 0, epoch, 0, n)
    began = clocks()
    for _ in range(EPOCHS):
        for low in range(0, n - size + 1, size):
            dataset.batch(ids[low : low + size])
    return since(began)


def measure(folder: Path, case: str, rounds: int) -> float:
    n, shape, dtype, size, goal = CASES[case]
    dataset = make(folder, n, shape, dtype)
    rows = dataset.batch(np.arange(n // size * size))["x"]
    taken: dict[str, list[Took]] = {}
    for turn in range(rounds + 1):
        for threads in (1, 2):
            for name, value in (
                (f"memcpy, {threads} threads", copies(rows, size, threads)),
                (f"loader, {threads} threads", loads(dataset, size, threads, turn)),
                (f"map, {threads} threads", loads(dataset, size, threads, turn, "map")),
                (f"pread, {threads} threads", loads(dataset, size, threads, turn, "pread")),
            ):
                taken.setdefault(name, []).append(value)
        taken.setdefault("ds.batch, 1 threads", []).append(calls(dataset, size, turn))
    shutil.rmtree(folder / "out")
    found = {}
    for name, values in taken.items():
        base = taken[f"memcpy, {name.split(', ')[1]}"]
        # The first round faults pages in.
        found[name], cpu = (
            statistics.median(a[clock] / b[clock] for a, b in zip(base[1:], values[1:], strict=True))
            for clock in (0, 1)
        )
        rate = EPOCHS * len(rows) / statistics.median(value[0] for value in values[1:])
        print(
            f"{case:18} {name:20} {rate:12,.0f} samples/s  {found[name]:5.2f} of memcpy by the clock,"
            f" {cpu:5.2f} by processor time (goal {goal})", flush=True,
        )  # fmt: skip
    return min(found["loader, 1 threads"], found["loader, 2 threads"]) / goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    rounds = 3 if parser.parse_args().quick else 9
    folder = Path(tempfile.mkdtemp())
    try:
        ratio = round(min(measure(folder, case, rounds) for case in CASES), 3)
    finally:
        shutil.rmtree(folder)
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps({"name": "loader", "ratio": ratio, "unit": "of the goal", "goal": 1.0, "met": ratio >= 1.0})
    )


if __name__ == "__main__":
    main()
