"""Texts of strangers in Markdown and YAML, so that they are read as text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpcmass.catalogue.graph_text import plain_text

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = re.compile(r"[\\`*_\[\]|~#!$^@{}]")
_LEADING = re.compile(r"^(?:[-+=:](?=[-+=:\s]|$)|\d+(?=[.)](?:\s|$)))")
_LINKS = re.compile(r"(?i)\b(?:[a-z][a-z0-9+.-]*:(?=//)|www(?=\.)|mailto:)")
# What YAML's readers do not take as it is, within quotes; JSON's writer leaves it there.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}


def markdown(value: object) -> str:
    """A value as text in a line or a cell of Markdown: no mark-up, no HTML, no link in it counts."""
    text = re.sub(r"[&<>]", lambda found: _HTML[found[0]], plain_text(str(value)))
    text = _MARKS.sub(lambda found: "\\" + found[0], text)
    text = _LINKS.sub(
        lambda found: found[0][:-1] + "\\" + found[0][-1] if found[0][-1] == ":" else found[0] + "\u200b", text
    )
    leading = _LEADING.match(text)
    if leading is None:
        return text
    return (leading[0] + "\\" + text[leading.end() :]) if leading[0].isdigit() else "\\" + text


def rows(header: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
    """A table of Markdown; its cells are texts."""
    if not lines:
        return []
    made = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*made, *(f"| {' | '.join(markdown(cell) for cell in line)} |" for line in lines), ""]


def yaml(value: Any) -> str:
    """JSON values as YAML in blocks; every text is in quotes, so none is read as anything else."""
    return "\n".join(_block(value, 0)) + "\n"


def _block(value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            name = (
                str(key) if _KEY.fullmatch(str(key)) and str(key).lower() not in _WORDS else _scalar(str(key))
            )
            if isinstance(item, (Mapping, list, tuple)) and item:
                yield f"{indent}{name}:"
                yield from _block(item, depth + 1)
            else:
                yield f"{indent}{name}: {_scalar(item)}"
        return
    if isinstance(value, (list, tuple)) and value:
        for item in value:
            if isinstance(item, (Mapping, list, tuple)) and item:
                first, *rest = _block(item, depth + 1)
                yield f"{indent}- {first.lstrip(' ')}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(item)}"
        return
    yield f"{indent}{_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):  # YAML 1.1 takes 1e-05 for a text
        text = repr(value)
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+d}" if e else text
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(
        lambda found: (
            f"\\u{ord(found[0]):04x}" if ord(found[0]) < 0xD800 or ord(found[0]) > 0xDFFF else "\\ufffd"
        ),
        text,
    )
