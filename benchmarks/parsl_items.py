"""1,000 single-slot no-op items on a real Slurm: through hpcmass's pool, and through bare Parsl.

    python benchmarks/parsl_items.py [--quick] [--items N]

    bare       Parsl's own HighThroughputExecutor, SlurmProvider and SrunLauncher, one executor a target, all items
               handed to Parsl at once, which puts each on a random one
    hpcmass    the pool of a sweep on the same targets: our provider and pilot, items bound late, whoever is free

Both with encryption, the same slots (2 on half of each node of cpu and gpu), one block a node, workers already there
(the first items, which wait for them, are not counted). Both hold their half of the nodes at once, and take turns;
medians over the rounds; trust the ratio.
Starts a development cluster of its own, and ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])

import parsl
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from hpcmass.config import load_site
from hpcmass.devcluster import Cluster, missing_packages
from hpcmass.workflow.addresses import own_addresses
from hpcmass.workflow.executors import HEARTBEAT_S, LOST_AFTER_S
from hpcmass.workflow.pool import open_pool

GOAL = 0.95
ROUNDS = 7
TARGETS = {"cpu": (3, 2, 2), "gpu": (2, 2, 4)}  # blocks, slots a node, cores of a node
SLOTS = sum(blocks * slots for blocks, slots, _ in TARGETS.values())

Run = Callable[[], "Future[Any]"]


def noop() -> int:
    return 0


def pause() -> int:
    """Holds a slot until every other one has a worker too."""
    import time

    time.sleep(3)
    return 0


@contextlib.contextmanager
def bare(folder: Path, address: str) -> Iterator[Callable[[Callable[[], int]], Future[Any]]]:
    executors = [
        HighThroughputExecutor(
            label=name,
            address=address,
            encrypted=True,
            max_workers_per_node=slots,
            cores_per_worker=1e-6,
            heartbeat_period=HEARTBEAT_S,
            heartbeat_threshold=LOST_AFTER_S,
            available_accelerators=slots if name == "gpu" else 0,
            provider=SlurmProvider(
                partition=name,
                nodes_per_block=1,
                init_blocks=blocks,
                min_blocks=blocks,
                max_blocks=blocks,
                cores_per_node=cores,
                mem_per_node=1,
                exclusive=False,
                launcher=SrunLauncher(),
            ),
        )
        for name, (blocks, slots, cores) in TARGETS.items()
    ]
    config = Config(
        executors=executors, run_dir=str(folder), initialize_logging=False, usage_tracking=0, strategy="simple"
    )
    kernel = DataFlowKernel(config)
    apps = {f: parsl.python_app(f, data_flow_kernel=kernel, cache=False) for f in (noop, pause)}
    try:
        yield lambda function: apps[function]()
    finally:
        kernel.cleanup()


@contextlib.contextmanager
def ours(
    folder: Path, site_file: Path, *, parallel: int
) -> Iterator[Callable[[Callable[[], int]], Future[Any]]]:
    site = load_site(site_file)
    targets = {
        name: site.targets[name].model_copy(update={"cores": cores, "memory_gb": 1.0})
        for name, (_, _, cores) in TARGETS.items()
    }
    with open_pool(targets, parallel=parallel, folder=folder) as pool:
        yield pool.run


def fill(submit: Callable[[Callable[[], int]], Future[Any]], *, targets_seen: float) -> None:
    """Have every slot's worker there."""
    until = time.monotonic() + targets_seen
    while time.monotonic() < until:
        began = time.monotonic()
        wait([submit(pause) for _ in range(SLOTS)])
        if time.monotonic() - began < 5:  # All at once: they did not queue behind each other.
            return


def rate(submit: Callable[[Callable[[], int]], Future[Any]], items: int) -> float:
    began = time.monotonic()
    futures = [submit(noop) for _ in range(items)]
    wait(futures)
    seconds = time.monotonic() - began
    assert all(future.result() == 0 for future in futures)
    return items / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--items", type=int)
    arguments = parser.parse_args()
    items = arguments.items or (200 if arguments.quick else 1000)
    figure = {"name": "parsl_items", "unit": "of bare Parsl", "goal": GOAL}
    if missing_packages():
        print(json.dumps({**figure, "ratio": None, "met": None, "why": "Slurm is not installed"}))
        return
    with tempfile.TemporaryDirectory(prefix="hpcmass-items-") as scratch:
        known = own_addresses()
        cluster = Cluster.up(Path(scratch) / "slurm", accounting=False)
        os.environ.update({name: cluster.env[name] for name in ("SLURM_CONF", "PATH")})
        try:
            # That of the cluster's own bridge: Parsl's probe may take another one, which is not there to stay.
            address = next((one for one in own_addresses() if one not in known), "127.0.0.1")
            rates = measure(Path(scratch), cluster.site_file, items, address)
        finally:
            cluster.down()
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratio = round(statistics.median(a / b for a, b in zip(rates["hpcmass"], rates["bare"], strict=True)), 3)
    print(
        json.dumps({**figure, "ratio": ratio, "met": ratio >= GOAL, "items_a_second": medians, "items": items})
    )


def measure(scratch: Path, site_file: Path, items: int, address: str) -> dict[str, list[float]]:
    """Items a second of every round, in turns: what else the machine does meets both."""
    rates: dict[str, list[float]] = {"bare": [], "hpcmass": []}
    with bare(scratch / "bare", address) as one, ours(scratch / "ours", site_file, parallel=SLOTS) as other:
        for submit in (one, other):
            fill(submit, targets_seen=120)
            rate(submit, 100)
        for number in range(ROUNDS):
            for name, submit in (("bare", one), ("hpcmass", other))[:: 1 if number % 2 else -1]:
                rates[name].append(rate(submit, items))
            shown = ", ".join(f"{name} {values[-1]:.1f}/s" for name, values in rates.items())
            print(f"round {number + 1}: {shown}", flush=True)
    return rates


if __name__ == "__main__":
    main()
