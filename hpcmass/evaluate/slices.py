"""How a model does on parts of a dataset: the samples that have the same value of a field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import DataError
from hpcmass.evaluate.interfaces import Model, for_model
from hpcmass.evaluate.measure import Evaluation, SliceScores, evaluate
from hpcmass.evaluate.scores import Ranks, on_all
from hpcmass.evaluate.wrapped import Wrapped
from hpcmass.train.interfaces import DatasetLike

MOST_VALUES = 100
"""Values of one field; a field with more says little about each."""


class SomeSamples(Wrapped):
    """Some samples of a dataset, as a dataset.

    Args:
        dataset: Its ragged fields have their shape already.
        ids: Sample numbers (m,), ascending.
    """

    def __init__(self, dataset: DatasetLike, ids: NDArray[np.int64]) -> None:
        super().__init__(dataset)
        self.sample_ids = ids

    def __len__(self) -> int:
        return len(self.sample_ids)

    def batch(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Samples by their place among these."""
        return self._dataset.batch(self.sample_ids[ids])

    def batches(
        self, batch_size: int, *, order: str = "sequential", seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches in the dataset's order; no other is offered."""
        for start in range(0, len(self), batch_size):
            yield self._dataset.batch(self.sample_ids[start : start + batch_size])


def with_slices(
    evaluation: Evaluation,
    model: Model,
    dataset: DatasetLike,
    fields: Sequence[str],
    *,
    batch_size: int = 256,
    target: str | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """An evaluation with the metrics of each slice; the model sees every sample once more a field.

    Args:
        evaluation: Of the whole dataset.
        model: The same model.
        dataset: The same dataset.
        fields: Fields with one class, whole number or boolean a sample, such as those of role `meta`.
        batch_size: Samples the model sees at once.
        target: As for `evaluate`.
        ranks: As for `evaluate`.

    Raises:
        DataError: There is no such field, or it has no values to slice by.
    """
    shaped = for_model(model, dataset)
    slices = []
    for field in fields:
        values, names = on_all(partial(_values, dataset, field), ranks)
        for value in np.unique(values).tolist():
            part = SomeSamples(shaped, np.flatnonzero(values == value).astype(np.int64))
            found = evaluate(model, part, batch_size=batch_size, target=target, ranks=ranks)
            named = names[value] if names and 0 <= value < len(names) else str(value)
            slices.append(SliceScores(field, named, len(part), found.metrics))
    return dataclasses.replace(evaluation, slices=(*evaluation.slices, *slices))


def _values(dataset: DatasetLike, field: str) -> tuple[NDArray[Any], list[str] | None]:
    """The field's value of every sample (n,), and the names of the values where it has such."""
    if field not in dataset.fields:
        raise DataError(f"there is no field {field!r} to slice by", hint=f"it has: {', '.join(dataset.fields)}")
    spec = dataset.fields[field]
    if tuple(spec.shape) or np.dtype(spec.dtype).kind not in "iub":
        raise DataError(
            f"field {field!r} ({spec.dtype}, shape {tuple(spec.shape)}) is nothing to slice by",
            hint="a slice needs one class, whole number or boolean a sample",
        )
    whole = getattr(dataset, "whole", None)
    parts = [whole(field)] if whole else [np.asarray(batch[field]) for batch in dataset.batches(4096)]
    values = np.concatenate(parts)
    if (count := len(np.unique(values))) > MOST_VALUES:
        raise DataError(
            f"field {field!r} has {count} values, more than {MOST_VALUES} slices", hint="group them first"
        )
    return values, dataset.classes(field)
