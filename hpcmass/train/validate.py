"""Validation: exact means of per-sample metrics over a whole dataset, every rank its slice."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from hpcmass.data.loader import Plan
from hpcmass.data.order import rank_slice
from hpcmass.train.comm.base import Communicator
from hpcmass.train.feed import ReadAhead
from hpcmass.train.inputs import forward, prepare
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.recipe import Recipe


def validate(
    model: torch.nn.Module,
    recipe: Recipe,
    dataset: DatasetLike,
    fields: tuple[list[str], list[str]],
    comm: Communicator,
    *,
    batch: int,
    autocast: Any,
    read: str = "auto",
) -> dict[str, float]:
    """Mean of every metric over all samples, the same on all ranks. Collective.

    Args:
        model: Left in the mode it was in.
        recipe: Its `metrics` gives one value per sample.
        dataset: Every sample counts once, whatever the number of ranks.
        fields: Names of the inputs and of the targets.
        comm: The ranks.
        batch: Samples at once on one rank; the means do not depend on it.
        autocast: Context of the forward pass.
        read: The way of reading, `data.read` of the job.
    """
    start, stop = rank_slice(0, len(dataset), comm.rank, comm.size)
    sums: dict[str, float] = defaultdict(float)
    was_training = model.training
    model.eval()
    try:
        plan = Plan(lambda low, high: np.arange(low, high, dtype=np.int64), start, stop, batch)
        with torch.no_grad(), ReadAhead(dataset, plan, read=read, device=comm.device) as data:
            for low in range(start, stop, batch):
                ids = np.arange(low, min(low + batch, stop), dtype=np.int64)
                arrays = {**data.batch(ids), "sample_id": ids}
                ready = prepare(arrays, recipe, *fields, train=False, device=comm.device)
                with autocast:
                    outputs = forward(model, recipe, ready.inputs)
                    values = recipe.metrics(outputs, ready.targets)
                for name, value in values.items():
                    sums[name] += float(value.double().sum())
    finally:
        model.train(was_training)
    # A rank without a sample does not know the names.
    names = sorted({name for said in comm.share_objects(sorted(sums)) for name in said})
    totals = comm.allreduce_values(np.array([sums[name] for name in names]))
    return {name: float(total) / len(dataset) for name, total in zip(names, totals, strict=True)}
