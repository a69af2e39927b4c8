"""The datasets that a job names, as one."""

from __future__ import annotations

from typing import TypeAlias

from hpcmass.config import Project
from hpcmass.data import concat, open_dataset
from hpcmass.train.inputs import DatasetLike

Data: TypeAlias = DatasetLike


def open_all(project: Project, names: str | list[str]) -> Data:
    """Open one dataset, or several read one after the other.

    Raises:
        NotFound: A folder is no dataset.
        DataError: The datasets do not fit together.
    """
    paths = [names] if isinstance(names, str) else names
    opened = [open_dataset(project.data_path(path)) for path in paths]
    made: Data = opened[0] if len(opened) == 1 else concat(opened)
    return made
