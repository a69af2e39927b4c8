"""What training and evaluation need of a dataset; without torch, so that metrics need none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class FieldLike(Protocol):
    """What is needed of a dataset's field."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102


class DatasetLike(Protocol):
    """What is needed of a dataset: `hpcmass.data.Dataset` has it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def fields(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def inputs(self) -> list[str]: ...  # noqa: D102
    @property
    def targets(self) -> list[str]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def batch(self, ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]: ...  # noqa: D102
    def classes(self, field: str) -> list[str] | None: ...  # noqa: D102
    def batches(  # noqa: D102
        self, batch_size: int, *, order: str = "sequential", seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]: ...
