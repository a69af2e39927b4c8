"""Trials without a model: a run folder played to its end in a process or thread of its own.

The value after evaluation e of `epochs` is `x + 1 / e`, so that a small x is good from the first one on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcmass.config import Job, job_from_values, job_to_toml, job_with, load_job
from hpcmass.errors import RecipeError
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.records import TrialSpec


def toy_job(**sweep: Any) -> Job:
    space = sweep.pop("space", {"x": {"type": "float", "low": 0.0, "high": 1.0}})
    params = sweep.pop("params", {"epochs": 3, "seconds": 0.0})
    table = {"sampler": "random", "trials": 4, "parallel": 2, "space": space, **sweep}
    return job_from_values({"name": "toy", "command": ["true"], "params": params, "sweep": table})


def prepare(job: Job, trial: TrialSpec) -> None:
    made = job_with(job, trial.overrides).model_copy(update={"sweep": None})
    trial.run.create(job_to_toml(made), "")


def note(folder: Path, text: str) -> None:
    """One line in the trial's own log, which nobody else writes."""
    handle = os.open(folder / "own.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)


def toy_trial(path: str, between: Callable[[RunFolder], None] = lambda _: None) -> str:
    """Run the folder, as a worker does: go on after the last evaluation that is on record.

    With a parameter `go` no evaluation ends before there is a file of that name. `between` is called behind each.
    """
    run = RunFolder(path)
    with run.lease():
        params = load_job(run.job_file).params
        done = [r["step"] for r in run.records("report")]
        attempt = run.status().attempt + 1
        run.update(state=State.RUNNING, attempt=attempt, started=run.status().started or time.time())
        note(run.path, "start")
        if params.get("fails"):
            run.record_exception(attempt, 0, RecipeError("it never works"))
            run.update(state=State.FAILED, ended=time.time())
            return path
        for step in range(max(done, default=0) + 1, params["epochs"] + 1):
            time.sleep(params["seconds"])
            while "go" in params and not os.path.exists(params["go"]):
                time.sleep(0.02)
            run.append({"kind": "report", "step": step, "loss": params.get("x", 0.0) + 1 / step})
            run.update(step=step)
            between(run)
            if (reason := run.asked_to_stop()) is not None:
                run.update(state=State.STOPPED, reason=reason, ended=time.time())
                return path
        if "completed" not in (run.path / "own.log").read_text():  # Not ended just before the last status.
            note(run.path, "completed")
        run.update(state=State.COMPLETED, ended=time.time())
    return path
