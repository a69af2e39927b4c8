"""Setting a few keys of a site file without touching its other lines: comments and order are the author's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from hpcmass.config import Site, load_site
from hpcmass.config.document import locate, read_document
from hpcmass.errors import ConfigError
from hpcmass.files import replace, storage_errors

Key = tuple[str, ...]
# Comments of a draft that are no longer true of a line that was set.
_DRAFTED = re.compile(r"\s+# (?:a guess[:;] |drafted, not tried: |.*; a guess likewise).*")
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#,}\]]+)"""


def set_keys(file: Path, values: Mapping[Key, str | bool | None], note: str = "") -> None:
    """Set, add or (None) remove keys of a site file; it is replaced as a whole, or not at all.

    Args:
        file: The site file.
        values: By the path of the key, such as `("targets", "cpu", "launcher")`.
        note: Stands behind them in place of a draft's guess; other comments are kept.

    Raises:
        ConfigError: The file is written in a way that cannot be edited line by line, or would not be valid.
    """
    read_document(file)
    with storage_errors(file, "read the file"):
        text = file.read_text(encoding="utf-8")
    for key, value in values.items():
        text = _set(text, key, value, file, note)
    wanted = load_site(file).model_dump()
    for key, value in values.items():
        table = wanted
        for part in key[:-1]:
            table = table[part]
        # Where a key is removed its default comes back: None, for `pmi`.
        table[key[-1]] = value
    if _parsed(text, file).model_dump() != wanted:
        raise _by_hand(file, values)
    replace(file, text)


def _set(text: str, key: Key, value: str | bool | None, file: Path, note: str) -> str:
    lines = text.splitlines(keepends=True)
    at = locate(text)
    if (number := at.get(key)) is not None:
        line = lines[number - 1]
        if value is None:
            del lines[number - 1]
            return "".join(lines)
        pattern = re.compile(rf"((?:^|[\s{{,.\"']){re.escape(key[-1])}[\"']?\s*=\s*){_VALUE}")
        changed = pattern.sub(lambda match: match[1] + toml(value), line, count=1)
        lines[number - 1] = _DRAFTED.sub(f"  # {note}", changed) if note else changed
        return "".join(lines)
    if value is None:
        return text
    table = key[:-1]
    new = f"{key[-1]} = {toml(value)}" + (f"  # {note}\n" if note else "\n")
    if not table:
        first = min(
            (n for k, n in at.items() if len(k) == 1 and lines[n - 1].lstrip().startswith(f"{k[0]}")), default=1
        )
        lines.insert(first, new)  # behind the first key of the file, `name` as a rule
        return "".join(lines)
    number = at.get(table)
    if number is None or not lines[number - 1].lstrip().startswith("["):
        raise _by_hand(file, {key: value})
    # Beside the launcher where there is one, whose line is plain; else first in the table.
    beside = at.get((*table, "launcher"), number)
    lines.insert(beside if lines[beside - 1].lstrip().startswith("launcher") else number, new)
    return "".join(lines)


def _parsed(text: str, file: Path) -> Site:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        copy.write_text(text, encoding="utf-8")
        return load_site(copy)


def toml(value: str | bool) -> str:
    """A value as it stands in the file."""
    return ("true" if value else "false") if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _by_hand(file: Path, values: Mapping[Key, str | bool | None]) -> ConfigError:
    shown = ", ".join(
        f"{'.'.join(key)} = {toml(v) if v is not None else '(none)'}" for key, v in values.items()
    )
    return ConfigError(
        "cannot be changed line by line as it is written", where=file, hint=f"change it by hand: {shown}"
    )
