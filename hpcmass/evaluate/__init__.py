"""Floor 4: metrics with intervals, prediction, per-shard combination, report pictures.

`hpcmass.evaluate.models` (which loads torch) and `hpcmass.evaluate.picture` are imported by their names.
"""

from hpcmass.evaluate.compare import Compared, compare, compare_table
from hpcmass.evaluate.evaluate import ClassScores, Evaluation, evaluate
from hpcmass.evaluate.inputs import read_inputs
from hpcmass.evaluate.metrics import Metric, wilson
from hpcmass.evaluate.predict import Predictions, predict, predict_file

__all__ = [
    "ClassScores",
    "Compared",
    "Evaluation",
    "Metric",
    "Predictions",
    "compare",
    "compare_table",
    "evaluate",
    "predict",
    "predict_file",
    "read_inputs",
    "wilson",
]
