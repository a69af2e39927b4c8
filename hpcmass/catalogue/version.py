"""What a version of a model is on disk: its JSON, checked on the way in and on the way out."""

from __future__ import annotations

import datetime
import getpass
import hashlib
import math
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.errors import CatalogueError, CorruptError, HpcmassError
from hpcmass.files import canonical_json, check_name

FORMAT = 1
PACKED_FORMAT = 2
"""Of a version some of whose files are packed, and of a claim of several versions."""

REMOVED_FORMAT = 3
"""Of what stands in the place of a version that was removed, and of a claim that has one."""

MOST = 1000
"""Versions that one claim holds at most."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class FileEntry:
    """One file of a version.

    Attributes:
        sha256: Digest of its content; names its blob where it is not packed.
        bytes: Its size.
        pack: Digest of the pack that it lies in, or None where it is a blob.
        offset: Where in the pack it begins, in bytes.
    """

    sha256: str
    bytes: int
    pack: str | None = None
    offset: int = 0

    @property
    def content(self) -> tuple[str, int]:
        """Digest and size, wherever it lies."""
        return self.sha256, self.bytes

    def to_json(self) -> dict[str, Any]:
        """The entry as a version's file has it."""
        said: dict[str, Any] = {"sha256": self.sha256, "bytes": self.bytes}
        return said if self.pack is None else {**said, "pack": self.pack, "offset": self.offset}


@dataclass(frozen=True)
class Version:
    """An immutable version of a model, as `models/NAME/versions/000001.json` says it.

    Attributes:
        name: The model's name.
        version: Its number, from 1 without gaps.
        created: Seconds since the epoch.
        by: Who registered it, `user@host`.
        files: Relative POSIX path to digest and size.
        metrics: What was measured of it.
        lineage: Where it came from: run, job, datasets, parent, commit, environment.
        description: One or a few sentences, or empty.
        tags: Words to find it by, and what each says (1 for a mere label).
    """

    name: str
    version: int
    created: float
    by: str
    files: dict[str, FileEntry]
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """The reference that always means this version, `name@3`."""
        return f"{self.name}@{self.version}"

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def content_id(self) -> str:
        """SHA-256 of the files' names and digests: the same for versions with the same files."""
        content = {name: entry.sha256 for name, entry in self.files.items()}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of the version's file."""
        packed = any(entry.pack is not None for entry in self.files.values())
        files = {name: entry.to_json() for name, entry in self.files.items()}
        said = {
            "format": PACKED_FORMAT if packed else FORMAT,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "by": self.by,
            "files": files,
            "metrics": self.metrics,
            "lineage": self.lineage,
            "description": self.description,
        }
        return {**said, "tags": self.tags} if self.tags else said


def parse_version(raw: Any, name: str, number: int, where: Path) -> Version:
    """Check the content of a version's file and give it a type.

    A catalogue may be shared, so nothing in the file is trusted: its name and number must be those of its
    place, its files' names must stay inside a folder, its digests must be digests.

    Raises:
        CorruptError: The content is not that of version `number` of `name`, or has a newer format.
    """

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise CorruptError(f"is not a version of {name!r}: {what}", where=where)

    need(isinstance(raw, dict), "it is no JSON object")
    check_format(raw, where)
    need(raw.get("name") == name and raw.get("version") == number, "its name or number is another one")
    files = raw.get("files")
    need(isinstance(files, dict) and bool(files), "it has no files")
    entries: dict[str, FileEntry] = {}
    for path, entry in files.items():
        try:
            check_file_name(path)
        except HpcmassError as error:
            raise CorruptError(f"is not a version of {name!r}: {error.message}", where=where) from error
        need(isinstance(entry, dict), f"file {path!r} has no entry")
        digest, size = entry.get("sha256"), entry.get("bytes")
        need(isinstance(digest, str) and bool(_SHA256.fullmatch(digest)), f"the digest of {path!r} is none")
        need(type(size) is int and size >= 0, f"the size of {path!r} is none")
        pack, offset = entry.get("pack"), entry.get("offset", 0)
        fits = pack is None or (isinstance(pack, str) and bool(_SHA256.fullmatch(pack)))
        need(fits and type(offset) is int and offset >= 0, f"the place of {path!r} in a pack is none")
        entries[path] = FileEntry(digest, size, pack, offset)
    need(isinstance(raw.get("created"), (int, float)), "it has no time")
    need(isinstance(raw.get("metrics", {}), dict), "its metrics are no object")
    need(isinstance(raw.get("lineage", {}), dict), "its lineage is no object")
    need(isinstance(raw.get("tags", {}), dict), "its tags are no object")
    return Version(
        name=name,
        version=number,
        created=float(raw["created"]),
        by=str(raw.get("by", "")),
        files=entries,
        metrics=raw.get("metrics", {}),
        lineage=raw.get("lineage", {}),
        description=str(raw.get("description", "")),
        tags=raw.get("tags", {}),
    )


def check_format(raw: Mapping[str, Any], where: Path) -> None:
    """Refuse a format that this version of hpcmass does not know.

    Raises:
        CorruptError: The format is no number.
        CatalogueError: The format is newer.
    """
    version = raw.get("format")
    if type(version) is not int or version < 1:
        raise CorruptError("says no format", where=where)
    if version > REMOVED_FORMAT:
        raise CatalogueError(
            f"has format {version}, and this hpcmass knows up to {REMOVED_FORMAT}",
            where=where,
            hint="update hpcmass",
        )


def check_file_name(name: str) -> str:
    """Return the relative POSIX path of a file in a version if it stays inside its folder, or refuse it.

    Raises:
        CatalogueError: It is absolute, or has `..`, an empty or hidden part, a backslash or control character.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(not part or part.startswith(".") or len(part.encode()) > 255 for part in parts) or _CONTROL.search(
        name
    ):
        raise CatalogueError(
            f"the file name {name!r} is not allowed in a version",
            hint="use relative names without '..', without parts that start with '.', without '\\'",
        )
    return name


def check_tags(tags: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Tags as a version keeps them: words, each with a text or a number.

    Args:
        tags: Words with what they say, or words alone (as if each said 1).

    Raises:
        CatalogueError: A word is none, or says something else.
    """
    given = tags if isinstance(tags, Mapping) else dict.fromkeys([tags] if isinstance(tags, str) else tags, 1)
    for word, said in given.items():
        if not isinstance(word, str) or not word.strip() or len(word) > 200 or _CONTROL.search(word):
            raise CatalogueError(f"{word!r} is no tag", hint="a word such as 'demo', or demo=text")
        if not isinstance(said, (str, int, float)) or said != said:
            raise CatalogueError(f"the tag {word!r} says {said!r}", hint="a text or a number")
    return {word: plain(said, f"tags.{word}") for word, said in given.items()}


def check_alias(alias: str) -> str:
    """Return `alias` if an alias may be called so.

    Raises:
        NameNotAllowed: It is no name at all.
        CatalogueError: It would read as a version number, or as `latest`.
    """
    check_name(alias, "alias")
    if alias.isdigit() or alias == "latest":
        raise CatalogueError(
            f"an alias may not be called {alias!r}",
            hint="`name@3` means version 3 and `name@latest` the newest one; take a word such as 'production'",
        )
    return alias


def plain(value: Any, where: str = "value") -> Any:
    """A value as JSON can hold it: numpy scalars and arrays, paths, times; NaN and infinities as strings.

    Raises:
        CatalogueError: Some part cannot be written as JSON.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        )
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy, without importing it
        return plain(value.tolist(), where)
    raise CatalogueError(f"a {type(value).__name__} cannot be written to the catalogue", where=where)


def who() -> str:
    """The calling user and machine, `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry in passwd
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
