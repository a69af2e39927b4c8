"""A dataset whose inputs are noisy or partly missing: how a model does where the world is worse than its data.

What is done to a sample follows from the seed and its number alone, so that ranks and batches do not show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import DataError
from hpcmass.evaluate.interfaces import Model, for_model
from hpcmass.evaluate.measure import evaluate
from hpcmass.evaluate.results import Evaluation, SliceScores
from hpcmass.evaluate.scores import Ranks, on_all
from hpcmass.evaluate.wrapped import Wrapped
from hpcmass.train.interfaces import DatasetLike

Array = NDArray[Any]
KINDS = ("noise", "missing")
_LOOKED_AT = 4096  # samples that mean and spread are of


@dataclass(frozen=True, eq=False)
class _Field:
    """What a field's values are like: one number, or one a feature where its samples are vectors."""

    number: int
    mean: Array
    std: Array
    low: Array
    high: Array


class Perturbed(Wrapped):
    """A dataset with noise added to its inputs, or with inputs missing.

    Args:
        dataset: Its ragged fields have their shape already.
        names: The inputs; those with classes, and ragged ones, stay as they are.
        kind: `noise`: normal noise of `amount` standard deviations of the field (of a vector's each feature).
            Whole numbers are rounded, and stay within what the dataset has. `missing`: each value has the
            probability `amount` to be replaced by the mean of the field, as one would fill a gap.
        amount: Above 0; of `missing` at most 1.
        seed: Of the randomness.

    Raises:
        DataError: The amount is none, or no input can be perturbed.
    """

    def __init__(
        self, dataset: DatasetLike, names: Sequence[str], kind: str, amount: float, seed: int = 0
    ) -> None:
        if not math.isfinite(amount) or amount <= 0 or (kind == "missing" and amount > 1):
            known = "above 0" + (" and at most 1" if kind == "missing" else "")
            raise DataError(f"{kind} of {amount} cannot be", hint=f"give a number {known}")
        super().__init__(dataset)
        self._kind, self._amount, self._seed = kind, amount, seed
        chosen = [name for name in names if _is_number(dataset, name)]
        if not chosen:
            raise DataError(
                f"no input can be perturbed: {', '.join(names)}",
                hint="classes and ragged fields stay as they are",
            )
        self._fields = _looked_at(dataset, chosen)

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, ids: NDArray[Any]) -> dict[str, Array]:
        """Samples by number, perturbed."""
        batch = dict(self._dataset.batch(ids))
        for name, field in self._fields.items():
            batch[name] = self._changed(np.asarray(batch[name]), field, ids)
        return batch

    def batches(
        self, batch_size: int, *, order: str = "sequential", seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, Array]]:
        """Batches in the dataset's order; no other is offered."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(len(self), start + batch_size), dtype=np.int64))

    def _changed(self, values: Array, field: _Field, ids: NDArray[Any]) -> Array:
        shape, key = values.shape[1:], [self._seed, 2 * field.number + KINDS.index(self._kind)]
        drawn = np.empty(values.shape, np.float32)
        for row, number in zip(drawn, ids.tolist(), strict=True):
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, 0]))
            row[...] = (rng.standard_normal if self._kind == "noise" else rng.random)(shape, dtype=np.float32)
        if self._kind == "missing":
            return np.where(drawn < self._amount, _as(field.mean, values.dtype), values)
        noisy = values + self._amount * field.std * drawn
        if values.dtype.kind in "iu":
            noisy = np.clip(noisy, field.low, field.high)
        return _as(noisy, values.dtype)


def with_perturbations(
    evaluation: Evaluation,
    model: Model,
    dataset: DatasetLike,
    levels: Sequence[tuple[str, float]],
    *,
    batch_size: int = 256,
    target: str | None = None,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> Evaluation:
    """An evaluation with the metrics under noise and missing inputs, as slices `noise == 0.1` of all samples.

    Args:
        evaluation: Of the dataset as it is.
        model: The same model; it sees every sample once more a level.
        dataset: The same dataset.
        levels: Kind (`noise`, `missing`) and amount of each.
        batch_size: As for `evaluate`.
        target: As for `evaluate`.
        seed: Of the randomness.
        ranks: As for `evaluate`.

    Raises:
        DataError: An amount is none, or no input can be perturbed.
    """
    shaped = for_model(model, dataset)
    names = [spec.name for spec in model.signature.inputs]
    made = []
    for kind, amount in levels:
        worse = on_all(partial(Perturbed, shaped, names, kind, amount, seed), ranks)
        found = evaluate(model, worse, batch_size=batch_size, target=target, ranks=ranks)
        made.append(SliceScores(kind, f"{amount:g}", len(worse), found.metrics))
    return dataclasses.replace(evaluation, slices=(*evaluation.slices, *made))


def _is_number(dataset: DatasetLike, name: str) -> bool:
    if name not in dataset.fields:
        raise DataError(f"the dataset lacks the model's input {name!r}")
    spec = dataset.fields[name]
    plain = np.dtype(spec.dtype).kind in "iuf" and not getattr(spec, "ragged", False)
    return plain and dataset.classes(name) is None


def _looked_at(dataset: DatasetLike, names: Sequence[str]) -> dict[str, _Field]:
    """Mean and spread of fields, from samples all over the dataset."""
    n = len(dataset)
    batch = dataset.batch(np.unique(np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(np.int64)))
    made = {}
    for number, name in enumerate(names):
        values = np.asarray(batch[name], np.float64)
        finite = np.where(np.isfinite(values), values, np.nan)
        axis = 0 if values.ndim == 2 else None
        if np.isnan(finite).all():
            raise DataError(f"the input {name!r} holds no number to go by")
        low, high = np.nanmin(finite), np.nanmax(finite)
        mean = np.nan_to_num(np.asarray(np.nanmean(finite, axis=axis)))
        std = np.nan_to_num(np.asarray(np.nanstd(finite, axis=axis)))
        made[name] = _Field(number, mean, std, np.asarray(low), np.asarray(high))
    return made


def _as(values: Array, dtype: np.dtype[Any]) -> Array:
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)
