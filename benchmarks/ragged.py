"""Padded batches of samples that differ in length: the loader against PyTorch's DataLoader with h5py.

    python benchmarks/ragged.py [--quick]

Case A: 100,000 texts of 1 to 512 tokens (uint16, log-normal lengths, 90 in the mean), batches of 256, by `memory`
as chosen by itself, and by `pread`. Case B: 6,000 events of up to 4,000 hits (float32, 3), batches of 64. One file, in page
cache. The other side reads the same HDF5 data sets with h5py, one sample each, in a random order too, pads with
`pad_sequence`, with 0 and 2 workers, the better of which counts. `--quick` takes a tenth of the samples. Rounds take
turns; a ratio is the median over rounds of samples a second, and the last line has the lowest ratio of what is
chosen by itself.
"""  # fmt: skip

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hpcmass.data import Loader, Plan, ShardWriter, epoch_ids, open_dataset

GOAL = 2.0
EPOCHS = 20


class Plain(torch.utils.data.Dataset):
    """Samples by h5py alone; each worker opens the file itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None
        with h5py.File(path) as file:
            self.offsets = file["x.offsets"][:]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> torch.Tensor:
        if self.file is None:
            self.file = h5py.File(self.path)
        return torch.from_numpy(self.file["x"][self.offsets[number] : self.offsets[number + 1]])


def padded(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_sequence(samples, batch_first=True), torch.tensor([len(one) for one in samples])


def texts(n: int, random: np.random.Generator) -> list[np.ndarray]:
    lengths = np.clip(random.lognormal(4.2, 0.8, n), 1, 512).astype(int)
    return [random.integers(0, 30_000, length).astype(np.uint16) for length in lengths]


def events(n: int, random: np.random.Generator) -> list[np.ndarray]:
    lengths = np.clip(random.lognormal(6.5, 0.8, n), 1, 4000).astype(int)
    return [random.random((length, 3), np.float32) for length in lengths]


CASES = {
    "A texts": (texts, 100_000, 256, ("uint16", (None,))),
    "B events": (events, 6_000, 64, ("float32", (None, 3))),
}


def ours(folder: Path, size: int, number: int, read: str) -> float:
    """Of several epochs in a row, the start of the threads and the first reading counted in."""
    dataset = open_dataset(folder)
    n = len(dataset)

    def ids(low: int, high: int) -> np.ndarray:
        """Positions of all epochs counted through."""
        epochs = range(low // n, -(-high // n))
        return np.concatenate(
            [epoch_ids("global", n, number, e, max(0, low - e * n), min(n, high - e * n)) for e in epochs]
        )

    began = time.perf_counter()
    with Loader(dataset, Plan(ids, 0, EPOCHS * n, size), read=read) as loader:
        seen = sum(len(ids) for ids, _ in loader)
        return seen / (time.perf_counter() - began)


def theirs(path: Path, size: int, number: int, workers: int) -> float:
    """Of one epoch, from the first batch on: the start of the workers is not counted."""
    dataset = Plain(path)
    n = len(dataset)
    ids = epoch_ids("global", n, 0, number, 0, n).tolist()
    loader = iter(
        DataLoader(dataset, sampler=ids, batch_size=size, collate_fn=padded, num_workers=workers)  # type: ignore[arg-type]
    )
    next(loader)
    began = time.perf_counter()
    seen = sum(len(lengths) for _, lengths in loader)
    return seen / (time.perf_counter() - began)


def case(name: str, folder: Path, quick: bool, rounds: int) -> float:
    make, n, size, kind = CASES[name]
    samples = make(n // 10 if quick else n, np.random.default_rng(0))
    with ShardWriter(folder, {"x": kind}, shard_samples=len(samples)) as writer:
        writer.write_batch({"x": samples})
    path = folder / "shard-00000.h5"
    with h5py.File(path) as file:
        total = file["x"].size * file["x"].dtype.itemsize
    chosen = Loader(open_dataset(folder), []).choice.way
    print(f"{name}: {len(samples)} samples, {total / 1e6:.0f} MB; chosen: {chosen}")
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        rates.setdefault("auto", []).append(ours(folder, size, number, "auto"))
        rates.setdefault("pread", []).append(ours(folder, size, number, "pread"))
        for workers in (0, 2):
            rates.setdefault(f"DataLoader {workers}", []).append(theirs(path, size, number, workers))
    for what, found in rates.items():
        print(f"  {what:14} {statistics.median(found):12,.0f} samples/s")
    best = [max(pair) for pair in zip(rates["DataLoader 0"], rates["DataLoader 2"], strict=True)]
    ratios = {
        what: statistics.median(a / b for a, b in zip(rates[what], best, strict=True))
        for what in ("auto", "pread")
    }
    print("  to the better DataLoader: " + ", ".join(f"{what} {ratio:.1f}" for what, ratio in ratios.items()))
    return ratios["auto"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    lowest = float("inf")
    for name in CASES:
        with tempfile.TemporaryDirectory() as base:
            lowest = min(lowest, case(name, Path(base) / "d", given.quick, 3 if given.quick else given.rounds))
    print(f"load {os.getloadavg()[0]:.1f}")
    result = {"name": "ragged", "ratio": round(lowest, 2), "unit": "x", "goal": GOAL, "met": lowest >= GOAL}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
