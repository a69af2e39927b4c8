"""The datasets that a job names, as one."""

from __future__ import annotations

from pathlib import Path

from hpcmass.config import Project
from hpcmass.data import Dataset, concat, open_dataset
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import read_json


def open_all(project: Project, names: str | list[str]) -> Dataset:
    """Open one dataset, or several read one after the other.

    Raises:
        NotFound: A folder is no dataset.
        DataError: The datasets do not fit together.
    """
    paths = [names] if isinstance(names, str) else names
    opened = [open_dataset(project.data_path(path)) for path in paths]
    return opened[0] if len(opened) == 1 else concat(opened)


def open_train(project: Project, names: str | list[str], run: Path) -> Dataset:
    """The training data of a run: all of it, or the shards that `shards.json` in its folder names.

    Raises:
        NotFound: A folder is no dataset.
        DataError: The datasets do not fit together, or there is no such shard.
        CorruptError: `shards.json` is not what it should be.
    """
    whole = open_all(project, names)
    try:
        raw = read_json(run / "shards.json")
    except NotFound:
        return whole
    numbers = raw.get("train") if isinstance(raw, dict) and raw.get("format") == 1 else None
    if not isinstance(numbers, list):
        raise CorruptError("is not a list of shards", where=run / "shards.json")
    return whole.subset_shards(numbers)
