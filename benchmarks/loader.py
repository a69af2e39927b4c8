"""Batches in global random order against a memcpy of a batch, in the same run: goal a ratio of 0.5.

    python benchmarks/loader.py [--quick]

Case A: 60,000 images of 3x32x32 uint8, batches of 256. Case B: 20,000 fields of 128x128 float32, batches
of 64. Both in eight shards. The memcpy copies a batch of consecutive rows, new ones each time, into a new
array. The two take turns every few batches, and the ratio is the median over those pairs. The last line
gives the worse of the two cases.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hpcmass.data import epoch_ids, open_dataset, shard

GOAL = 0.5
AT_ONCE = 8  # batches between turns
CASES = {
    "A 3x32x32 uint8": (60_000, (3, 32, 32), np.uint8, 256),
    "B 128x128 float32": (20_000, (128, 128), np.float32, 64),
}


def measure(folder: Path, case: str, quick: bool) -> float:
    n, shape, dtype, size = CASES[case]
    if quick:
        n //= 4
    rows = np.random.default_rng(0).integers(0, 255, (n, *shape)).astype(dtype)
    np.save(folder / "x.npy", rows)
    shard(folder / "x.npy", folder / "out", shards=8, workers=1)
    dataset = open_dataset(folder / "out")
    ids = epoch_ids("global", n, 0, 0, 0, n)
    dataset.batch(ids)
    seconds: dict[str, list[float]] = {"memcpy": [], "ds.batch": [], "ds.batches": []}
    for epoch in range(2 if quick else 5):
        stream = dataset.batches(size, order="global", epoch=epoch)
        for first in range(0, n - size * AT_ONCE + 1, size * AT_ONCE):
            places = [slice(at, at + size) for at in range(first, first + size * AT_ONCE, size)]
            seconds["memcpy"].append(timed(rows[one].copy() for one in places))
            seconds["ds.batch"].append(timed(dataset.batch(ids[one]) for one in places))
            seconds["ds.batches"].append(timed(itertools.islice(stream, AT_ONCE)))
    ratios = {}
    for name, values in seconds.items():
        pairs = zip(seconds["memcpy"], values, strict=True)
        ratios[name] = statistics.median(memcpy / value for memcpy, value in pairs)
        rate = size * AT_ONCE / statistics.median(values)
        print(f"{case:18} {name:10} {rate:12,.0f} samples/s  {ratios[name]:5.2f} of memcpy")
    shutil.rmtree(folder / "out")
    return ratios["ds.batch"]


def timed(batches: Iterable[object]) -> float:
    """Seconds to go through the batches, of which only one is held at a time."""
    began = time.perf_counter()
    deque(batches, maxlen=1)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples")
    quick = parser.parse_args().quick
    folder = Path(tempfile.mkdtemp())
    try:
        ratio = round(min(measure(folder, case, quick) for case in CASES), 3)
    finally:
        shutil.rmtree(folder)
    print(
        json.dumps({"name": "loader", "ratio": ratio, "unit": "of memcpy", "goal": GOAL, "met": ratio >= GOAL})
    )


if __name__ == "__main__":
    main()
