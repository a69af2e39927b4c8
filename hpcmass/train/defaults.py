"""What a recipe leaves out: the default transform, loss and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcmass.data.shaping import IGNORED
from hpcmass.errors import RecipeError

Targets = Tensor | dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum over so many values (tokens, say): what a mean over a whole global batch is made of.

    Attributes:
        total: The sum, a scalar tensor.
        count: A whole number.
    """

    total: Tensor
    count: float

    @property
    def mean(self) -> float:
        """Its mean; 0 of nothing."""
        return float(self.total.detach()) / self.count if self.count else 0.0


def samples_of(targets: Targets) -> int:
    """Number of samples of a batch's targets."""
    first = next(iter(targets.values())) if isinstance(targets, dict) else targets
    return int(first.shape[0])


def default_transform(batch: dict[str, Tensor], train: bool, inputs: Sequence[str]) -> dict[str, Tensor]:
    """uint8 inputs to float32 in [0, 1]; float64 and float16 fields to float32; the rest unchanged."""
    made = {}
    for name, value in batch.items():
        if value.dtype == torch.uint8 and name in inputs:
            made[name] = value.float().div_(255)
        elif value.dtype in (torch.float64, torch.float16):
            made[name] = value.float()
        else:
            made[name] = value
    return made


def default_loss(outputs: Any, targets: Targets) -> Tensor:
    """Mean cross entropy for integer targets (outputs: logits), mean squared error for float ones."""
    return _losses(*_one_of_each(outputs, targets)).mean()


def default_metrics(outputs: Any, targets: Targets, *, with_loss: bool = True) -> dict[str, Tensor]:
    """One value per sample: `loss` and `accuracy` (integer targets) or `mae` (float targets).

    Without `with_loss` (the recipe has a loss of its own), a second metric is left out where outputs and
    targets do not have the shapes that it needs.
    """
    if not with_loss:
        try:
            return _second_metric(*_one_of_each(outputs, targets))
        except RecipeError:
            return {}
    output, target = _one_of_each(outputs, targets)
    return {"loss": _per_sample(_losses(output, target)), **_second_metric(output, target)}


def token_loss(outputs: Any, targets: Targets) -> Sum:
    """Cross entropy of ragged integer targets (n, length), the fill left out; outputs (n, classes, length)."""
    output, target = _tokens(outputs, targets)
    total = functional.cross_entropy(output, target, ignore_index=IGNORED, reduction="sum")
    return Sum(total, float((target != IGNORED).sum()))


def token_metrics(outputs: Any, targets: Targets) -> dict[str, Sum]:
    """`loss` and `accuracy` of ragged integer targets, over their values."""
    output, target = _tokens(outputs, targets)
    loss = token_loss(outputs, targets)
    return {"loss": loss, "accuracy": Sum((output.argmax(dim=1) == target).sum(), loss.count)}


def _tokens(outputs: Any, targets: Targets) -> tuple[Tensor, Tensor]:
    output, target = _one_of_each(outputs, targets)
    if not _is_classes(target):
        raise RecipeError(
            "the default loss takes padding for values where a ragged target holds decimals",
            hint="write loss(outputs, targets) in the recipe; NAME_length can be a target too (data.targets)",
        )
    _check_logits(output, target, ignored=IGNORED)
    return output, target.long()


def _one_of_each(outputs: Any, targets: Targets) -> tuple[Tensor, Tensor]:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise RecipeError(
            "the default loss and metrics need one output and one target",
            hint="write loss(outputs, targets) and metrics(outputs, targets) in the recipe",
        )
    return outputs.float(), targets


def _is_classes(target: Tensor) -> bool:
    return not target.is_floating_point() and not target.is_complex()


def _losses(output: Tensor, target: Tensor) -> Tensor:
    if not _is_classes(target):
        return functional.mse_loss(_as_target(output, target), target.float(), reduction="none")
    _check_logits(output, target)
    return functional.cross_entropy(output, target.long(), reduction="none")


def _second_metric(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    if _is_classes(target):
        _check_logits(output, target)
        return {"accuracy": _per_sample((output.argmax(dim=1) == target).float())}
    return {"mae": _per_sample((_as_target(output, target) - target.float()).abs())}


def _per_sample(values: Tensor) -> Tensor:
    return values.detach().reshape(values.shape[0], -1).mean(dim=1)


def _as_target(output: Tensor, target: Tensor) -> Tensor:
    """Outputs (n, 1) serve targets (n,) and the reverse; anything else must have the target's shape."""
    if output.shape == target.shape:
        return output
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1 and output.shape[:-1] == target.shape:
        return output.squeeze(-1)
    if target.ndim == output.ndim + 1 and target.shape[-1] == 1 and target.shape[:-1] == output.shape:
        return output.unsqueeze(-1)
    raise RecipeError(
        f"the model gives shape {tuple(output.shape)} where the targets have {tuple(target.shape)}",
        hint="mean squared error needs one value for each; or write loss(outputs, targets)",
    )


def _check_logits(output: Tensor, target: Tensor, ignored: int | None = None) -> None:
    expected = (target.shape[0], *target.shape[1:])
    if (
        output.ndim != target.ndim + 1
        or (output.shape[0], *output.shape[2:]) != expected
        or output.shape[1] < 2
    ):
        raise RecipeError(
            f"the model gives shape {tuple(output.shape)} where integer targets of shape {tuple(target.shape)} "
            "need (samples, classes)",
            hint="return one logit for each class; or write loss(outputs, targets)",
        )
    if target.device.type != "cpu" or not target.numel():
        return  # looking at the values would make an accelerator wait in every step
    if ignored is not None:
        target = target.masked_fill(target == ignored, 0)
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= output.shape[1]:
        raise RecipeError(
            f"a label is {low if low < 0 else high}, but the model has {output.shape[1]} outputs "
            f"(labels 0 to {output.shape[1] - 1})",
            hint="give the model as many outputs as there are classes",
        )
