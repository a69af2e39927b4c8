"""Printing of very many rows as they come: a table, JSON or comma-separated values, without rich."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from hpcmass.cli.console import csv_cell, text

_LOOKED_AT = 1000  # rows by which the columns' widths are set
_NARROWEST = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def stream_table(rows: Iterable[Sequence[Any]], header: Sequence[str], out: TextIO | None = None) -> None:
    """Print a row a line, numbers to the right.

    On a terminal, cells are cut so that a row fits its width; elsewhere nothing is cut.
    """
    out = out or sys.stdout
    coming = iter(rows)
    first = list(itertools.islice(coming, _LOOKED_AT))
    right = [any(isinstance(row[i], (int, float)) for row in first) for i in range(len(header))]
    shown = [[_plain(text(cell)) for cell in row] for row in first]
    widths = [max(map(_width, column)) for column in zip(header, *shown, strict=True)]
    terminal = shutil.get_terminal_size().columns if out.isatty() else None
    if terminal is not None:
        _fit(widths, terminal)
    unicode = (out.encoding or "").lower().replace("-", "").startswith("utf")
    rule, more = ("─", "…") if unicode else ("-", "~")

    def line(cells: Sequence[str]) -> str:
        placed = []
        for cell, width, to_right in zip(cells, widths, right, strict=True):
            if terminal is not None and _width(cell) > width:
                cell = _cut(cell, width - 1) + more
            fill = " " * (width - _width(cell))
            placed.append(fill + cell if to_right else cell + fill)
        return "  ".join(placed).rstrip() + "\n"

    out.write("\n" + line(header))
    out.write(rule * (sum(widths) + 2 * (len(widths) - 1)) + "\n")
    for cells in itertools.chain(shown, ([_plain(text(cell)) for cell in row] for row in coming)):
        out.write(line(cells))
    out.write("\n")


def stream_json(values: Iterable[Any], out: TextIO | None = None) -> None:
    """Print a JSON list, for programs."""
    out = out or sys.stdout
    before = "[\n"
    for value in values:
        out.write(before + json.dumps(value, indent=1, default=str))
        before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")


def stream_csv(rows: Callable[[], Iterable[Mapping[str, Any]]], out: TextIO | None = None) -> None:
    """Print mappings as comma-separated values under a header of all their keys.

    Args:
        rows: Gives the mappings; called twice, for the header has to be known first.
        out: Where to.
    """
    import csv

    out = out or sys.stdout
    keys = list(dict.fromkeys(key for row in rows() for key in row))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, keys))
    for row in rows():
        values = (row.get(key) for key in keys)
        writer.writerow(map(csv_cell, values))


def _plain(cell: str) -> str:
    """A cell without what would move the cursor of a terminal: others may have written it."""
    return _CONTROL.sub(" ", cell)


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    return sum(_columns(one) for one in cell)


def _columns(one: str) -> int:
    return 2 if unicodedata.east_asian_width(one) in "WF" else 0 if unicodedata.combining(one) else 1


def _cut(cell: str, width: int) -> str:
    taken = 0
    for place, one in enumerate(cell):
        taken += _columns(one)
        if taken > width:
            return cell[:place]
    return cell


def _fit(widths: list[int], terminal: int) -> None:
    """Make the widest columns narrower until a row fits."""
    room = terminal - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widest = max(range(len(widths)), key=widths.__getitem__)
        others = [width for place, width in enumerate(widths) if place != widest]
        least = max(_NARROWEST, room - sum(others), min(widths[widest] - 1, max(others, default=0)))
        widths[widest] = least
