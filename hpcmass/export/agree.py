"""How far an exported model's outputs are from those of the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.train.model import Model

Array = np.ndarray[Any, Any]
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Agreement:
    """Two models on the same samples.

    Attributes:
        samples: How many.
        largest: The largest difference of two outputs.
        close: Share of samples all of whose outputs differ by less than 1e-4 and a thousandth of their size.
        same_class: Share of samples with the same most probable class; None but for a classification.
    """

    samples: int
    largest: float
    close: float
    same_class: float | None

    def to_json(self) -> dict[str, Any]:
        """As in a version's lineage."""
        return {
            "samples": self.samples,
            "largest_difference": self.largest,
            "close": self.close,
            "same_class": self.same_class,
        }


def compare_outputs(parent: Model, made: Model, samples: Mapping[str, Array]) -> Agreement:
    """Run both on all samples at once, and on the first one alone, which may take another path."""
    pairs: list[tuple[Array, Array]] = []
    n = len(next(iter(samples.values())))
    same = None
    for rows in (slice(0, 1), slice(0, n)):
        given = {name: array[rows] for name, array in samples.items()}
        before, after = parent(given, batch_size=n), made(given, batch_size=n)
        for one, other in zip(flat(before), flat(after), strict=True):
            pairs.append((np.asarray(one, np.float64), np.asarray(other, np.float64)))
        if parent.task == "classification":
            same = float((np.argmax(before, axis=1) == np.argmax(after, axis=1)).mean())
    largest, close = 0.0, 1.0
    for one, other in pairs:
        if one.shape != other.shape:
            return Agreement(n, float("inf"), 0.0, same)
        differ = np.abs(one - other)
        fine = (differ <= ABSOLUTE + RELATIVE * np.abs(one)) | (np.isnan(one) & np.isnan(other))
        largest = max(largest, float(np.nanmax(differ, initial=0.0)))
        close = min(close, float(fine.reshape(len(fine), -1).all(axis=1).mean()))
    return Agreement(n, largest, close, same)


def flat(outputs: Any) -> list[Any]:
    """The arrays of a model's outputs."""
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
