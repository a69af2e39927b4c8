"""What evaluation needs of a model; what of a dataset stands in `hpcmass.train.interfaces`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmass.train.interfaces import DatasetLike

Array = NDArray[Any]
Inputs = Array | dict[str, Array]
"""An array (n, *shape) of a model with one input, else arrays by input name."""


class FieldSpecLike(Protocol):
    """One input of a signature; `shape` is that of one sample."""

    @property
    def name(self) -> str:
        """Field name."""

    @property
    def dtype(self) -> str:
        """Numpy dtype name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""


class SignatureLike(Protocol):
    """What a model takes and gives."""

    @property
    def inputs(self) -> Sequence[FieldSpecLike]:
        """Inputs, in order."""

    @property
    def targets(self) -> Sequence[str]:
        """Fields it was trained on as targets; empty where that is not known."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names by index."""

    @property
    def task(self) -> str:
        """`classification`, `regression` or `other`."""


class Model(Protocol):
    """A model: `hpcmass.train` loads them from bundles."""

    @property
    def signature(self) -> Any:
        """A `SignatureLike`."""

    def __call__(self, inputs: Any, /) -> Any:
        """Probabilities (n, classes) of a classification, values (n, ...) of a regression."""

    def score(self, batch: Mapping[str, Array], /) -> dict[str, Array]:
        """The recipe's metrics of n samples, each (n,); asked of a model of task `other`."""


def for_model(model: object, dataset: DatasetLike, *, even: bool = False) -> DatasetLike:
    """A dataset with the batches that a model takes: ragged fields as in its training, but a row a sample.

    Args:
        model: Says what its ragged fields became.
        dataset: Has ragged fields, or none.
        even: Pad all samples to one length, so that outputs of several batches can be put together.
    """
    ragged, known = getattr(model, "ragged", None), getattr(dataset, "ragged", None)
    if not ragged or not known:
        return dataset
    shapes = {name: shape for name, shape in ragged.items() if name in known}
    if even:
        longest = {name: known[name].stats["lengths"]["max"] for name in shapes}
        shapes = {name: shape.of_length(longest[name]) for name, shape in shapes.items()}
    shaped: DatasetLike = dataset.shaped(shapes, alone=True)  # type: ignore[attr-defined]
    return shaped


def take_inputs(batch: Mapping[str, Array], signature: SignatureLike) -> Inputs:
    """The part of a batch that a model takes.

    Raises:
        KeyError: The batch lacks an input.
    """
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1:
        return np.asarray(batch[names[0]])
    return {name: np.asarray(batch[name]) for name in names}
