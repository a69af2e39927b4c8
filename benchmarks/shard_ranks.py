"""Sharding by one rank and by two, against a plain copy of the same bytes.

    python benchmarks/shard_ranks.py [--quick] [--dir DIR]

A source of images (3 x 32 x 32 bytes and a label) is cut at random into eight shards. Each rank is a process, ready
before the clock starts; what is timed is the call of `shard` on rank 0, which ends when the dataset is there: read,
scattered, durable, hashed (shards and source, SHA-256), published. The copy is a read and a write of the source's
bytes in blocks, and an fsync. Ways take turns; the best round of each counts. The ratio is one
rank's time to two ranks'; it needs a core for each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GOAL = 1.3
BLOCK_BYTES = 8 << 20


def rank(folder: Path, out: str, number: int, ranks: int) -> None:
    """One rank: waits for the others, and says how long it took."""
    from hpcmass.data.write import shard

    (folder / f"{out}.ready-{number}").touch()
    while not (folder / f"{out}.go").exists():
        time.sleep(0.001)
    began, busy = time.perf_counter(), time.process_time()
    shard(folder / "s.npz", folder / out, shards=8, workers=1, rank=number, ranks=ranks, start=out)
    print(time.perf_counter() - began, time.process_time() - busy)


def sharded_s(folder: Path, out: str, ranks: int) -> tuple[float, float]:
    """Seconds of one sharding, and of processor time of its busiest rank."""
    words = [sys.executable, __file__, "--rank"]
    processes = [
        subprocess.Popen([*words, str(folder), out, str(number), str(ranks)], stdout=subprocess.PIPE, text=True)
        for number in range(ranks)
    ]
    while not all((folder / f"{out}.ready-{number}").exists() for number in range(ranks)):
        if any(process.poll() for process in processes):
            sys.exit("a rank failed")
        time.sleep(0.01)
    os.sync()
    (folder / f"{out}.go").touch()
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("sharding failed")
    shutil.rmtree(folder / out)
    return float(said[0].split()[0]), max(float(one.split()[1]) for one in said)


def copied_s(source: Path, target: Path) -> float:
    """Seconds of one copy."""
    os.sync()
    began = time.perf_counter()
    with open(source, "rb", buffering=0) as data, open(target, "wb", buffering=0) as copy:
        while block := data.read(BLOCK_BYTES):
            copy.write(block)
        os.fsync(copy.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 MB and 3 rounds instead of 2 GB and 5")
    parser.add_argument("--dir", type=Path, help="where to work; default: the temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        samples = 20_000 if arguments.quick else 650_000
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (samples, 3, 32, 32), dtype=np.uint8)
        np.savez(folder / "s.npz", image=image, label=rng.integers(0, 10, samples))
        del image
        size = (folder / "s.npz").stat().st_size
        seconds: dict[str, list[float]] = {"copy": [], "1": [], "2": []}
        busy: dict[str, list[float]] = {"1": [], "2": []}
        for turn in range(3 if arguments.quick else 5):
            seconds["copy"].append(copied_s(folder / "s.npz", folder / "copy"))
            for ranks in (1, 2):
                wall, processor = sharded_s(folder, f"out-{turn}-{ranks}", ranks)
                seconds[str(ranks)].append(wall)
                busy[str(ranks)].append(processor)
        best = {name: min(found) for name, found in seconds.items()}
        print(f"load {os.getloadavg()[0]:.1f}, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
        for name, found in best.items():
            said = "a copy" if name == "copy" else f"{name} rank(s)"
            print(f"{said}: {found:.2f} s, {size / 1e6 / found:.0f} MB/s, {found / best['copy']:.2f} x a copy")
        print(
            f"processor time of the busiest rank: {min(busy['1']):.2f} s alone, {min(busy['2']):.2f} s of two"
        )
        ratio = round(best["1"] / best["2"], 2)
        result = {"name": "shard_ranks", "ratio": ratio, "unit": "x", "goal": GOAL, "met": ratio >= GOAL}
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
