"""What an HDF5 file holds, links to other files followed: each data set once, by the name that leads to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from hpcmass.errors import DataError

_MAX_DEPTH = 64


@dataclass
class Contents:
    """The data sets of a file.

    Attributes:
        sets: By field name (`group.set`) the data set.
        paths: By field name the path that leads to it from this file.
        files: By field name the other files that hold values of it.
        broken: By field name what is wrong with a link that leads nowhere.
    """

    sets: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def contents(file: h5py.File, path: Path) -> Contents:
    """All data sets of a file, and of those that it links to; soft links, names of these, are passed over."""
    found = Contents()
    _walk(file, "", found, path, {_identity(file)}, 0)
    return found


def add_named(file: h5py.File, name: str, found: Contents, path: Path) -> None:
    """Look for a data set under a name that is a soft link's, if it is not known yet."""
    at = "/" + name.replace(".", "/")
    if name not in found.sets and name not in found.broken:
        item = file.get(at)
        if isinstance(item, h5py.Dataset):
            _add(item, name, at, found, path)


def _walk(group: Any, at: str, found: Contents, path: Path, seen: set[Any], depth: int) -> None:
    for key in group:
        place = f"{at}/{key}"
        name = place[1:].replace("/", ".")
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.SoftLink):
            continue
        try:
            item = group[key]
        except (KeyError, OSError) as error:
            if isinstance(link, h5py.ExternalLink):
                found.broken[name] = f"leads to {link.path} in {link.filename}, which cannot be opened"
                continue
            raise DataError(f"{place} cannot be opened ({error})", where=path) from error
        if _identity(item) in seen:
            continue
        seen.add(_identity(item))
        if isinstance(item, h5py.Dataset):
            _add(item, name, place, found, path)
        elif isinstance(item, h5py.Group) and depth < _MAX_DEPTH:
            _walk(item, place, found, path, seen, depth + 1)


def _add(item: h5py.Dataset, name: str, place: str, found: Contents, path: Path) -> None:
    found.sets[name], found.paths[name] = item, place
    holds = Path(item.file.filename)
    others = [] if _same(holds, path) else [holds]
    if item.is_virtual:
        for source in item.virtual_sources():
            if source.file_name == "." or "%" in source.file_name:  # a pattern of names that may yet come
                continue
            here = [one for one in (holds.parent / source.file_name, Path(source.file_name)) if one.exists()]
            if not here:
                # HDF5 itself would give its fill value for all that lies there.
                found.broken[name] = f"is made of {source.file_name}, which is missing"
            others += here[:1]
    found.files[name] = others


def _identity(item: Any) -> tuple[int, int]:
    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
