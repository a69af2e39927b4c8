"""The loader beside others on the same samples and batches: rates from one interleaved run.

    python benchmarks/loader_peers.py [--quick] [--case A|B]

DataLoader over h5py (0 and 2 workers, opened in each worker, one sample a call), MosaicML Streaming,
WebDataset and LitData (each through its own loader or torch's, 0 workers, shuffled, uncompressed). Those
that are not installed are left out and said so: `pip install mosaicml-streaming webdataset litdata`, in an
environment of its own. Case A: 60,000 of 3x32x32 uint8, batches of 256 (goal: 35 x DataLoader + h5py); B:
20,000 of 128x128 float32, batches of 64 (goal: 3.5 x); --quick takes a tenth. Every reader gives tensors or
arrays of a batch; each turn reads the samples once, after one turn that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpcmass.data import Loader, Plan, epoch_ids, open_dataset, shard

CASES = {"A": (60_000, (3, 32, 32), np.uint8, 256, 35.0), "B": (20_000, (128, 128), np.float32, 64, 3.5)}
Make = Callable[[Path, np.ndarray, int], Callable[[], Iterable[Any]]]


class OneByOne(TorchDataset):  # type: ignore[type-arg]
    """What is written by hand most often: a file an epoch and worker, `ds[i]` a sample."""

    def __init__(self, folder: Path, ranges: list[range]) -> None:
        self.files, self.ranges, self.sets = sorted(folder.glob("shard-*.h5")), ranges, None

    def __len__(self) -> int:
        return self.ranges[-1].stop

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.sets is None:
            self.sets = [h5py.File(path, "r")["x"] for path in self.files]
            self.ends = [one.stop for one in self.ranges]
        number = int(np.searchsorted(self.ends, index, side="right"))
        return torch.from_numpy(self.sets[number][index - self.ranges[number].start])


def ours(folder: Path, rows: np.ndarray, size: int) -> Callable[[], Iterable[Any]]:
    dataset, n, epochs = open_dataset(folder / "h5"), len(rows), iter(range(1000))

    def go() -> Iterable[Any]:
        epoch = next(epochs)
        return Loader(dataset, Plan(lambda a, b: epoch_ids("global", n, 0, epoch, a, b), 0, n, size))

    return go


def h5py_loader(workers: int) -> Make:
    def make(folder: Path, rows: np.ndarray, size: int) -> Callable[[], Iterable[Any]]:
        ranges = open_dataset(folder / "h5").shard_ranges()
        return lambda: DataLoader(
            OneByOne(folder / "h5", ranges), batch_size=size, shuffle=True, num_workers=workers
        )

    return make


def streaming(folder: Path, rows: np.ndarray, size: int) -> Callable[[], Iterable[Any]]:
    from streaming import MDSWriter, StreamingDataset

    kind = f"ndarray:{rows.dtype}:{','.join(map(str, rows.shape[1:]))}"
    with MDSWriter(out=str(folder / "mds"), columns={"x": kind}) as writer:
        for row in rows:
            writer.write({"x": row})
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=size)
    return lambda: DataLoader(dataset, batch_size=size)


def webdataset(folder: Path, rows: np.ndarray, size: int) -> Callable[[], Iterable[Any]]:
    import webdataset as wds

    (folder / "wds").mkdir()
    with wds.ShardWriter(str(folder / "wds" / "x-%05d.tar"), maxcount=len(rows) // 8 + 1, verbose=0) as sink:
        for number, row in enumerate(rows):
            sink.write({"__key__": f"{number:08d}", "x.bin": row.tobytes()})
    urls = sorted(map(str, (folder / "wds").glob("*.tar")))

    def array(sample: dict[str, bytes]) -> tuple[np.ndarray]:
        return (np.frombuffer(sample["x.bin"], rows.dtype).reshape(rows.shape[1:]).copy(),)

    return lambda: wds.WebDataset(urls, shardshuffle=8).shuffle(1000).map(array).batched(size)


def litdata(folder: Path, rows: np.ndarray, size: int) -> Callable[[], Iterable[Any]]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    (folder / "lit").mkdir()
    writer = BinaryWriter(str(folder / "lit"), chunk_bytes="64MB")
    for number, row in enumerate(rows):
        writer[number] = torch.from_numpy(row)
    writer.done()
    writer.merge()
    return lambda: StreamingDataLoader(StreamingDataset(str(folder / "lit"), shuffle=True), batch_size=size)


PEERS: dict[str, Make] = {
    "hpcmass": ours,
    "DataLoader + h5py, 0 workers": h5py_loader(0),
    "DataLoader + h5py, 2 workers": h5py_loader(2),
    "MosaicML Streaming": streaming,
    "WebDataset": webdataset,
    "LitData": litdata,
}


def samples(batch: Any, shape: tuple[int, ...]) -> int:
    """Samples in a batch, whatever it is wrapped in."""
    if isinstance(batch, dict):
        return samples(next(iter(batch.values())), shape)
    if isinstance(batch, (tuple, list)):
        return samples(batch[-1], shape)
    if tuple(batch.shape[1:]) != shape:
        raise SystemExit(f"a batch of shape {tuple(batch.shape)}")
    return len(batch)


def measure(case: str, quick: bool, base: Path) -> float:
    n, shape, dtype, size, goal = CASES[case]
    n = n // 10 if quick else n
    rows = np.random.default_rng(0).integers(0, 255, (n, *shape), np.uint8).astype(dtype)
    np.save(base / "x.npy", rows)
    shard(base / "x.npy", base / "h5", shards=8, workers=1)
    ready = {}
    for name, make in PEERS.items():
        try:
            ready[name] = make(base, rows, size)
        except ImportError as error:
            print(f"{case} {name}: left out, {error}")
    rates: dict[str, list[float]] = {}
    for _ in range(3 if quick else 4):
        for name, start in ready.items():
            began, seen = time.perf_counter(), 0
            for batch in start():
                seen += samples(batch, shape)
            rates.setdefault(name, []).append(seen / (time.perf_counter() - began))
            if seen < 0.9 * n:
                raise SystemExit(f"{name} gave {seen} of {n} samples")
    mine = rates["hpcmass"][1:]
    ratios = {}
    for name, values in rates.items():
        ratios[name] = statistics.median(a / b for a, b in zip(mine, values[1:], strict=True))
        print(
            f"{case} {name:30} {statistics.median(values[1:]):12,.0f} samples/s, ours {ratios[name]:8.1f} x",
            flush=True,
        )
    h5py_best = min(value for name, value in ratios.items() if "h5py" in name)
    others = min(value for name, value in ratios.items() if name != "hpcmass")
    return min(h5py_best / goal, others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--case", choices=CASES)
    asked = parser.parse_args()
    found = []
    for case in [asked.case] if asked.case else CASES:
        folder = Path(tempfile.mkdtemp())
        try:
            found.append(measure(case, asked.quick, folder))
        finally:
            shutil.rmtree(folder)
    ratio = round(min(found), 3)
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps(
            {"name": "loader_peers", "ratio": ratio, "unit": "of the goal", "goal": 1.0, "met": ratio >= 1.0}
        )
    )


if __name__ == "__main__":
    main()
