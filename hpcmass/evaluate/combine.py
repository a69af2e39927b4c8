"""Models trained on parts of the data, combined into one: `average`, `vote`, `stack`, `merge`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.errors import DataError, RecipeError
from hpcmass.evaluate.interfaces import for_model
from hpcmass.evaluate.merge import merge_forests
from hpcmass.train.bundle import Bundle, read_bundle, read_weights, same_signature
from hpcmass.train.bundle_writer import write_ensemble_bundle, write_estimator, write_weights
from hpcmass.train.inputs import select_fields
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.model import load_bundle, stack_features

Array = np.ndarray[Any, Any]
HOW = ("average", "vote", "stack", "merge")
_READ = 1024  # validation samples at once


def combine(
    how: str,
    members: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    valid_ds: DatasetLike | None = None,
    targets: Sequence[str] | None = None,
) -> Path:
    """Combine the models of several bundles into one bundle.

    `average`: the parameters of torch models of one structure, averaged; `vote`: the mean of the members'
    outputs; `stack`: a linear model on the members' outputs, fitted on validation data; `merge`: the trees of
    forests put together. The first and the last give a single model, as fast as a member.

    Args:
        how: One of `average`, `vote`, `stack`, `merge`.
        members: Bundles; not changed.
        out: Where the new bundle will lie; must not exist.
        weights: For `average`: a weight a member (its number of samples); default: all the same.
        valid_ds: For `stack`: data that no member was trained on.
        targets: For `stack`: the target field, default by role.

    Returns:
        `out`.

    Raises:
        RecipeError: The members cannot be combined so; the message says what can.
        DataError: `stack` without validation data, or weights that are none.
        CorruptError: A member is damaged.
        AlreadyExists: `out` exists.
    """
    if how not in HOW:
        raise DataError(f"models cannot be combined by {how!r}", hint=f"choose from {', '.join(HOW)}")
    bundles = [read_bundle(Path(member)) for member in members]
    same_signature(bundles)
    if how == "average":
        return _average(bundles, out, _shares(weights, len(bundles)))
    if how == "merge":
        same_recipe(bundles, params=False)
        merged = merge_forests([_estimator(bundle) for bundle in bundles])
        source = bundles[0].recipe_file.read_text(encoding="utf-8")
        return write_estimator(out, merged, source, bundles[0].params, bundles[0].signature)
    folders = [bundle.folder for bundle in bundles]
    if how == "vote":
        return write_ensemble_bundle(out, folders, "vote")
    if valid_ds is None or len(valid_ds) == 0:
        raise DataError("stacking needs validation data", where="data.valid", hint="name a split to fit it on")
    return write_ensemble_bundle(out, folders, "stack", fit_stack(folders, valid_ds, targets))


def same_recipe(bundles: Sequence[Bundle], *, params: bool) -> None:
    """Refuse bundles of different recipes (and parameters).

    Raises:
        RecipeError: They differ.
    """
    first = bundles[0]
    if any(bundle.kind == "ensemble" for bundle in bundles):
        raise RecipeError(
            "an ensemble has no parameters or trees of its own", hint="combine it by vote or stack"
        )
    for other in bundles[1:]:
        if first.recipe_file.read_bytes() != other.recipe_file.read_bytes():
            raise RecipeError("the models come from different recipes", where=other.folder)
        if params and first.data != other.data:
            raise RecipeError(
                "the models were built from different facts about their data",
                where=other.folder,
                hint="combine them by vote or stack",
            )
        if params and first.params != other.params:
            raise RecipeError(
                f"the models were built from different params: {first.params} and {other.params}",
                where=other.folder,
                hint="combine them by vote or stack",
            )


# -- average ----------------------------------------------------------------------------------------------
def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    values = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(values) != count or not all(math.isfinite(v) and v >= 0 for v in values) or sum(values) <= 0:
        raise DataError(f"weights are {values} for {count} models", hint="one for each, 0 or more, not all 0")
    return [value / sum(values) for value in values]


def _average(bundles: Sequence[Bundle], out: Path, shares: Sequence[float]) -> Path:
    for bundle in bundles:
        if bundle.kind != "torch":
            raise RecipeError(
                f"parameters of a {bundle.kind} cannot be averaged, those of torch models can",
                where=bundle.folder,
                hint="combine by vote or stack, forests by merge",
            )
    same_recipe(bundles, params=True)
    mean: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    for number, (bundle, share) in enumerate(zip(bundles, shares, strict=True)):
        state = read_weights(bundle)
        if number == 0:
            first = state
            mean = {name: value.to(_wide(value)) * share for name, value in state.items() if _averages(value)}
            continue
        if _structure(state) != _structure(first):
            raise RecipeError("the models differ in the structure of their parameters", where=bundle.folder)
        for name, total in mean.items():
            total.add_(state[name].to(total.dtype), alpha=share)
    state = {name: mean[name].to(value.dtype) if name in mean else value for name, value in first.items()}
    source = bundles[0].recipe_file.read_text(encoding="utf-8")
    first_one = bundles[0]
    return write_weights(
        out, state, source, first_one.params, first_one.signature, first_one.data, first_one.ragged
    )


def _structure(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def _averages(value: torch.Tensor) -> bool:
    """Integers (counters, tables of indices) have no mean; the first model's are kept."""
    return value.is_floating_point() or value.is_complex()


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.complex128 if value.is_complex() else torch.float64


# -- merge ------------------------------------------------------------------------------------------------
def _estimator(bundle: Bundle) -> Any:
    if bundle.kind != "estimator":
        raise RecipeError(
            f"a {bundle.kind} model has no trees to merge",
            where=bundle.folder,
            hint="combine by average or vote",
        )
    return load_bundle(bundle.folder, verify=False).core


# -- stack ------------------------------------------------------------------------------------------------
def fit_stack(
    members: Sequence[Path], valid_ds: DatasetLike, targets: Sequence[str] | None = None
) -> dict[str, Array]:
    """Fit the linear model of a stacked ensemble on the members' outputs.

    Classification: multinomial logistic regression on the members' class probabilities with an L2 penalty
    (Ting and Witten, "Issues in Stacked Generalization", JAIR 10, 1999); regression: linear least squares.

    Returns:
        `weight` (outputs, members x outputs) and `bias` (outputs), float64.

    Raises:
        RecipeError: The models are neither classifications nor regressions.
        DataError: The labels are not those of the models.
    """
    models = [load_bundle(member) for member in members]
    valid_ds = for_model(models[0], valid_ds)
    signature = models[0].signature
    names = [spec.name for spec in signature.inputs]
    _, wanted = select_fields(valid_ds, names, targets)
    if signature.task == "other" or len(wanted) != 1:
        raise RecipeError(
            f"models of task {signature.task!r} with {len(wanted)} targets cannot be stacked",
            hint="combine by vote",
        )
    parts, labels = [], []
    for start in range(0, len(valid_ds), _READ):
        batch = valid_ds.batch(np.arange(start, min(start + _READ, len(valid_ds))))
        inputs = {name: batch[name] for name in names}
        parts.append(stack_features([model(inputs) for model in models]))
        labels.append(batch[wanted[0]])
    features, y = np.concatenate(parts), np.concatenate(labels)
    if signature.classes is not None:
        if y.min() < 0 or y.max() >= len(signature.classes):
            raise DataError(f"labels run from {y.min()} to {y.max()} for {len(signature.classes)} classes")
        return fit_logistic(features, y.astype(np.int64), len(signature.classes))
    return fit_linear(features, y.reshape(len(y), -1).astype(np.float64))


def fit_logistic(
    features_nf: Array, labels_n: Array, classes: int, *, penalty: float = 1.0
) -> dict[str, Array]:
    """Multinomial logistic regression: sum of cross entropies + penalty / 2 · |weight|², by L-BFGS.

    Args:
        features_nf: (n, features) float64.
        labels_n: (n,) int64, 0 to `classes` - 1.
        classes: Number of classes.
        penalty: Strength of the L2 penalty; the bias has none.

    Returns:
        `weight` (classes, features) and `bias` (classes,).
    """
    x, y = torch.from_numpy(features_nf), torch.from_numpy(labels_n)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
        loss = loss + penalty / (2 * len(y)) * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return {"weight": weight.detach().numpy(), "bias": bias.detach().numpy()}


def fit_linear(features_nf: Array, values_nk: Array) -> dict[str, Array]:
    """Linear least squares with an intercept, of least norm where the features do not determine it.

    Returns:
        `weight` (k, features) and `bias` (k,).
    """
    mean_x, mean_y = features_nf.mean(axis=0), values_nk.mean(axis=0)
    weight_fk = np.linalg.lstsq(features_nf - mean_x, values_nk - mean_y, rcond=None)[0]
    return {"weight": weight_fk.T, "bias": mean_y - mean_x @ weight_fk}
