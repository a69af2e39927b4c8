"""Augmentation of single samples, on the reading threads, ahead of training.

What is random in it is a function of (seed, epoch, position in the epoch), so it is the same on any number of
ranks and threads, and when a run was stopped and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import Ids
from hpcmass.errors import RecipeError
from hpcmass.train.recipe import Recipe

Arrays = dict[str, npt.NDArray[Any]]


def generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random numbers of one sample; those of others are independent (Philox: Salmon et al., SC 2011)."""
    key = np.array([seed & (1 << 64) - 1, epoch], np.uint64)
    # Numbers that are drawn count up the lowest word, so the streams of two positions never meet.
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, position], np.uint64)))


class Augment:
    """A recipe's `augment`, for the samples of a micro-batch."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        """Prepare.

        Args:
            recipe: Has an `augment`.
            seed: `train.seed`.
        """
        assert recipe.augment is not None
        self._recipe, self._augment, self._seed = recipe, recipe.augment, seed

    def __call__(self, epoch: int, first: int | Sequence[int], ids: Ids, arrays: Arrays) -> None:
        """Change samples where they lie.

        Args:
            epoch: The epoch.
            first: Position of the first one in the epoch, or the position of each.
            ids: Sample numbers, shape (n,).
            arrays: An array a field, shape (n, *field.shape); `Pieces` of a ragged one, whose lengths stay.

        Raises:
            RecipeError: It raised, or gave something of another shape or type.
        """
        positions = first if isinstance(first, Sequence) else range(first, first + len(ids))
        for number, position in enumerate(positions):
            sample = {name: array[number, ...] for name, array in arrays.items()}
            made = self._augment(dict(sample), generator(self._seed, epoch, position))
            for name, value in made.items():
                if value is not sample.get(name):
                    self._put(name, value, sample)

    def _put(self, name: str, value: Any, sample: Arrays) -> None:
        there = sample.get(name)
        made = np.asarray(value)
        if there is None:
            raise RecipeError(
                f"augment gave a field {name!r}, which the dataset has not", where=self._recipe.path,
                hint=f"there are: {', '.join(sample)}; transform(batch, train) may add some",
            )  # fmt: skip
        if made.shape != there.shape or not np.can_cast(made.dtype, there.dtype, "same_kind"):
            raise RecipeError(
                f"augment gave {made.dtype} {list(made.shape)} for {name!r}, which is {there.dtype} "
                f"{list(there.shape)}", where=self._recipe.path,
                hint="change values only; transform(batch, train) may change shapes and types",
            )  # fmt: skip
        there[...] = made
