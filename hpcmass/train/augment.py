"""Augmentation of samples, one by one or a batch at once, on the reading threads, ahead of training.

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
_OF_BATCHES = 1 << 63


def generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random numbers of one sample; those of others are independent (Philox: Salmon et al., SC 2011)."""
    key = np.array([seed & (1 << 64) - 1, epoch], np.uint64)
    # Numbers that are drawn count up the lowest word, so the streams of two positions never meet.
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, position], np.uint64)))


class Generators(Sequence[np.random.Generator]):
    """The random numbers of each sample of a batch, made when they are asked for; begun anew by each asking."""

    def __init__(self, seed: int, epoch: int, positions: Sequence[int]) -> None:
        self._seed, self._epoch, self._positions = seed, epoch, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        # Another stream than that of `augment`, which may have drawn from its own.
        return generator(self._seed ^ _OF_BATCHES, self._epoch, self._positions[number])


class Augment:
    """A recipe's `augment` and `augment_batch`, for the samples of a micro-batch."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        """Prepare.

        Args:
            recipe: Has one of them.
            seed: `train.seed`.
        """
        assert recipe.augments
        self._recipe, self._seed = recipe, seed

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
        if self._recipe.augment is not None:
            for number, position in enumerate(positions):
                sample = {name: array[number, ...] for name, array in arrays.items()}
                made = self._recipe.augment(dict(sample), generator(self._seed, epoch, position))
                for name, value in made.items():
                    if value is not sample.get(name):
                        self._put("augment", name, value, sample)
        if self._recipe.augment_batch is not None:
            whole = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
            made = self._recipe.augment_batch(dict(whole), Generators(self._seed, epoch, positions))
            for name, value in made.items():
                if value is not whole.get(name):
                    self._put("augment_batch", name, value, whole)

    def _put(self, function: str, name: str, value: Any, sample: Arrays) -> None:
        there = sample.get(name)
        made = np.asarray(value)
        if there is None:
            raise RecipeError(
                f"{function} gave a field {name!r}, which is ragged or not there",
                where=self._recipe.path,
                hint=f"there are: {', '.join(sample)}; transform(batch, train) may add some",
            )  # fmt: skip
        if made.shape != there.shape or not np.can_cast(made.dtype, there.dtype, "same_kind"):
            raise RecipeError(
                f"{function} gave {made.dtype} {list(made.shape)} for {name!r}, which is {there.dtype} "
                f"{list(there.shape)}", where=self._recipe.path,
                hint="change values only; transform(batch, train) may change shapes and types",
            )  # fmt: skip
        there[...] = made
