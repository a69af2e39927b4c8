"""All that a report shows, as plain data: read from the study's folder, without a driver."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcmass.config import Job, SweepTable
from hpcmass.errors import HpcmassError
from hpcmass.files import Lease, read_json, read_records
from hpcmass.sweep.history import Record
from hpcmass.sweep.records import best_trials, read_trials
from hpcmass.sweep.report.attempts import attempts
from hpcmass.sweep.report.curves import learning_curves
from hpcmass.sweep.report.failures import failures
from hpcmass.sweep.report.timeline import cost, timeline
from hpcmass.sweep.report.trials import Told, told
from hpcmass.sweep.show import study_job
from hpcmass.sweep.space import planned

LEAST_FOR_IMPORTANCES = 10
_MOST_FOR_IMPORTANCES = 5000


def gather(folder: Path) -> dict[str, Any]:
    """What `render` makes a page of; JSON throughout.

    Raises:
        NotFound: There is no study here.
        CorruptError: A record of it is damaged.
    """
    job, now = study_job(folder), time.time()
    assert job.sweep is not None
    pairs = read_trials(folder)
    trials = [told(job, *pair) for pair in pairs]
    front = [best.number for best in best_trials(job.sweep, pairs)]
    blocks = list(read_records(folder / "parsl" / "blocks.jsonl"))
    times = timeline(trials, blocks, now)
    ranking = _ranking(job.sweep, trials)
    data = {
        "study": _study(folder, job, now),
        "front": front,
        "trials": _columns(job.sweep, trials, set(front)),
        "importances": [_importances(job.sweep, trials, place) for place in range(len(job.sweep.objectives))],
        "curves": learning_curves(job, trials, ranking),
        "time": times,
        "cost": {**cost(trials, times, now), "price": _price(folder, times)},
        "usage": _usage(folder),
        "failures": failures(trials),
        "attempts": attempts(folder),
    }
    cleaned: dict[str, Any] = _plain(data)
    return cleaned


def _study(folder: Path, job: Job, now: float) -> dict[str, Any]:
    from hpcmass import __version__

    assert job.sweep is not None
    table = job.sweep
    driver = None
    with contextlib.suppress(HpcmassError):
        driver = Lease(folder / "lease").owner()
    return {
        "name": folder.resolve().name,
        "job": job.name,
        "made": now,
        "version": __version__,
        "objectives": [[one.name, one.direction] for one in table.objectives],
        "constraints": list(table.constraints),
        "names": list(table.names),
        "sampler": table.sampler,
        "pruner": table.pruner,
        "seed": table.seed,
        "planned": planned(table),
        "parallel": table.parallel,
        "budget": table.budget.model_dump() if hasattr(table, "budget") else {},
        "driver": f"process {driver.pid} on {driver.host}" if driver else None,
        "space": {
            name: {k: v for k, v in one.model_dump().items() if v is not None}
            for name, one in table.space.items()
        },
    }


def _columns(table: SweepTable, trials: Sequence[Told], front: set[int]) -> dict[str, list[Any]]:
    """The trials column by column, which is a third of the bytes that rows would take."""
    names: dict[str, None] = dict.fromkeys(table.space)
    for one in trials:
        names.update(dict.fromkeys(one.spec.params))
    return {
        "number": [one.number for one in trials],
        "state": [one.state for one in trials],
        "feasible": [one.feasible for one in trials],
        "front": [int(one.number in front) for one in trials],
        "measured": [[name, [one.measured.get(name) for one in trials]] for name in table.names],
        "params": [[name, [one.spec.params.get(name) for one in trials]] for name in names],
        "steps": [one.status.step if one.status else None for one in trials],
        "seconds": [one.seconds for one in trials],
        "attempts": [one.attempts for one in trials],
        "started": [one.stays[0].begin if one.stays else None for one in trials],
        "ended": [None if not one.stays else one.stays[-1].end for one in trials],
        "order": [None if one.outcome is None else one.outcome.order for one in trials],
        "target": [one.stays[-1].target if one.stays else None for one in trials],
        "twin": [one.spec.twin for one in trials],
        "reason": [None if one.reason is None else one.reason[:300] for one in trials],
        "cause": [one.cause for one in trials],
    }


def _ranking(table: SweepTable, trials: Sequence[Told]) -> list[int]:
    first = table.objectives[0]
    having = [one for one in trials if one.values is not None]
    having.sort(key=lambda one: (one.feasible is False, first.sign * (one.values or [math.inf])[0]))
    return [one.number for one in having]


def _importances(table: SweepTable, trials: Sequence[Told], place: int) -> dict[str, Any]:
    """How much each parameter matters for one objective, or in words why that is not known."""
    name = table.objectives[place].name
    records = [
        Record(one.number, one.spec.params, state="complete", value=one.values)
        for one in trials
        if one.values is not None and set(one.spec.params) <= set(table.space)
    ]
    known = {"objective": name, "trials": len(records), "values": [], "message": None}
    if len(records) < LEAST_FOR_IMPORTANCES:
        few = f"{len(records)} complete trial{'' if len(records) == 1 else 's'}"
        return {**known, "message": f"too few to say: {few}, and {LEAST_FOR_IMPORTANCES} are needed"}
    try:
        from hpcmass.sweep.window import importances
    except ImportError:
        return {**known, "message": "Optuna is not installed here: pip install 'hpcmass[sweep]'"}
    newest = records[-_MOST_FOR_IMPORTANCES:]
    found = importances(table, newest, place)
    if not any(found.values()):
        return {**known, "message": "the trials do not tell: no parameter sets the best of them apart"}
    return {**known, "trials": len(newest), "values": sorted(found.items(), key=lambda item: -item[1])}


def _price(folder: Path, times: dict[str, Any]) -> dict[str, float]:
    """What a node costs an hour, by target, in the site's unit; only targets that say so."""
    from hpcmass.config import load_site

    try:
        targets = load_site(str(folder / "site.toml")).targets
    except (HpcmassError, OSError):
        return {}
    prices = {name: target.price_per_node_hour for name, target in targets.items()}
    return {name: price for name in times["targets"] if (price := prices.get(name)) is not None}


def _usage(folder: Path) -> dict[str, Any]:
    """What the study's drivers say that it has used (`usage.json`); empty where they do not."""
    try:
        raw = read_json(folder / "usage.json")
    except HpcmassError:
        return {}
    return {key: value for key, value in raw.items() if key != "format"} if isinstance(raw, dict) else {}


def _plain(value: Any) -> Any:
    """JSON's own types: numbers that are none become null, long floats lose what nobody reads."""
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.9g}") if abs(value) < 1e8 else value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
