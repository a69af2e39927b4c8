"""Numbered claims: files `000001.json`, `000002.json` … of which each is published once, by one writer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists, HpcmassError, NotFound
from hpcmass.files import avoid_links, publishing, read_json, settle, storage_errors

_NUMBERED = re.compile(r"([0-9]{6,})\.json")
_UNFINISHED_WAIT_S = 1.0

FILE_SYSTEM = "filesystem.json"
"""What `doctor` found about the file system under a catalogue."""


def numbered(folder: Path, number: int) -> Path:
    """The file of a number."""
    return folder / f"{number:06d}.json"


def numbers(folder: Path) -> list[int]:
    """The numbers that are taken in a folder, ascending; none where there is no folder."""
    return sorted(int(match[1]) for name in listdir(folder) if (match := _NUMBERED.fullmatch(name)))


def listdir(folder: Path) -> list[str]:
    """Names in a folder that do not start with a dot, sorted; none where there is no folder."""
    with storage_errors(folder, "read the folder"):
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []


def claim_json(path: Path, value: dict[str, Any], *, whole: bool = False) -> bool:
    """Publish a read-only JSON file under a name that may be taken; say whether it was ours.

    Args:
        path: The name.
        value: The content.
        whole: Refuse where the name could appear before its content.

    Raises:
        NoLinks: It could, and `whole` is asked for.
        StorageError: The file system refused.
    """
    text = json.dumps(value, indent=None if whole else 1, sort_keys=True, allow_nan=False) + "\n"
    try:
        with publishing(path, reserve=not whole) as temporary:
            temporary.write_text(text, encoding="utf-8")
            settle(temporary, 0o444)
    except AlreadyExists:
        return False
    return True


def read_claim(path: Path, wait_s: float = _UNFINISHED_WAIT_S) -> Any:
    """The JSON of a claim, or None when there is none, or its writer died before it had content.

    A claim without content exists only on file systems without hard links, and there only for a moment,
    unless its writer died in it; so this waits `wait_s` before it takes the claim for a dead one.

    Raises:
        CorruptError: The content is not JSON.
        StorageError: The file system refused.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with storage_errors(path, "read the file"):
                size = path.stat().st_size
        except NotFound:
            return None
        if size:
            return read_json(path)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def recall_file_system(root: Path) -> None:
    """Heed what `doctor` found about hard links under a catalogue; without a finding each one is tried."""
    with contextlib.suppress(HpcmassError):
        found = read_json(root / FILE_SYSTEM)
        if isinstance(found, dict) and found.get("links") is False:
            avoid_links(root)
