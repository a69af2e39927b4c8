"""What an estimator gives for a matrix of features: probabilities over all classes, or values."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmass.errors import CorruptError, RecipeError

Array = np.ndarray[Any, Any]


def estimator_outputs(estimator: Any, x_nf: Array, classes: int | None) -> Array:
    """Probabilities (n, classes) of a classifier, or values (n, ...) of anything else.

    A classifier that gives no probabilities has its decision function put through softmax (two classes:
    the logistic function), which keeps its choice; one without either gives 1 for the class it predicts.
    Columns are the dataset's classes: one that the estimator never saw has probability 0.

    Args:
        estimator: Fitted.
        x_nf: Features, (n, features) float32.
        classes: Number of classes, or None for values.

    Raises:
        RecipeError: The estimator raised.
        CorruptError: The estimator's classes are not those of the dataset.
    """
    try:
        if classes is None:
            return _values(np.asarray(estimator.predict(x_nf)))
        seen = np.asarray(estimator.classes_)
        if hasattr(estimator, "predict_proba"):
            part = np.asarray(estimator.predict_proba(x_nf))
        elif hasattr(estimator, "decision_function"):
            part = _squash(np.asarray(estimator.decision_function(x_nf), np.float64), len(seen))
        else:
            part = (np.asarray(estimator.predict(x_nf))[:, None] == seen[None]).astype(np.float32)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(f"the estimator cannot predict: {text}") from error
    columns = class_columns(seen, classes)
    if part.shape != (len(x_nf), len(columns)):
        raise CorruptError(f"the estimator gives shape {part.shape} for {len(columns)} classes")
    whole = np.zeros((len(x_nf), classes), np.float32)
    whole[:, columns] = part
    return whole


def class_columns(seen: Array, classes: int) -> Array:
    """The column of each class that an estimator knows.

    Raises:
        CorruptError: They are not integers from 0 to `classes` - 1.
    """
    if (
        seen.ndim != 1
        or seen.dtype.kind not in "iub"
        or (seen.size and not 0 <= seen.min() <= seen.max() < classes)
    ):
        raise CorruptError(f"the estimator's classes are not integers from 0 to {classes - 1}")
    return seen.astype(np.int64)


def _values(values: Array) -> Array:
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _squash(decision: Array, classes: int) -> Array:
    if decision.ndim == 1:  # two classes: one column, positive for the second
        second = 0.5 * (1.0 + np.tanh(0.5 * decision))
        return np.stack([1.0 - second, second], axis=1)
    if decision.shape[1] != classes:
        raise ValueError(f"the decision function has {decision.shape[1]} columns for {classes} classes")
    powers = np.exp(decision - decision.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
