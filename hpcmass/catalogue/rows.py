"""What the index keeps of a version: its searchable facts, flat."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcmass.catalogue.version import Version

_TRIAL = re.compile(r"-[0-9]{6}$")
_INT_LIMIT = 1 << 63
_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Row:
    """A version as the index has it.

    Attributes:
        fixed: The columns that every version has, in the order of `FIXED`.
        scalars: Numbers and texts by key: `metrics.accuracy`, `job.params.lr`.
        lists: Lists by key; shown, not searched.
        datasets: Dataset id by split.
        tags: Names of its tags.
    """

    fixed: tuple[Any, ...]
    scalars: dict[str, int | float | str] = field(default_factory=dict)
    lists: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


FIXED = (
    "name", "version", "created", "by", "description", "bytes", "files", "recipe", "run", "parent", "commit",
)  # fmt: skip
"""Names of the columns that every version has; the last four may be missing."""

# Of the lineage: in columns of their own, or of the run's own metrics, which the version has in its turn.
_TAKEN = frozenset({"job", "datasets", "run", "parent", "commit", "environment", "metrics"})


def row_of(version: Version) -> Row:
    """The searchable facts of a version; what has another shape than expected is left out."""
    lineage = version.lineage
    job = lineage.get("job")
    job = job if isinstance(job, dict) else {}
    datasets = lineage.get("datasets")
    row = Row(
        (
            version.name,
            version.version,
            version.created,
            clean(version.by),
            clean(version.description),
            min(version.bytes, _INT_LIMIT - 1),
            len(version.files),
            recipe_of(job, lineage.get("run")),
            *(_text(lineage.get(key)) for key in ("run", "parent", "commit")),
        ),
        datasets={
            clean(str(split)): clean(one)
            for split, one in (datasets.items() if isinstance(datasets, dict) else ())
            if isinstance(one, str)
        },
        tags=tuple(map(clean, version.tags)),
    )
    _flatten("metrics.", version.metrics, row, 0, numbers=True)
    _flatten("job.", job, row, 0, numbers=False)
    if version.tags:
        _flatten("tags.", version.tags, row, 0, numbers=False)
    if isinstance(environment := lineage.get("environment"), dict):
        _flatten("environment.", environment, row, 0, numbers=False)
    if rest := {key: value for key, value in lineage.items() if key not in _TAKEN}:
        _flatten("lineage.", rest, row, 0, numbers=False)
    return row


def recipe_of(job: Mapping[str, Any], run: Any = None) -> str | None:
    """The name of a job's recipe: of `recipes/trees.py` trees; of `mnist/recipe.py` its folder's, mnist.

    Of a copy in the folder of the run (trials of a study, submitted runs), where the original lay is not known:
    it has the job's name, without a trial's number. None where the job has no recipe.
    """
    recipe, name = job.get("recipe"), job.get("name")
    if not isinstance(recipe, str):
        return None
    folder, _, file = recipe.rstrip("/").rpartition("/")
    stem = file.removesuffix(".py")
    if stem == "recipe":
        around = folder.rstrip("/").rpartition("/")[2]
        if around not in ("", ".", "..") and folder != run:
            stem = around
        elif isinstance(name, str) and name:
            stem = _TRIAL.sub("", name)
    return clean(stem)


def stand_ins(key: str) -> tuple[str, ...]:
    """The facts that stand for a parameter in a version whose recipe has none of that name.

    What a person calls the learning rate is `params.lr` of one recipe and the option `train.lr` of another; a
    sweep varies both in one list of parameters, the options by their whole names.
    """
    name = key.removeprefix("job.params.")
    if name == key:
        return ()
    whole = (f"job.{name}",) if name.startswith(("train.", "resources.")) else ()
    return (*whole, f"job.train.{name}")


def clean(text: str) -> str:
    """A text as SQLite can hold it: lone surrogates are replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _text(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _flatten(prefix: str, tree: Mapping[str, Any], row: Row, depth: int, *, numbers: bool) -> None:
    # For each of 10^5 versions when an index is built: kinds are told by their exact type, as JSON has them.
    scalars = row.scalars
    for key, value in tree.items():
        kind, name = type(value), prefix + (key if key.isascii() else clean(key))
        if kind is float:
            if value == value:
                scalars[name] = value
        elif kind is int:
            scalars[name] = value if -_INT_LIMIT <= value < _INT_LIMIT else scalar_int(value)
        elif kind is str:
            if numbers and value in _INFINITE:
                scalars[name] = _INFINITE[value]
            elif not numbers or value != "NaN":
                scalars[name] = value if value.isascii() else clean(value)
        elif kind is bool:
            scalars[name] = int(value)
        elif kind is dict and depth < 8:
            _flatten(name + ".", value, row, depth + 1, numbers=numbers)
        elif kind is list or kind is tuple:
            row.lists[name] = value


def scalar_int(value: int) -> int | float:
    """A whole number as SQLite can hold it: one of more than 64 bits as a float."""
    if -_INT_LIMIT <= value < _INT_LIMIT:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
