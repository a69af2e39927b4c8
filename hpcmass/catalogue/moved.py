"""Where content lies that is not where its version says: in another pack, as a blob, or in the trash.

A version names the pack and the place of a packed file for ever. Where a pack was written anew (most of it was
dead, or it was damaged), `cas/packs/ab/<old>.json` says where its files lie now, by digest. A packed file that
is in no pack any more lies as a blob under its own digest. What `gc` took away may lie in `trash/` still.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.catalogue.claims import listdir
from hpcmass.catalogue.version import FileEntry
from hpcmass.errors import CorruptError, HpcmassError, NotFound
from hpcmass.files import read_json, replace, storage_errors

_CHAIN = 32  # packs written anew again and again


@dataclass(frozen=True)
class Place:
    """A file, and the byte in it at which some content begins; None where it is all of the file."""

    path: Path
    offset: int | None = None


def blob_place(store: Path, digest: str) -> Path:
    """Where the blob of a digest lies."""
    return store / digest[:2] / digest


def pack_place(store: Path, digest: str) -> Path:
    """Where the pack of a digest lies."""
    return store / "packs" / digest[:2] / digest


def moved_file(store: Path, pack: str) -> Path:
    """The file that says where the content of a pack lies now."""
    return store / "packs" / pack[:2] / f"{pack}.json"


def read_moved(store: Path, pack: str) -> dict[str, tuple[str, int]]:
    """Pack and offset, by digest, of what a pack held; empty where nothing of it was moved.

    Raises:
        CorruptError: The file that says so is damaged.
    """
    path = moved_file(store, pack)
    try:
        raw = read_json(path)
        return {str(digest): (str(where[0]), int(where[1])) for digest, where in raw["files"].items()}
    except NotFound:
        return {}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CorruptError(f"does not say where a pack's files are ({error})", where=path) from error


def write_moved(store: Path, pack: str, files: Mapping[str, tuple[str, int]]) -> None:
    """Say where the content of a pack lies now, besides what was said before.

    Raises:
        StorageError: The file system refused.
    """
    try:
        known = read_moved(store, pack)
    except CorruptError:
        known = {}
    said: dict[str, Any] = {"format": 1, "files": {**known, **files}}
    replace(moved_file(store, pack), json.dumps(said, sort_keys=True) + "\n")


def packs_of(store: Path, entry: FileEntry) -> Iterator[tuple[str, int]]:
    """Packs and offsets where a packed file may lie: as its version says, then as was said since."""
    pack, offset = entry.pack, entry.offset
    for _ in range(_CHAIN):
        if pack is None:
            return
        yield pack, offset
        pack, offset = read_moved(store, pack).get(entry.sha256, (None, 0))


def elsewhere(store: Path, entry: FileEntry, *, trash: bool = True) -> Place | None:
    """Where the content of an entry lies, when it is not where the entry says; None where it is nowhere.

    Raises:
        CorruptError: A file that says where a pack's content lies is damaged.
        StorageError: The file system refused.
    """
    for pack, offset in packs_of(store, entry):
        if (path := pack_place(store, pack)).is_file():
            return Place(path, offset)
    if (path := blob_place(store, entry.sha256)).is_file():
        return Place(path)
    return _in_trash(store, entry) if trash else None


def _in_trash(store: Path, entry: FileEntry) -> Place | None:
    names: dict[str, int | None] = {set_aside_name(f"cas/{entry.sha256[:2]}/{entry.sha256}"): None}
    with contextlib.suppress(HpcmassError):
        for pack, offset in packs_of(store, entry):
            names[set_aside_name(f"cas/packs/{pack[:2]}/{pack}")] = offset
    trash = store.parent / "trash"
    for run in listdir(trash):
        for name, offset_there in names.items():
            if (path := trash / run / name).is_file():
                return Place(path, offset_there)
    return None


def set_aside_name(relative: str) -> str:
    """The name that a file of the catalogue has where it is set aside; no name in a catalogue has a `=`."""
    return relative.replace("/", "=") if "/" in relative else f"={relative}"


def pack_files(store: Path) -> dict[str, int]:
    """The packs there are, and their bytes."""
    return _files(store / "packs")


def blob_files(store: Path) -> dict[str, int]:
    """The blobs there are, and their bytes."""
    return _files(store)


def moved_packs(store: Path) -> list[str]:
    """The packs of which something was moved."""
    return [
        name.removesuffix(".json")
        for part in _parts(store / "packs")
        for name in listdir(store / "packs" / part)
        if len(name) == 69 and name.endswith(".json")
    ]


def _parts(folder: Path) -> list[str]:
    return [name for name in listdir(folder) if len(name) == 2]


def _files(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in _parts(folder):
        with storage_errors(folder / part, "read the folder"), os.scandir(folder / part) as entries:
            for entry in entries:
                if len(entry.name) == 64:
                    try:
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue
    return found
