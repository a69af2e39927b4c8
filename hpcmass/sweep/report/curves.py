"""Learning curves of a study's trials, few enough and short enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcmass.config import Job
from hpcmass.sweep.report.trials import Told
from hpcmass.sweep.watch import is_number

MOST_TRIALS = 150
MOST_POINTS = 80
_MOST_NAMES = 10
_MOST_BYTES = 16_000_000  # of one run's records; of longer ones the study's own metric is known all the same
_NO_METRIC = {"step", "epoch", "time", "attempt", "rank", "ranks", "from_step"}


def learning_curves(job: Job, trials: Sequence[Told], best_first: Sequence[int]) -> dict[str, Any]:
    """`{"names": […], "trials": [[number, {name: [[steps], [values]]}]], "of": …}`.

    Args:
        job: The study's.
        trials: All trials, by number.
        best_first: Numbers of trials that have a value, the best first.
    """
    assert job.sweep is not None
    metric = job.sweep.objectives[0].name
    kind = "report" if job.command is not None else "valid"
    own = f"{kind} {metric}"
    chosen = _chosen(trials, best_first)
    counts: dict[str, int] = {own: 0}
    read: list[tuple[int, dict[str, list[list[float]]]]] = []
    for number in chosen:
        series = _of_run(trials[number])
        outcome = trials[number].outcome
        if own not in series and outcome is not None and outcome.values:
            series[own] = [list(axis) for axis in zip(*outcome.values, strict=True)]
        for name in series:
            counts[name] = counts.get(name, 0) + 1
        if series:
            read.append((number, series))
    names = [own, *sorted((n for n in counts if n != own), key=lambda n: (-counts[n], n))][:_MOST_NAMES]
    names = [name for name in names if counts[name]]
    kept = [[number, {n: [_thin(axis) for axis in s[n]] for n in names if n in s}] for number, s in read]
    return {"names": names, "trials": [one for one in kept if one[1]], "of": len(trials)}


def _chosen(trials: Sequence[Told], best_first: Sequence[int]) -> list[int]:
    """The best third, those that run or ran last, and a sample over the whole study."""
    begun = [one.number for one in trials if one.status is not None and one.status.attempt]
    if len(begun) <= MOST_TRIALS:
        return begun
    third = MOST_TRIALS // 3
    chosen = dict.fromkeys([*best_first[:third], *begun[-third:]])
    rest = [number for number in begun if number not in chosen]
    wanted = MOST_TRIALS - len(chosen)
    chosen.update(dict.fromkeys(rest[place * len(rest) // wanted] for place in range(wanted)))
    return sorted(chosen)


def _of_run(trial: Told) -> dict[str, list[list[float]]]:
    run = trial.spec.run
    series: dict[str, list[list[float]]] = {}
    try:
        if run.metrics_file.stat().st_size > _MOST_BYTES:
            return {}
        records = list(run.records())
    except OSError:
        return {}
    for record in records:
        kind, step = record.get("kind"), record.get("step")
        if kind not in ("train", "valid", "report") or not is_number(step):
            continue
        for name, value in record.items():
            if not is_number(value) or name in _NO_METRIC or (kind == "train" and name not in _OF_TRAIN):
                continue
            steps, values = series.setdefault(f"{kind} {name}", [[], []])
            steps.append(float(step))
            values.append(float(value))
    return series


_OF_TRAIN = ("loss", "lr", "samples_per_s")


def _thin(axis: list[float]) -> list[float]:
    """At most `MOST_POINTS` of a curve, the last among them; both axes lose the same ones."""
    count = len(axis)
    if count <= MOST_POINTS:
        return axis
    return [axis[place * (count - 1) // (MOST_POINTS - 1)] for place in range(MOST_POINTS)]
