"""Peak memory of sharding a large `.npy`, summed over all processes: goal under 500 MB for 4 GB.

    python benchmarks/shard_memory.py [--quick] [--workers N] [--dir DIR]

Sharding runs in a process of its own; the resident memory of it and of all its descendants is sampled
from /proc every 20 ms. Shared pages (libraries) count once for every process that has them.
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

GOAL_MB = 500.0
ROW = 1024  # float32: 4 KiB a sample
CODE = """
import sys
from pathlib import Path
from hpcmass.data import shard
if __name__ == "__main__":
    shard(sys.argv[1], Path(sys.argv[2]), shards=8, strategy=sys.argv[4],
          splits={"train": 0.8, "valid": 0.1, "test": 0.1}, workers=int(sys.argv[3]))
"""


def tree_rss_bytes(root: int) -> int:
    """Resident bytes of a process and all its descendants."""
    parents, sizes = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(stat[1])
            sizes[int(name)] = int(stat[21]) * os.sysconf("SC_PAGESIZE")
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(sizes.get(pid, 0) for pid in family)


def write_source(path: Path, total_bytes: int) -> int:
    """Write random rows in blocks; returns the number of samples."""
    samples = total_bytes // (ROW * 4)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (samples, ROW))
    rng = np.random.default_rng(0)
    for start in range(0, samples, 4096):
        rows = array[start : start + 4096]
        rows[:] = rng.random(rows.shape, np.float32)
    array.flush()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 MB instead of 4 GB")
    parser.add_argument("--workers", type=int, default=min(4, len(os.sched_getaffinity(0))))
    parser.add_argument("--strategy", default="even")
    parser.add_argument("--dir", type=Path, help="where to work; default: the temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        source = folder / "x.npy"
        total = 400_000_000 if arguments.quick else 4_000_000_000
        samples = write_source(source, total)
        script = folder / "run.py"
        script.write_text(CODE)
        command = [sys.executable, str(script), str(source), str(folder / "out")]
        began = time.perf_counter()
        process = subprocess.Popen([*command, str(arguments.workers), arguments.strategy])
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_rss_bytes(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            sys.exit("sharding failed")
        print(f"{samples} samples, {total / 1e9:.1f} GB, {arguments.workers} workers: {seconds:.1f} s")
        value = round(peak / 1e6, 1)
        result = {"name": "shard_memory", "value": value, "unit": "MB", "goal": GOAL_MB, "met": value < GOAL_MB}
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
