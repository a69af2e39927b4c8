"""Time to the first training step by ranks: an environment on a shared file system, or packed and unpacked on the node.

    python benchmarks/startup_storm.py [--quick] [--keep FOLDER]

The environment that runs this is packed, and unpacked to a local folder as a job does once a node. From both 1, 2,
4 … ranks are started at once; each imports torch and does one step. Three columns:

- shared, warm: the environment as it lies, its files in this machine's page cache;
- shared, cold: before each round the pages of all files that a rank opens or maps are dropped (posix_fadvise), as on
  a node that has not run it yet. Folders and inodes stay cached, and the disk is this machine's own, so a real one is slower;
- unpacked: after the unpacking, whose time is shown beside; the archive was dropped from the page cache before it.

Counted in each rank are the operations that a shared file system has to answer one by one: files looked up (stat)
and folders listed by Python's import, files opened by Python, and shared libraries mapped from there. Those of the
loader's search path are not seen, so the count is from below.

One host has no shared file system and no second node: what is measured is the cost of the disk and of unpacking.
What the storm costs on a site is the count times what its metadata server takes for one (`hpcmass site probe`
measures stats and creates a second there); that is shown for 0.5 ms as an example, and is computed, not measured.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcmass.workflow.env_pack import pack, unpack

NODES, RANKS_PER_NODE = 8, 16  # the job that the headline counts for
EXAMPLE_S = 0.5e-3
GOAL = 1000.0
# What the batch script's lines ask of the shared folder on a node: the size, the description (twice), the archive.
ASKED_BY_UNPACKING = 5

RANK = r"""
import sys, time, json, os
import importlib._bootstrap_external as external
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
model = torch.nn.Linear(64, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.zeros(16, 64)).square().mean().backward()
optimizer.step()
at = time.time()
maps = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if shared in line}
print(json.dumps({"at": at, "stats": looked[0], "opens": len(opened), "lists": listed[0],
                  "libraries": len({m for m in maps if m.startswith(shared)}), "torch": torch.__file__,
                  "files": sorted(opened | {m for m in maps if m.startswith(shared)})}))
"""


def ranks(python: Path, shared: Path, count: int) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of `count` ranks until the last has done its first step, and what one counted."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1"}
    started = time.time()
    children = [
        subprocess.Popen(
            [str(python), "-I", "-c", RANK, str(shared)], stdout=subprocess.PIPE, text=True, env=env
        )
        for _ in range(count)
    ]
    told = [json.loads(child.communicate()[0]) for child in children]
    return max(one["at"] for one in told) - started, told[0]


def drop(files: Iterable[Path]) -> None:
    """Have the kernel forget the pages of files; those that a process has mapped stay."""
    for file in files:
        if not file.is_file():  # Python also asks for files that are not there
            continue
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(handle)  # dirty pages cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def operations(told: dict[str, Any]) -> float:
    return told["stats"] + told["opens"] + told["lists"] + told["libraries"]


def conclude(
    there: dict[str, Any], here: dict[str, Any], unpacked_s: float, first_step: dict[str, Any]
) -> None:
    """What a rank asked of the shared folder, what that comes to for many, and the line for programs."""
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
    print(
        json.dumps(
            {
                "name": "startup_storm",
                "ratio": round(ratio, 1),
                "unit": "shared operations before/after",
                "goal": GOAL,
                "met": ratio >= GOAL,
                "a_rank": operations(there),
                "unpack_s": round(unpacked_s, 1),
                "first_step_s": first_step,
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 2 ranks, one round")
    parser.add_argument("--keep", metavar="FOLDER", help="use this folder, and the archive that is in it")
    options = parser.parse_args()
    counts, rounds = ((1, 2), 1) if options.quick else ((1, 2, 4, 8), 3)
    with tempfile.TemporaryDirectory(prefix="hpcmass-storm-") as temporary:
        folder = Path(options.keep or temporary)
        archive, shared = folder / "env.tar", Path(sys.prefix)
        began = time.perf_counter()
        if not archive.exists():
            pack(shared, archive)
        packed_s = time.perf_counter() - began
        drop([archive])
        began = time.perf_counter()
        local, _ = unpack(archive, str(Path(temporary) / "disk"))
        unpacked_s = time.perf_counter() - began
        size = archive.stat().st_size / 1e9
        print(
            f"the environment: {shared}, {size:.2f} GB packed in {packed_s:.1f} s, unpacked in {unpacked_s:.1f} s"
        )
        print(
            f"{'ranks':>5}{'shared, warm':>15}{'shared, cold':>15}{'unpacked':>12}   (s until the first step of all)"
        )
        first_step: dict[str, dict[int, float]] = {"warm": {}, "cold": {}, "unpacked": {}}
        counted: dict[str, dict[str, Any]] = {}
        for count in counts:
            times: dict[str, list[float]] = {name: [] for name in first_step}
            for _ in range(rounds):
                for name, place in (("warm", shared), ("cold", shared), ("unpacked", local)):
                    if name == "cold":
                        drop(map(Path, counted["warm"]["files"]))
                    seconds, counted[name] = ranks(place / "bin/python", shared, count)
                    times[name].append(seconds)
                    assert str(counted[name]["torch"]).startswith(str(place)), counted[name]
            for name, seconds_of in times.items():
                first_step[name][count] = round(statistics.median(seconds_of), 2)
            row = [first_step[name][count] for name in ("warm", "cold", "unpacked")]
            print(f"{count:>5}{row[0]:>15.2f}{row[1]:>15.2f}{row[2]:>12.2f}", flush=True)
        # Before the folder is removed, which takes its time.
        conclude(counted["warm"], counted["unpacked"], unpacked_s, first_step)


if __name__ == "__main__":
    main()
