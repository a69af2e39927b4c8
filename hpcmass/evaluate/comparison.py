"""Several models on the same samples: each part, each combination, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpcmass.evaluate.interfaces import Model
from hpcmass.evaluate.measure import Evaluation, Row, Table, evaluate
from hpcmass.train.interfaces import DatasetLike

_SHOWN_METRICS = 3  # more do not fit a line


@dataclass(frozen=True)
class Compared:
    """A model's name and how it did."""

    name: str
    evaluation: Evaluation


def compare(
    parts: Mapping[str, Model], dataset: DatasetLike, *, batch_size: int = 256, target: str | None = None
) -> list[Compared]:
    """Evaluate several models on one dataset, in the order given.

    Args:
        parts: Models by the name they are shown under.
        dataset: Read once a model, in batches.
        batch_size: Samples a model sees at once.
        target: As for `evaluate`.

    Raises:
        DataError: The dataset does not fit one of them.
    """
    return [
        Compared(name, evaluate(model, dataset, batch_size=batch_size, target=target))
        for name, model in parts.items()
    ]


def compare_table(rows: list[Compared], title: str = "on the test split") -> Table:
    """Title, header and rows to print; the best value of the first metric is marked with `*`."""
    if not rows:
        return title, ["model"], []
    metrics = [name for name in rows[0].evaluation.metrics if all(name in r.evaluation.metrics for r in rows)]
    metrics = metrics[:_SHOWN_METRICS]
    first = metrics[0]
    values = [row.evaluation.metrics[first].value for row in rows]
    best = max(values) if first == "accuracy" else min(values)
    made: list[Row] = []
    for row, value in zip(rows, values, strict=True):
        shown = [row.evaluation.metrics[name].fixed(4) for name in metrics]
        made.append((row.name, shown[0] + (" *" if value == best else ""), *shown[1:]))
    return f"{title}, n={rows[0].evaluation.n}, 95 % intervals", ["model", *metrics], made
