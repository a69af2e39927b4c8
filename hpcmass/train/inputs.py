"""From a batch of arrays to what a model takes: tensors, the recipe's transform, inputs and targets.

Shared by the loop, by loaded models and by estimators, so that all of them see the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmass.errors import ConfigError, DataError, RecipeError
from hpcmass.train.defaults import Targets
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.recipe import Recipe

Batch = Mapping[str, "np.ndarray[Any, Any] | Tensor"]

_ALIGNMENT = 64  # bytes; of what torch allocates on CPUs

# torch computes little or nothing with these.
_LARGEST = np.uint64(2**63 - 1)
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


@dataclass(frozen=True)
class Prepared:
    """A batch, ready for a model.

    Attributes:
        inputs: One tensor an input field, in the order of the fields; `model(*inputs)`.
        targets: One target: its tensor; several: a dict by name; none: the input itself (an autoencoder).
        n: Samples in the batch.
    """

    inputs: tuple[Tensor, ...]
    targets: Targets
    n: int


def select_fields(
    dataset: DatasetLike, inputs: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Names of the input and target fields: those asked for (`[data]` of the job), else by role.

    Raises:
        ConfigError: A name is none of the dataset's fields, or there is no input.
    """
    for key, names in (("data.inputs", inputs), ("data.targets", targets)):
        for name in names or ():
            if name not in dataset.fields:
                known = ", ".join(dataset.fields)
                raise ConfigError(f"the dataset has no field {name!r}", where=key, hint=f"it has: {known}")
    chosen = list(dataset.inputs if inputs is None else inputs)
    if not chosen:
        raise ConfigError(
            "the dataset has no input field", where="data.inputs", hint="name the fields to use as inputs"
        )
    if targets is not None:
        return chosen, list(targets)
    return chosen, [name for name in dataset.targets if name not in chosen]


def to_tensors(batch: Batch, needed: Sequence[str] = ()) -> dict[str, Tensor]:
    """Numeric fields of a batch as tensors, (n, *shape); text and other fields are left out.

    uint16 and uint32 become the next wider signed type, which torch computes with, and uint64 becomes int64; a
    field with values that this cannot hold is left out.

    Raises:
        DataError: A field of `needed` is missing, not numeric, or has values of 2^63 or more.
    """
    made: dict[str, Tensor] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            made[name] = value
        elif value.dtype.name == "uint64" and value.size and value.max() > _LARGEST:
            if name in needed:
                raise DataError(
                    f"field {name!r} has a value of {value.max()}, and torch's largest integer is 2^63 - 1",
                    where=name, hint="write the field as float64, or as numbers below",
                )  # fmt: skip
        elif value.dtype.kind in "biufc" and value.dtype.itemsize <= 16:
            array = value.astype(_WIDER.get(value.dtype.name, value.dtype.newbyteorder("=")), copy=False)
            array = np.ascontiguousarray(array) if array.ndim else array
            made[name] = _aligned(torch.from_numpy(array if array.flags.writeable else array.copy()))
    for name in needed:
        if name not in batch:
            raise DataError(f"the batch has no field {name!r}", hint=f"it has: {', '.join(batch)}")
        if name not in made:
            raise DataError(f"field {name!r} is not numeric and cannot be an input or a target", where=name)
    return made


def _aligned(value: Tensor) -> Tensor:
    """The same values at an address that torch itself would give them.

    On CPUs MKL's products differ in their last bits with the alignment of what they are given, and a batch
    within a reused buffer lies elsewhere when a run was stopped and went on.
    """
    misplaced = value.is_floating_point() and value.device.type == "cpu" and value.data_ptr() % _ALIGNMENT
    return value.clone() if misplaced else value


def prepare(
    batch: Batch,
    recipe: Recipe,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    train: bool,
    device: torch.device | str | None = None,
) -> Prepared:
    """Turn a batch of arrays into a model's inputs and targets.

    Args:
        batch: Arrays or tensors by field, first axis the sample.
        recipe: Its `transform` is applied.
        inputs: Names of the input fields, in the order in which the model takes them.
        targets: Names of the target fields.
        train: Handed to `transform`: whether to augment.
        device: Where the tensors go, before the transform.

    Raises:
        DataError: A field is missing or not numeric.
        RecipeError: `transform` raised, or lost a field.
    """
    tensors = to_tensors(batch, [*inputs, *targets])
    if device is not None:
        tensors = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    n = int(tensors[inputs[0]].shape[0])
    tensors = recipe.transform(tensors, train, inputs)
    for name in (*inputs, *targets):
        if name not in tensors:
            raise RecipeError(
                f"transform lost the field {name!r}", where=recipe.path, hint="return it in the batch"
            )
    taken = tuple(_aligned(tensors[name]) for name in inputs)
    wanted = {name: _aligned(_target(tensors[name])) for name in targets}
    for name, value in [*zip(inputs, taken, strict=True), *wanted.items()]:
        if value.ndim == 0 or value.shape[0] != n:
            raise RecipeError(
                f"transform gave {tuple(value.shape)} for {name!r}, not {n} samples", where=recipe.path
            )
    if not wanted:
        wanted = dict(zip(inputs, taken, strict=True))
    return Prepared(taken, next(iter(wanted.values())) if len(wanted) == 1 else wanted, n)


def _target(value: Tensor) -> Tensor:
    """Integer labels as int64 and floats as float32: what torch's losses take."""
    if value.dtype == torch.float64 or value.dtype == torch.float16:
        return value.float()
    return value if value.is_floating_point() or value.is_complex() else value.long()


def forward(model: Callable[..., Any], recipe: Recipe, inputs: Sequence[Tensor]) -> Any:
    """`model(*inputs)`; what it raises becomes a `RecipeError` with the user's line."""
    with recipe.errors("the model's forward"):
        return model(*inputs)


def without_padding(value: Any, n: int, padded: int) -> Any:
    """The first `n` rows of a model's outputs or of targets, of which there are `padded`.

    Args:
        value: A tensor with one row a sample, or a dict, list or tuple of such.
        n: Rows that count.
        padded: Rows there are.

    Raises:
        RecipeError: Something has not one row a sample, so that the padding cannot be taken out of it.
    """
    if isinstance(value, Tensor):
        if value.ndim and value.shape[0] == padded:
            return value[:n]
        raise RecipeError(
            f"the model's output of shape {tuple(value.shape)} has not one row for each of {padded} samples",
            where="train.last_batch",
            hint='the padding cannot be taken out of it: use last_batch = "keep" or "drop"',
        )
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        for key in value:
            made[key] = without_padding(value[key], n, padded)
        return made
    if isinstance(value, (list, tuple)):
        parts = [without_padding(one, n, padded) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def flatten(inputs: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Inputs as one float32 matrix (n, features), fields side by side: what estimators take."""
    columns = [value.detach()[:, None].flatten(1) for value in inputs]
    parts = [value.to("cpu", torch.float32).numpy() for value in columns]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
