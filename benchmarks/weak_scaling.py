"""A CNN on 1 rank and on 2, of one thread each and with as many samples a rank: goal 0.95.

    python benchmarks/weak_scaling.py [--quick]

3x32x32 images, 64 a rank, hpcmass's `mpi` backend. All take turns; the figure is the median over the rounds of
the step's time on 1 rank / that on 2. Two ranks need two idle cores: other work on the machine costs them more.
What two cores of this machine can give at all is measured besides: two processes that do the same at once, and do
not know of each other (they share caches and memory, as the ranks do).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from _ranks import Group, Turns, measure

GOAL = 0.95
BATCH = 64
APART = "2 apart"


def make_cnn() -> nn.Module:
    torch.manual_seed(0)
    widths, layers = (3, 32, 64, 128), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 10))


def worker(address: str, ranks: str) -> None:
    from hpcmass.launch import detect_ranks
    from hpcmass.train.comm import open_communicator
    from hpcmass.train.reducer import GradientReducer

    torch.set_num_threads(1)
    alone = ranks in ("1", APART)
    if alone:
        for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI", "PRTE_"))]:
            del os.environ[name]
    comm = open_communicator("single" if alone else "mpi", detect_ranks(os.environ))
    assert comm.size == (1 if alone else int(ranks))
    model = make_cnn()
    x, y = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    optimizer = torch.optim.AdamW(model.parameters())
    reducer, turns = GradientReducer(model.parameters(), comm), Turns(address)
    while True:
        turns.begin()
        reducer.zero()
        loss = nn.functional.cross_entropy(model(x), y)
        reducer.start()
        (loss / comm.size).backward()
        reducer.finish()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--worker", nargs=2, metavar=("SOCKET", "RANKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
    rounds, steps = (15, 10) if arguments.quick else (41, 20)
    found = measure({n: lambda n=n: Group(__file__, [n], int(n[0])) for n in ("1", "2", APART)}, rounds, steps)
    ratios = {}
    for name, seconds in found.items():
        ratios[name] = statistics.median(one / two for one, two in zip(found["1"], seconds, strict=True))
        print(
            f"{name:8} rank(s): {statistics.median(seconds) * 1e3:6.1f} ms a step, {ratios[name]:.3f} of one rank"
        )
    ratio = round(ratios["2"], 3)
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps(
            {
                "name": "weak_scaling",
                "ratio": ratio,
                "unit": "of one rank",
                "goal": GOAL,
                "met": ratio >= GOAL,
                "apart": round(ratios[APART], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
