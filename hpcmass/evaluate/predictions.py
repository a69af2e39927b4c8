"""Predict for the samples of a file or a dataset, and write what came out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data import open_dataset
from hpcmass.errors import DataError
from hpcmass.evaluate.inputs import read_inputs
from hpcmass.evaluate.interfaces import Array, Inputs, Model, for_model, take_inputs
from hpcmass.files import replace

FORMAT = 1
_FORMATS = ".json, .csv, .npz"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of n samples.

    Attributes:
        task: The model's task.
        outputs: Probabilities (n, classes) of a classification, values (n, ...) otherwise.
        classes: Names of the classes by index, or None.
    """

    task: str
    outputs: Array
    classes: tuple[str, ...] | None = None

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.outputs)

    @property
    def indices(self) -> Array | None:
        """Index (n,) of the most probable class, or None for other tasks."""
        return self.outputs.argmax(axis=1) if self.task == "classification" else None

    @property
    def labels(self) -> list[str] | None:
        """Name of the most probable class of each sample, or None for other tasks."""
        if self.indices is None:
            return None
        return [self.classes[i] if self.classes else str(i) for i in self.indices.tolist()]

    def table(self, limit: int | None = None) -> tuple[list[str], list[tuple[str, ...]]]:
        """Header and the first `limit` rows, as text."""
        shown = self.outputs[:limit]
        if self.task != "classification":
            flat = shown.reshape(len(shown), -1)
            header = ["sample", *(["value"] if flat.shape[1] == 1 else map(str, range(flat.shape[1])))]
            return header, [(str(i), *(f"{v:.6g}" for v in row)) for i, row in enumerate(flat.tolist())]
        labels = self.labels or []
        best = shown.max(axis=1) if len(shown) else []
        return ["sample", "label", "probability"], [(str(i), labels[i], f"{p:.4f}") for i, p in enumerate(best)]

    def to_json(self) -> dict[str, Any]:
        """As a value that JSON can hold."""
        base = {"format": FORMAT, "task": self.task, "n": self.n}
        if self.task != "classification":
            return {**base, "values": self.outputs.tolist()}
        classes = list(self.classes) if self.classes else None
        return {**base, "classes": classes, "labels": self.labels, "probabilities": self.outputs.tolist()}

    def write(self, path: Path) -> None:
        """Write everything to `.json`, `.csv` or `.npz`; an existing file is exchanged as a whole.

        Raises:
            DataError: Another suffix, or a NaN in what is to be JSON.
            StorageError: The file system refused.
        """
        path = Path(path)
        makers: dict[str, Callable[[], str | bytes]] = {
            ".json": self._json_text,
            ".csv": self._csv_text,
            ".npz": self._npz_bytes,
        }
        if path.suffix.lower() not in makers:
            raise DataError(
                f"cannot write {path.suffix or 'without suffix'}", where=path, hint=f"use {_FORMATS}"
            )
        replace(path, makers[path.suffix.lower()]())

    def _json_text(self) -> str:
        try:
            return json.dumps(self.to_json(), allow_nan=False) + "\n"
        except ValueError as error:
            raise DataError(
                "the predictions hold NaN or infinity, which JSON cannot", hint="use .npz"
            ) from error

    def _csv_text(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        flat = self.outputs.reshape(self.n, -1)
        if self.task == "classification":
            names = self.classes or tuple(str(i) for i in range(flat.shape[1]))
            writer.writerow(["sample", "label", *(f"p({name})" for name in names)])
            labels: list[str] = self.labels or []
            writer.writerows([i, labels[i], *row] for i, row in enumerate(flat.tolist()))
        else:
            writer.writerow(["sample", *(f"value_{i}" for i in range(flat.shape[1]))])
            writer.writerows([i, *row] for i, row in enumerate(flat.tolist()))
        return text.getvalue()

    def _npz_bytes(self) -> bytes:
        arrays: dict[str, Array] = {}
        if self.indices is not None:
            arrays = {"labels": np.array(self.labels, np.str_), "indices": self.indices}
        name = "probabilities" if self.task == "classification" else "values"
        buffer = io.BytesIO()
        arrays[name] = self.outputs
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def predict(model: Model, inputs: Inputs, *, batch_size: int = 256) -> Predictions:
    """Predict for inputs in memory: an array (n, *shape), or a dict of such by input name."""
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    parts = []
    for start in range(0, len(first), batch_size):
        cut = slice(start, start + batch_size)
        given = {k: v[cut] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[cut]
        parts.append(_output(model(given)))
    return _predictions(model, parts)


def predict_file(model: Model, path: Path, *, batch_size: int = 256) -> Predictions:
    """Predict for the samples of a file, or of a dataset's folder, which is read in batches.

    Args:
        model: A loaded model.
        path: What `read_inputs` reads, or a dataset.
        batch_size: Samples the model sees at once.

    Raises:
        NotFound: There is no such file.
        DataError: It is not what the model takes.
    """
    path = Path(path)
    if not path.is_dir():
        return predict(model, read_inputs(path, model.signature), batch_size=batch_size)
    dataset = for_model(model, open_dataset(path), even=True)
    parts = []
    for batch in dataset.batches(batch_size):
        try:
            given = take_inputs(batch, model.signature)
        except KeyError as error:
            known = ", ".join(dataset.fields)
            raise DataError(f"has no input {error}", where=path, hint=f"it has: {known}") from error
        parts.append(_output(model(given)))
    return _predictions(model, parts)


def _output(outputs: Any) -> Array:
    if not isinstance(outputs, np.ndarray):
        raise DataError("the model gives several outputs", hint="call it from Python: hpcmass.load(…)(inputs)")
    return outputs


def _predictions(model: Model, parts: list[Array]) -> Predictions:
    if not parts:
        raise DataError("there are no samples to predict for")
    classes = model.signature.classes
    names = None if classes is None else tuple(classes)
    outputs = np.concatenate(parts)
    if model.signature.task == "classification":
        _check_finite(outputs)
    return Predictions(model.signature.task, outputs, names)


def _check_finite(probabilities: Array) -> None:
    """Refuse NaN: its "most probable" class would be the first, and look like an answer."""
    bad = np.flatnonzero(~np.isfinite(probabilities.reshape(len(probabilities), -1)).all(axis=1))
    if len(bad):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(
            f"the model gives NaN or infinity for sample {bad[0]}{more}",
            hint="look for NaN and huge values in the input",
        )
