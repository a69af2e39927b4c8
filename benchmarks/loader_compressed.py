"""Compressed shards against plain ones of the same samples: loader, warm, in one interleaved run.

    python benchmarks/loader_compressed.py [--quick]

Case A: 60,000 images of 3x32x32 uint8, batches of 256: a few soft spots on a dark ground with the photon noise of
a camera. Case B: 12,000 fields of 128x128 float32, batches of 64: waves with noise, kept to 1/1024 as a simulation
that writes 12 bits would. (2,000 and 400 different samples, repeated: chunks know nothing of each other.) Four
shards each, bitshuffle-lz4 with its own choice of chunks. Orders `global` and `block`; read as is chosen by itself,
where data this small is held decoded, and as larger data would be: `map` and `pread` without a pool, and in the
order `block` the way `block`.
Rounds of two epochs each take turns; a ratio is the median over rounds, samples a second compressed to plain. The
first round, in which what is held is decoded and the pages are faulted in, is printed by itself. The ratio of
the last line is the lowest of what is chosen by itself.
"""  # fmt: skip

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hpcmass.data import Dataset, Loader, Plan, open_dataset, shard
from hpcmass.data.orders import make_order

GOAL = 0.5
EPOCHS = 2
NAME = "bitshuffle-lz4"


def images(n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32]
    light = np.full((n, 3, 32, 32), 0.3)
    for _ in range(4):
        place, width = random.uniform(4, 28, (n, 2, 1, 1)), random.uniform(2, 5, (n, 1, 1))
        spot = np.exp(-((y - place[:, 0]) ** 2 + (x - place[:, 1]) ** 2) / (2 * width**2))
        light += random.uniform(20, 200, (n, 3, 1, 1)) * spot[:, None]
    return np.clip(random.poisson(light), 0, 255).astype(np.uint8)


def fields(n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    t = np.linspace(0, 1, 128)
    found = random.normal(0, 0.01, (n, 128, 128))
    for wave in range(6):
        shape = np.sin(2 * np.pi * (t[:, None] * (wave + 1) + random.random())) * np.cos(
            2 * np.pi * t * (wave % 3 + 1)
        )
        found += random.normal(size=(n, 1, 1)) * shape
    return (np.round(found * 1024) / 1024).astype(np.float32)


CASES = {"A 3x32x32 uint8": (images, 2_000, 30, 256), "B 128x128 float32": (fields, 400, 30, 64)}


def make(folder: Path, values: np.ndarray) -> dict[str, Dataset]:
    np.save(folder / "x.npy", values)
    shard(folder / "x.npy", folder / "plain", shards=4, workers=1)
    began = time.perf_counter()
    shard(folder / "x.npy", folder / NAME, shards=4, workers=1, compression=NAME)
    print(f"written compressed at {values.nbytes / (time.perf_counter() - began) / 1e6:,.0f} MB/s, one process")
    (folder / "x.npy").unlink()
    return {name: open_dataset(folder / name) for name in ("plain", NAME)}


def epoch(dataset: Dataset, kind: str, read: str, size: int, number: int) -> tuple[float, float]:
    """Seconds of some epochs: of the clock, and of the processors."""
    order = make_order(kind, dataset, batch=size)
    n = len(dataset) // size * size

    def plan() -> Iterator[np.ndarray]:
        for one in range(EPOCHS * number, EPOCHS * (number + 1)):
            yield from Plan(partial(order.ids, one), 0, n, size)

    # A pool would hold a good part of data this small.
    pool = {} if read in ("auto", "block") else {"pool_bytes": 1}
    began = time.perf_counter(), time.process_time()
    with Loader(dataset, plan(), read=read, block=getattr(order, "block", None), threads=2, **pool) as loader:
        for _ in loader:
            pass
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(folder: Path, case: str, rounds: int, scale: int) -> float:
    make_values, distinct, repeats, size = CASES[case]
    values = make_values(distinct)
    values = np.concatenate([values] * max(1, repeats // scale))
    datasets = make(folder, values)
    stored = sum(one.chunks["x"].bytes for one in datasets[NAME].manifest.shards)
    files = [sum(one.bytes for one in dataset.manifest.shards) for dataset in datasets.values()]
    chunk = datasets[NAME].manifest.shards[0].chunks["x"].samples
    print(
        f"{case}: {len(values)} samples, {values.nbytes / 1e6:.0f} MB, {chunk} a chunk, to 1/"
        f"{values.nbytes / stored:.2f} (files 1/{files[0] / files[1]:.2f})", flush=True,
    )  # fmt: skip
    ways = [("global", "auto"), ("block", "auto"), ("global", "map"), ("global", "pread"), ("block", "block")]
    taken: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):
        for kind, read in ways:
            for name in ("plain", NAME):
                taken.setdefault((kind, read, name), []).append(epoch(datasets[name], kind, read, size, turn))
    lowest = float("inf")
    for kind, read in ways:
        base, packed = taken[kind, read, "plain"], taken[kind, read, NAME]
        clock, cpu = (
            statistics.median(a[which] / b[which] for a, b in zip(base[1:], packed[1:], strict=True))
            for which in (0, 1)
        )
        rates = [
            EPOCHS * len(values) / statistics.median(one[0] for one in times[1:]) for times in (base, packed)
        ]
        print(
            f"{case:18} {kind:6} {read:5} plain {rates[0]:11,.0f}, compressed {rates[1]:11,.0f} samples/s: "
            f"{clock:5.2f} by the clock, {cpu:5.2f} by processor time (first round {base[0][0] / packed[0][0]:.2f})",
            flush=True,
        )  # fmt: skip
        if read == "auto":
            lowest = min(lowest, clock)
    for name in datasets:
        shutil.rmtree(folder / name)
    return lowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a fifth of the samples, three rounds instead of seven"
    )
    quick = parser.parse_args().quick
    folder = Path(tempfile.mkdtemp())
    try:
        ratio = round(min(measure(folder, case, 3 if quick else 7, 5 if quick else 1) for case in CASES), 3)
    finally:
        shutil.rmtree(folder)
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps(
            {
                "name": "loader_compressed",
                "ratio": ratio,
                "unit": "of plain shards",
                "goal": GOAL,
                "met": ratio >= GOAL,
            }
        )
    )


if __name__ == "__main__":
    main()
