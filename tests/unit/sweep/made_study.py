"""A study as a driver and its workers leave it, made without running anything: the same records, by the same writers."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from hpcmass.config import Job, job_from_values, job_to_toml
from hpcmass.files import append_record, replace_json
from hpcmass.runs import RankError, RunFolder
from hpcmass.sweep.records import Outcome, TrialSpec

HOSTILE = "</script><img src=x onerror=alert(1)>"
BEGAN = 1_790_000_000.0
SLOTS = [("cpu", "cn1", "101", 0), ("cpu", "cn1", "101", 1), ("gpu", "gn1", "103", 0)]


def made_job(trials: int, *, several: bool = False, name: str = "depth") -> Job:
    space: dict[str, Any] = {
        "lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "family": {"type": "categorical", "choices": ["cnn", "mlp"]},
        "kernel": {"type": "int", "low": 3, "high": 7, "step": 2, "when": {"family": "cnn"}},
        name: {"type": "int", "low": 1, "high": 8},
    }
    table: dict[str, Any] = {"trials": trials + 10, "space": space, "parallel": 3}
    if several:
        table |= {"metrics": ["accuracy", "latency_ms"], "directions": ["maximize", "minimize"]}
        table |= {"constraints": ["latency_ms <= 30"]}
    else:
        table |= {"metric": "accuracy", "direction": "maximize", "pruner": "median"}
    return job_from_values({"name": "made", "command": ["true"], "params": {}, "sweep": table})


def make_study(folder: Path, trials: int, *, several: bool = False, hostile: bool = False) -> Path:
    """Lay down a study: of every ten trials one failed, two were pruned (with one objective), and the last waits.

    Each slot works without a pause: of every trial 2 s more than the one before on the same slot.
    """
    rng = random.Random(7)
    name = HOSTILE if hostile else "depth"
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(
        job_to_toml(made_job(trials, several=several, name=name)), encoding="utf-8"
    )
    for target, _, job_id, _ in SLOTS[1:]:
        record = {"kind": "block", "driver": "u", "executor": target, "script": "s", "job_id": job_id}
        append_record(folder / "parsl" / "blocks.jsonl", {**record, "time": BEGAN - 30})
    free = dict.fromkeys(SLOTS, BEGAN)
    for number in range(trials):
        family = rng.choice(["cnn", "mlp"])
        params = {"lr": 10 ** rng.uniform(-4, -1), "family": family, name: rng.randint(1, 8)}
        if family == "cnn":
            params["kernel"] = rng.choice([3, 5, 7])
        spec = TrialSpec(
            number,
            params,
            {f"params.{k}": v for k, v in params.items()},
            number,
            folder / f"trials/{number:06d}",
        )
        spec.publish()
        if number < trials - 1:
            slot = SLOTS[number % len(SLOTS)]
            end = free[slot] + 2 + number / 10
            _play(spec, rng, slot, free[slot], end, several=several, hostile=hostile)
            free[slot] = end
    return folder


def _play(
    spec: TrialSpec,
    rng: random.Random,
    slot: tuple[str, str, str, int],
    begin: float,
    end: float,
    *,
    several: bool,
    hostile: bool,
) -> None:
    number, run = spec.number, RunFolder(spec.path)
    (run.path / "job.toml").write_text('name = "made"\n', encoding="utf-8")
    kind = "failed" if number % 10 == 3 else "pruned" if number % 10 in (5, 8) and not several else "complete"
    accuracy = 0.95 - 0.05 * abs(math.log10(spec.params["lr"]) + 2.5) + rng.gauss(0, 0.004)
    latency = 5 + 4 * spec.params[next(k for k in spec.params if k not in ("lr", "family", "kernel"))]
    values: list[list[float]] = []
    for step in range(1, {"failed": 1, "pruned": 3, "complete": 6}[kind]):
        value = accuracy * (1 - math.exp(-step))
        values.append([step * 10, value])
        record = {
            "kind": "report",
            "step": step * 10,
            "accuracy": value,
            "latency_ms": latency,
            "loss": 1 / step,
        }
        append_record(run.metrics_file, record)
    target, node, job_id, place = slot
    held = {
        "attempt": 1,
        "target": target,
        "job_id": job_id,
        "host": node,
        "node": node,
        "slot": place,
        "gpus": None,
    }
    append_record(run.path / "slots.jsonl", {"kind": "begin", **held, "time": begin})
    append_record(run.path / "slots.jsonl", {"kind": "end", **held, "cpu_s": 3 * (end - begin), "time": end})
    reason = {"pruned": f"pruned: accuracy {accuracy:.3g} at step 20", "failed": "", "complete": None}[kind]
    if kind == "failed":
        reason = (
            f"RecipeError: {HOSTILE} & \u202eright to left"
            if hostile
            else f"RecipeError: no room for {number} GB"
        )
        told = {"hint": "make it smaller", "traceback": f"Traceback:\n  {reason}", "time": end, "host": node}
        run.record_error(RankError(1, 0, "exception", "RecipeError", reason, **told))
    state = {"complete": "COMPLETED", "failed": "FAILED", "pruned": "STOPPED"}[kind]
    status = {
        "step": 10 * len(values),
        "attempt": 1,
        "started": begin,
        "updated": end,
        "ended": end,
        "reason": reason,
    }
    replace_json(run.path / "status.json", {"format": 1, "state": state, **status})
    value = values[-1][1] if values and kind != "failed" else None
    measured = {} if value is None else {"accuracy": value, **({"latency_ms": latency} if several else {})}
    Outcome(kind, value, values, 1, number, end - begin, reason, measured).publish(spec.path)
