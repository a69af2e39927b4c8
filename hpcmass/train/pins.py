"""Which state of each dataset a run reads: settled when it begins, and kept whatever is appended later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hpcmass.config import Job, Project
from hpcmass.data import read_manifest
from hpcmass.errors import ConfigError, CorruptError, NotFound
from hpcmass.files import read_json, replace_json
from hpcmass.runs import RunFolder
from hpcmass.train.begun import has_trained

FILE = "datasets.json"
Pins = dict[str, str]
"""The id of each dataset, by the name that the job gives it."""


def settle(job: Job, project: Project, run: RunFolder, *, fresh: bool = False) -> Pins:
    """The datasets of a run's training and validation, as they were when it began, or else as they are now.

    Changes nothing. Rank 0 calls it for all ranks: something may be appended between two looks.

    Raises:
        NotFound: A folder is no dataset.
        ConfigError: The run has trained on a dataset that is not there any more.
        CorruptError: `datasets.json` or a manifest is not what it should be.
    """
    known = {} if fresh else read_pins(run.path)
    found: Pins = {}
    for named in (job.data.train, job.data.valid):
        for name in [named] if isinstance(named, str) else named or []:
            folder = project.data_path(name)
            try:
                found[name] = read_manifest(folder, known.get(name)).id
            except NotFound as error:
                if name not in known or "id" not in error.data:
                    raise
                if has_trained(run):
                    raise ConfigError(
                        f"the run was begun with another dataset {name!r} ({known[name][:12]}…), which is gone",
                        where=run.path,
                        hint="bring it back, or begin again (--fresh)",
                    ) from error
                found[name] = read_manifest(folder).id
    return found


def record_pins(folder: Path, pins: Mapping[str, str]) -> None:
    """Write down what a run, a study or a part reads.

    Raises:
        StorageError: The file system refused.
    """
    replace_json(folder / FILE, {"format": 1, "datasets": dict(pins)})


def read_pins(folder: Path) -> Pins:
    """What was written down; nothing where nothing was.

    Raises:
        CorruptError: The file is not what it should be.
    """
    try:
        value = read_json(folder / FILE)
    except NotFound:
        return {}
    pins = value.get("datasets") if isinstance(value, dict) and value.get("format") == 1 else None
    if not isinstance(pins, dict) or not all(isinstance(id, str) for id in pins.values()):
        raise CorruptError("does not say which datasets are read", where=folder / FILE)
    return pins
