"""Evaluate a model on a dataset, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import CorruptError, DataError
from hpcmass.evaluate.interfaces import Model, for_model, take_inputs
from hpcmass.evaluate.metrics import (
    Metric,
    confusion_matrix,
    f1_metrics,
    log_losses,
    mean_metric,
    proportion,
    ratio_metric,
    regression_metrics,
)
from hpcmass.train.interfaces import DatasetLike

FORMAT = 1
_SHOWN_CLASSES = 20  # A wider confusion matrix does not fit a terminal.
Row = tuple[str, ...]
Table = tuple[str, list[str], list[Row]]


@dataclass(frozen=True)
class ClassScores:
    """How one class did; a score is None where it is undefined (of nothing).

    Attributes:
        name: The class.
        support: Samples that truly are of it.
        predicted: Samples that were said to be of it.
    """

    name: str
    support: int
    predicted: int
    precision: Metric | None
    recall: Metric | None
    f1: Metric | None


@dataclass(frozen=True)
class SliceScores:
    """How the samples did that have one value of a field."""

    field: str
    value: str
    n: int
    metrics: dict[str, Metric]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of a model on a dataset.

    Attributes:
        task: `classification`, `regression` or `other`.
        n: Samples.
        metrics: `accuracy`, `log_loss`, `macro_f1`; or `mse`, `mae`, `r2`; or those of the recipe.
        confusion: Counts (classes, classes), row the true class; None but for a classification.
        per_class: One entry a class; empty but for a classification.
        classes: Names of the classes.
        dataset: Id of the dataset.
        slices: One entry a value of each field that was sliced by, see `hpcmass.evaluate.slices`.
    """

    task: str
    n: int
    metrics: dict[str, Metric]
    confusion: NDArray[np.int64] | None = None
    per_class: tuple[ClassScores, ...] = ()
    classes: tuple[str, ...] = ()
    dataset: str = ""
    slices: tuple[SliceScores, ...] = ()

    @property
    def main(self) -> str:
        """The metric that a headline shows: `accuracy`, or `r2`, or `mse` where R² is undefined.

        Of a recipe's own metrics it is the first that is not the loss.
        """
        if self.task == "other":
            return next((name for name in self.metrics if name != "loss"), "loss")
        return next(name for name in ("accuracy", "r2", "mse") if name in self.metrics)

    def headline(self, split: str = "test") -> str:
        """One line, such as `test accuracy 0.972 [0.954, 0.983] (n=500)`."""
        name = self.main
        metric = self.metrics[name]
        shown = str(metric) if name == "mse" or self.task == "other" else metric.fixed()
        return f"{split} {name} {shown} (n={self.n})"

    def tables(self) -> list[Table]:
        """Title, header and rows of each table to print: the metrics, and for classes the scores of each."""
        rows: list[Row] = [(name, *_cells(metric)) for name, metric in self.metrics.items()]
        tables: list[Table] = [(f"{self.task}, n={self.n}", ["metric", "value", "95 % interval"], rows)]
        if self.per_class:
            header = ["class", "precision", "recall", "f1", "support"]
            scores: list[Row] = [
                (c.name, _short(c.precision), _short(c.recall), _short(c.f1), str(c.support))
                for c in self.per_class
            ]
            tables.append(("per class", header, scores))
        if self.slices:
            names = list(self.metrics)
            cut: list[Row] = [
                (f"{s.field} == {s.value}", *(_short(s.metrics.get(name)) for name in names), str(s.n))
                for s in self.slices
            ]
            tables.append(("per slice", ["slice", *names, "n"], cut))
        if self.confusion is not None and len(self.classes) <= _SHOWN_CLASSES:
            counts: list[Row] = [
                (name, *("." if count == 0 else str(count) for count in row))
                for name, row in zip(self.classes, self.confusion.tolist(), strict=True)
            ]
            tables.append(("confusion matrix", ["true \\ predicted", *self.classes], counts))
        return tables

    def flat(self) -> dict[str, float]:
        """The values alone, for a catalogue's metrics: `accuracy`, `accuracy_low`, `accuracy_high`, …, `n`."""
        found: dict[str, float] = {}
        for name, metric in self.metrics.items():
            found[name] = metric.value
            if metric.low is not None and metric.high is not None:
                found |= {f"{name}_low": metric.low, f"{name}_high": metric.high}
        return {**found, "n": self.n}

    def to_json(self) -> dict[str, Any]:
        """As a value that JSON can hold; `from_json` is its inverse."""
        cut = [
            {"field": s.field, "value": s.value, "n": s.n, "metrics": _metrics_json(s.metrics)}
            for s in self.slices
        ]
        return {
            **({"slices": cut} if cut else {}),
            "format": FORMAT,
            "task": self.task,
            "n": self.n,
            "dataset": self.dataset,
            "metrics": _metrics_json(self.metrics),
            "classes": list(self.classes),
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "per_class": [
                {
                    "name": c.name,
                    "support": c.support,
                    "predicted": c.predicted,
                    **{key: m.to_json() if m else None for key, m in _scores(c).items()},
                }
                for c in self.per_class
            ],
        }

    @classmethod
    def from_json(cls, raw: Any) -> Evaluation:
        """Inverse of `to_json`.

        Raises:
            CorruptError: The value is no evaluation, or of a newer format.
        """
        try:
            if raw["format"] > FORMAT:
                raise CorruptError(f"has format {raw['format']}, known up to {FORMAT}", hint="update hpcmass")
            confusion = raw["confusion"]
            scores = tuple(
                ClassScores(
                    c["name"],
                    c["support"],
                    c["predicted"],
                    *(Metric.from_json(c[key]) if c[key] else None for key in ("precision", "recall", "f1")),
                )
                for c in raw["per_class"]
            )
            return cls(
                task=raw["task"],
                n=raw["n"],
                metrics=_metrics_of(raw["metrics"]),
                confusion=None if confusion is None else np.array(confusion, np.int64),
                per_class=scores,
                classes=tuple(raw["classes"]),
                dataset=raw["dataset"],
                slices=tuple(
                    SliceScores(s["field"], s["value"], s["n"], _metrics_of(s["metrics"]))
                    for s in raw.get("slices", ())
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"is not an evaluation ({error!r})") from error


def evaluate(
    model: Model, dataset: DatasetLike, *, batch_size: int = 256, target: str | None = None
) -> Evaluation:
    """Measure a model on every sample of a dataset, once, in batches.

    A model that is neither a classification nor a regression of one target (an autoencoder, a language model,
    several targets) is measured by its recipe's `metrics`.

    Args:
        model: A loaded model.
        dataset: With the model's input fields and one target field.
        batch_size: Samples the model sees at once.
        target: The field to hold the outputs against; default: the one that the model was trained on, and
            where that is not known the dataset's only one with that role.

    Raises:
        DataError: The dataset does not fit the model, or the model gives what is no probability.
    """
    signature, dataset = model.signature, for_model(model, dataset)
    if len(dataset) == 0:
        raise DataError("the dataset has no samples to evaluate on")
    if signature.task not in ("classification", "regression"):
        return _own_metrics(model, dataset, batch_size, target)
    targets = list(signature.targets or dataset.targets) if target is None else [target]
    if len(targets) != 1 or targets[0] not in dataset.fields:
        known = ", ".join(dataset.fields)
        raise DataError(f"evaluation needs one target field, not {targets}", hint=f"the dataset has: {known}")
    _check_fields([spec.name for spec in signature.inputs], "input", dataset)
    if signature.task == "classification":
        return _classification(model, dataset, batch_size, targets[0])
    return _regression(model, dataset, batch_size, targets[0])


def _check_fields(names: Sequence[str], what: str, dataset: DatasetLike) -> None:
    for name in names:
        if name not in dataset.fields:
            raise DataError(
                f"the dataset lacks the model's {what} {name!r}", hint=f"it has: {', '.join(dataset.fields)}"
            )


def _own_metrics(model: Model, dataset: DatasetLike, batch_size: int, target: str | None) -> Evaluation:
    """The recipe's metrics, with the normal interval of a mean over samples, or over the values in them."""
    if target is not None:
        raise DataError(f"the recipe's metrics go by the model's own targets, not by {target!r}")
    _check_fields([spec.name for spec in model.signature.inputs], "input", dataset)
    _check_fields(model.signature.targets, "target", dataset)
    sums: dict[str, list[float]] = {}
    start, known = 0, getattr(dataset, "sample_ids", np.arange(len(dataset)))
    for batch in dataset.batches(batch_size):
        ids = known[start : (start := start + len(next(iter(batch.values()))))]
        for name, values in model.score({**batch, "sample_id": ids}).items():
            values = _finite(np.asarray(values, np.float64))
            moments = [float(values.sum()), float((values**2).sum())]
            if values.ndim == 2:  # sums, and of how many values each is
                moments = [*values.sum(axis=0).tolist(), *(values.T @ values)[np.triu_indices(2)].tolist()]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(moments)), moments, strict=True)]
    n = len(dataset)
    metrics = {
        name: mean_metric(found[0], found[1], n) if len(found) == 2 else ratio_metric(*found, n=n)
        for name, found in sums.items()
    }
    return Evaluation("other", len(dataset), metrics, dataset=dataset.id)


def _classification(model: Model, dataset: DatasetLike, batch_size: int, target: str) -> Evaluation:
    known = None if model.signature.classes is None else tuple(model.signature.classes)
    names, relabel = _align(known, dataset.classes(target))
    confusion: NDArray[np.int64] | None = None
    total = squares = 0.0
    for batch in dataset.batches(batch_size):
        given = np.asarray(batch[target])
        if given.dtype.kind not in "iub" or given.ndim != 1:
            raise DataError(f"the target {target!r} holds no class indices ({given.dtype}, {given.ndim} axes)")
        probabilities = _probabilities(model(take_inputs(batch, model.signature)), len(given))
        width = len(names) or probabilities.shape[1]
        # Classes that the dataset has and the model does not know have probability 0.
        padded = np.pad(probabilities, ((0, 0), (0, max(0, width - probabilities.shape[1]))))
        classes = padded.shape[1]
        labels = given.astype(np.int64)
        limit = classes if relabel is None else len(relabel)
        if labels.size and (labels.min() < 0 or labels.max() >= limit):
            raise DataError(
                f"the target {target!r} has class {int(labels.min() if labels.min() < 0 else labels.max())}, "
                f"known are 0 to {limit - 1}"
            )
        if relabel is not None:
            labels = relabel[labels]
        counts = confusion_matrix(labels, padded.argmax(axis=1), classes)
        confusion = counts if confusion is None else confusion + counts
        losses = log_losses(padded, labels)
        total, squares = total + float(losses.sum()), squares + float((losses**2).sum())
    assert confusion is not None
    shown = names or tuple(str(index) for index in range(len(confusion)))
    return classification_evaluation(confusion, shown, total, squares, dataset.id)


def classification_evaluation(
    confusion: NDArray[np.int64], classes: Sequence[str], loss_sum: float, loss_squares: float, dataset: str
) -> Evaluation:
    """An evaluation from counts (classes, classes) and the sums of log losses and of their squares."""
    n, hits = int(confusion.sum()), np.diagonal(confusion)
    supports, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    f1, macro = f1_metrics(confusion)
    scores = tuple(
        ClassScores(
            name,
            int(supports[i]),
            int(predicted[i]),
            proportion(int(hits[i]), int(predicted[i])),
            proportion(int(hits[i]), int(supports[i])),
            f1[i],
        )
        for i, name in enumerate(classes)
    )
    accuracy = proportion(int(hits.sum()), n)
    assert accuracy is not None
    metrics = {"accuracy": accuracy, "log_loss": mean_metric(loss_sum, loss_squares, n), "macro_f1": macro}
    return Evaluation("classification", n, metrics, confusion, scores, tuple(classes), dataset)


def _regression(model: Model, dataset: DatasetLike, batch_size: int, target: str) -> Evaluation:
    truths, values = [], []
    for batch in dataset.batches(batch_size):
        truth = np.asarray(batch[target], np.float64)
        value = _finite(np.asarray(model(take_inputs(batch, model.signature)), np.float64))
        if value.size != truth.size or len(value) != len(truth):
            raise DataError(f"the model gives shape {value.shape} for targets of shape {truth.shape}")
        truths.append(truth.reshape(len(truth), -1))
        values.append(value.reshape(len(value), -1))
    truth = np.concatenate(truths)
    if not np.isfinite(truth).all():
        raise DataError(f"the target {target!r} holds NaN or infinity")
    return Evaluation(
        "regression", len(truth), regression_metrics(truth, np.concatenate(values)), dataset=dataset.id
    )


def _align(
    model: Sequence[str] | None, data: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """The classes to report, and what a dataset's class index becomes among them (None: itself).

    Classes are matched by name, since a model may have been trained on a dataset that numbers them
    differently; a model's bare numbers (`0`, `1`, …) mean the dataset's indices.
    """
    if model is None or data is None:
        return tuple(model or data or ()), None
    numbers = tuple(str(index) for index in range(len(model)))
    if tuple(model) == tuple(data):
        return tuple(data), None
    if tuple(model) == numbers and not set(data) & set(model):
        extra = tuple(model[len(data) :])
        return (*data, *extra), None
    if not set(model) & set(data):
        raise DataError(
            "the model and the dataset have no class in common",
            hint=f"model: {', '.join(list(model)[:8])}; dataset: {', '.join(list(data)[:8])}",
        )
    names = (*model, *(name for name in data if name not in model))
    return names, np.array([names.index(name) for name in data], np.int64)


def _probabilities(outputs: Any, n: int) -> NDArray[np.float64]:
    found = _finite(np.asarray(outputs, np.float64))
    if found.ndim != 2 or len(found) != n:
        raise DataError(f"the model gives shape {found.shape} for {n} samples, expected ({n}, classes)")
    if found.size and (found.min() < -1e-3 or np.abs(found.sum(axis=1) - 1).max() > 1e-2):
        raise DataError("the model's outputs are no probabilities: they do not sum to 1")
    return found


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise DataError("the model gives NaN or infinity")
    return values


def _metrics_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_json() for name, metric in metrics.items()}


def _metrics_of(raw: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: Metric.from_json(value) for name, value in raw.items()}


def _scores(scores: ClassScores) -> Mapping[str, Metric | None]:
    return {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}


def _cells(metric: Metric) -> Row:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.4f}", "-"
    return f"{metric.value:.4f}", f"[{metric.low:.4f}, {metric.high:.4f}]"


def _short(metric: Metric | None) -> str:
    return "-" if metric is None else metric.fixed()
