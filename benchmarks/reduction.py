"""A whole training step with hpcmass's `mpi` backend against Horovod and DDP: goal 1.1 of the better.

    python benchmarks/reduction.py [--quick]

An MLP of 25 million float32 in 50 tensors, SGD, 2 ranks of one thread each, 32 samples a rank. Each way with
the settings that are best for it: Horovod with small fusion buffers and a short cycle, by its own optimizer
and by hpcmass's buckets; DDP over gloo with gradients as views of its buckets. `none` does not reduce at all.
All ways take turns; the figure is the median over the rounds of (the better other one) / `mpi`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from _ranks import Group, Turns, measure

GOAL = 1.1
WIDTH, LAYERS, BATCH = 1000, 25, 32
WAYS = ("none", "mpi", "hpcmass-horovod", "horovod", "ddp")
Step = Callable[[], None]


def make_step(way: str) -> Step:
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model: nn.Module = nn.Sequential(*layers[:-1])
    x, y = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    if way in ("mpi", "hpcmass-horovod"):
        return _own(model, optimizer, x, y, way.removeprefix("hpcmass-"))
    if way == "horovod":
        from hpcmass.train.comm.mpi_start import start_mpi

        start_mpi()
        import horovod.torch as hvd

        hvd.init()
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    if way == "ddp":
        _join_gloo()
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    zero = optimizer.zero_grad  # Horovod's takes no argument; bucket views keep theirs
    if way == "ddp":
        zero = functools.partial(optimizer.zero_grad, set_to_none=False)

    def step() -> None:
        zero()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


def _join_gloo() -> None:
    from hpcmass.launch import detect_ranks
    from hpcmass.train.comm import open_communicator

    open_communicator("torch", detect_ranks(os.environ))


def _own(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, backend: str
) -> Step:
    from hpcmass.launch import detect_ranks
    from hpcmass.train.comm import open_communicator
    from hpcmass.train.reducer import GradientReducer

    comm = open_communicator(backend, detect_ranks(os.environ))
    reducer = GradientReducer(model.parameters(), comm)

    def step() -> None:
        reducer.zero()
        loss = nn.functional.mse_loss(model(x), y)
        reducer.start()
        (loss / comm.size).backward()
        reducer.finish()
        optimizer.step()

    return step


def worker(address: str, way: str) -> None:
    torch.set_num_threads(1)
    turns, step = Turns(address), make_step(way)
    while True:
        turns.begin()
        step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"none, mpi and some of: {', '.join(WAYS[2:])}")
    parser.add_argument("--worker", nargs=2, metavar=("SOCKET", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
    rounds, steps = (7, 4) if arguments.quick else (25, 10)
    makers = {way: lambda way=way: Group(__file__, [way], 2) for way in arguments.ways or WAYS}
    found = measure(makers, rounds, steps)
    for way in found:
        ratio = statistics.median(a / b for a, b in zip(found[way], found["none"], strict=True))
        print(
            f"{way:16} {statistics.median(found[way]) * 1e3:8.1f} ms a step  {ratio:5.2f} of a step without reduction"
        )
    others = zip(*(found[way] for way in found if way not in WAYS[:2]), strict=True)
    ratio = round(statistics.median(min(o) / own for o, own in zip(others, found["mpi"], strict=True)), 3)
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps(
            {"name": "reduction", "ratio": ratio, "unit": "of the better", "goal": GOAL, "met": ratio >= GOAL}
        )
    )


if __name__ == "__main__":
    main()
