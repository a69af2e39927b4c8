"""Many records of trials as columns, as a snapshot has them: quick to read, a row made when it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Raw = dict[str, Any]
Columns = dict[str, Any]  # by key a list, or for what is a table itself its columns

CHUNK = 1000  # trials of a chunk; the last one may have fewer


def to_columns(rows: Sequence[Raw | None]) -> Columns:
    """The columns of rows; what a row lacks is None there, and so is a row that is None."""
    columns: Columns = {}
    for key in dict.fromkeys(key for row in rows if row for key in row):
        column = [None if row is None else row.get(key) for row in rows]
        nested = any(isinstance(value, dict) for value in column)
        columns[key] = to_columns(column) if nested else column
    return columns


def row_of(columns: Columns, place: int) -> Raw:
    """One row; what is None in it is left out."""
    row: Raw = {}
    for key, column in columns.items():
        value = row_of(column, place) if isinstance(column, dict) else column[place]
        if value is not None and value != {}:
            row[key] = value
    return row


def rows_of(columns: Columns, names: Sequence[str], count: int) -> list[Raw]:
    """All rows of a table, with these names only, in their order."""
    found = [columns.get(name) or [None] * count for name in names]
    if all(None not in column for column in found):
        return [dict(zip(names, values, strict=True)) for values in zip(*found, strict=True)]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*found, strict=True)
    ]
