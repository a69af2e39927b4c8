"""Reproducible mode against the ordinary one: goal 0.8 in samples a second.

    python benchmarks/reproducible.py [--quick] [MICRO_BATCHES ...]

The CNN of weak_scaling.py on 3x32x32 uint8 images, 128 a step, AdamW, 2 ranks of one thread each, backend `mpi`;
the reproducible run with the default number of micro-batches (12), and those named. All take turns; a figure
is the median over the rounds of (ordinary) / (reproducible) in seconds a step; the default's counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _ranks import Group, Turns, measure
from train_overhead import BATCH, prepare

GOAL, DEFAULT = 0.8, 12


def worker(address: str, root: Path, micro_batches: int) -> None:
    """Train for as long as there are turns; 0 micro-batches: the ordinary way."""
    from hpcmass.config import Project, job_from_values
    from hpcmass.runs import RunFolder
    from hpcmass.train.loop import Loop
    from hpcmass.train.rank import train_rank

    torch.set_num_threads(1)
    turns, step = Turns(address), Loop._step

    def timed(loop: Loop) -> bool:
        turns.begin()
        return step(loop)

    Loop._step = timed
    keys = {"reproducible": True, "micro_batches": micro_batches} if micro_batches else {}
    job = job_from_values({
        "name": "b", "recipe": str(root / "recipe.py"), "data": {"train": "data/d"},
        "train": {
            "backend": "mpi", "epochs": 100_000, "global_batch": BATCH, "checkpoint_every_steps": 10**9, **keys,
        },
    })  # fmt: skip
    train_rank(job, RunFolder(root / "runs" / f"b-{micro_batches}"), Project(root), console=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--worker", nargs=3, metavar=("SOCKET", "ROOT", "MANY"), help=argparse.SUPPRESS)
    parser.add_argument("micro_batches", nargs="*", type=int, help="further numbers of micro-batches")
    arguments = parser.parse_args()
    if arguments.worker:
        address, root, many = arguments.worker
        worker(address, Path(root), int(many))
    rounds, steps = (11, 6) if arguments.quick else (31, 12)
    numbers = [0, *dict.fromkeys([DEFAULT, *arguments.micro_batches])]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        prepare(root)

        def maker(many: int) -> Callable[[], Group]:
            return lambda: Group(__file__, [str(root), str(many)], 2)

        found = measure({str(many): maker(many) for many in numbers}, rounds, steps)
    ratios = {}
    for many in numbers:
        ratios[many] = statistics.median(a / b for a, b in zip(found["0"], found[str(many)], strict=True))
        how = f"{many} micro-batches" if many else "ordinary"
        print(f"{how:20} {statistics.median(found[str(many)]) * 1e3:8.1f} ms a step  {ratios[many]:.3f}")
    print(f"load {os.getloadavg()[0]:.1f}")
    ratio = round(ratios[DEFAULT], 3)
    said = {
        "name": "reproducible",
        "ratio": ratio,
        "unit": "of the ordinary",
        "goal": GOAL,
        "met": ratio >= GOAL,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
