"""A run's folder before its job is submitted: laid down or brought up to date; put back if Slurm refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.config import Job, Site, job_to_toml, site_to_toml
from hpcmass.errors import AlreadyExists, HpcmassError, LeaseHeld
from hpcmass.files import replace, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.runs import RunFolder, State
from hpcmass.slurm import records
from hpcmass.slurm.send import overtaken
from hpcmass.train.begun import set_aside
from hpcmass.workflow.asked import Asked


@dataclass
class Laid:
    """What was done to one run's folder, so that it can be undone; `number` is what its submit claims."""

    run: RunFolder
    number: int
    made: bool = False
    aside: Path | None = None
    old: dict[Path, bytes | None] = field(default_factory=dict)


@contextlib.contextmanager
def laying_down(asked: Asked, indices: list[int], free: Sequence[int], *, fresh: bool) -> Iterator[list[Laid]]:
    """Make the runs' folders, or bring them up to date; a submit that is refused leaves all as it was."""
    laid: list[Laid] = []
    try:
        for number in indices:
            one = Laid(asked.runs[number], free[number])
            _lay_down(asked.jobs[number], asked.site, one, laid, fresh=fresh)
        yield laid
    except BaseException as error:
        # Where the job may have been taken, or we are ended from outside meanwhile, what it needs must stay.
        unsure = isinstance(error, HpcmassError) and error.data.get("unsure")
        if isinstance(error, Exception) and not unsure:
            for one in reversed(laid):
                _undo(one)
        raise


def _lay_down(job: Job, site: Site, one: Laid, laid: list[Laid], *, fresh: bool) -> None:
    run = one.run
    if records.next_number(run.path) != one.number:
        raise overtaken(run.path)
    laid.append(one)
    recipe = None if job.recipe is None else Path(job.recipe)
    kept = job if recipe is None else job.model_copy(update={"recipe": "recipe.py"})
    if fresh:
        one.aside = set_aside(run)
        one.number = 1
    if not run.exists():
        try:
            run.create(job_to_toml(kept), site_to_toml(site), recipe)
        except AlreadyExists as error:
            raise LeaseHeld("another submit made this run just now", where=run.path, transient=True) from error
        except BaseException:
            one.made = True  # What there is of it goes.
            raise
        one.made = True
        return
    texts = {run.job_file: job_to_toml(kept).encode(), run.path / "site.toml": site_to_toml(site).encode()}
    if recipe is not None:
        with storage_errors(recipe, "read the recipe"):
            texts[run.path / "recipe.py"] = recipe.read_bytes()
    for path, text in texts.items():
        one.old[path] = path.read_bytes() if path.exists() else None
        replace(path, text)
    if run.status().state is State.COMPLETED:
        # More is asked for than it has done; a hop leaves a completed run alone.
        status = run.path / "status.json"
        one.old[status] = status.read_bytes()
        run.update(state=State.STOPPED, reason="completed; it is asked for more", ended=None)
    take_back_stop(run, one)


def take_back_stop(run: RunFolder, one: Laid | None = None) -> None:
    """What asked earlier jobs of the run to end must not end this one."""
    for path in (run.stop_file, records.slurm_folder(run.path) / "cancel"):
        with contextlib.suppress(FileNotFoundError), storage_errors(path, "take the stop back"):
            if path.exists():
                if one is not None:
                    one.old[path] = path.read_bytes()
                path.unlink()


def _undo(one: Laid) -> None:
    if records.numbers(one.run.path) and records.next_number(one.run.path) > one.number:
        return  # Another submit was quicker: the folder is its job's.
    with contextlib.suppress(OSError, HpcmassError):
        if one.made and not _begun(one.run):
            rubbish = temporary_beside(one.run.path)
            os.rename(one.run.path, rubbish)
            shutil.rmtree(rubbish, ignore_errors=True)
    with contextlib.suppress(OSError, HpcmassError):
        if one.aside is not None and not one.run.path.exists():
            os.rename(one.aside, one.run.path)
    for path, text in one.old.items():
        with contextlib.suppress(OSError, HpcmassError):
            if text is None:
                path.unlink()
            else:
                replace(path, text)


def _begun(run: RunFolder) -> bool:
    """Whether somebody has begun to use the run that we have just made."""
    return run.exists() and (run.status().state is not State.CREATED or run.lease().owner() is not None)
