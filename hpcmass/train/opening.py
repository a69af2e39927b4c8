"""Rank 0 and the run folder: make it, open it again, or refuse."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from pathlib import Path
from typing import Any

from hpcmass.config import (
    Job,
    Site,
    job_differences,
    job_to_toml,
    read_run_job,
    site_to_toml,
)
from hpcmass.errors import ConfigError
from hpcmass.files import Lease, replace, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.runs import RunFolder, State
from hpcmass.train import checkpoint

# What a run may be continued with although it was begun with something else.
MAY_DIFFER = ("resources", "train.backend", "recipe", "data.verify")


def look(job: Job, run: RunFolder, *, fresh: bool) -> dict[str, Any]:
    """Look at what is there, changing nothing.

    Returns:
        `done`: the run is completed and the job asks for no more.

    Raises:
        ConfigError: The folder holds a run of another job, with the keys that differ.
    """
    if fresh or not run.exists():
        return {"done": False}
    more = _compare(job, run)
    return {"done": run.status().state is State.COMPLETED and not more}


def _compare(job: Job, run: RunFolder) -> bool:
    """Whether the job asks for more epochs or steps than the run's; any other difference is an error."""
    old = read_run_job(run.job_file)
    differs = job_differences(old, job, ignore=MAY_DIFFER)
    more = False
    if job.train.epochs > old.train.epochs:
        more = differs.pop("train.epochs", None) is not None or more
    before, now = old.train.max_steps, job.train.max_steps
    if before is not None and (now is None or now > before):
        more = differs.pop("train.max_steps", None) is not None or more
    with contextlib.suppress(OSError):
        copy = (run.path / "recipe.py").read_bytes()
        if job.recipe is not None and copy != Path(job.recipe).read_bytes() and _has_trained(run):
            differs["recipe"] = ("the copy in the run folder", "another text")
    if differs:
        listed = "; ".join(f"{key}: {_say(a)} then, {_say(b)} now" for key, (a, b) in differs.items())
        raise ConfigError(
            f"the run was begun with another job ({listed})",
            where=run.path,
            hint="undo the change, give the run another name (--run NAME), or begin again (--fresh)",
        )
    return more


def _has_trained(run: RunFolder) -> bool:
    return bool(checkpoint.commits(run.checkpoints)) or run.model.exists()


def _say(value: Any) -> str:
    return "nothing" if value is None else str(value)


def take(job: Job, run: RunFolder, site: Site, *, fresh: bool) -> Lease:
    """Take the lease, and make the run's folder or open it again.

    Returns:
        The lease, held.

    Raises:
        LeaseHeld: Another process runs it.
        StorageError: The file system refused; a folder that was not there before is not there now.
    """
    if fresh:
        _set_aside(run)
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


def _set_aside(run: RunFolder) -> None:
    """Give what is there another name, so that nothing is lost."""
    if not run.exists():
        return
    with run.lease() as lease:  # so that nobody begins to write into it meanwhile
        for number in itertools.count(1):
            other = run.path.with_name(f"{run.path.name}.old-{number}")
            if not other.exists():
                break
        with storage_errors(run.path, "set the old run aside"):
            lease.rename_folder(other)


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
