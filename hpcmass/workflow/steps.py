"""What the apps of `hpcmass.workflow.apps` do on a worker; each finds what an earlier call of it has done.

No parameter may be called `inputs`, `outputs`, `stdout`, `stderr` or `walltime`: Parsl takes these for its own.
Futures stand by themselves among the arguments: Parsl does not look for them in lists.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from hpcmass.config import Project
from hpcmass.errors import AlreadyExists, BlockLost, LeaseHeld, TrainError
from hpcmass.runs import RunFolder, State

_LEASE_S = 150.0


def shard_step(project_root: str, files: list[str], out: str, options: dict[str, Any]) -> str:
    """Cut files into shards, unless they are there."""
    from hpcmass.workflow.sharding import datasets_below, shard

    project = Project(Path(project_root))
    folder = project.data_path(out)
    if not folder.exists():
        words = [one if "=" in one else str(project.root / one) for one in files]
        with contextlib.suppress(AlreadyExists):  # By an attempt whose worker was lost after it was done.
            shard(words, folder, **options)
    datasets_below(folder)
    return str(folder)


def train_step(
    project_root: str, job: str, run_name: str, ranks: int | None, sets: list[str], *_after: Any
) -> str:
    """Train, or go on; the slot is noted in the run's folder, and left in time before its block ends."""
    from hpcmass.config import as_job, job_with
    from hpcmass.workflow import pilot
    from hpcmass.workflow.slots import Ending, Slot
    from hpcmass.workflow.training import train

    project = Project(Path(project_root))
    asked = as_job(job, sets)
    if here := os.environ.get(pilot.TARGET):  # The executor's target, of the site in HPCMASS_SITE.
        asked = job_with(asked, {"resources.target": here})
    run = RunFolder(project.run_path(run_name))
    attempt = run.status().attempt + 1 if run.exists() else 1
    ending = Ending.of_this_block()
    until = time.monotonic() + _LEASE_S
    while True:
        try:
            with Slot.here().held(run, attempt), ending:
                _, status = train(asked, project, run_name=run_name, ranks=ranks, console=False)
            break
        except LeaseHeld:
            if time.monotonic() > until:
                raise
            time.sleep(2.0)  # That of a node which was lost runs out by itself.
    if status.state is State.COMPLETED:
        return str(run.path)
    if ending.asked and status.state is State.STOPPED:
        raise BlockLost(
            "its block came to the end of its time", where=run.path, transient=True, step=status.step
        )
    raise TrainError(
        f"the run ended as {status.state.value}: {status.reason}",
        where=run.path,
        hint=f"see: hpcmass why {run.path}",
    )


def evaluate_step(project_root: str, run: str, dataset: str) -> str:
    """Evaluate; the result lies in the run's folder."""
    from hpcmass.workflow.models import evaluate_model

    evaluation = evaluate_model(run, dataset, Project(Path(project_root)))
    return os.path.join(run, "evaluations", f"{evaluation.dataset[:16]}.json")


def register_step(project_root: str, run: str, name: str, evaluation: str | None) -> str:
    """Register, unless this run is a version already."""
    from hpcmass.evaluate import Evaluation
    from hpcmass.files import read_json
    from hpcmass.workflow.models import register_run
    from hpcmass.workflow.registry import open_catalogue

    project = Project(Path(project_root))
    catalogue = open_catalogue(project)
    known = catalogue.list(name) if name in catalogue.models() else []
    for version in known:
        if version.lineage.get("run") == run:
            return version.ref
    measured = None if evaluation is None else Evaluation.from_json(read_json(Path(evaluation)))
    return register_run(RunFolder(run), project, name=name, evaluation=measured).ref
