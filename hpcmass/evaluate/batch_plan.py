"""What a batch prediction is to make: pinned before the first row, so that every start means the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.data import Dataset
from hpcmass.errors import DataError
from hpcmass.evaluate.interfaces import Model, for_model, take_inputs
from hpcmass.files import canonical_json, sha256_bytes, sha256_file
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.signature import named_outputs

KIND = "prediction"
BATCH = 256
KEY = "sample"
"""The field of a prediction that says which sample of the dataset it is of."""
_PART_SAMPLES = 1 << 16
_PART_BYTES = 64 << 20
_PARTS = 16  # at least, of a dataset that is not small, so that several processes have something to do

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """A field of the prediction; `shape` is that of one sample, `role` as in a dataset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    classes: tuple[str, ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class BatchPlan:
    """What all processes of all starts agree on.

    Attributes:
        name: The model as a catalogue calls it (`mnist@3`), or empty.
        model: SHA-256 of all its files.
        dataset: Id of the dataset.
        samples: Its samples.
        part_samples: Samples a part, a multiple of the batch: the batches are the same in every part.
        batch: Samples the model sees at once.
        columns: The fields.
    """

    name: str
    model: str
    dataset: str
    samples: int
    part_samples: int
    batch: int
    columns: tuple[Column, ...]

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.samples // self.part_samples)

    def range(self, part: int) -> tuple[int, int]:
        """First sample of a part, and the one behind its last."""
        return part * self.part_samples, min(self.samples, (part + 1) * self.part_samples)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with lists for tuples."""
        columns = [{**asdict(one), "shape": list(one.shape)} for one in self.columns]
        for one in columns:
            one["classes"] = None if one["classes"] is None else list(one["classes"])
        return {"kind": KIND, **asdict(self), "columns": columns}


def make_plan(
    model: Model,
    identity: str,
    dataset: Dataset,
    *,
    name: str = "",
    keep: Sequence[str] | None = None,
    part_samples: int | None = None,
) -> BatchPlan:
    """Decide what a prediction looks like; two samples are predicted for it.

    Args:
        model: A loaded model.
        identity: SHA-256 of its files.
        dataset: What is predicted for.
        name: The model as a catalogue calls it.
        keep: Fields of the dataset that go along; default: those of role `meta` that are not ragged.
        part_samples: Samples a part, rounded up to whole batches; default: by their size, 65,536 at most.

    Raises:
        DataError: The dataset lacks an input or a field to keep, or has no samples.
    """
    if len(dataset) == 0:
        raise DataError("there are no samples to predict for")
    kept = [name for name in dataset.metas if name in dataset.fixed] if keep is None else list(keep)
    for one in kept:
        if one not in dataset.fixed:
            known = ", ".join(dataset.fixed)
            raise DataError(
                f"there is no field {one!r} that could go along",
                hint=f"there are: {known} (none that is ragged)",
            )
    shaped = for_model(model, dataset, even=True)
    made = outputs_of(model, shaped, np.arange(min(2, len(dataset)), dtype=np.int64))
    classes = model.signature.classes
    columns = [Column(KEY, "int64", (), "meta")]
    for label, values in made.items():
        own = tuple(classes) if label == "predicted" and classes else None
        role = "meta" if label == "predicted" else "input"
        columns.append(Column(label, values.dtype.name, tuple(values.shape[1:]), role, own))
    for one in kept:
        field = dataset.stored[one]
        role = "target" if field.role == "target" else "meta"
        own = None if field.classes is None else tuple(field.classes)
        columns.append(Column(one, np.dtype(field.dtype).name, tuple(field.shape), role, own))
    names = [one.name for one in columns]
    if twice := [one for one in kept if names.count(one) > 1]:
        raise DataError(f"the field {twice[0]!r} cannot go along: a prediction has one of that name")
    size = part_samples or _part_samples(len(dataset), sum(one.row_bytes for one in columns))
    size = -(-size // BATCH) * BATCH
    return BatchPlan(name, identity, dataset.id, len(dataset), size, BATCH, tuple(columns))


def outputs_of(model: Model, dataset: DatasetLike, ids: NDArray[np.int64]) -> Columns:
    """What a model says of some samples, by field: `probabilities` and `predicted`, or `prediction…`.

    Args:
        model: A loaded model.
        dataset: Shaped for the model, every sample of one length.
        ids: At most a batch of sample numbers (b,).

    Raises:
        DataError: The dataset lacks an input, or the model gives NaN for a class.
    """
    batch = dataset.batch(ids)
    try:
        given = take_inputs(batch, model.signature)
    except KeyError as error:
        raise DataError(f"has no input {error}", hint=f"it has: {', '.join(dataset.fields)}") from error
    outputs = model(given)
    if model.signature.task != "classification":
        return {
            name: _storable(np.asarray(value))
            for name, value in named_outputs(_prefixed(outputs), "prediction")
        }
    bad = np.flatnonzero(~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1))
    if len(bad):
        raise DataError(
            f"the model gives NaN or infinity for sample {int(ids[bad[0]])}",
            hint="look for NaN and huge values in the input",
        )
    return {"probabilities": outputs, "predicted": outputs.argmax(axis=1).astype(np.int64)}


def part_batches(model: Model, dataset: Dataset, plan: BatchPlan, part: int) -> list[Columns]:
    """The rows of a part, batch by batch, each with all fields of the plan."""
    shaped = for_model(model, dataset, even=True)
    copied = [one.name for one in plan.columns if one.name in dataset.stored and one.name != KEY]
    first, stop = plan.range(part)
    made = []
    for start in range(first, stop, plan.batch):
        ids = np.arange(start, min(stop, start + plan.batch), dtype=np.int64)
        rows = {KEY: ids, **outputs_of(model, shaped, ids)}
        if copied:
            whole = dataset.batch(ids)
            rows |= {name: whole[name] for name in copied}
        made.append({one.name: rows[one.name] for one in plan.columns})
    return made


def identity_of(bundle: Path) -> str:
    """SHA-256 of all files of a bundle and their names."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sha256_bytes(canonical_json({str(path.relative_to(bundle)): sha256_file(path) for path in files}))


def _part_samples(samples: int, row_bytes: int) -> int:
    return max(1, min(_PART_SAMPLES, _PART_BYTES // max(1, row_bytes), -(-samples // _PARTS)))


def _prefixed(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return {f"prediction_{name}": value for name, value in outputs.items()}
    return outputs


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32) if values.dtype == np.float16 else values
