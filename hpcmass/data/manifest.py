"""The manifest: what a dataset holds, as numbered JSON files that are published once.

See "Dataset" in docs/ARCHITECTURE.md for the format. The dataset's id is the SHA-256 of the canonical
JSON of everything but `id` and `created`, and is checked whenever a manifest is read.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.ragged import OFFSET_BYTES, OFFSETS
from hpcmass.errors import CorruptError, DataError, NameNotAllowed, NotFound
from hpcmass.files import canonical_json, check_name, publish_json, read_json, sha256_bytes, storage_errors

FORMAT = 3  # of manifests with ragged fields; 2 with compressed shards alone; the others are of 1, as ever
INDEX_ENTRY_BYTES = 20  # a chunk in a shard's table of them
INDEX_GROUP = "_chunks"  # in a shard: no field can have this name
ROLES = ("input", "target", "meta")

_FILE_NAME = re.compile(r"manifest-(\d{6,})\.json")


@dataclass(frozen=True)
class Field:
    """One field of every sample.

    Attributes:
        name: Its name, also the data set's name in each shard.
        dtype: numpy name of its type (`uint8`, `float32` …); little endian on disk.
        shape: Shape of one sample's value; () for a scalar.
        role: `input`, `target` or `meta`.
        stats: Statistics over the split (count, min, max, mean, std, histogram; or class_counts).
        classes: Names of the classes 0, 1, … of a target, or None.
        ragged: Whether a sample has any number of values; `shape` and `row_bytes` are then of one of them, and
            `stats["lengths"]` is of the samples' lengths.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str = "input"
    stats: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    ragged: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's value; of a ragged field of one of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The type on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def offsets(self) -> str:
        """Name of a ragged field's offsets, a data set in each shard."""
        return self.name + OFFSETS

    def to_json(self) -> dict[str, Any]:
        """The field as JSON values; what it has not is not there."""
        entry = {**asdict(self), "shape": list(self.shape)}
        if not self.ragged:
            del entry["ragged"]
        return entry


@dataclass(frozen=True)
class ChunkInfo:
    """One field of one shard in compressed chunks.

    Attributes:
        compression: Its name, such as `bitshuffle-lz4`; see `hpcmass.data.filters`.
        samples: Samples a chunk; the last one may hold fewer.
        bytes: Bytes of all its chunks together, compressed.
        index: Byte offset of the table of its chunks (`filters.INDEX_DTYPE`).
    """

    compression: str
    samples: int
    bytes: int
    index: int


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file, and where in the file the rows of each field begin (byte offsets).

    A field is either in `offsets` (contiguous rows) or in `chunks` (compressed). Of a ragged field the rows are
    the values of all samples, whose number is in `values`; the place of its offsets is in `offsets`, always.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    offsets: dict[str, int]
    chunks: dict[str, ChunkInfo] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)

    def rows(self, one: Field) -> int:
        """Rows that a field has in it: its samples, or the values of a ragged field."""
        return self.values[one.name] if one.ragged else self.samples

    def to_json(self) -> dict[str, Any]:
        """The shard as JSON values; `chunks` and `values` only where there are some."""
        entry = asdict(self)
        for key in ("chunks", "values"):
            if not entry[key]:
                del entry[key]
        return entry


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds; see the module's text."""

    split: str | None
    samples: int
    fields: tuple[Field, ...]
    shards: tuple[ShardInfo, ...]
    cut: dict[str, Any]
    source: dict[str, Any]
    created: float
    id: str = ""

    @property
    def compressed(self) -> bool:
        """Whether some shard has compressed chunks."""
        return any(shard.chunks for shard in self.shards)

    @property
    def format(self) -> int:
        """The least format that says all of it."""
        if any(one.ragged for one in self.fields):
            return FORMAT
        return 2 if self.compressed else 1

    @property
    def data_bytes(self) -> int:
        """Bytes of all samples, not compressed, offsets left out."""
        return sum(shard.rows(one) * one.row_bytes for shard in self.shards for one in self.fields)

    def with_id(self) -> Manifest:
        """The same manifest with the id that its content has."""
        return replace(self, id=self.content_id())

    def content_id(self) -> str:
        """SHA-256 (hex) of the canonical JSON of everything but `id` and `created`."""
        content = {key: value for key, value in self.to_json().items() if key not in ("id", "created")}
        return sha256_bytes(canonical_json(content))

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        fields = []
        for one in self.fields:
            entry = one.to_json()
            if one.classes is None:
                del entry["classes"]
            fields.append(entry)
        return {
            "format": self.format,
            "id": self.id,
            "split": self.split,
            "samples": self.samples,
            "created": self.created,
            "fields": fields,
            "shards": [shard.to_json() for shard in self.shards],
            "cut": self.cut,
            "source": self.source,
        }


def manifest_path(folder: Path, number: int = 1) -> Path:
    """Path of the manifest with this number."""
    return folder / f"manifest-{number:06d}.json"


def newest_manifest(folder: Path) -> Path | None:
    """The manifest with the highest number in a folder, or None when there is none."""
    with storage_errors(folder, "list the folder"):
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
    numbers = {int(match[1]): name for name in names if (match := _FILE_NAME.fullmatch(name))}
    return folder / numbers[max(numbers)] if numbers else None


def manifest_numbers(folder: Path) -> list[int]:
    """Numbers of the manifests in a folder, lowest first."""
    with storage_errors(folder, "list the folder"):
        return sorted(int(match[1]) for name in os.listdir(folder) if (match := _FILE_NAME.fullmatch(name)))


def split_folders(folder: Path) -> list[Path]:
    """The subfolders that are datasets (the splits of `folder`), sorted by name."""
    with storage_errors(folder, "list the folder"):
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and newest_manifest(p))


def write_manifest(folder: Path, manifest: Manifest, number: int = 1) -> Manifest:
    """Publish a manifest, with its id, under a number that is not taken yet.

    Raises:
        AlreadyExists: The number is taken.
        StorageError: The file system refused.
    """
    manifest = manifest.with_id()
    publish_json(manifest_path(folder, number), manifest.to_json())
    return manifest


def read_manifest(folder: Path, id: str | None = None) -> Manifest:
    """Read a manifest of a dataset folder and check that it holds together.

    Args:
        folder: The dataset.
        id: The dataset's id at the time that is meant, or its first 8 digits or more; None: the newest.

    Raises:
        NotFound: There is no such folder, no manifest in it, or none with this id.
        DataError: The manifest has a newer format than this version knows.
        CorruptError: The manifest is damaged; the message names the key.
    """
    if not folder.is_dir():
        raise NotFound("there is no such dataset", where=folder, hint="make one with `hpcmass shard`")
    path = newest_manifest(folder)
    if path is None:
        splits = [p.name for p in split_folders(folder)]
        if splits:
            raise NotFound(
                f"holds the splits {', '.join(splits)}, each a dataset of its own",
                where=folder,
                hint=f"open one of them, such as {folder / splits[0]}",
                splits=splits,
            )
        raise NotFound(
            "is not a dataset (no manifest in it)", where=folder, hint="make one with `hpcmass shard`"
        )
    if id is not None:
        return _with_id(folder, id)
    return parse_manifest(read_json(path), path)


def _with_id(folder: Path, id: str) -> Manifest:
    for number in reversed(manifest_numbers(folder)):
        path = manifest_path(folder, number)
        value = read_json(path)
        found = value.get("id") if isinstance(value, dict) else None
        if isinstance(found, str) and len(id) >= 8 and found.startswith(id):
            return parse_manifest(value, path)
    raise NotFound(
        f"has no manifest with the id {id[:12]}…",
        where=folder,
        hint="the data set was cut anew since: bring the old one back, or begin again with the new one",
        id=id,
    )


def parse_manifest(value: Any, path: Path) -> Manifest:
    """A manifest out of JSON values; `path` is named in errors.

    Raises:
        DataError: The format is newer than this version knows.
        CorruptError: A key is missing or its value impossible, or the id does not fit the content.
    """
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise CorruptError("is not a manifest (no `format`)", where=path)
    if value["format"] > FORMAT:
        raise DataError(
            f"has format {value['format']}, newer than this hpcmass knows ({FORMAT})",
            where=path,
            hint="use a newer hpcmass",
        )
    try:
        manifest = Manifest(
            split=value["split"],
            samples=int(value["samples"]),
            fields=tuple(_parse_field(entry) for entry in value["fields"]),
            shards=tuple(_parse_shard(entry) for entry in value["shards"]),
            cut=dict(value["cut"]),
            source=dict(value["source"]),
            created=float(value["created"]),
            id=str(value["id"]),
        )
    except KeyError as error:
        raise CorruptError(f"the manifest lacks the key {error}", where=path) from error
    except (TypeError, ValueError, AttributeError, NameNotAllowed) as error:
        raise CorruptError(f"the manifest holds an impossible value ({error})", where=path) from error
    _check(manifest, path)
    return manifest


def _parse_field(entry: dict[str, Any]) -> Field:
    if entry["role"] not in ROLES:
        raise ValueError(f"role {entry['role']!r}")
    classes = entry.get("classes")
    parsed = Field(
        name=check_name(entry["name"], "field"),
        dtype=str(np.dtype(entry["dtype"])),
        shape=tuple(int(length) for length in entry["shape"]),
        role=entry["role"],
        stats=dict(entry["stats"]),
        classes=None if classes is None else [str(name) for name in classes],
        ragged=bool(entry.get("ragged", False)),
    )
    if np.dtype(parsed.dtype).kind not in "biuf" or min(parsed.shape, default=1) < 1:
        raise ValueError(f"field {parsed.name}: {parsed.dtype} {parsed.shape}")
    return parsed


def _parse_shard(entry: dict[str, Any]) -> ShardInfo:
    return ShardInfo(
        file=check_name(entry["file"], "shard"),
        samples=int(entry["samples"]),
        bytes=int(entry["bytes"]),
        sha256=str(entry["sha256"]),
        offsets={str(name): int(offset) for name, offset in entry["offsets"].items()},
        chunks={str(name): _parse_chunks(value) for name, value in entry.get("chunks", {}).items()},
        values={str(name): int(many) for name, many in entry.get("values", {}).items()},
    )


def _parse_chunks(entry: dict[str, Any]) -> ChunkInfo:
    return ChunkInfo(str(entry["compression"]), int(entry["samples"]), int(entry["bytes"]), int(entry["index"]))


def _check(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest whose parts contradict each other, before anything is read at its offsets."""
    if sum(shard.samples for shard in manifest.shards) != manifest.samples:
        raise CorruptError("the shards' samples do not add up to `samples`", where=path)
    names = {one.name for one in manifest.fields}
    for shard in manifest.shards:
        for one in manifest.fields:
            rows = shard.samples
            if one.ragged:
                rows = shard.values.get(one.name, -1)
                if rows < 0 or one.offsets in names:
                    raise CorruptError(f"{shard.file}: no place of field {one.name}", where=path)
                _check_place(shard, one.offsets, (shard.samples + 1) * OFFSET_BYTES, path)
            if one.name in shard.chunks and one.name not in shard.offsets:
                _check_chunks(shard, one.name, rows, path)
            else:
                _check_place(shard, one.name, rows * one.row_bytes, path)
    if manifest.id != manifest.content_id():
        raise CorruptError(
            "the dataset id does not fit the manifest's content: it was changed by hand or damaged",
            where=path,
            expected=manifest.id,
            found=manifest.content_id(),
        )


def _check_place(shard: ShardInfo, name: str, size: int, path: Path) -> None:
    offset = shard.offsets.get(name)
    if shard.samples < 1 or offset is None or offset < 0:
        raise CorruptError(f"{shard.file}: no place of field {name}", where=path)
    if offset + size > shard.bytes:
        raise CorruptError(f"{shard.file}: field {name} reaches past the file's end", where=path)


def _check_chunks(shard: ShardInfo, name: str, rows: int, path: Path) -> None:
    info = shard.chunks[name]
    if shard.samples < 1 or info.samples < 1 or info.index < 0:
        raise CorruptError(f"{shard.file}: no place of field {name}", where=path)
    if info.index + -(-rows // info.samples) * INDEX_ENTRY_BYTES > shard.bytes:
        raise CorruptError(f"{shard.file}: the chunks of field {name} reach past the file's end", where=path)


def check_shards(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Compare the shards' sizes with the manifest.

    Returns:
        (file, what is wrong) of each shard that is missing or has another size; empty when all fit.
    """
    problems = []
    for shard in manifest.shards:
        try:
            found = os.stat(folder / shard.file).st_size
        except FileNotFoundError:
            problems.append((shard.file, "is missing"))
            continue
        except OSError as error:
            problems.append((shard.file, f"cannot be read ({error.strerror})"))
            continue
        if found != shard.bytes:
            word = "is truncated" if found < shard.bytes else "is too long"
            problems.append((shard.file, f"{word}: expected {shard.bytes} bytes, found {found}"))
    return problems


parse_field, parse_shard = _parse_field, _parse_shard

Arrays = dict[str, npt.NDArray[Any]]
