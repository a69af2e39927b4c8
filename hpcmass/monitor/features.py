"""Which numbers of a sample are watched: features, out of inputs and outputs.

A field with few elements is watched element by element, a larger one (an image, a signal) by each sample's
mean and deviation; one of any length by its length besides. Values of one sample belong together: what is
counted is samples, so that the number of values is also that of independent observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.monitor.sketch import Floats

ELEMENTS = 64
ANY = -1
CLASS, SCORE = "class", "confidence"


@dataclass(frozen=True)
class Side:
    """One array of a model: its name and a sample's shape, -1 where an axis has any length."""

    name: str
    shape: tuple[int, ...]

    @property
    def small(self) -> bool:
        """Whether every element is watched by itself."""
        return ANY not in self.shape and math.prod(self.shape) <= ELEMENTS


@dataclass(frozen=True)
class Watched:
    """The arrays of a model that are watched.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        classes: How many classes its first output has; None where it is no classification.
        names: Of the classes.
    """

    inputs: tuple[Side, ...]
    outputs: tuple[Side, ...]
    classes: int | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, interface: Any) -> Watched:
        """From what a runner says of itself (`serve.interfaces.Interface`)."""
        inputs, outputs = (
            tuple(Side(one.name, tuple(one.shape)) for one in side)
            for side in (interface.inputs, interface.outputs)
        )
        names = interface.classes
        whole = bool(names) and bool(outputs) and outputs[0].shape == (len(names),)
        return cls(inputs, outputs, len(names) if whole else None, tuple(names) if whole else ())

    def of_inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
        """Features by name, (n,) each.

        Args:
            rows: Inputs of each sample, (*shape) by name.
        """
        return _features("in", self.inputs, rows)

    def of_outputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
        """Features of outputs by name; of a classification its class number and the largest probability."""
        if self.classes is None:
            return _features("out", self.outputs, rows)
        first = self.outputs[0].name
        scores = np.stack([np.asarray(one[first], np.float64) for one in rows]) if rows else np.zeros((0, 1))
        return {
            f"out:{CLASS}": np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), np.nan),
            f"out:{SCORE}": scores.max(axis=1),
            **_features("out", self.outputs[1:], rows),
        }


def _features(side: str, fields: Iterable[Side], rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for one in fields:
        values = [np.asarray(row[one.name]) for row in rows]
        if not all(value.dtype.kind in "biuf" for value in values):
            continue
        name = f"{side}:{one.name}"
        if one.small:
            flat = np.array([value.reshape(-1) for value in values], np.float64).reshape(len(rows), -1)
            single = one.shape == ()
            for element in range(flat.shape[1]):
                at = np.unravel_index(element, one.shape) if one.shape else ()
                found[name if single else f"{name}[{','.join(map(str, at))}]"] = flat[:, element]
            continue
        with np.errstate(all="ignore"):
            wide = [value.astype(np.float64) for value in values]
            found[f"{name}.mean"] = np.array([v.mean() if v.size else 0.0 for v in wide])
            found[f"{name}.std"] = np.array([v.std() if v.size else 0.0 for v in wide])
        if ANY in one.shape:
            axis = one.shape.index(ANY)
            found[f"{name}.length"] = np.array([float(value.shape[axis]) for value in values])
    return found
