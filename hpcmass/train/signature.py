"""What a model takes and gives: names, types and shapes, and the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.train.inputs import select_fields
from hpcmass.train.interfaces import DatasetLike

ANY = -1
TASKS = ("classification", "regression", "other")


@dataclass(frozen=True)
class FieldSpec:
    """One array of a signature; `shape` is that of one sample, -1 where an axis has any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        axes = ("any" if size == ANY else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{', '.join(['n', *axes])}]"

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a sample may have this shape."""
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(want in (ANY, size) for want, size in pairs)


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        classes: Names of the classes by index, of a classification.
        task: `classification` (outputs are probabilities), `regression` or `other` (outputs as they are).
        targets: The fields it was trained on as targets; empty where there are none, or not recorded.
    """

    inputs: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    classes: tuple[str, ...] | None
    task: str
    targets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The value of `signature` in `model.json`."""
        fields = {
            key: [{"name": f.name, "dtype": f.dtype, "shape": list(f.shape)} for f in value]
            for key, value in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        classes = None if self.classes is None else list(self.classes)
        return {**fields, "targets": list(self.targets), "classes": classes, "task": self.task}

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is something else.
        """
        fields = [
            tuple(
                FieldSpec(str(f["name"]), str(np.dtype(f["dtype"])), tuple(int(size) for size in f["shape"]))
                for f in value[key]
            )
            for key in ("inputs", "outputs")
        ]
        classes = value["classes"]
        if value["task"] not in TASKS or not fields[0]:
            raise ValueError("the signature is not whole")
        if value["task"] == "classification" and not classes:
            raise ValueError("a classification has no classes")
        names = None if classes is None else tuple(str(name) for name in classes)
        targets = value.get("targets", [])  # bundles of the first days have none
        if not isinstance(targets, list):
            raise ValueError("the targets are not a list")
        return cls(fields[0], fields[1], names, value["task"], tuple(str(name) for name in targets))

    def __str__(self) -> str:
        takes, gives = (", ".join(map(str, part)) for part in (self.inputs, self.outputs))
        return f"({takes}) -> ({gives})"


def make_signature(
    dataset: DatasetLike,
    outputs: Any,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    *,
    task: str | None = None,
) -> Signature:
    """The signature of a model trained on a dataset.

    A single integer target per sample and outputs (n, classes) with 2 or more classes make a
    classification; a single float target a regression; everything else is `other`.

    Args:
        dataset: What it was trained on.
        outputs: The model's outputs for some samples: a tensor or array (n, ...), or a dict or sequence.
        inputs: Input fields, default by role.
        targets: Target fields, default by role.
        task: Where it is known: a regressor's is `regression` whatever the target's type.
    """
    names, wanted = select_fields(dataset, inputs, targets)
    single = hasattr(outputs, "shape")
    known, task, classes = task, task or "other", None
    if single and len(wanted) == 1 and known in (None, "classification"):
        target = dataset.fields[wanted[0]]
        kind = "" if getattr(target, "ragged", False) else np.dtype(target.dtype).kind
        if kind in "iub" and not tuple(target.shape) and len(outputs.shape) == 2 and outputs.shape[1] >= 2:
            task, classes = "classification", class_names(dataset.classes(wanted[0]), int(outputs.shape[1]))
        elif kind == "f":
            task = "regression"
    label = {"classification": "probabilities"}.get(task, wanted[0] if len(wanted) == 1 else "output")
    specs = tuple(
        FieldSpec(name, _dtype_name(value), tuple(int(size) for size in value.shape[1:]))
        for name, value in named_outputs(outputs, label)
    )
    if task == "classification":
        specs = tuple(FieldSpec(f.name, "float32", f.shape) for f in specs)
    fields = (dataset.fields[name] for name in names)
    takes = tuple(FieldSpec(f.name, str(np.dtype(f.dtype)), _axes(f)) for f in fields)
    return Signature(takes, specs, classes, task, tuple(wanted))


def _axes(field: Any) -> tuple[int, ...]:
    own = tuple(int(size) for size in field.shape)
    return (ANY, *own) if getattr(field, "ragged", False) else own


def class_names(known: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names of `count` classes: the dataset's, then the bare indices."""
    names = [str(name) for name in known or ()][:count]
    return (*names, *(str(index) for index in range(len(names), count)))


def named_outputs(outputs: Any, label: str = "output") -> Iterator[tuple[str, Any]]:
    """The arrays or tensors of a model's outputs by name."""
    if isinstance(outputs, Mapping):
        yield from ((str(name), value) for name, value in outputs.items() if hasattr(value, "shape"))
    elif isinstance(outputs, (tuple, list)):
        yield from ((f"{label}{i}", value) for i, value in enumerate(outputs) if hasattr(value, "shape"))
    else:
        yield label, outputs


def _dtype_name(value: Any) -> str:
    name = str(value.dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" else name
