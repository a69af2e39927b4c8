"""What was measured of a model: as an object, as JSON, and as tables to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import CorruptError
from hpcmass.evaluate.calibration import ReliabilityBin
from hpcmass.evaluate.latency import Latency
from hpcmass.evaluate.metrics import Metric
from hpcmass.evaluate.paired import Paired

FORMAT = 1
_SHOWN_METRICS = 3  # of a slice; all of them are in the JSON
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
        metrics: `accuracy`, `log_loss`, `macro_f1`, `brier`, `ece`; or `mse`, `mae`, `r2`; or the recipe's own.
        confusion: Counts (classes, classes), row the true class; None but for a classification.
        per_class: One entry a class; empty but for a classification.
        classes: Names of the classes.
        dataset: Id of the dataset.
        slices: One entry a value of each field that was sliced by, see `hpcmass.evaluate.slices`; and one a
            perturbation (`noise`, `missing`), see `hpcmass.evaluate.perturb`.
        calibration: The reliability bins of a classification, see `hpcmass.evaluate.calibration`.
        latency: One entry a batch size, where it was measured.
        paired: The comparison with another model, where one was asked for.
    """

    task: str
    n: int
    metrics: dict[str, Metric]
    confusion: NDArray[np.int64] | None = None
    per_class: tuple[ClassScores, ...] = ()
    classes: tuple[str, ...] = ()
    dataset: str = ""
    slices: tuple[SliceScores, ...] = ()
    calibration: tuple[ReliabilityBin, ...] = ()
    latency: tuple[Latency, ...] = ()
    paired: Paired | None = None

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
            names = list(self.metrics)[:_SHOWN_METRICS]
            cut: list[Row] = [
                (f"{s.field} == {s.value}", *(_short(s.metrics.get(name)) for name in names), str(s.n))
                for s in self.slices
            ]
            tables.append(("per slice", ["slice", *names, "n"], cut))
        tables += self._more_tables()
        if self.confusion is not None and len(self.classes) <= _SHOWN_CLASSES:
            counts: list[Row] = [
                (name, *("." if count == 0 else str(count) for count in row))
                for name, row in zip(self.classes, self.confusion.tolist(), strict=True)
            ]
            tables.append(("confusion matrix", ["true \\ predicted", *self.classes], counts))
        return tables

    def _more_tables(self) -> list[Table]:
        """Calibration, latency and the comparison with another model."""
        tables: list[Table] = []
        if any(one.n for one in self.calibration):
            bins: list[Row] = [
                (f"{b.low:.2f} to {b.high:.2f}", f"{b.confidence:.3f}", _short(b.accuracy), str(b.n))
                for b in self.calibration
                if b.n
            ]
            tables.append(("calibration", ["said with", "on average", "was right", "n"], bins))
        if self.latency:
            header = ["batch", "p50 ms", "p99 ms", "samples/s", "peak MB", "calls"]
            timed: list[Row] = [
                (
                    str(one.batch),
                    f"{one.p50_ms:.3f}",
                    f"{one.p99_ms:.3f}",
                    f"{one.samples_per_s:.0f}",
                    "-" if one.peak_rss_mb is None else f"{one.peak_rss_mb:.0f}",
                    str(one.calls),
                )
                for one in self.latency
            ]
            tables.append(("latency of a call", header, timed))
        if self.paired is not None:
            held: list[Row] = [
                (name, f"{one.value:+.4f}", f"[{one.low:+.4f}, {one.high:+.4f}]", f"{one.p:.2g}", one.test,
                 self.paired.verdict(name))
                for name, one in self.paired.differences.items()
            ]  # fmt: skip
            header = ["metric", "difference", "95 % interval", "p", "test", ""]
            tables.append((f"against {self.paired.against}, on the same samples", header, held))
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
            {"field": s.field, "value": s.value, "n": s.n, "metrics": metrics_json(s.metrics)}
            for s in self.slices
        ]
        bins = [one.to_json() for one in self.calibration]
        return {
            **({"slices": cut} if cut else {}),
            **({"calibration": bins} if bins else {}),
            **({"latency": [one.to_json() for one in self.latency]} if self.latency else {}),
            **({"paired": self.paired.to_json()} if self.paired else {}),
            "format": FORMAT,
            "task": self.task,
            "n": self.n,
            "dataset": self.dataset,
            "metrics": metrics_json(self.metrics),
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
                metrics=metrics_of(raw["metrics"]),
                confusion=None if confusion is None else np.array(confusion, np.int64),
                per_class=scores,
                classes=tuple(raw["classes"]),
                dataset=raw["dataset"],
                slices=tuple(
                    SliceScores(s["field"], s["value"], s["n"], metrics_of(s["metrics"]))
                    for s in raw.get("slices", ())
                ),
                calibration=tuple(ReliabilityBin.from_json(one) for one in raw.get("calibration", ())),
                latency=tuple(Latency.from_json(one) for one in raw.get("latency", ())),
                paired=Paired.from_json(raw["paired"]) if raw.get("paired") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"is not an evaluation ({error!r})") from error


def metrics_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Metrics as a value that JSON can hold."""
    return {name: metric.to_json() for name, metric in metrics.items()}


def metrics_of(raw: Mapping[str, Any]) -> dict[str, Metric]:
    """Inverse of `metrics_json`."""
    return {name: Metric.from_json(value) for name, value in raw.items()}


def _scores(scores: ClassScores) -> Mapping[str, Metric | None]:
    return {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}


def _cells(metric: Metric) -> Row:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.4f}", "-"
    return f"{metric.value:.4f}", f"[{metric.low:.4f}, {metric.high:.4f}]"


def _short(metric: Metric | None) -> str:
    return "-" if metric is None else metric.fixed()
