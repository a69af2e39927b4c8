"""A small dataset in memory with the interface of `hpcmass.data.Dataset`, and recipes on disk."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class TinyField:
    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    classes: list[str] | None = None


class TinyDataset:
    def __init__(self, arrays: dict[str, tuple[np.ndarray, str]], classes: dict[str, list[str]] | None = None):
        self.arrays = {name: array for name, (array, _) in arrays.items()}
        self.fields = {
            name: TinyField(name, array.dtype.name, array.shape[1:], role, (classes or {}).get(name))
            for name, (array, role) in arrays.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def _role(self, role: str) -> list[str]:
        return [f.name for f in self.fields.values() if f.role == role]

    @property
    def inputs(self) -> list[str]:
        return self._role("input")

    @property
    def targets(self) -> list[str]:
        return self._role("target")

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[ids] for name, array in self.arrays.items()}

    def batches(self, batch_size: int, *, order: str = "sequential", seed: int = 0, epoch: int = 0) -> Any:
        ids = np.arange(len(self))
        if order == "global":
            ids = np.random.default_rng([seed, epoch]).permutation(ids)
        for start in range(0, len(self), batch_size):
            yield self.batch(ids[start : start + batch_size])

    def classes(self, field: str) -> list[str] | None:
        return self.fields[field].classes


def blobs(n: int = 240, seed: int = 0, dtype: str = "float32") -> TinyDataset:
    """Three classes around three points of a plane, plus a meta field."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])[labels] + rng.normal(0, 0.7, (n, 2))
    return TinyDataset(
        {
            "x": (points.astype(dtype), "input"),
            "label": (labels.astype(np.int64), "target"),
            "name": (np.array([b"a"] * n), "meta"),
        },
        {"label": ["red", "green", "blue"]},
    )


def line(n: int = 200, seed: int = 0) -> TinyDataset:
    """A float target that is linear in three features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = (x @ [1.0, -2.0, 0.5] + 0.25).astype(np.float32)
    return TinyDataset({"x": (x, "input"), "y": (y, "target")})


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "recipe_under_test.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def classes_of_points() -> TinyDataset:
    return blobs()


@pytest.fixture
def points_on_line() -> TinyDataset:
    return line()


@pytest.fixture
def make() -> dict[str, Any]:
    return {"blobs": blobs, "line": line, "dataset": TinyDataset}
