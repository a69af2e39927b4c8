"""The Python API: what users call from their own programs; `import hpcmass` offers the most used of it.

The command line takes what it needs from the modules that define it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmass.config import Job, Site, as_job, load_site
from hpcmass.runs import RunFolder, Status
from hpcmass.workflow.models import (
    evaluate_model,
    keep_run,
    load,
    picture_of,
    predict,
    register_run,
)
from hpcmass.workflow.projects import ProjectRef, make_project, open_project, project_of
from hpcmass.workflow.registry import open_catalogue, set_alias, verify_catalogue
from hpcmass.workflow.sharding import shard
from hpcmass.workflow.training import train as train_or_start

if TYPE_CHECKING:
    from hpcmass.sweep.events import Event, StudyResult


def train_job(
    job: Job | Path | str,
    *,
    project: ProjectRef = None,
    run: str | None = None,
    ranks: int | None = None,
    backend: str | None = None,
    sets: Sequence[str] = (),
    fresh: bool = False,
    console: bool = True,
) -> tuple[RunFolder, Status]:
    """Train what a job says, or go on with its run.

    Args:
        job: The job, or its file.
        project: The project, or its folder; default: found from the working folder.
        run: Name of the run; default: the job's.
        ranks: Ranks to start; default: `resources.ranks` of the job.
        backend: `auto`, `horovod`, `mpi`, `torch` or `single`; default: `train.backend` of the job.
        sets: Overrides of the job, `key=value`.
        fresh: Begin anew; an old run of that name is kept under another one.
        console: Whether rank 0 shows its progress.

    Returns:
        The run's folder, and its status when it ended.

    Raises:
        HpcmassError: The job, the recipe or the data is wrong, or training failed.
    """
    return train_or_start(
        job,
        project_of(project),
        run_name=run,
        ranks=ranks,
        backend=backend,
        sets=sets,
        fresh=fresh,
        console=console,
    )


def run_sweep(
    job: Job | Path | str,
    *,
    project: ProjectRef = None,
    site: Site | Path | str | None = None,
    study: str | None = None,
    sets: Sequence[str] = (),
    on_event: Callable[[Event], None] = lambda _: None,
) -> StudyResult:
    """Run the study of a job's `[sweep]` table, or go on with it.

    Args:
        job: The job, or its file.
        project: The project, or its folder; default: found from the working folder.
        site: The site, or its file; default: this machine.
        study: Name of the study; default: the job's.
        sets: Overrides of the job, `key=value`.
        on_event: Told what happens, for showing it.

    Raises:
        LeaseHeld: Another driver works on this study.
        SweepError: The first trials all failed the same way.
    """
    from hpcmass.workflow.sweeps import sweep

    found = project_of(project)
    where = site if isinstance(site, Site) else load_site(site, found.site_file)
    folder = found.study_path(study) if study else None
    return sweep(as_job(job, sets), found, where, folder=folder, on_event=on_event)


__all__ = [
    "evaluate_model",
    "keep_run",
    "load",
    "make_project",
    "open_catalogue",
    "open_project",
    "picture_of",
    "predict",
    "register_run",
    "run_sweep",
    "set_alias",
    "shard",
    "train_job",
    "verify_catalogue",
]
