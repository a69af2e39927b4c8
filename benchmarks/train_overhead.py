"""`hpcmass train` against loops written by hand around the same model: goals 0.98 in memory, 1 loader-fed.

    python benchmarks/train_overhead.py [--quick]

The CNN of weak_scaling.py on 3x32x32 uint8 images, 128 a step in random order, AdamW, one thread a rank. By
hand: plain PyTorch on 1 rank, Horovod's optimizer on 2, DDP over gloo on 2, each with the images in memory
and indexed by batch; and plain PyTorch fed by a DataLoader that reads HDF5 sample by sample (0 workers, as
many as there are cores for). hpcmass reads its shards, and does all that a run does: checks of the loss,
records, status. Each pair takes turns, started anew four times; a figure is the median over all rounds of
(by hand) / (hpcmass).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from _ranks import Group, Turns, measure

GOALS = {"plain": 0.98, "horovod": 0.98, "ddp": 0.98, "loader": 1.0}
BATCH, SAMPLES = 128, 8192
STARTS = (
    4  # processes that do the same differ by 10 % and more from one start to the next, each for its whole life
)
RECIPE = """
import sys
sys.path.insert(0, {here!r})
from weak_scaling import make_cnn

def build_model(params):
    return make_cnn()
"""


def prepare(root: Path) -> None:
    """Images as raw HDF5, and as a project of hpcmass with the same."""
    import h5py

    from hpcmass.config import Project
    from hpcmass.data import shard

    project = Project.create(root, "bench")
    x = np.random.default_rng(0).integers(0, 255, (SAMPLES, 3, 32, 32)).astype(np.uint8)
    y = np.arange(SAMPLES) % 10
    with h5py.File(root / "raw.h5", "w") as file:
        file["x"], file["y"] = x, y
    np.savez(root / "raw.npz", x=x, y=y)
    shard(root / "raw.npz", project.data / "d", inputs=["x"], targets=["y"], shards=4, workers=1)
    (root / "recipe.py").write_text(RECIPE.format(here=str(Path(__file__).parent)))


def run_hpcmass(root: Path, turns: Turns, backend: str) -> None:
    from hpcmass.config import Project, job_from_values
    from hpcmass.runs import RunFolder
    from hpcmass.train.loop import Loop
    from hpcmass.train.rank import train_rank

    step = Loop._step

    def timed(loop: Loop) -> bool:
        turns.begin()
        return step(loop)

    Loop._step = timed
    job = job_from_values({
        "name": "b", "recipe": str(root / "recipe.py"), "data": {"train": "data/d"},
        "train": {"backend": backend, "epochs": 100_000, "global_batch": BATCH, "checkpoint_every_steps": 10**9},
    })  # fmt: skip
    train_rank(job, RunFolder(root / "runs" / f"b-{backend}"), Project(root), console=False)


def in_memory(root: Path, rank: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    raw = np.load(root / "raw.npz")
    x, y = torch.from_numpy(raw["x"]), torch.from_numpy(raw["y"])
    generator = torch.Generator().manual_seed(0)
    while True:
        for ids in torch.randperm(SAMPLES, generator=generator).split(BATCH):
            mine = ids.chunk(size)[rank]
            yield x[mine], y[mine]


class Samples(torch.utils.data.Dataset):
    """The HDF5 file, read as most scripts do."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        import h5py

        if self.file is None:  # in the worker: a handle does not survive a fork
            self.file = h5py.File(self.path)
        return torch.from_numpy(self.file["x"][i]), int(self.file["y"][i])


def from_loader(root: Path, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader = torch.utils.data.DataLoader(Samples(root / "raw.h5"), BATCH, shuffle=True, num_workers=workers)
    while True:
        yield from loader


def by_hand(root: Path, turns: Turns, how: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from weak_scaling import make_cnn

    model: nn.Module = make_cnn()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rank, size = 0, 1
    if how == "horovod":
        from hpcmass.train.comm.mpi_start import start_mpi

        start_mpi()
        import horovod.torch as hvd

        hvd.init()
        rank, size = hvd.rank(), hvd.size()
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    elif how == "ddp":
        from hpcmass.launch import detect_ranks
        from hpcmass.train.comm import open_communicator

        comm = open_communicator("torch", detect_ranks(os.environ))
        rank, size = comm.rank, comm.size
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    workers = how.removeprefix("loader-")
    data = from_loader(root, int(workers)) if workers.isdigit() else in_memory(root, rank, size)
    while True:
        turns.begin()
        x, y = next(data)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.float().div_(255)), y)
        loss.backward()
        optimizer.step()
        loss.item()  # a loop that never looks at its loss is nobody's


def worker(address: str, root: str, how: str) -> None:
    torch.set_num_threads(1)
    kind, _, rest = how.partition(":")
    turns = Turns(address)
    if kind == "hpcmass":
        run_hpcmass(Path(root), turns, rest)
    by_hand(Path(root), turns, rest)


def pairs(root: Path) -> dict[str, tuple[str, list[str], int]]:
    """By name: hpcmass's backend, loops by hand, ranks."""
    return {
        "plain": ("single", ["plain"], 1),
        "horovod": ("horovod", ["horovod"], 2),
        "ddp": ("torch", ["ddp"], 2),
        "loader": ("single", ["loader-0", "loader-1"], 1),
    }


def compare(root: Path, name: str, rounds: int, steps: int) -> float:
    backend, hands, ranks = pairs(root)[name]

    def maker(how: str) -> Callable[[], Group]:
        return lambda: Group(__file__, [str(root), how], ranks)

    ours = f"hpcmass:{backend}"
    hows = [ours, *(f"hand:{hand}" for hand in hands)]
    found: dict[str, list[float]] = {how: [] for how in hows}
    for _ in range(STARTS):
        shutil.rmtree(root / "runs", ignore_errors=True)  # a run would go on
        for how, seconds in measure({how: maker(how) for how in hows}, rounds, steps).items():
            found[how] += seconds
    for how, seconds in found.items():
        print(f"  {how:20} {statistics.median(seconds) * 1e3:8.1f} ms a step")
    others = zip(*(found[f"hand:{hand}"] for hand in hands), strict=True)
    ratio = statistics.median(min(o) / own for o, own in zip(others, found[ours], strict=True))
    print(f"{name:10} {ratio:.3f} (goal {GOALS[name]})  load {os.getloadavg()[0]:.1f}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--worker", nargs=3, metavar=("SOCKET", "ROOT", "HOW"), help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(GOALS)}")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
    rounds, steps = (7, 5) if arguments.quick else (15, 12)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        prepare(root)
        found = {name: compare(root, name, rounds, steps) for name in arguments.names or GOALS}
    # How far each is from its own goal; the worst counts.
    ratio = round(min(value / GOALS[name] for name, value in found.items()), 3)
    values = {name: round(value, 3) for name, value in found.items()}
    said = {"name": "train_overhead", "ratio": ratio, "unit": "of the goals", "goal": 1.0, "met": ratio >= 1.0}
    print(json.dumps({**said, **values}))


if __name__ == "__main__":
    main()
