"""Whether all ranks built the same model: where not, what they send each other hangs, or is nonsense."""

from __future__ import annotations

import hashlib
import json
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from hpcmass.errors import RecipeError
from hpcmass.train.comm.agree import agreed
from hpcmass.train.comm.base import Communicator


def check_alike(model: torch.nn.Module, comm: Communicator, recipe: Path) -> None:
    """Compare names, shapes and types of the model's tensors, in their order. Collective.

    Args:
        model: This rank's.
        comm: The ranks; only small objects of one length are sent until all are known to agree.
        recipe: Named in the error.

    Raises:
        RecipeError: They differ; names the first rank and tensor that do. On all ranks.
    """
    mine = tensors_of(model)
    digests = comm.share_objects(hashlib.sha256(json.dumps(mine).encode()).hexdigest())
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    here, there = comm.broadcast_object(mine), comm.broadcast_object(mine, root=other)
    raise agreed(
        RecipeError(
            f"rank {other} builds another model than rank 0: {difference(here, there)}", where=recipe,
            hint="build_model is to make the same model on every rank: it may not go by the rank, the host or "
            "files of one node",
        ),
        comm,
    )  # fmt: skip


def tensors_of(model: torch.nn.Module) -> list[list[Any]]:
    """Name, shape, type, and whether it is trained, of each parameter and buffer, as JSON says it."""
    named = chain(model.named_parameters(), model.named_buffers())
    return [
        [name, list(value.shape), str(value.dtype).removeprefix("torch."), value.requires_grad]
        for name, value in named
    ]


def difference(here: list[list[Any]], there: list[list[Any]]) -> str:
    """The first tensor in which two results of `tensors_of` differ, in words; "there" is the other rank."""
    one, other = next((a, b) for a, b in zip_longest(here, there) if a != b)
    name = (one or other)[0]
    if one is not None and other is not None and one[0] != other[0]:
        # The one that is on one side only tells more than two names at the same place.
        names = {tensor[0] for tensor in here}, {tensor[0] for tensor in there}
        name = one[0] if other[0] in names[0] else other[0]
    sides = [next((tensor for tensor in side if tensor[0] == name), None) for side in (there, here)]
    if sides[0] == sides[1]:
        return f"tensor {name!r} is at another place"
    return f"tensor {name!r} is {_in_words(sides[0])} there, and {_in_words(sides[1])} here"


def _in_words(tensor: list[Any] | None) -> str:
    if tensor is None:
        return "missing"
    _, shape, kind, trained = tensor
    return f"of shape {tuple(shape)} and {kind}" + ("" if trained else ", not trained,")
