"""Append-only files of JSON records, one a line, one writer each, read while they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmass.files.publish import make_dir, storage_errors


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one record as one line by a single write; a torn line before it is closed off first.

    NaN and infinities become the strings `"NaN"`, `"Infinity"`, `"-Infinity"`, so that every line is JSON.

    Raises:
        StorageError: The file system refused.
    """
    line = json.dumps(_finite(record), separators=(",", ":")).encode() + b"\n"
    make_dir(path.parent)
    with storage_errors(path, "append to the file"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            written = os.write(handle, line)
            if written != len(line):
                os.write(handle, line[written:])
        finally:
            os.close(handle)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file, oldest first; a torn or half-written line is skipped.

    A file that does not exist has no records.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    yield from _parse(data)


def read_records_from(path: Path, offset_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The records of the whole lines after an offset, and the offset after them.

    A last line without its end is left for the next call. A file that does not exist has no records.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset_bytes)
            data = file.read()
    except FileNotFoundError:
        return [], offset_bytes
    whole = data[: data.rfind(b"\n") + 1]
    return list(_parse(whole)), offset_bytes + len(whole)


def read_last_records(path: Path, limit_bytes: int = 16384) -> list[dict[str, Any]]:
    """The records within the last `limit_bytes` of a file: a look that costs the same however long it is.

    A file that does not exist has none.
    """
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, 2) - limit_bytes)
            # One byte before tells whether the first line is whole.
            file.seek(max(0, start - 1))
            data = file.read()
    except FileNotFoundError:
        return []
    if start:
        data = data[data.find(b"\n") + 1 :]
    return list(_parse(data))


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return _finite(value.item())
    return value
