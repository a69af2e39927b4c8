"""Facts about the training data that a recipe may build its model from: `build_model(params, data)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcmass.train.inputs import select_fields
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.recipe import Facts

_STATS = ("mean", "std", "min", "max")


def facts_of(
    dataset: DatasetLike, inputs: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> Facts:
    """What a recipe is told of a dataset: its inputs, in the model's order, and then its targets.

    Values that JSON can hold, since a model keeps them: built again from its bundle it is the same model.
    A statistic is None where the manifest has none (class numbers have counts instead).

    Args:
        dataset: What is trained on; of several read as one, their statistics together.
        inputs: Input fields, default by role.
        targets: Target fields, default by role.

    Raises:
        ConfigError: A name is none of the dataset's fields.
    """
    roles = zip(("input", "target"), select_fields(dataset, inputs, targets), strict=True)
    return {name: {"role": role, **_facts(dataset.fields[name])} for role, names in roles for name in names}


def _facts(field: Any) -> dict[str, Any]:
    stats = getattr(field, "stats", None) or {}
    classes, lengths = getattr(field, "classes", None), stats.get("lengths")
    return {
        "dtype": str(field.dtype),
        "shape": [int(size) for size in field.shape],
        "classes": None if classes is None else list(classes),
        **({"lengths": {key: lengths.get(key) for key in ("min", "max", "mean")}} if lengths else {}),
        **{name: stats.get(name) for name in _STATS},
    }
