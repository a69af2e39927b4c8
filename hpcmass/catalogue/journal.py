r"""Append-only journals of claims: `journals/HOST-BOOT-USER.jsonl`, by which readers learn what is new.

A line is the CRC-32 of its JSON in eight hexadecimal digits, a space, and the JSON:
`{"model":"m","version":101}`, `{"model":"m","version":101,"evaluation":2}` or
`{"model":"m","alias":"production","number":3}`, each with `"at"`, when it was written. That makes lines that
name the same differ: a reader knows by the last one it read whether a journal is still the one that it read,
and not one restored from a backup that has grown since.
It is appended before the claim is tried, so a claim whose writer dies is known, and a line may name a claim
that never comes. One kernel's processes of one user share a journal: each appends with one `write` on
O_APPEND, which a kernel does whole and in turn; no two machines write to one file. Each line begins with a
newline of its own, which closes off what a killed writer left torn.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.catalogue.blobs import make_durable_dir
from hpcmass.catalogue.claims import listdir, numbered
from hpcmass.files import boot_id, fsync_dir, settle_open, storage_errors


@dataclass(frozen=True)
class Pointer:
    """What a line names: the claim of a version (or of several from it on), an evaluation, an alias's move.

    Attributes:
        model: The model's name, not checked yet.
        number: The claim's number; of an evaluation the version's.
        alias: The alias that moves, or None.
        evaluation: The evaluation's number, or None.
    """

    model: str
    number: int
    alias: str | None = None
    evaluation: int | None = None

    @property
    def ref(self) -> str:
        """The reference that it is about."""
        if self.evaluation is not None:
            return f"{self.model}@{self.number}/{self.evaluation}"
        return f"{self.model}@{self.number if self.alias is None else self.alias}"

    def path(self, root: Path) -> Path:
        """The claim that it is about, in a catalogue; only of names that were checked."""
        folder = root / "models" / self.model
        if self.evaluation is not None:
            return numbered(folder / "evaluations" / f"{self.number:06d}", self.evaluation)
        return numbered(
            folder / "versions" if self.alias is None else folder / "aliases" / self.alias, self.number
        )

    def to_json(self) -> dict[str, Any]:
        """The line's content."""
        if self.evaluation is not None:
            return {"model": self.model, "version": self.number, "evaluation": self.evaluation}
        if self.alias is None:
            return {"model": self.model, "version": self.number}
        return {"model": self.model, "alias": self.alias, "number": self.number}


def journal_path(folder: Path) -> Path:
    """The journal of this kernel and user."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:60]
    return folder / f"{host}-{boot_id()[:8] or 'noboot'}-{os.getuid()}.jsonl"


def append(folder: Path, pointers: Iterable[Pointer]) -> None:
    """Append pointers to this writer's journal and make them durable.

    Raises:
        StorageError: The file system refused.
    """
    make_durable_dir(folder)
    path = journal_path(folder)
    data = b"".join(b"\n" + _line(pointer) + b"\n" for pointer in pointers)
    with storage_errors(path, "append to the journal"):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            new = os.fstat(handle).st_size == 0
            settle_open(handle, folder, 0o644)  # the others of a group read it, whatever this writer's umask
            while os.write(handle, data) < len(data):
                pass  # cut short, and another may have written behind it: say all of it again
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            fsync_dir(folder)


def _line(pointer: Pointer) -> bytes:
    said = {**pointer.to_json(), "at": round(time.time(), 6)}
    text = json.dumps(said, separators=(",", ":")).encode()
    return b"%08x " % zlib.crc32(text) + text


def parse_line(line: bytes) -> Pointer | None:
    """What a line names, or None where it is torn or names nothing."""
    if len(line) < 10 or line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(line[9:]):
        return None
    try:
        raw = json.loads(line[9:])
        model, alias, evaluation = raw["model"], raw.get("alias"), raw.get("evaluation")
        number = raw["version"] if alias is None else raw["number"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    fits = isinstance(model, str) and type(number) is int and 0 < number < 1 << 40
    fits &= evaluation is None or (type(evaluation) is int and 0 < evaluation < 1 << 40 and alias is None)
    return Pointer(model, number, alias, evaluation) if fits and isinstance(alias, (str, type(None))) else None


_TORN_KEPT = 64


@dataclass
class Position:
    """How far a reader has read a journal.

    Attributes:
        offset: Bytes of whole lines read.
        torn: First and last byte of lines that did not fit their checksum. They are looked at again: a page of
            a file that another machine writes may come later than the one after it.
        last: Where the last line begins that fitted its checksum, and that checksum as it is written.
    """

    offset: int = 0
    torn: tuple[tuple[int, int], ...] = ()
    last: tuple[int, str] = (0, "")


def read_new(path: Path, position: Position) -> tuple[list[Pointer], Position] | None:
    """What a journal has since a position, and the position after it; None where it is another than was read.

    Only the file's size and content count, never its times.

    Raises:
        NotFound: There is no such journal.
        StorageError: The file system refused.
    """
    found: list[Pointer] = []
    torn: list[tuple[int, int]] = []
    with storage_errors(path, "read the journal"), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < position.offset:
            return None
        file.seek(position.last[0])
        if file.read(len(position.last[1])) != position.last[1].encode():
            return None
        last = position.last
        for start, end in position.torn:
            file.seek(start)
            last = _scan(file.read(end - start), start, found, torn, last)
        file.seek(position.offset)
        data = file.read() if size > position.offset else b""
    whole = data[: data.rfind(b"\n") + 1]
    last = _scan(whole, position.offset, found, torn, last)
    return found, Position(position.offset + len(whole), tuple(torn[-_TORN_KEPT:]), last)


def _scan(
    data: bytes, at: int, found: list[Pointer], torn: list[tuple[int, int]], last: tuple[int, str]
) -> tuple[int, str]:
    """Take lines in; gives the last one that fits, or the one before them."""
    for line in data.split(b"\n"):
        pointer = parse_line(line)
        if pointer is not None:
            found.append(pointer)
            if at >= last[0]:
                last = at, line[:8].decode()
        elif line:
            torn.append((at, at + len(line)))
        at += len(line) + 1
    return last


def named(folder: Path) -> set[Pointer]:
    """What all journals name."""
    return {
        pointer
        for name in journals(folder)
        for pointer in (read_new(folder / name, Position()) or ([], None))[0]
    }


def journals(folder: Path) -> list[str]:
    """The names of all journals."""
    return [name for name in listdir(folder) if name.endswith(".jsonl")]
