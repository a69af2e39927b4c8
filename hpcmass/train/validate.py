"""Validation: exact means of per-sample metrics over a whole dataset, every rank its slice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hpcmass.data.loader import Plan
from hpcmass.data.order import rank_slice
from hpcmass.errors import DataError
from hpcmass.train.comm.agree import agreed
from hpcmass.train.comm.base import Communicator
from hpcmass.train.defaults import Sum
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
    seed: Callable[[int], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean of every metric over all samples, the same on all ranks. Collective.

    Args:
        model: Left in the mode it was in.
        recipe: Its `metrics` gives one value per sample, or a sum and of how many values it is.
        dataset: Every sample counts once, whatever the number of ranks.
        fields: Names of the inputs and of the targets.
        comm: The ranks.
        batch: Samples at once on one rank; the means do not depend on it.
        autocast: Context of the forward pass.
        read: The way of reading, `data.read` of the job.
        seed: Of a reproducible run: called before each batch with its number. Then batches are the same and
            are summed in one order, and the means are the same bit for bit, on any number of ranks.
        alive: Called after each batch.
    """
    start, stop = rank_slice(0, len(dataset), comm.rank, comm.size)
    if seed is not None:  # whole batches, which are the same on any number of ranks
        first, last = rank_slice(0, -(-len(dataset) // batch), comm.rank, comm.size)
        start, stop = first * batch, min(last * batch, len(dataset))
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    by_batch: dict[str, dict[int, float]] = defaultdict(dict)
    was_training = model.training
    model.eval()
    try:
        plan = Plan(lambda low, high: np.arange(low, high, dtype=np.int64), start, stop, batch)
        with torch.no_grad(), ReadAhead(dataset, plan, read=read, device=comm.device) as data:
            for low in range(start, stop, batch):
                ids = np.arange(low, min(low + batch, stop), dtype=np.int64)
                if seed is not None:
                    seed(low // batch)
                alive()
                arrays = {**data.batch(ids), "sample_id": ids}
                ready = prepare(arrays, recipe, *fields, train=False, device=comm.device)
                with autocast:
                    outputs = forward(model, recipe, ready.inputs)
                    values = recipe.metrics(outputs, ready.targets)
                for name, value in values.items():
                    total = value.total if isinstance(value, Sum) else value
                    by_batch[name][low // batch] = float(total.double().sum())
                    sums[name] += by_batch[name][low // batch]
                    counts[name] += value.count if isinstance(value, Sum) else len(ids)
    finally:
        model.train(was_training)
    # A rank without a sample does not know the names.
    names = sorted({name for said in comm.share_objects(sorted(sums)) for name in said})
    if seed is not None:
        for name in names:
            sums[name] = _in_order(by_batch[name], -(-len(dataset) // batch), comm)
    totals, many = np.array([sums[name] for name in names]), np.array([counts[name] for name in names])
    both = comm.allreduce_values(np.concatenate([totals, many]))
    totals, many = both[: len(names)] if seed is None else totals, both[len(names) :]
    if not many.all():
        raise agreed(DataError("the validation data has no value that a metric could be of"), comm)
    return {name: float(total) / float(of) for name, total, of in zip(names, totals, many, strict=True)}


def _in_order(mine: Mapping[int, float], many: int, comm: Communicator) -> float:
    """The sum over all batches, of which each rank has some; a sum with zeros alone is exact in any order."""
    values = np.zeros(many)
    values[list(mine)] = list(mine.values())
    total = 0.0
    for value in comm.allreduce_values(values).tolist():
        total += value
    return total
