"""One trial of `workflows/mnist` as a person would write it by hand: what other drivers of searches run.

It imports nothing of hpcmass: torch, scikit-learn and the workflow's own recipe.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parents[1] / "workflows" / "mnist" / "recipe.py"
EPOCHS, BATCH, WARMUP = 6, 64, 20


def suggest(trial: Any) -> dict[str, Any]:
    """The workflow's space, for an Optuna trial."""
    family = trial.suggest_categorical("family", ["cnn", "forest"])
    if family == "cnn":
        return {
            "family": family,
            "width": trial.suggest_categorical("width", [8, 16, 32]),
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
            "lr": trial.suggest_float("train.lr", 3e-4, 3e-2, log=True),
        }
    return {
        "family": family,
        "trees": trial.suggest_int("trees", 50, 400, log=True),
        "max_features": trial.suggest_float("max_features", 0.02, 0.3, log=True),
    }


def space(trial: Any) -> None:
    """The same as Ray Tune takes it."""
    suggest(trial)


@cache
def loaded(file: str) -> tuple[Any, dict[str, Any]]:
    """The recipe, and the images and labels of both splits as tensors."""
    import numpy as np
    import torch

    spec = importlib.util.spec_from_file_location("mnist_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with np.load(file) as arrays:
        return recipe, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def train(params: dict[str, Any], file: str, report: Callable[[float, int], None]) -> float:
    """Train one model; tells its validation accuracy after each epoch, from 1 on."""
    import torch

    torch.set_num_threads(1)
    recipe, data = loaded(file)
    image, label = data["train_image"], data["train_label"]
    if params["family"] == "forest":
        forest = recipe.build_model(params).fit(image.flatten(1).numpy(), label.numpy())
        accuracy = float(
            (forest.predict(data["valid_image"].flatten(1).numpy()) == data["valid_label"].numpy()).mean()
        )
        report(accuracy, 1)
        return accuracy
    model = recipe.build_model(params)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params["lr"])
    steps = math.ceil(len(image) / BATCH) * EPOCHS
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for some in torch.randperm(len(image)).split(BATCH):
            batch = recipe.transform({"image": image[some]}, True)
            loss = torch.nn.functional.cross_entropy(model(batch["image"]), label[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        model.eval()
        with torch.no_grad():
            told = model(recipe.transform({"image": data["valid_image"]}, False)["image"]).argmax(1)
        accuracy = float((told == data["valid_label"]).float().mean())
        report(accuracy, epoch)
    return accuracy
