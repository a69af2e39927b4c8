"""What N ranks ask of a shared file system before their first step: an environment there, or packed and unpacked.

    python benchmarks/startup_storm.py [--quick] [--keep FOLDER]

The environment that runs this is packed, unpacked to a local folder as a job does once a node, and `import torch`
is done by 1, 2, 4 … ranks at once from both. Counted in each rank are the operations that a shared file system has
to answer one by one: files looked up (stat) and folders listed by Python's import, files opened by Python, and
shared libraries mapped from there. Those of libraries by the loader's search path are not seen, so the count is
from below. The seconds are of this one machine, whose disk is no shared file system and is in its page cache: they
show that the unpacked copy costs nothing. What the storm costs on a site is the count times what the site's
metadata server takes for one (`hpcmass site probe` measures stats and creates a second there), and that is shown
for 0.5 ms as an example, not as a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpcmass.workflow.env_pack import pack, unpack

NODES, RANKS_PER_NODE = 8, 16  # the job that the headline counts for
EXAMPLE_S = 0.5e-3
GOAL = 1000.0
# What the batch script's lines ask of the shared folder on a node: the size, the description (twice), the archive.
ASKED_BY_UNPACKING = 5

RANK = r"""
import sys, time, json, os
import importlib._bootstrap_external as external
began = time.perf_counter()
shared, opened, looked, listed = sys.argv[1] + os.sep, set(), [0], [0]
stat = external._path_stat
def counting(path):
    looked[0] += str(path).startswith(shared)
    return stat(path)
external._path_stat = counting
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(shared):
        opened.add(args[0])
    elif event in ("os.listdir", "os.scandir") and str(args[0]).startswith(shared):
        listed[0] += 1
sys.addaudithook(hook)
import torch
seconds = time.perf_counter() - began
maps = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if shared in line}
print(json.dumps({"seconds": seconds, "stats": looked[0], "opens": len(opened), "lists": listed[0],
                  "libraries": len({m for m in maps if m.startswith(shared)}), "torch": torch.__file__}))
"""


def ranks(python: Path, shared: Path, count: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds until `import torch` is done in all of `count` ranks started at once, and what each counted."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    children = [
        subprocess.Popen(
            [str(python), "-I", "-c", RANK, str(shared)], stdout=subprocess.PIPE, text=True, env=env
        )
        for _ in range(count)
    ]
    told = [json.loads(child.communicate()[0]) for child in children]
    return time.perf_counter() - started, told


def operations(told: dict[str, float]) -> float:
    return told["stats"] + told["opens"] + told["lists"] + told["libraries"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 2 ranks, two rounds")
    parser.add_argument("--keep", metavar="FOLDER", help="use this folder, and the archive that is in it")
    options = parser.parse_args()
    counts, rounds = ((1, 2), 2) if options.quick else ((1, 2, 4, 8), 5)
    with tempfile.TemporaryDirectory(prefix="hpcmass-storm-") as temporary:
        folder = Path(options.keep or temporary)
        archive, shared = folder / "env.tar", Path(sys.prefix)
        began = time.perf_counter()
        if not archive.exists():
            pack(shared, archive)
        packed_s = time.perf_counter() - began
        began = time.perf_counter()
        local, _ = unpack(archive, str(folder / "disk"))
        unpacked_s = time.perf_counter() - began
        size = archive.stat().st_size
        print(
            f"the environment: {shared}, {size / 1e9:.2f} GB packed in {packed_s:.1f} s, unpacked in {unpacked_s:.1f} s"
        )
        print(
            f"{'ranks':>5}{'shared folder':>16}{'unpacked':>12}{'ratio':>8}   (s until all have imported torch)"
        )
        there: dict[str, float] = {}
        here: dict[str, float] = {}
        for count in counts:
            times: dict[str, list[float]] = {"shared": [], "local": []}
            for _ in range(rounds):
                for name, python in (("shared", shared / "bin/python"), ("local", local / "bin/python")):
                    seconds, told = ranks(python, shared, count)
                    times[name].append(seconds)
                    if name == "shared":
                        there = told[0]
                    else:
                        here = told[0]
                        assert str(told[0]["torch"]).startswith(str(local)), told[0]
            one, other = statistics.median(times["shared"]), statistics.median(times["local"])
            print(f"{count:>5}{one:>16.2f}{other:>12.2f}{other / one:>8.2f}")
    print(
        f"a rank asks the shared folder {operations(there):.0f} times: {there['stats']} stats, {there['opens']} "
        f"opens, {there['lists']} lists, {there['libraries']} libraries; unpacked {operations(here):.0f} times"
    )
    every = NODES * RANKS_PER_NODE
    before = operations(there) * every
    after = operations(here) * every + ASKED_BY_UNPACKING * NODES
    print(
        f"{every} ranks on {NODES} nodes: {before:.0f} operations before, {after:.0f} after; at {EXAMPLE_S * 1e3} ms "
        f"each, one after the other: {before * EXAMPLE_S:.0f} s before, {after * EXAMPLE_S:.2f} s after (computed)"
    )
    ratio = before / after
    print(json.dumps({"name": "startup_storm", "ratio": round(ratio, 1), "unit": "shared operations before/after",
                      "goal": GOAL, "met": ratio >= GOAL, "a_rank": operations(there), "unpack_s": round(unpacked_s, 1)}))  # fmt: skip


if __name__ == "__main__":
    main()
