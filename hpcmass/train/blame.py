"""Which samples made a loss NaN or infinite, or too large."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hpcmass.errors import HpcmassError
from hpcmass.train.comm.base import Communicator

LISTED = 5
"""Samples that a message names; the record in `metrics.jsonl` names all."""

LossOf = Callable[["np.ndarray[Any, Any]"], float]


def spoilt_alone(ids: Sequence[int], loss_of: LossOf, limit: float = math.inf) -> list[int]:
    """The samples whose loss is bad by itself, found by halving: k of n take k log n losses.

    Args:
        ids: Samples of a batch whose mean loss is not finite, or above the limit.
        loss_of: The mean loss of some samples; what it raises of ours counts as nothing found.
        limit: Above this a loss is bad too.
    """
    try:
        return _halve([int(one) for one in ids], loss_of, limit)
    except (HpcmassError, RuntimeError, ValueError):  # a model that takes no single sample, say
        return []


def _halve(ids: list[int], loss_of: LossOf, limit: float) -> list[int]:
    if not ids:
        return []
    loss = loss_of(np.array(ids, np.int64))
    if math.isfinite(loss) and loss <= limit:
        return []
    if len(ids) == 1:
        return ids
    middle = len(ids) // 2
    return _halve(ids[:middle], loss_of, limit) + _halve(ids[middle:], loss_of, limit)


def gather_blame(
    comm: Communicator,
    bad: tuple[np.ndarray[Any, Any], float] | None,
    ways: Sequence[LossOf],
    limit: float = math.inf,
) -> list[dict[str, Any]]:
    """What every rank with a bad loss knows of it, the same on all ranks. Collective.

    Args:
        comm: The ranks.
        bad: This rank's samples whose loss is bad, and that loss; None where it is not.
        ways: Each as `loss_of` of `spoilt_alone`; the next one is asked where nothing was found.
        limit: As for `spoilt_alone`.

    Returns:
        For each such rank its number, the loss (None where it is no finite number), its samples, and those
        that are bad by themselves.
    """
    mine = None
    if bad is not None:
        batch, loss = [int(one) for one in bad[0]], bad[1]
        mine = {
            "rank": comm.rank, "loss": loss if math.isfinite(loss) else None, "batch": batch,
            "alone": next(filter(None, (spoilt_alone(batch, way, limit) for way in ways)), []),
        }  # fmt: skip
    return [one for one in comm.share_objects(mine) if one is not None]


def in_words(blame: Sequence[dict[str, Any]]) -> str:
    """For a message: the samples, or where none is spoilt by itself, the batch."""
    alone = [one for found in blame for one in found["alone"]]
    batch = [one for found in blame for one in found["batch"]]
    if len(alone) == len(batch) > 1:
        return f"each of samples {_listed(batch)}"
    if alone:
        return f"sample{'s' * (len(alone) > 1)} {_listed(alone)}"
    return f"in the batch of samples {_listed(batch)}, none of them by itself" if batch else ""


@contextlib.contextmanager
def judging(model: torch.nn.Module) -> Iterator[None]:
    """The model as in validation; running statistics that the batch has spoilt (batch norm's) made neutral."""
    spoilt = {
        name: value.clone()
        for name, value in model.named_buffers()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    }
    buffers = dict(model.named_buffers())
    model.eval()
    try:
        for name in spoilt:
            buffers[name].fill_(1.0 if name.endswith("var") else 0.0)
        yield
    finally:
        model.train()
        for name, value in spoilt.items():
            buffers[name].copy_(value)


def _listed(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return ", ".join(str(one) for one in ids[:LISTED]) + more
