"""Batch prediction against a bare loop over the same samples.

    python benchmarks/predict_batch.py [--quick]

A dataset of 100,000 images (uint8, 28 x 28; `--quick`: 16,000) in two shards, in page cache, and the CNN of
`workflows/mnist`, in torch. The other side reads the same batches of 256, calls the module with one thread, and
writes one .npy file: no parts, checksums or statistics, nothing durable, no restart. Ours is what `hpcmass predict
--out FOLDER --workers 1` does, in a process that has torch already. Rounds take turns; the ratio is the median
over rounds of samples a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hpcmass.data import Dataset, open_dataset, shard
from hpcmass.evaluate.batch import predict_dataset
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.recipe import load_recipe

GOAL = 0.95
BATCH = 256
RECIPE = Path(__file__).parents[1] / "workflows" / "mnist" / "recipe.py"
PARAMS = {"family": "cnn"}


def bare(module: torch.nn.Module, data: Dataset, out: Path) -> float:
    begun = time.perf_counter()
    n = len(data)
    found = np.empty((n, 10), np.float32)
    with torch.inference_mode():
        for start in range(0, n, BATCH):
            batch = data.batch(np.arange(start, min(n, start + BATCH)))
            given = (torch.from_numpy(batch["image"]).float() / 255 - 0.131) / 0.308
            found[start : start + BATCH] = torch.softmax(module(given), 1).numpy()
    np.save(out, found)
    return time.perf_counter() - begun


def ours(root: Path, out: Path) -> float:
    begun = time.perf_counter()
    predict_dataset(root / "m", root / "d", out)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    n = 16_000 if asked.quick else 100_000
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        np.savez(root / "raw.npz", image=rng.integers(0, 256, (n, 28, 28), np.uint8), label=np.arange(n) % 10)
        shard([root / "raw.npz"], root / "d", shards=2, workers=1)
        recipe, data = load_recipe(RECIPE), open_dataset(root / "d")
        module = recipe.build_model(PARAMS)
        write_torch_bundle(root / "m", module, recipe, PARAMS, data, torch.zeros(2, 10))
        module.eval()
        bare(module, data, root / "warm.npy")
        rounds = [
            (bare(module, data, root / f"{one}.npy"), ours(root, root / f"out-{one}"))
            for one in range(asked.rounds)
        ]
        told = open_dataset(root / "out-0").batch(np.arange(n))["probabilities"]
        assert np.allclose(told, np.load(root / "0.npy"), atol=1e-5)
    ratio = statistics.median(theirs / mine for theirs, mine in rounds)
    for theirs, mine in rounds:
        print(f"bare {n / theirs:,.0f} samples/s, hpcmass {n / mine:,.0f} samples/s")
    result = {
        "name": "predict_batch",
        "ratio": round(ratio, 3),
        "unit": "x",
        "goal": GOAL,
        "met": ratio >= GOAL,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
