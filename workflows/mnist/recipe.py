"""MNIST: a small convolutional network, or a forest, as `params["family"]` says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def build_model(params: dict[str, Any]) -> Any:
    """The model of a trial: a torch module, or an estimator with scikit-learn's interface."""
    if params["family"] == "forest":
        return build_forest(params)
    return build_cnn(width=params.get("width", 16), dropout=params.get("dropout", 0.0))


def build_cnn(width: int, dropout: float) -> nn.Module:
    """Two convolutions and a linear layer: (n, 28, 28) → (n, 10)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * 7 * 7, 10),
    )


def build_forest(params: dict[str, Any]) -> Any:
    """A random forest on the 784 pixels."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=params["trees"], max_features=params["max_features"], random_state=0
    )


def transform(batch: dict[str, torch.Tensor], train: bool) -> dict[str, torch.Tensor]:
    """Pixels 0…255 as float32 with about zero mean and unit variance over MNIST."""
    image = batch["image"].to(torch.float32) / 255.0
    return {**batch, "image": (image - 0.131) / 0.308}
