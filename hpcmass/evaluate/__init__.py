"""Floor 4: metrics with intervals, prediction, per-shard combination, report pictures.

The names below are imported when first used: metrics need no torch, pictures no model. No module is called
like one of these names, for it would take its place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmass.evaluate.comparison import Compared, compare, compare_table
    from hpcmass.evaluate.inputs import read_inputs
    from hpcmass.evaluate.measure import evaluate, evaluate_scored
    from hpcmass.evaluate.metrics import Metric, wilson
    from hpcmass.evaluate.models import cache_folder, resolve_bundle, resolve_model
    from hpcmass.evaluate.picture import TrialPoint, curves_of, sweep_picture, training_picture
    from hpcmass.evaluate.predictions import Predictions, predict, predict_file
    from hpcmass.evaluate.results import ClassScores, Evaluation, SliceScores
    from hpcmass.evaluate.slices import with_slices
    from hpcmass.evaluate.whole import Asked, evaluate_whole

_WHERE = {
    "Asked": "whole",
    "ClassScores": "results",
    "Compared": "comparison",
    "Evaluation": "results",
    "Metric": "metrics",
    "Predictions": "predictions",
    "SliceScores": "results",
    "TrialPoint": "picture",
    "cache_folder": "models",
    "compare": "comparison",
    "compare_table": "comparison",
    "curves_of": "picture",
    "evaluate": "measure",
    "evaluate_scored": "measure",
    "evaluate_whole": "whole",
    "predict": "predictions",
    "predict_file": "predictions",
    "read_inputs": "inputs",
    "resolve_bundle": "models",
    "resolve_model": "models",
    "sweep_picture": "picture",
    "training_picture": "picture",
    "wilson": "metrics",
    "with_slices": "slices",
}

__all__ = [
    "Asked",
    "ClassScores",
    "Compared",
    "Evaluation",
    "Metric",
    "Predictions",
    "SliceScores",
    "TrialPoint",
    "cache_folder",
    "compare",
    "compare_table",
    "curves_of",
    "evaluate",
    "evaluate_scored",
    "evaluate_whole",
    "predict",
    "predict_file",
    "read_inputs",
    "resolve_bundle",
    "resolve_model",
    "sweep_picture",
    "training_picture",
    "wilson",
    "with_slices",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
