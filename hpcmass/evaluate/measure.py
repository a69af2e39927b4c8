"""Evaluate a model on a dataset, batch by batch, alone or by several ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import DataError
from hpcmass.evaluate.calibration import brier_scores, calibration_error, reliability
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
from hpcmass.evaluate.results import ClassScores, Evaluation, Row, SliceScores, Table
from hpcmass.evaluate.scores import Columns, Ranks, Scores, from_root, gather, joined, my_batches, on_all
from hpcmass.train.interfaces import DatasetLike

__all__ = ["ClassScores", "Evaluation", "Row", "SliceScores", "Table", "evaluate", "evaluate_scored"]
Batch = dict[str, NDArray[Any]]
Part = Callable[[NDArray[np.int64], Batch], Columns]


def evaluate(
    model: Model,
    dataset: DatasetLike,
    *,
    batch_size: int = 256,
    target: str | None = None,
    ranks: Ranks | None = None,
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
        ranks: All ranks, each of which takes a part; the result is the same on all, for any number of them.

    Raises:
        DataError: The dataset does not fit the model, or the model gives what is no probability.
    """
    return evaluate_scored(model, dataset, batch_size=batch_size, target=target, ranks=ranks)[0]


def evaluate_scored(
    model: Model,
    dataset: DatasetLike,
    *,
    batch_size: int = 256,
    target: str | None = None,
    ranks: Ranks | None = None,
) -> tuple[Evaluation, Scores | None]:
    """As `evaluate`, and on rank 0 the metrics of each sample too (None on other ranks)."""
    task, shaped = model.signature.task, for_model(model, dataset)
    classes, part = on_all(lambda: _prepared(model, shaped, target), ranks)

    def mine() -> Columns:
        return joined([part(ids, batch) for ids, batch in my_batches(shaped, batch_size, ranks)])

    columns = gather(mine, ranks)
    found: list[tuple[Evaluation, Scores]] = []

    def made() -> dict[str, Any]:
        found.append(_summed(task, columns, classes, dataset.id))
        return found[0][0].to_json()

    said = from_root(made, ranks)
    return found[0] if found else (Evaluation.from_json(said), None)


def _prepared(model: Model, dataset: DatasetLike, target: str | None) -> tuple[tuple[str, ...], Part]:
    """The classes, and what makes columns of a batch."""
    signature = model.signature
    if len(dataset) == 0:
        raise DataError("the dataset has no samples to evaluate on")
    if signature.task not in ("classification", "regression"):
        return (), _own_part(model, dataset, target)
    name = _target_of(model, dataset, target)
    _check_fields([spec.name for spec in signature.inputs], "input", dataset)
    if signature.task == "regression":
        return (), _value_part(model, name)
    known = None if signature.classes is None else tuple(signature.classes)
    classes, relabel = _align(known, dataset.classes(name))
    return classes, _class_part(model, name, classes, relabel)


def _summed(task: str, columns: Columns, classes: Sequence[str], dataset: str) -> tuple[Evaluation, Scores]:
    """What all samples say together."""
    if task == "classification":
        return _classification(columns, classes, dataset)
    if task == "regression":
        truth, value = columns["truth"], columns["value"]
        metrics = regression_metrics(truth, value)
        squares, absolutes = ((truth - value) ** 2).mean(axis=1), np.abs(truth - value).mean(axis=1)
        scores = Scores(task, dataset, {"mse": squares, "mae": absolutes})
        return Evaluation(task, len(truth), metrics, dataset=dataset), scores
    n = len(next(iter(columns.values())))
    own = {name: _own_metric(values, n) for name, values in columns.items()}
    return Evaluation("other", n, own, dataset=dataset), Scores("other", dataset, columns)


def _target_of(model: Model, dataset: DatasetLike, target: str | None) -> str:
    targets = list(model.signature.targets or dataset.targets) if target is None else [target]
    if len(targets) != 1 or targets[0] not in dataset.fields:
        known = ", ".join(dataset.fields)
        raise DataError(f"evaluation needs one target field, not {targets}", hint=f"the dataset has: {known}")
    return str(targets[0])


def _check_fields(names: Sequence[str], what: str, dataset: DatasetLike) -> None:
    for name in names:
        if name not in dataset.fields:
            raise DataError(
                f"the dataset lacks the model's {what} {name!r}", hint=f"it has: {', '.join(dataset.fields)}"
            )


def _own_part(model: Model, dataset: DatasetLike, target: str | None) -> Part:
    """The recipe's metrics of each sample."""
    if target is not None:
        raise DataError(f"the recipe's metrics go by the model's own targets, not by {target!r}")
    _check_fields([spec.name for spec in model.signature.inputs], "input", dataset)
    _check_fields(model.signature.targets, "target", dataset)
    known = getattr(dataset, "sample_ids", np.arange(len(dataset)))

    def part(ids: NDArray[np.int64], batch: Batch) -> Columns:
        found = model.score({**batch, "sample_id": known[ids]})
        return {name: _finite(np.asarray(values, np.float64)) for name, values in found.items()}

    return part


def _own_metric(values: NDArray[np.float64], n: int) -> Metric:
    """The normal interval of a mean over samples, or over the values in them: sums, and of how many each is."""
    if values.ndim == 1:
        return mean_metric(float(values.sum()), float((values**2).sum()), n)
    return ratio_metric(*values.sum(axis=0).tolist(), *(values.T @ values)[np.triu_indices(2)].tolist(), n=n)


def _class_part(model: Model, target: str, names: Sequence[str], relabel: NDArray[np.int64] | None) -> Part:
    def part(ids: NDArray[np.int64], batch: Batch) -> Columns:
        given = np.asarray(batch[target])
        if given.dtype.kind not in "iub" or given.ndim != 1:
            raise DataError(f"the target {target!r} holds no class indices ({given.dtype}, {given.ndim} axes)")
        probabilities = _probabilities(model(take_inputs(batch, model.signature)), len(given))
        width = len(names) or probabilities.shape[1]
        # Classes that the dataset has and the model does not know have probability 0.
        padded = np.pad(probabilities, ((0, 0), (0, max(0, width - probabilities.shape[1]))))
        labels = given.astype(np.int64)
        limit = padded.shape[1] if relabel is None else len(relabel)
        if labels.size and (labels.min() < 0 or labels.max() >= limit):
            raise DataError(
                f"the target {target!r} has class {int(labels.min() if labels.min() < 0 else labels.max())}, "
                f"known are 0 to {limit - 1}"
            )
        if relabel is not None:
            labels = relabel[labels]
        said = padded.argmax(axis=1)
        return {
            "truth": labels.astype(np.int32),
            "said": said.astype(np.int32),
            "confidence": padded[np.arange(len(said)), said],
            "log_loss": log_losses(padded, labels),
            "brier": brier_scores(padded, labels),
            "classes": np.full(len(said), padded.shape[1], np.int32),
        }

    return part


def _classification(columns: Columns, names: Sequence[str], dataset: str) -> tuple[Evaluation, Scores]:
    truth, said = columns["truth"].astype(np.int64), columns["said"].astype(np.int64)
    confusion = confusion_matrix(truth, said, int(columns["classes"].max()))
    shown = names or tuple(str(index) for index in range(len(confusion)))
    losses, brier, hits = columns["log_loss"], columns["brier"], truth == said
    found = classification_evaluation(confusion, shown, float(losses.sum()), float((losses**2).sum()), dataset)
    found.metrics["brier"] = mean_metric(float(brier.sum()), float((brier**2).sum()), len(brier))
    found.metrics["ece"] = calibration_error(columns["confidence"], hits)
    found = dataclasses.replace(found, calibration=reliability(columns["confidence"], hits))
    values = {"accuracy": hits.astype(np.float64), "log_loss": losses, "brier": brier}
    return found, Scores("classification", dataset, values)


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


def _value_part(model: Model, target: str) -> Part:
    def part(ids: NDArray[np.int64], batch: Batch) -> Columns:
        truth = np.asarray(batch[target], np.float64)
        value = _finite(np.asarray(model(take_inputs(batch, model.signature)), np.float64))
        if value.size != truth.size or len(value) != len(truth):
            raise DataError(f"the model gives shape {value.shape} for targets of shape {truth.shape}")
        if not np.isfinite(truth).all():
            raise DataError(f"the target {target!r} holds NaN or infinity")
        return {"truth": truth.reshape(len(truth), -1), "value": value.reshape(len(value), -1)}

    return part


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
