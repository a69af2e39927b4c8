"""Plain arrays in files: `.npy`, `.npz`, and the scratch files that other sources are spilled into."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.ragged import OFFSETS, Ids, Ragged, check_given
from hpcmass.data.sources.base import (
    Block,
    Progress,
    Source,
    SourceField,
    check_dtype,
    check_lengths,
    pick,
)
from hpcmass.data.sources.words import Words, as_text, find_words, is_text, numbers
from hpcmass.errors import CorruptError, DataError, NotFound
from hpcmass.files import check_name, storage_errors

_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class ArrayFile:
    """An array lying uncompressed in a file.

    Attributes:
        path: The file.
        offset: Byte at which the values begin.
        dtype: Their type, as stored (byte order included).
        shape: Shape with the sample axis first.
        fortran: Whether the first axis varies fastest.
        codes: If given, stored integers are numbers into this table of what is to be read instead.
        words: Of an array of text its words in order: what is read is their numbers.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False
    codes: tuple[int, ...] | None = None
    words: Words | None = None

    def check_size(self) -> None:
        """Raise CorruptError if the file ends before the array does."""
        expected = self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        found = os.stat(self.path).st_size
        if found < expected:
            raise CorruptError(f"is truncated: expected {expected} bytes, found {found}", where=self.path)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start … stop as a new C-contiguous array in native byte order."""
        if self.words is not None:
            return numbers(self.texts(start, stop), self.words, self.path.name, self.path)
        values = self._stored(start, stop)
        if self.codes is not None:
            values = np.asarray(self.codes, np.int64)[values]
        return values.astype(self.dtype.newbyteorder("="), copy=False)

    def texts(self, start: int, stop: int) -> npt.NDArray[np.str_]:
        """Rows start … stop of an array of text."""
        return as_text(self._stored(start, stop), self.path.name, self.path)

    def _stored(self, start: int, stop: int) -> npt.NDArray[Any]:
        if self.fortran:
            # Mapped for this block only: the pages are given back with the mapping.
            self.check_size()
            mapped = np.memmap(self.path, self.dtype, "r", offset=self.offset, shape=self.shape, order="F")
            return np.ascontiguousarray(mapped[start:stop])
        values = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row_bytes = values.nbytes // max(1, stop - start)
        _read_fully(self.path, values, self.offset + start * row_bytes)
        return values


def _read_fully(path: Path, values: npt.NDArray[Any], offset: int) -> None:
    view = values.reshape(-1).view(np.uint8).data
    with storage_errors(path, "read the file"), open(path, "rb", buffering=0) as file:
        while view:
            got = os.preadv(file.fileno(), [view], offset)
            if not got:
                raise CorruptError(f"is truncated: {len(view)} bytes are missing", where=path)
            view, offset = view[got:], offset + got


@dataclass(frozen=True)
class ArraySource:
    """Samples in plain arrays, one a field."""

    kind: str
    fields: tuple[SourceField, ...]
    arrays: Mapping[str, ArrayFile]
    files: tuple[Path, ...]
    n: int
    begins: Mapping[str, Ids] = field(default_factory=dict)

    def offsets(self, name: str) -> Ids:
        """Offsets (n + 1,) of a ragged field."""
        return self.begins[name]

    def select(self, names: Sequence[str]) -> ArraySource:
        """The same with these fields only."""
        return replace(self, fields=pick(self.fields, names, self.files[0]))

    def read(self, start: int, stop: int) -> Block:
        """Samples start … stop."""
        return {one.name: self._read(one, start, stop) for one in self.fields}

    def _read(self, one: SourceField, start: int, stop: int) -> Any:
        if not one.ragged:
            return self.arrays[one.name].rows(start, stop)
        offsets = self.begins[one.name][start : stop + 1]
        return Ragged(self.arrays[one.name].rows(int(offsets[0]), int(offsets[-1])), offsets - offsets[0])

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, for other processes; `source_from_json` takes it back."""
        arrays = {
            name: [str(one.path), one.offset, one.dtype.str, list(one.shape), one.fortran, one.codes]
            for name, one in self.arrays.items()
        }
        classes = {one.name: one.classes for one in self.fields if one.classes is not None}
        return {
            "kind": self.kind,
            "names": [one.name for one in self.fields],
            "arrays": arrays,
            "files": [str(path) for path in self.files],
            "classes": classes,
        }


def source_from_json(value: Mapping[str, Any]) -> ArraySource:
    """What `ArraySource.to_json` was called on.

    Raises:
        CorruptError: A file is missing or ends before its array.
    """
    try:
        arrays = {
            name: ArrayFile(
                Path(path),
                offset,
                np.dtype(dtype),
                tuple(shape),
                fortran,
                None if codes is None else tuple(codes),
            )
            for name, (path, offset, dtype, shape, fortran, codes) in value["arrays"].items()
        }
        classes = {name: tuple(words) for name, words in value["classes"].items()}
        files = [Path(path) for path in value["files"]]
        return array_source(value["kind"], arrays, files, value["names"], classes)
    except (KeyError, TypeError, ValueError, NotFound) as error:
        raise CorruptError(f"these are not arrays as they were written down ({error})") from error


def array_source(
    kind: str,
    arrays: Mapping[str, ArrayFile],
    files: Sequence[Path],
    names: Sequence[str] | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> ArraySource:
    """A source over arrays of equal length, each checked to be numbers and complete.

    Raises:
        DataError: An array is no array of numbers, or the lengths differ.
        CorruptError: A file ends before its array does.
    """
    begins = _offsets(arrays)
    known = [
        SourceField(name, array.dtype, array.shape[1:], ragged=name in begins)
        for name, array in arrays.items()
        if name.removesuffix(OFFSETS) not in begins or name in begins
    ]
    if names is not None:
        names = [name for name in names if name.removesuffix(OFFSETS) not in begins or name in begins]
    chosen = pick(known, [one.name for one in known] if names is None else names, files[0])
    arrays, classes = dict(arrays), dict(classes or {})
    fields = []
    for one in chosen:
        array = arrays[one.name]
        if not array.shape:
            raise DataError(f"array {one.name} is a single value, without samples", where=array.path)
        if min(array.shape[1:], default=1) < 1:
            raise DataError(f"array {one.name} has an axis of length 0 {array.shape}", where=array.path)
        text = is_text(array.dtype) and len(array.shape) == 1 and one.name not in begins
        dtype = np.dtype(np.int64) if text else check_dtype(array.dtype, one.name, array.path)
        with storage_errors(array.path, "read the file"):
            array.check_size()
        if text:
            if one.name not in classes:
                width = array.dtype.itemsize
                classes[one.name] = find_words(array.texts, array.shape[0], width, one.name, array.path)
            arrays[one.name] = replace(array, words=tuple(classes[one.name]))
        if array.codes is not None:
            dtype = np.dtype(np.int64)
        of = classes.get(one.name)
        fields.append(SourceField(one.name, dtype, array.shape[1:], of, one.ragged))
    lengths = {
        one.name: len(begins[one.name]) - 1 if one.ragged else arrays[one.name].shape[0] for one in fields
    }
    n = check_lengths(lengths, files[0])
    return ArraySource(kind, tuple(fields), dict(arrays), tuple(files), n, begins)


def _offsets(arrays: Mapping[str, ArrayFile]) -> dict[str, Ids]:
    """By ragged field its offsets: an array `NAME.offsets` beside `NAME` makes that ragged.

    Raises:
        DataError: They are no offsets of so many values.
    """
    found = {}
    for name, array in arrays.items():
        said = arrays.get(name + OFFSETS)
        if said is not None and array.shape:
            offsets = said.rows(0, said.shape[0]) if said.shape and said.dtype.kind in "iu" else np.empty(0)
            found[name] = check_given(name, offsets, array.shape[0], said.path)
    return found


def read_npy_header(file: IO[bytes], where: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype at the head of `.npy` bytes; leaves `file` at the first value.

    Raises:
        CorruptError: These are not the bytes of an `.npy` file.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise CorruptError(f"is not a valid .npy array ({error})", where=where) from error
    raise DataError(f"has .npy format {version}, made for records, not for numbers", where=where)


def npy_array(path: Path) -> ArrayFile:
    """The array of an `.npy` file."""
    with storage_errors(path, "read the file"), open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file, path)
        return ArrayFile(path, file.tell(), dtype, shape, fortran and len(shape) > 1)


def open_npy(
    paths: Sequence[str | Path], names: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> ArraySource:
    """Samples from `.npy` files, each `path` (the field is called as the file) or `field=path`."""
    arrays = {}
    for given in paths:
        name, equals, path = str(given).partition("=")
        if not equals or Path(given).exists():
            name, path = Path(given).stem, str(given)
        if name in arrays:
            raise DataError(f"two files are given for field {name}", where=path, hint="write NAME=PATH")
        arrays[check_name(name, "field")] = npy_array(Path(path))
    names = None if names is None else _beside(names, arrays, optional)
    return array_source("npy", arrays, [array.path for array in arrays.values()], names)


@dataclass(frozen=True)
class NpzUnread:
    """An `.npz` file with compressed members, which are unpacked into a scratch folder first."""

    path: Path
    names: tuple[str, ...] | None

    def spill(self, scratch: Path, progress: Progress | None) -> Source:
        """Unpack the compressed members that are wanted, block by block."""
        with _open_zip(self.path) as archive:
            members = _members(archive, self.names, self.path)
            total = sum(member.file_size for member in members.values())
            arrays: dict[str, ArrayFile] = {}
            done = 0
            for name, member in members.items():
                target = scratch / f"{len(arrays)}.npy"
                with archive.open(member) as packed, storage_errors(target, "write the file"):
                    # The header is looked at first, so that objects are refused before any copying.
                    shape, fortran, dtype = read_npy_header(packed, f"{self.path}:{name}")
                    if not is_text(dtype):
                        check_dtype(dtype, name, self.path)
                    with open(target, "xb", buffering=0) as file:
                        while block := packed.read(_COPY_BYTES):
                            rest = memoryview(block)
                            while rest:
                                rest = rest[file.write(rest) :]  # a nearly full disk takes a part only
                            done += len(block)
                            if progress:
                                progress("read", min(done, total), total)
                arrays[name] = ArrayFile(target, 0, dtype, shape, fortran and len(shape) > 1)
        return replace(array_source("npz", arrays, [self.path], self.names), files=(self.path,))


def open_npz(
    path: Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> ArraySource | NpzUnread:
    """Samples from the arrays of an `.npz` file; they are the fields.

    Uncompressed members (`np.savez`) are read where they lie; compressed ones must be spilled.
    """
    with _open_zip(path) as archive:
        names = (
            None if names is None else _beside(names, _members(archive, None, path, checked=False), optional)
        )
        members = _members(archive, names, path)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            return NpzUnread(path, None if names is None else tuple(names))
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as stored:
                shape, fortran, dtype = read_npy_header(stored, f"{path}:{name}")
                header_bytes = stored.tell()
            offset = _member_offset(path, member) + header_bytes
            arrays[name] = ArrayFile(path, offset, dtype, shape, fortran and len(shape) > 1)
    return array_source("npz", arrays, [path], names)


class _open_zip:
    """`zipfile.ZipFile` whose errors, at opening and while reading, name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> zipfile.ZipFile:
        try:
            with storage_errors(self.path, "read the file"):
                self.archive = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise CorruptError(f"is not a valid .npz file ({error})", where=self.path) from error
        return self.archive

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.archive.close()
        if isinstance(error, (zipfile.BadZipFile, zlib.error, EOFError)):
            raise CorruptError(f"is damaged ({error})", where=self.path) from error
        if isinstance(error, (NotImplementedError, RuntimeError)):
            raise DataError(f"cannot be unpacked ({error})", where=self.path) from error


def _beside(names: Sequence[str], there: Iterable[str], optional: Sequence[str]) -> list[str]:
    """The names, and those that are there and optional (in lower case)."""
    return [*names, *(name for name in there if name.lower() in optional and name not in names)]


def _members(
    archive: zipfile.ZipFile, names: Sequence[str] | None, path: Path, *, checked: bool = True
) -> dict[str, zipfile.ZipInfo]:
    members = {
        info.filename.removesuffix(".npy"): info
        for info in archive.infolist()
        if info.filename.endswith(".npy")
    }
    if not members:
        raise DataError("holds no arrays", where=path)
    for name in members if names is None else names:
        if name not in members:
            raise DataError(f"has no field {name!r}", where=path, hint=f"there are: {', '.join(members)}")
        if checked:
            check_name(name, "field")
    if names is None:
        return members
    wanted = [one for name in names for one in (name, name + OFFSETS) if one in members]
    return {name: members[name] for name in dict.fromkeys(wanted)}


def _member_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header of 30 bytes, name and extra field."""
    with storage_errors(path, "read the file"), open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
    return (
        member.header_offset
        + 30
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )
