"""HDF5 files: every data set of numbers whose first axis is the samples; chunked and compressed too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcmass.data.filters import register
from hpcmass.data.ragged import OFFSETS, Ids, Ragged, check_given
from hpcmass.data.sources.base import Block, SourceField, check_dtype, check_lengths, pick
from hpcmass.data.sources.hdf5_links import add_named, contents
from hpcmass.data.sources.words import Texts, as_text, find_words, numbers
from hpcmass.errors import CorruptError, DataError
from hpcmass.files import check_name, storage_errors

# One open file a process: (path, process id) -> file. A handle must not be used across a fork.
_LONGEST_WORD = 1000
_open_files: dict[tuple[Path, int], Any] = {}


@dataclass(frozen=True)
class Hdf5Source:
    """Samples in the data sets of an HDF5 file, and of those it links to; a set `a/b` is the field `a.b`."""

    path: Path
    fields: tuple[SourceField, ...]
    sets: Mapping[str, str]
    n: int
    begins: Mapping[str, Ids]
    others: tuple[Path, ...] = ()
    kind: str = "hdf5"

    def offsets(self, name: str) -> Ids:
        """Offsets (n + 1,) of a ragged field."""
        return self.begins[name]

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that it links to."""
        return (self.path, *self.others)

    def select(self, names: Sequence[str]) -> Hdf5Source:
        """The same with these fields only."""
        return replace(self, fields=pick(self.fields, names, self.path))

    def close(self) -> None:
        """Close the file in this process, in which its user may want to write it again."""
        if (file := _open_files.pop((self.path, os.getpid()), None)) is not None:
            file.close()

    def read(self, start: int, stop: int) -> Block:
        """Samples start … stop."""
        file = _opened(self.path)
        blocks: Block = {}
        for one in self.fields:
            if one.ragged:
                offsets = self.begins[one.name][start : stop + 1]
                rows = _rows(file[self.sets[one.name]], int(offsets[0]), int(offsets[-1]), self.path)
                blocks[one.name] = Ragged(np.ascontiguousarray(rows, dtype=one.dtype), offsets - offsets[0])
            elif one.classes is not None:
                texts = _texts(file[self.sets[one.name]], start, stop, self.path)
                blocks[one.name] = numbers(texts, one.classes, one.name, self.path)
            else:
                rows = _rows(file[self.sets[one.name]], start, stop, self.path)
                blocks[one.name] = np.ascontiguousarray(rows, dtype=one.dtype)
        return blocks


def open_hdf5(path: Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()) -> Hdf5Source:
    """Samples from an HDF5 file.

    Args:
        path: The file.
        names: Fields to take (`group.set` or `group/set`); None: every data set.
        optional: Names (in lower case) that are taken beside `names` where they are found; not the coordinates
            of an axis (a NetCDF file's `y`).

    Raises:
        DataError: The sets differ in their first axis, one is not made of numbers, or its file is missing.
        CorruptError: This is not an HDF5 file.
    """
    file = _opened(path)
    linked = contents(file, path)
    for name in names or ():
        add_named(file, name.strip("/").replace("/", "."), linked, path)
    found = linked.sets
    begins = _offsets(found, path)
    for name in begins:
        del found[name + OFFSETS]
    wanted = (
        [*found, *(one for one in linked.broken if one not in found)]
        if names is None
        else [name.strip("/").replace("/", ".") for name in names]
    )
    if names is not None:
        beside = (name for name in found if name.lower() in optional and name not in wanted)
        wanted += [name for name in beside if not h5py.h5ds.is_scale(found[name].id)]
    fields, sets = [], {}
    for name in wanted:
        if name in linked.broken:
            raise DataError(
                f"data set {name} {linked.broken[name]}", where=path,
                hint="bring that file beside this one; or name the fields to take (--input)",
                field=name,
            )  # fmt: skip
        if name not in found:
            raise DataError(f"has no data set {name!r}", where=path, hint=f"there are: {', '.join(found)}")
        item = found[name]
        if not item.shape:
            if names is None:
                continue  # a single value beside the samples, such as a version
            raise DataError(f"data set {item.name} is a single value, without samples", where=path)
        if min(item.shape[1:], default=1) < 1:
            raise DataError(f"data set {item.name} has an axis of length 0 {item.shape}", where=path)
        if item.external:  # any file of the user's, by its path: a set made by others would publish it
            raise DataError(
                f"data set {item.name} has its values outside of HDF5, in {item.external[0][0]}",
                where=path, hint="copy it into a file that holds them (h5repack); or name the fields to take",
                field=name,
            )  # fmt: skip
        if h5py.check_string_dtype(item.dtype) is not None and len(item.shape) == 1:
            words = _words(item, name, path)
            fields.append(SourceField(check_name(name, "field"), np.dtype(np.int64), (), words))
            sets[name] = linked.paths[name]
            continue
        if h5py.check_vlen_dtype(item.dtype) is not None:
            raise DataError(
                f"data set {item.name} has a type of variable length",
                where=path,
                hint=f"write all values in one data set, and where each sample's begin as {name}{OFFSETS}",
            )
        dtype = check_dtype(item.dtype, item.name, path)
        _check_filters(item, path)
        shape = tuple(item.shape[1:])
        fields.append(SourceField(check_name(name, "field"), dtype, shape, ragged=name in begins))
        sets[name] = linked.paths[name]
    lengths = {
        one.name: len(begins[one.name]) - 1 if one.ragged else int(found[one.name].shape[0]) for one in fields
    }
    n = check_lengths(lengths, path)
    others = {file for one in fields for file in linked.files[one.name]}
    return Hdf5Source(path, tuple(fields), sets, n, begins, tuple(sorted(others)))


def _offsets(found: Mapping[str, Any], path: Path) -> dict[str, Ids]:
    """By ragged field its offsets: a data set `NAME.offsets` beside `NAME` makes that ragged."""
    begins = {}
    for name, item in found.items():
        said = found.get(name + OFFSETS)
        if said is not None and item.shape:
            _check_filters(said, path)
            offsets = _rows(said, 0, said.shape[0], path) if said.shape else np.empty(0)
            begins[name] = check_given(name, np.asarray(offsets), int(item.shape[0]), path)
    return begins


def _words(item: h5py.Dataset, name: str, path: Path) -> tuple[str, ...]:
    """The words of a data set of text."""
    _check_filters(item, path)

    def read(start: int, stop: int) -> Texts:
        return _texts(item, start, stop, path)

    return find_words(read, int(item.shape[0]), max(64, item.dtype.itemsize), name, path)


def _texts(item: h5py.Dataset, start: int, stop: int, path: Path) -> Texts:
    """Texts start … stop of a data set of them."""
    rows = _rows(item, start, stop, path)
    if rows.dtype.kind == "O":  # of variable length: bytes
        longest = max(map(len, rows), default=0)
        if longest > _LONGEST_WORD:  # a block of them, each with as much room, would not fit into memory
            raise DataError(
                f"data set {item.name} holds texts of up to {longest} bytes, which are no names of classes",
                where=path, hint="leave it out by naming the fields to take (--input)",
            )  # fmt: skip
        rows = np.array([one.encode() if isinstance(one, str) else bytes(one) for one in rows], np.bytes_)
    return as_text(np.ascontiguousarray(rows), str(item.name), path)


def _rows(item: h5py.Dataset, start: int, stop: int, path: Path) -> Any:
    try:
        return item[start:stop]
    except OSError as error:
        raise CorruptError(f"data set {item.name} cannot be read ({error})", where=path) from error


def _check_filters(item: h5py.Dataset, path: Path) -> None:
    properties = item.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        identity, _, _, name = properties.get_filter(number)
        if not h5py.h5z.filter_avail(identity):
            known = name.decode(errors="replace") or "without a name"
            raise DataError(
                f"data set {item.name} went through the HDF5 filter {identity} ({known}), which is not here",
                where=path,
                hint="pip install hdf5plugin, or the plugin that has it",
            )


def _opened(path: Path) -> Any:
    key = (path, os.getpid())
    if key not in _open_files:
        for stale in [one for one in _open_files if one[1] == key[1]]:
            _open_files.pop(stale).close()
        with contextlib.suppress(DataError):  # what is missing is told by `_check_filters`
            register()
        with storage_errors(path, "read the file"):
            open(path, "rb").close()  # a plain error for a missing or unreadable file
        try:
            _open_files[key] = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise CorruptError(f"is not a readable HDF5 file ({error})", where=path) from error
    return _open_files[key]
