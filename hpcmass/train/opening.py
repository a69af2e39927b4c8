"""Rank 0 and the run folder: make it, open it again, or refuse."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Site, job_to_toml, site_to_toml
from hpcmass.files import Lease, replace, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.runs import RunFolder, State
from hpcmass.train import checkpoint
from hpcmass.train.begun import asks_for_more, set_aside


def look(job: Job, run: RunFolder, *, fresh: bool) -> dict[str, Any]:
    """Look at what is there, changing nothing.

    Returns:
        `done`: the run is completed and the job asks for no more.

    Raises:
        ConfigError: The folder holds a run of another job, with the keys that differ.
    """
    if fresh or not run.exists():
        return {"done": False}
    more = asks_for_more(job, run)
    return {"done": run.status().state is State.COMPLETED and not more}


def take(job: Job, run: RunFolder, site: Site, *, fresh: bool) -> Lease:
    """Take the lease, and make the run's folder or open it again.

    Returns:
        The lease, held.

    Raises:
        LeaseHeld: Another process runs it.
        StorageError: The file system refused; a folder that was not there before is not there now.
    """
    if fresh:
        set_aside(run)
    was_there = run.path.exists()
    lease = run.lease()
    try:
        lease.acquire()
    except BaseException:
        # Another process may have made the folder since we looked, so only an empty one is ours to remove.
        if not was_there:
            with contextlib.suppress(OSError):
                run.path.rmdir()
        raise
    run.hold(lease)
    made = not run.exists()
    try:
        if not made:
            _reopen(job, run)
        else:
            recipe = None if job.recipe is None else Path(job.recipe)
            run.create(job_to_toml(job), site_to_toml(site), recipe)
    except BaseException:
        if made and not was_there:
            # Out of the way first, under the lease: whoever comes next makes a folder of its own.
            rubbish = temporary_beside(run.path)
            with contextlib.suppress(OSError):
                lease.rename_folder(rubbish)
            lease.release()
            shutil.rmtree(rubbish, ignore_errors=True)
        lease.release()
        raise
    return lease


def _reopen(job: Job, run: RunFolder) -> None:
    with storage_errors(run.path, "open the run again"):
        checkpoint.remove_leftovers(run.checkpoints)
        # The stop was obeyed, or never seen; starting again takes it back.
        run.stop_file.unlink(missing_ok=True)
        if job.recipe is not None:
            replace(run.path / "recipe.py", Path(job.recipe).read_bytes())
    replace(run.job_file, job_to_toml(job))


def next_attempt(run: RunFolder, ranks: int, backend: str) -> int:
    """Write that the run is running, and return the number of this attempt."""
    old = run.status()
    attempt = old.attempt + 1
    run.update(
        state=State.RUNNING, attempt=attempt, ranks=ranks, backend=backend, reason=None, ended=None,
        started=old.started or time.time(),
    )  # fmt: skip
    return attempt


def remove_model(run: RunFolder) -> None:
    """Remove the bundle of an earlier end, which the run is about to write anew."""
    if run.model.exists():
        with storage_errors(run.model, "remove the old model"):
            shutil.rmtree(run.model)
