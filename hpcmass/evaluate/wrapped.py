"""What a dataset made of another one leaves as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcmass.train.interfaces import DatasetLike


class Wrapped:
    """The parts of a dataset that are those of the one it is made of."""

    def __init__(self, dataset: DatasetLike) -> None:
        self._dataset = dataset

    @property
    def id(self) -> str:
        """That of the dataset as it was."""
        return self._dataset.id

    @property
    def fields(self) -> Mapping[str, Any]:
        """The dataset's."""
        return self._dataset.fields

    @property
    def inputs(self) -> list[str]:
        """The dataset's."""
        return self._dataset.inputs

    @property
    def targets(self) -> list[str]:
        """The dataset's."""
        return self._dataset.targets

    def classes(self, field: str) -> list[str] | None:
        """The dataset's."""
        return self._dataset.classes(field)
