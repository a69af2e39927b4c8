"""A model from arrays as they are stored to what a loaded model gives, as one torch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmass.errors import RecipeError
from hpcmass.train.bundle import DICT, ONE, TUPLE, read_stack
from hpcmass.train.inputs import forward
from hpcmass.train.model import Model
from hpcmass.train.recipe import Recipe, load_recipe

# As `hpcmass.train.inputs.to_tensors` widens what torch does not compute with.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


class Raw(nn.Module):
    """The recipe's transform, the model, and probabilities of a classification.

    Takes one tensor an input, in the signature's order and types, each (n, *shape), and gives a flat tuple.
    Without a core it gives what an estimator takes: the inputs side by side, (n, features) float32.
    """

    def __init__(self, core: nn.Module | None, recipe: Recipe, names: Sequence[str], softmax: bool) -> None:
        super().__init__()
        self.core = core
        self._recipe, self._names, self._softmax = recipe, list(names), softmax

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        batch = {
            name: value.to(_WIDER[value.dtype]) if value.dtype in _WIDER else value
            for name, value in zip(self._names, arrays, strict=True)
        }
        batch = self._recipe.transform(batch, False, self._names)
        inputs = [batch[name] for name in self._names]
        if self.core is None:
            return (torch.cat([one[:, None].flatten(1).to(torch.float32) for one in inputs], dim=1),)
        outputs = forward(self.core, self._recipe, inputs)
        if self._softmax:
            return (outputs.float().softmax(dim=1),)
        return tuple(one.float() if one.dtype == torch.bfloat16 else one for one in _flat(outputs))


class Together(nn.Module):
    """Several models of the same inputs with one output each, combined by their mean or a linear model."""

    weight: Tensor
    bias: Tensor

    def __init__(self, members: Sequence[Raw], stack: Mapping[str, Any] | None, softmax: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._softmax = softmax
        self._stacked = stack is not None
        if stack is not None:
            self.register_buffer("weight", torch.from_numpy(np.asarray(stack["weight"], np.float64)))
            self.register_buffer("bias", torch.from_numpy(np.asarray(stack["bias"], np.float64)))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        found = [member(*arrays)[0].double() for member in self.members]
        if not self._stacked:
            return (torch.stack(found).mean(dim=0).float(),)
        side_by_side = torch.cat([one.flatten(1) if one.ndim > 1 else one[:, None] for one in found], dim=1)
        values = side_by_side @ self.weight.T + self.bias
        values = values.softmax(dim=1) if self._softmax else values
        return (values.reshape(found[0].shape).float(),)


def raw_module(model: Model) -> nn.Module:
    """The whole of a loaded model as a torch module; of an estimator what stands in front of it.

    Raises:
        RecipeError: It is an ensemble with other than torch models in it.
    """
    names = [spec.name for spec in model.signature.inputs]
    softmax = model.task == "classification"
    if model.kind == "ensemble":
        if any(member.kind != "torch" for member in model.core):
            raise RecipeError(
                "an ensemble can be exported where all its members are torch models",
                where=model.bundle.folder,
                hint="export a member, or merge trees of forests (per_shard.combine = 'merge')",
            )
        stack = read_stack(model.bundle) if model.bundle.combine == "stack" else None
        return Together([_raw(member, names, softmax) for member in model.core], stack, softmax).eval()
    return _raw(model, names, softmax)


def _raw(model: Model, names: Sequence[str], softmax: bool) -> Raw:
    recipe = load_recipe(model.bundle.recipe_file)
    core = model.core if model.kind == "torch" else None
    return Raw(core, recipe, names, softmax).eval()


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    if not isinstance(values, (tuple, list)) or not all(isinstance(one, Tensor) for one in values):
        raise RecipeError("the model gives outputs within outputs, which cannot be exported")
    return list(values)


def form_of(outputs: Any) -> tuple[str, ...]:
    """The form of a loaded model's outputs, as `Bundle.gives` has it."""
    if isinstance(outputs, Mapping):
        return (DICT, *(str(name) for name in outputs))
    return (TUPLE,) if isinstance(outputs, (tuple, list)) else (ONE,)
