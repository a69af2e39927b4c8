"""Pictures of a report: learning curves and confusion matrix; a sweep's trials."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import MissingDependency
from hpcmass.evaluate.metrics import Metric
from hpcmass.evaluate.results import Evaluation
from hpcmass.files import replace

Curve = Sequence[tuple[float, float]]

_DPI = 100
_INK, _GREY, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_BLUE, _ORANGE, _GREEN = "#2563eb", "#ea580c", "#059669"
_PALETTE = (_BLUE, _ORANGE, _GREEN, "#7c3aed", "#db2777", "#0891b2", "#ca8a04")
_COLOURS = {"train loss": "#93b4f5", "valid loss": _ORANGE, "valid accuracy": _GREEN}
_MAX_NUMBERS = 20  # classes up to which the cells of the matrix carry numbers


def curves_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Learning curves from a run's records: `train loss`, `valid loss`, `valid accuracy` … by step."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        kind = record.get("kind")
        for metric in ("loss", "accuracy") if kind == "valid" else ("loss",) if kind == "train" else ():
            value = record.get(metric)
            if isinstance(value, (int, float)) and np.isfinite(value):
                curves.setdefault(f"{kind} {metric}", []).append((float(record.get("step", 0)), float(value)))
    return curves


def training_picture(out: Path, *, curves: Mapping[str, Curve], evaluation: Evaluation, title: str) -> None:
    """Draw learning curves on the left and the confusion matrix on the right, 1400 x 600 pixels, PNG.

    Curves whose name holds `accuracy` have a panel of their own. Without any curve (an estimator) the left
    shows precision and recall of each class; for a regression the right shows the metrics as text.

    Args:
        out: The PNG file; an existing one is exchanged as a whole.
        curves: (step, value) pairs by name; the names become the legend.
        evaluation: What to show on the right.
        title: The line above all.

    Raises:
        MissingDependency: matplotlib is not installed.
        StorageError: The file system refused.
    """
    figure = _figure(14, 6)
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1.0])
    figure.suptitle(title, fontsize=15, fontweight="bold", color=_INK, x=0.012, ha="left")
    drawn = {name: curve for name, curve in curves.items() if len(curve)}
    if drawn:
        _draw_curves(left, drawn)
    elif evaluation.per_class:
        _draw_classes(left, evaluation)
    if evaluation.confusion is not None:
        _draw_confusion(right, evaluation)
    else:
        _draw_text(right, evaluation)
    _save(figure, out)


@dataclass(frozen=True)
class TrialPoint:
    """A trial of a sweep, to be drawn.

    Attributes:
        number: The trial's number.
        value: The objective; None for a trial without one.
        family: The group it is coloured by.
        state: `complete`, `pruned` or `failed`.
    """

    number: int
    value: float | None
    family: str = "trials"
    state: str = "complete"


def sweep_picture(
    out: Path, trials: Sequence[TrialPoint], *, objective: str = "objective", minimize: bool = True
) -> None:
    """Draw the objective of each trial, coloured by family, and the best so far; 1400 x 500 pixels, PNG.

    Raises:
        MissingDependency: matplotlib is not installed.
        StorageError: The file system refused.
    """
    figure = _figure(14, 5)
    axes = figure.subplots()
    families = sorted({trial.family for trial in trials})
    shown = sorted((t for t in trials if t.value is not None), key=lambda t: t.number)
    for index, family in enumerate(families):
        colour = _PALETTE[index % len(_PALETTE)]
        for state, marker, fill in (("complete", "o", colour), ("pruned", "X", "none")):
            points = [(t.number, t.value) for t in shown if t.family == family and t.state == state]
            if points:
                label = family if state == "complete" else f"{family}, pruned"
                axes.scatter(
                    *zip(*points, strict=True),
                    s=70,
                    marker=marker,
                    facecolors=fill,
                    edgecolors=colour,
                    linewidths=1.4,
                    label=label,
                    zorder=3,
                )
    done = [t for t in shown if t.state == "complete"]
    if done:
        best = (np.minimum if minimize else np.maximum).accumulate([float(t.value or 0) for t in done])
        axes.step(
            [t.number for t in done], best, where="post", color=_GREY, lw=1.5, label="best so far", zorder=2
        )
        winner = (min if minimize else max)(done, key=lambda t: float(t.value or 0))
        place = (winner.number, float(winner.value or 0))
        axes.scatter(*place, s=260, facecolors="none", edgecolors=_INK, linewidths=1.4, zorder=4)
        axes.set_title(f"best: trial {winner.number}, {objective} {winner.value:.4g}", loc="right", color=_INK)
    values = [float(t.value or 0) for t in shown]
    if values and min(values) > 0 and max(values) / min(values) > 10:
        _log_scale(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    _style(axes)
    if shown:
        axes.legend(frameon=False, ncols=2 * len(families) + 1, loc="lower left", bbox_to_anchor=(0, 1.0))
    _save(figure, out)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib", hint="pip install 'hpcmass[report]'") from error
    # Without pyplot: no global state, no display, no figure that stays open.
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, out: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    replace(Path(out), buffer.getvalue())


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(which="both", colors=_GREY, labelsize=10)
    axes.grid(True, color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=11)


def _log_scale(axes: Any) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 times a power of ten (at 1 where that is many)."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    shown = (2, 5) if high / low < 200 else ()

    def minor(value: float, _: int) -> str:
        return f"{value:g}" if round(value / 10.0 ** np.floor(np.log10(value) + 1e-9)) in shown else ""

    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(minor)


def _draw_curves(figure: Any, curves: Mapping[str, Curve]) -> None:
    accuracies = {name: curve for name, curve in curves.items() if "accuracy" in name}
    losses = {name: curve for name, curve in curves.items() if name not in accuracies}
    groups = [(label, group) for label, group in (("loss", losses), ("accuracy", accuracies)) if group]
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, group) in zip(panels, groups, strict=True):
        for index, (name, curve) in enumerate(group.items()):
            steps, values = zip(*curve, strict=True)
            colour = _COLOURS.get(name.partition(" (")[0], _PALETTE[index % len(_PALETTE)])
            many = len(curve) > 40
            axes.plot(
                steps,
                values,
                color=colour,
                lw=1.5 if many else 2.2,
                label=name,
                marker=None if many else "o",
                ms=4,
            )
        flat = [value for curve in group.values() for _, value in curve]
        if label == "loss" and min(flat) > 0 and max(flat) / min(flat) > 20:
            _log_scale(axes)
        axes.set_ylabel(label)
        _style(axes)
        axes.legend(frameon=False, fontsize=10, loc="upper right" if label == "loss" else "lower right")
    panels[-1].set_xlabel("step")


def _draw_classes(figure: Any, evaluation: Evaluation) -> None:
    axes = figure.subplots()
    scores = evaluation.per_class[:30]
    places = np.arange(len(scores))
    for shift, name, colour in ((-0.13, "precision", _BLUE), (0.13, "recall", _ORANGE)):
        found = [(place, getattr(score, name)) for place, score in zip(places, scores, strict=True)]
        known: list[tuple[Any, Metric]] = [(place, metric) for place, metric in found if metric is not None]
        if not known:
            continue
        values = np.array([metric.value for _, metric in known])
        ends = np.array([(m.low, m.high) for _, m in known], np.float64)
        axes.errorbar(
            values,
            [place + shift for place, _ in known],
            xerr=np.abs(ends - values[:, None]).T,
            fmt="o",
            color=colour,
            ms=6,
            capsize=3,
            lw=1.6,
            label=name,
        )
    axes.set_yticks(places, [score.name for score in scores])
    axes.invert_yaxis()
    axes.set_xlabel("score, with 95 % interval")
    axes.set_ylabel("class")
    _style(axes)
    axes.legend(frameon=False, fontsize=10, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))


def _draw_confusion(figure: Any, evaluation: Evaluation) -> None:
    confusion, names = evaluation.confusion, evaluation.classes
    assert confusion is not None
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root lets a few confusions show beside a diagonal that holds nearly everything.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1.12, aspect="equal")
    k = len(confusion)
    if k <= _MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                dark = np.sqrt(shares[row, column]) > 0.62
                axes.text(
                    column,
                    row,
                    f"{count}",
                    ha="center",
                    va="center",
                    fontsize=12 if k <= 12 else 8,
                    color="white" if dark else _INK,
                )
        longest = max(len(name) for name in names)
        axes.set_xticks(
            range(k), names, rotation=45 if longest > 4 else 0, ha="right" if longest > 4 else "center"
        )
        axes.set_yticks(range(k), names)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.2 if k <= _MAX_NUMBERS else 0)
    axes.tick_params(which="both", length=0, colors=_GREY, labelsize=10)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=_INK, fontsize=11)
    axes.set_ylabel("true", color=_INK, fontsize=11)
    axes.set_title(evaluation.headline(), fontsize=12, color=_INK)


def _draw_text(figure: Any, evaluation: Evaluation) -> None:
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(f"{evaluation.task}, n={evaluation.n}", fontsize=12, color=_INK)
    for index, (name, metric) in enumerate(evaluation.metrics.items()):
        axes.text(0.1, 0.8 - 0.16 * index, name, fontsize=15, color=_GREY)
        axes.text(0.3, 0.8 - 0.16 * index, str(metric), fontsize=15, color=_INK)
