"""Indices a second of the sample order on one thread, and its memory at 10^10 samples: goal 20 million a second.

    python benchmarks/order.py [--quick]

The `global` order at n = 60,000, 10^7 and 10^10, in stretches of 2^16 indices at random places of the epoch (the whole
epoch at 60,000). The figure is of processor time, which other work on the machine does not change much; wall time is
shown beside it. Peak memory is that of the Python and numpy allocations of one such call, less the answer's own, at
10^10 and at 10^7. The other kinds are shown, with what a step of a rank costs that asks for 128 indices. The last
line gives the slowest of the three; it counts as met only if memory is the same at 10^10 as at 10^7.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np

from hpcmass.data.blocks import BlockOrder
from hpcmass.data.order import Order, PlainOrder
from hpcmass.data.strata import MixedOrder, StratifiedOrder

GOAL = 20.0
SIZES = (60_000, 10**7, 10**10)
STRETCH = 1 << 16
BATCH = 256


def rate(order: Order, rounds: int) -> tuple[float, float]:
    """Millions of indices a second, of processor time and of wall time: medians over the rounds."""
    length = min(STRETCH, order.n)
    places = np.random.default_rng(0).integers(0, order.n - length + 1, rounds).tolist()
    cpu, wall = [], []
    for epoch, place in enumerate(places):
        began = time.thread_time(), time.perf_counter()
        order.ids(epoch // 20, place, place + length)
        cpu.append(length / (time.thread_time() - began[0]) / 1e6)
        wall.append(length / (time.perf_counter() - began[1]) / 1e6)
    return statistics.median(cpu), statistics.median(wall)


def step_us(order: Order) -> float:
    """Microseconds of processor time of a step: half of a batch, one after the other."""
    times = []
    for step in range(200):
        began = time.thread_time()
        order.ids(0, step * BATCH, step * BATCH + BATCH // 2)
        times.append((time.thread_time() - began) * 1e6)
    return statistics.mean(times)


def peak_bytes(n: int) -> int:
    """Peak memory of a call, less the answer's."""
    order = PlainOrder("global", n, 0)
    tracemalloc.start()
    ids = order.ids(0, n // 2, n // 2 + 10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - ids.nbytes


def others(n: int) -> dict[str, Any]:
    labels = np.random.default_rng(0).integers(0, 1000, n, np.uint16)
    halves = [PlainOrder("global", 10**10, 0, key=str(number)) for number in range(2)]
    return {
        "block 10^10": BlockOrder(10**10, 0, batch=BATCH, block=171, window=16, lanes=16),
        f"stratified {n:.0e}, 1000 classes": StratifiedOrder(labels, 0, batch=BATCH, field="y"),
        "mix of 2 x 10^10": MixedOrder(halves, ["a", "b"], [7 * 10**9, 3 * 10**9], 0, batch=BATCH),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    rounds = 40 if quick else 400
    slowest = float("inf")
    for n in SIZES:
        cpu, wall = rate(PlainOrder("global", n, 0), rounds)
        slowest = min(slowest, cpu)
        print(f"global {n:<14,} {cpu:6.1f} M indices/s of processor time, {wall:6.1f} of wall time")
    for name, order in others(10**6 if quick else 10**7).items():
        cpu, wall = rate(order, max(10, rounds // 20))
        print(f"{name:34} {cpu:6.1f} M indices/s ({wall:.1f} of wall time), a step {step_us(order):.0f} us")
    print(f"a step of global: {step_us(PlainOrder('global', 10**10, 0)):.0f} us")
    memory = {n: peak_bytes(n) for n in (10**7, 10**10)}
    print(
        "peak memory beside the answer: " + ", ".join(f"{b / 1e6:.2f} MB at {n:,}" for n, b in memory.items())
    )
    flat = memory[10**10] <= memory[10**7] + (1 << 16)
    print(
        json.dumps({
            "name": "order", "ratio": round(slowest, 1), "unit": "M indices/s, one thread", "goal": GOAL,
            "met": slowest >= GOAL and flat, "peak_mb": round(memory[10**10] / 1e6, 2),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
