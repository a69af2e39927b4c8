"""A log of records with checksums: appended to by one writer at a time, told anew in snapshots, read by all.

In its folder lie segments, `000001.log`, `000002.log`, …, of one writer each: a writer that was taken over
never appends where another one does. `000003.snapshot` says in one file what the segments before the third
said, and takes their place; it is published as a whole, so that a writer may end at any moment. The newest
snapshot and the segments from its number on are the log.

A record is a line: CRC-32 of the JSON in 8 hex digits, a space, JSON, a newline. A last line without its
newline was torn when its writer ended (or is being written) and does not count. Any other line that does not
fit its checksum is damage, and said with file and byte. The JSON may have `NaN` and `Infinity`, as Python
writes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists, CorruptError, StorageError
from hpcmass.files.publish import fsync_dir, fsync_file, make_dir, publishing, storage_errors

FORMAT = 1
_NAME = re.compile(r"(\d{6,})\.(log|snapshot)")
_HEAD = 9  # bytes of a line before its JSON
_BUFFER_BYTES = 1 << 20


def frame(record: Any) -> bytes:
    """A record as its line."""
    data = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _fits(line: bytes) -> bool:
    return line[:_HEAD] == b"%08x " % zlib.crc32(line[_HEAD:])


def unframe(data: bytes, where: Path, offset: int = 0) -> tuple[list[Any], int]:
    """The records of whole lines, and how many bytes they are; a torn last line is left out.

    Args:
        data: From the beginning of a line on.
        where: The file, for the error.
        offset: Where in it `data` begins.

    Raises:
        CorruptError: A line does not fit its checksum; the data carries `offset`.
    """
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")
    lines.pop()
    crc, head = zlib.crc32, _HEAD
    if not all(line[:head] == b"%08x " % crc(line[head:]) for line in lines):
        place = next(i for i, line in enumerate(lines) if not _fits(line))
        raise _damage(where, offset + sum(len(line) + 1 for line in lines[:place]))
    if end < len(data) and _fits(data[end:-1]):
        raise _damage(where, offset + end)  # whole, but for the newline: that is no torn line
    try:
        return json.loads(b"[" + b",".join([line[head:] for line in lines]) + b"]"), end
    except ValueError as error:
        raise CorruptError(f"has a record that is no JSON ({error})", where=where) from error


def _damage(where: Path, at: int) -> CorruptError:
    return CorruptError(f"the record at byte {at} does not fit its checksum", where=where, offset=at)


class LogReader:
    """Reads a log from its beginning, and then what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segment: int | None = None
        self._offset = 0
        self.tail = 0  # records read behind the newest snapshot
        self.torn: dict[Path, int] = {}  # segments with a torn last line, and how many bytes of them are whole

    def read(self) -> tuple[bool, list[Any]]:
        """The records since the last call, and whether they are the whole log told anew.

        A folder that does not exist is an empty log.

        Raises:
            CorruptError: Something in it is damaged, or missing.
        """
        for _ in range(10):
            try:
                return self._read()
            except FileNotFoundError:
                self._segment = None  # A snapshot took its place meanwhile.
        raise StorageError("the log's files come and go", where=self.folder, transient=True)

    def _read(self) -> tuple[bool, list[Any]]:
        base, segments = _listed(self.folder)
        anew, found = self._segment is None or self._segment < base, []
        if anew:
            self._segment, self._offset, self.tail, self.torn = max(base, 1), 0, 0, {}
            found = _read_snapshot(_path(self.folder, base, "snapshot")) if base else []
        assert self._segment is not None
        first = self._segment
        for place, number in enumerate(n for n in segments if n >= first):
            if number != first + place:
                raise CorruptError(f"segment {first + place} of the log is missing", where=self.folder)
            if number != self._segment:
                self._segment, self._offset = number, 0
            file = _path(self.folder, number, "log")
            with open(file, "rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
            records, used = unframe(data, file, self._offset)
            self.torn.pop(file, None)
            if used < len(data):
                self.torn[file] = self._offset + used
            if self._offset == 0 and records:
                _check_head(records.pop(0), file)
            self._offset += used
            self.tail += len(records)
            found += records
        return anew, found

    @property
    def next_segment(self) -> int:
        """The number that no file has yet."""
        base, segments = _listed(self.folder)
        return max([base - 1, 0, *segments]) + 1


class LogWriter:
    """Appends to a log that has been read to its end; whoever opens one sees to it that nobody else does."""

    def __init__(self, reader: LogReader, *, durable: bool) -> None:
        """Repair the log, which is to cut off torn last lines; nothing else is written.

        Args:
            reader: What read it.
            durable: Whether every append is on disk when it returns. A log of what can be found out again
                need not be.

        Raises:
            StorageError: The file system refused.
        """
        self.folder, self._durable = reader.folder, durable
        for file, whole in reader.torn.items():
            with storage_errors(file, "repair the log"):
                os.truncate(file, whole)
                fsync_file(file)
        reader.torn.clear()
        self._next, self.tail = reader.next_segment, reader.tail
        self._handle: int | None = None
        self._size = 0

    def append(self, *records: Any) -> None:
        """Append records, by one write.

        Raises:
            StorageError: The file system refused; nothing was appended.
        """
        if self._handle is None:
            self._begin()
        assert self._handle is not None
        with storage_errors(self.folder, "append to the log"):
            self._write(self._handle, b"".join(map(frame, records)))
        self.tail += len(records)

    def snapshot(self, records: Iterable[Any]) -> None:
        """Tell the log anew: these records say what all that was appended says.

        Raises:
            StorageError: The file system refused; the log is what it was.
        """
        self.close()
        count = 0
        with (
            publishing(_path(self.folder, self._next, "snapshot")) as temporary,
            open(temporary, "wb", buffering=_BUFFER_BYTES) as handle,
        ):
            handle.write(frame({"format": FORMAT}))
            for record in records:
                handle.write(frame(record))
                count += 1
            handle.write(frame({"end": count}))
        self.tail = 0
        past = [_path(self.folder, *one) for one in _names(self.folder) if one[0] < self._next]
        for file in (*past, *self.folder.glob(".*.snapshot.*.tmp")):  # the latter of writers that were killed
            with contextlib.suppress(OSError):
                file.unlink()

    def close(self) -> None:
        """End the segment; the next append begins another one."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _begin(self) -> None:
        make_dir(self.folder)
        file = _path(self.folder, self._next, "log")
        with storage_errors(file, "begin a segment of the log"):
            try:
                self._handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            except FileExistsError as error:
                raise AlreadyExists("another writer has begun this segment of the log", where=file) from error
            self._next += 1
            self._size = 0
            self._write(self._handle, frame({"format": FORMAT}))
            if self._durable:
                fsync_dir(self.folder)

    def _write(self, handle: int, data: bytes) -> None:
        try:
            end = os.lseek(handle, 0, os.SEEK_END)
            if end < self._size:
                raise StorageError("another writer has taken this log over", where=self.folder)
            if end > self._size:
                os.ftruncate(handle, self._size)  # what an earlier write left, and could not take back
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            if self._durable:
                os.fdatasync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._size)
            raise
        self._size += len(data)


def set_log_aside(folder: Path) -> Path:
    """Rename a damaged log, so that another one can be begun; gives its new name."""
    for number in range(1, 1_000_000):
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
        if aside.exists():
            continue
        with storage_errors(folder, "set the log aside"):
            os.rename(folder, aside)
        return aside
    raise AssertionError


def _path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:06d}.{kind}"


def _names(folder: Path) -> list[tuple[int, str]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [(int(found[1]), found[2]) for name in names if (found := _NAME.fullmatch(name))]


def _listed(folder: Path) -> tuple[int, list[int]]:
    """The newest snapshot's number, 0 where there is none, and those of the segments."""
    names = _names(folder)
    base = max((number for number, kind in names if kind == "snapshot"), default=0)
    return base, sorted(number for number, kind in names if kind == "log")


def _read_snapshot(file: Path) -> list[Any]:
    data = file.read_bytes()
    records, used = unframe(data, file)
    if used < len(data) or len(records) < 2 or records[-1] != {"end": len(records) - 2}:
        raise CorruptError(f"ends at byte {len(data)}, before its end", where=file, offset=len(data))
    _check_head(records[0], file)
    return records[1:-1]


def _check_head(record: Any, file: Path) -> None:
    found = record.get("format") if isinstance(record, dict) else None
    if not isinstance(found, int):
        raise CorruptError("is no log's file: its first record names no format", where=file)
    if found > FORMAT:
        raise CorruptError(f"has format {found}, this hpcmass knows {FORMAT}", where=file)
