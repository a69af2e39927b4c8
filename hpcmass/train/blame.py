"""Which samples made a loss NaN or infinite."""

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


def spoilt_alone(ids: Sequence[int], loss_of: LossOf) -> list[int]:
    """The samples whose loss is NaN or infinite by themselves, found by halving: k of n take k log n losses.

    Args:
        ids: Samples of a batch whose mean loss is not finite.
        loss_of: The mean loss of some samples; what it raises of ours counts as nothing found.
    """
    try:
        return _halve([int(one) for one in ids], loss_of)
    except (HpcmassError, RuntimeError, ValueError):  # a model that takes no single sample, say
        return []


def _halve(ids: list[int], loss_of: LossOf) -> list[int]:
    if not ids or math.isfinite(loss_of(np.array(ids, np.int64))):
        return []
    if len(ids) == 1:
        return ids
    middle = len(ids) // 2
    return _halve(ids[:middle], loss_of) + _halve(ids[middle:], loss_of)


def gather_blame(comm: Communicator, ids: np.ndarray[Any, Any] | None, loss_of: LossOf) -> list[dict[str, Any]]:
    """What every rank with a spoilt loss knows of it, the same on all ranks. Collective.

    Args:
        comm: The ranks.
        ids: This rank's samples whose loss is not finite; None where it is.
        loss_of: As for `spoilt_alone`.

    Returns:
        For each such rank its number, its samples, and those that are spoilt by themselves.
    """
    mine = None
    if ids is not None:
        batch = [int(one) for one in ids]
        mine = {"rank": comm.rank, "batch": batch, "alone": spoilt_alone(batch, loss_of)}
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
