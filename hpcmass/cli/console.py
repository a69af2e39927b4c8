"""Printing: tables and facts, plain where the output is not a terminal."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

# What moves a terminal's cursor, sets its title, or turns the direction of writing; not the end of a line.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """A text without what a terminal would obey: others may have written it."""
    return _CONTROL.sub(" ", text)


def table(rows: Iterable[Sequence[Any]], header: Sequence[str], title: str | None = None) -> None:
    """Print rows under a header; numbers are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if title:
        click.echo(f"\n{title}")
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    listed = [list(row) for row in rows]
    for column, name in enumerate(header):
        numeric = any(isinstance(row[column], (int, float)) for row in listed)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        shown.add_row(*(text(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False, emoji=False).print(shown)


def facts(pairs: Mapping[str, Any]) -> None:
    """Print `name  value` lines, one a fact."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        if value is not None:
            click.echo(f"{name:<{width}}  {text(value)}")


def text(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(str(key))}={text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) for item in value)
    return visible(str(value))


def dump(value: Any) -> None:
    """Print JSON, for programs."""
    click.echo(json.dumps(value, indent=1, default=str))


def csv_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print mappings as comma-separated values under a header of all their keys."""
    import csv

    keys = list(dict.fromkeys(key for row in rows for key in row))
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(map(csv_cell, keys))
    for row in rows:
        values = (row.get(key) for key in keys)
        out.writerow(map(csv_cell, values))


def csv_cell(value: Any) -> Any:
    """A value for comma-separated values; lists as JSON.

    A text that a spreadsheet would run as a formula has a `'` before it: others may have written it.
    """
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        with contextlib.suppress(ValueError):
            float(value)
            return value
        return "'" + value
    return value


def size(count: int) -> str:
    """Bytes with a unit (powers of 1000)."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def day(seconds: float | None) -> str:
    """A time as local date and minute."""
    from datetime import datetime

    return "-" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def relative(path: Path) -> str:
    """A path from the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
