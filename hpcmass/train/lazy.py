"""Lazy modules of torch (`LazyLinear` …): they learn their sizes from one sample before training begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from hpcmass.train.inputs import prepare
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.recipe import Recipe


def materialise(
    model: torch.nn.Module, recipe: Recipe, dataset: DatasetLike, fields: tuple[Sequence[str], Sequence[str]]
) -> None:
    """Run one sample through a model that has lazy parameters, so that they get their shapes.

    Args:
        model: On the device where it is to be trained.
        recipe: Its transform is applied.
        dataset: Its first sample is taken.
        fields: Names of the input and of the target fields.

    Raises:
        RecipeError: The model's forward raised.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not any(is_lazy(tensor) for tensor in tensors):
        return
    ids = np.arange(1, dtype=np.int64)
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    ready = prepare({**dataset.batch(ids), "sample_id": ids}, recipe, *fields, train=False, device=device)
    was_training = model.training
    model.eval()  # A batch of one is no batch for batch norm's statistics.
    with torch.no_grad(), recipe.errors("the model's forward"):
        model(*ready.inputs)
    model.train(was_training)
