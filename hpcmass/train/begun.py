"""A run that was begun before: what may differ now, and how it is set aside. Imports no torch."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

from hpcmass.config import Job, job_differences, read_run_job
from hpcmass.errors import ConfigError
from hpcmass.files import storage_errors
from hpcmass.runs import RunFolder

# What a run may be continued with although it was begun with something else.
MAY_DIFFER = (
    "resources", "train.backend", "train.compile", "train.profile_steps", "train.max_loss", "train.shares",
    "recipe", "data.verify", "data.read", "data.stage", "train.checkpoint_background",
    "train.checkpoint_shard_mib", "train.hang_s", "train.keep_checkpoints",
)  # fmt: skip


def asks_for_more(job: Job, run: RunFolder) -> bool:
    """Whether the job asks for more epochs or steps than the run's; any other difference is an error.

    Raises:
        ConfigError: The folder holds a run of another job, with the keys that differ.
    """
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
        if job.recipe is not None and copy != Path(job.recipe).read_bytes() and has_trained(run):
            differs["recipe"] = ("the copy in the run folder", "another text")
    if differs:
        listed = "; ".join(f"{key}: {_say(a)} then, {_say(b)} now" for key, (a, b) in differs.items())
        raise ConfigError(
            f"the run was begun with another job ({listed})",
            where=run.path,
            hint="undo the change, give the run another name (--run NAME), or begin again (--fresh)",
        )
    return more


def has_trained(run: RunFolder) -> bool:
    """Whether there is anything to go on from, or a model."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if any(re.fullmatch(r"step-\d+\.json", name) for name in os.listdir(run.checkpoints)):
            return True
    return run.model.exists()


def _say(value: Any) -> str:
    return "nothing" if value is None else str(value)


def set_aside(run: RunFolder) -> Path | None:
    """Give what is there another name, so that nothing is lost.

    Returns:
        The folder's new name, or None where there was no run.

    Raises:
        LeaseHeld: Somebody runs it.
    """
    if not run.exists():
        return None
    with run.lease() as lease:  # so that nobody begins to write into it meanwhile
        for number in itertools.count(1):
            other = run.path.with_name(f"{run.path.name}.old-{number}")
            if not other.exists():
                break
        with storage_errors(run.path, "set the old run aside"):
            lease.rename_folder(other)
    return other
