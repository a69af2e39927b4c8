"""Text for terminals: padding by the width that characters are drawn in, sparklines, numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def width(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return (
        len(text)
        + wide
        - sum(1 for char in text if unicodedata.combining(char) or char in "\u200b\u200d\ufe0f")
    )


def shown(text: str) -> str:
    """A text in which nothing moves the cursor: control characters become `?`."""
    return "".join(char if char.isprintable() else "?" for char in text)


def fit(text: str, columns: int) -> str:
    """A text of exactly so many columns, cut with `…` where it is longer."""
    text = shown(text)
    if width(text) <= columns:
        return text + " " * (columns - width(text))
    cut = ""
    for char in text:
        if width(cut + char) > columns - 1:
            break
        cut += char
    return cut + "…" + " " * (columns - 1 - width(cut))


def columns(rows: Sequence[Sequence[str]], header: Sequence[str], *, right: Sequence[int] = ()) -> list[str]:
    """Rows under a header, each column as wide as its widest cell; nothing is cut.

    Args:
        rows: The cells.
        header: The names of the columns.
        right: Columns that are set to the right.
    """
    table = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(width(row[index]) for row in table) for index in range(len(header))]
    lines = []
    for row in table:
        cells = []
        for index, cell in enumerate(row):
            space = " " * (widths[index] - width(cell))
            cells.append(space + cell if index in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def spark(values: Sequence[float], wide: int) -> str:
    """A curve in one line, one character a value, the lowest at the bottom; many values are averaged."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite or wide < 1:
        return ""
    parts = min(wide, len(finite))
    means = []
    for part in range(parts):
        piece = finite[part * len(finite) // parts : (part + 1) * len(finite) // parts]
        means.append(sum(piece) / len(piece))
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in means)


def bar(share: float, wide: int) -> str:
    """A bar of so many columns, filled by a share of 0 to 1."""
    full = round(max(0.0, min(1.0, share)) * wide)
    return "█" * full + "░" * (wide - full)


def amount(value: float | None) -> str:
    """A number in four digits; empty where there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
