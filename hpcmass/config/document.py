"""A TOML file with the line on which each key stands, so that an error can point at it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import ConfigError
from hpcmass.files import storage_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Key = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_KEY = re.compile(
    r"""^\s*((?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*="""
)
_INLINE = re.compile(r"""[{,]\s*((?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+))\s*=""")


@dataclass(frozen=True)
class Document:
    """A parsed TOML file.

    Attributes:
        file: Where it was read from.
        values: The nested values.
        lines: Line (from 1) on which each key begins; keys inside inline tables included.
    """

    file: Path
    values: dict[str, Any]
    lines: dict[Key, int]

    def where(self, key: Key) -> str:
        """`file:line` of a key, or of the nearest enclosing key that stands in the file."""
        for length in range(len(key), 0, -1):
            if (line := self.lines.get(key[:length])) is not None:
                return f"{self.file}:{line}"
        return str(self.file)


def read_document(file: Path) -> Document:
    """Read a TOML file.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is not UTF-8 or not TOML; the message has the line.
    """
    with storage_errors(file, "read the file"):
        data = file.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=file) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        number = match[1] if match else None
        if "end of document" in str(error):
            number = str(len(text.rstrip().splitlines()))
        line = f":{number}" if number else ""
        message = re.sub(r"\s*\(at [^)]*\)", "", str(error))
        raise ConfigError(
            f"is not valid TOML: {message}",
            where=f"{file}{line}",
            hint="strings need quotes; see https://toml.io",
        ) from error
    return Document(file, values, locate(text))


def locate(text: str) -> dict[Key, int]:
    """Lines (from 1) of the keys of a TOML text that is known to be valid."""
    lines: dict[Key, int] = {}
    table: Key = ()
    arrays: dict[Key, int] = {}
    inside = ""  # the closing quotes of a multi-line string that the scan is in
    for number, line in enumerate(text.splitlines(), 1):
        if inside:
            if inside in line:
                inside = ""
            continue
        if header := _HEADER.match(line):
            table = _in_arrays(_split(header[2]), arrays)
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                table = (*table, arrays[table])
            lines.setdefault(table, number)
            continue
        if not (match := _KEY.match(line)):
            for inline in _INLINE.finditer(line):  # a further line of a multi-line array of tables
                lines.setdefault((*table, *_split(inline[1])), number)
            continue
        key = (*table, *_split(match[1]))
        for length in range(len(table) + 1, len(key) + 1):
            lines.setdefault(key[:length], number)
        rest = line[match.end() :]
        for inline in _INLINE.finditer(rest):
            lines.setdefault((*key, *_split(inline[1])), number)
        for quotes in ('"""', "'''"):
            if rest.count(quotes) == 1:
                inside = quotes
    return lines


def _split(dotted: str) -> Key:
    parts: list[str] = []
    position = 0
    while position < len(dotted):
        match = _PART.match(dotted, position)
        if match is None:
            break
        parts.append(next(group for group in match.groups() if group is not None))
        position = match.end() + 1
    return tuple(parts)


def _in_arrays(key: Key, arrays: dict[Key, int]) -> Key:
    """Put the current index behind each prefix that is an array of tables."""
    found: Key = ()
    for part in key[:-1]:
        found = (*found, part)
        if found in arrays:
            found = (*found, arrays[found])
    return (*found, key[-1]) if key else found
