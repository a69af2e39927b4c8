"""What a search found as a table of pandas, which is imported here alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from hpcmass.catalogue.rows import FIXED
from hpcmass.errors import MissingDependency


class _Flat(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def frame(found: Iterable[_Flat]) -> Any:
    """A `pandas.DataFrame` with a row a version and a column a fact, such as `metrics.accuracy`.

    `created` is a time with its zone (UTC), `aliases` a list; a fact that a version lacks is missing (NaN).
    The columns that every version has are there even where nothing was found.

    Raises:
        MissingDependency: pandas is not installed.
    """
    try:
        import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise MissingDependency("pandas is not installed", hint="pip install pandas") from error
    columns: dict[str, list[Any]] = {name: [] for name in (*FIXED, "aliases")}
    count = 0
    for one in found:
        for name, value in one.to_json().items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = []
            column.extend([None] * (count - len(column)))
            column.append(value)
        count += 1
    for column in columns.values():
        column.extend([None] * (count - len(column)))
    table = pandas.DataFrame(columns)
    table["created"] = pandas.to_datetime(table["created"], unit="s", utc=True)
    return table
