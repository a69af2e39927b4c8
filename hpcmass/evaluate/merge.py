"""Forests trained on parts of the data, merged into one forest that holds all their trees."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcmass.errors import RecipeError

Array = np.ndarray[Any, Any]
FORESTS = (
    "RandomForestClassifier",
    "RandomForestRegressor",
    "ExtraTreesClassifier",
    "ExtraTreesRegressor",
)
BAGS = ("BaggingClassifier", "BaggingRegressor")
_OF_ONE_PART = ("oob_score_", "oob_decision_function_", "oob_prediction_")


def merge_forests(estimators: Sequence[Any]) -> Any:
    """One forest with the trees of several; its probabilities are the mean over all trees.

    Where the parts have not seen the same classes, the merged forest has those of all, and the trees of a
    part give 0 to a class that the part never saw.

    Args:
        estimators: Fitted, all of one class: random forests, extra trees or bagging.

    Raises:
        RecipeError: They cannot be merged.
    """
    first = estimators[0]
    kind = type(first).__name__
    others = sorted({type(other).__name__ for other in estimators} - {kind})
    if others or kind not in (*FORESTS, *BAGS):
        raise RecipeError(
            f"{' and '.join([kind, *others])} cannot be merged",
            hint=f"what can be merged: {', '.join((*FORESTS, *BAGS))}, all of one kind; else use vote or stack",
        )
    merged = copy.deepcopy(first)
    parts = [first.estimators_, *(other.estimators_ for other in estimators[1:])]
    if kind.endswith("Classifier"):
        union = np.unique(np.concatenate([other.classes_ for other in estimators]))
        places = [np.searchsorted(union, other.classes_) for other in estimators]
        remap = _remap_tree if kind in FORESTS else _remap_member
        parts = [
            [remap(tree, place, len(union)) for tree in part] for part, place in zip(parts, places, strict=True)
        ]
        merged.classes_, merged.n_classes_ = union, len(union)
    merged.estimators_ = [tree for part in parts for tree in part]
    if kind in BAGS:
        merged.estimators_features_ = [f for other in estimators for f in other.estimators_features_]
    merged.n_estimators = len(merged.estimators_)
    for name in _OF_ONE_PART:
        with contextlib.suppress(AttributeError):
            delattr(merged, name)
    return merged


def _remap_tree(tree: Any, places: Array, classes: int) -> Any:
    """A forest's tree with its class counts moved to the columns `places` of `classes`.

    Trees of a forest know classes by number only: column c of their values is class c of their forest.
    """
    if len(places) == classes:
        return tree
    inner = tree.tree_
    state = inner.__getstate__()
    values = np.zeros((inner.node_count, inner.n_outputs, classes), np.float64)
    values[:, :, places] = state["values"]
    made = copy.copy(tree)
    made.tree_ = type(inner)(inner.n_features, np.array([classes], dtype=np.intp), inner.n_outputs)
    made.tree_.__setstate__({**state, "values": values})
    made.classes_, made.n_classes_ = np.arange(classes, dtype=np.float64), classes
    return made


def _remap_member(member: Any, places: Array, classes: int) -> Any:
    """A bag's member with its classes renumbered; a bag itself places them into its columns."""
    if len(places) == classes:
        return member
    made = copy.copy(member)
    try:
        made.classes_ = places[np.asarray(member.classes_, np.intp)]
    except AttributeError as error:  # a pipeline's classes are its last step's
        raise RecipeError(
            f"parts have not seen the same classes, and a {type(member).__name__} cannot be renumbered",
            hint="cut the data stratified, or use vote",
        ) from error
    return made
