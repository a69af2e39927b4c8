"""`append`: a producer whose samples lie in files already."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data.building import abandoned
from hpcmass.data.filters import KEEP_PACKING
from hpcmass.data.manifest import Field, Manifest, read_manifest
from hpcmass.data.scatter import hash_files
from hpcmass.data.sharding.work import source_record
from hpcmass.data.sources import Progress, Source, SourceField, Unread, open_source
from hpcmass.data.sources.base import sizes_of
from hpcmass.data.writing.commit import check_same_fields
from hpcmass.data.writing.staging import completed, sweep
from hpcmass.data.writing.writer import SHARD_BYTES, ShardWriter
from hpcmass.errors import AlreadyExists, DataError
from hpcmass.files import canonical_json, sha256_bytes, storage_errors
from hpcmass.files.publish import temporary_beside

_BLOCK_BYTES = 8 << 20


def append(
    out: str | Path,
    source: Source | Unread | str | Path | Sequence[str | Path],
    *,
    name: str | None = None,
    shards: int | None = None,
    stack: Sequence[str] = (),
    resize: tuple[int, int] | None = None,
    compression: str | None = KEEP_PACKING,
    chunk_samples: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Manifest:
    """Add the samples of a source behind those of a dataset, in their order, and publish a new manifest.

    Whoever has opened the dataset before keeps what it had. Killed, the same call goes on where it was. Of two
    at once both land, in the order in which they are done.

    Args:
        out: The dataset.
        source: What `open_source` takes or gives.
        name: Name of the addition; default: a digest of the source's files.
        shards: Number of new shards; default: one for each 256 MiB.
        stack: Table columns that become the vector field `x`.
        resize: (height, width) that images are scaled to.
        compression: As of `shard`; None: none. Default: that which most of the dataset's samples have.
        chunk_samples: Samples a compressed chunk; default: as the dataset has them, or what suits the fields.
        progress: Called as progress("shard", samples done, samples).
        note: Called with a sentence about what is resumed.

    Returns:
        The newest manifest.

    Raises:
        NotFound: There is no dataset, or no such file.
        AlreadyExists: What has this name, or comes from the very same files, was appended before.
        DataError: The source's fields, types or classes are not those of the dataset; the message names which.
        StorageError: The file system refused; the same call goes on later.
    """
    folder = Path(os.path.abspath(out))
    there = read_manifest(folder).fields
    with contextlib.ExitStack() as closing:
        opened = _open(source, there, stack, resize)
        if hasattr(opened, "close"):
            closing.callback(opened.close)
        if hasattr(opened, "spill"):
            opened = opened.spill(closing.enter_context(_scratch(folder)), progress)
        readable: Source = opened  # type: ignore[assignment]
        codes = _same_fields(folder, there, readable.fields)
        readable = readable.select([one.name for one in there])
        record = source_record(readable, hash_files(readable.files))
        by_path = sha256_bytes(canonical_json(record))[:16]  # the name that earlier versions gave
        name, named = name or _content_name(record), name is not None
        if any(completed(folder, one) is not None for one in ({name} if named else {name, by_path})):
            sweep(folder)
            raise AlreadyExists(
                f"these samples were appended before (as {name!r})",
                where=folder,
                hint="give the addition another name, if they are to be there twice",
                complete=True,
            )
        writer = ShardWriter(
            folder, append=name, shard_samples=_sizes(readable, shards, there), source=record,
            compression=compression, chunk_samples=chunk_samples,
        )  # fmt: skip
        try:
            with writer:
                if writer.resumed_samples and note:
                    note(f"goes on where it was interrupted: {writer.resumed_samples} samples are there")
                _copy(readable, writer, codes, progress)
        except DataError:
            writer.discard()  # the same call would fail again
            raise
    assert writer.manifest is not None
    return writer.manifest


def _content_name(record: dict[str, Any]) -> str:
    """A name by what is in the files, whatever they are called."""
    files = [{key: value for key, value in one.items() if key != "path"} for one in record["files"]]
    return sha256_bytes(canonical_json({**record, "files": files}))[:16]


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder in the dataset for what must be unpacked first; those of killed processes are removed."""
    for old in abandoned(folder / "scratch", "tmp"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = temporary_beside(folder / "scratch")
    with storage_errors(folder, "make a folder"):
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open(
    source: Source | Unread | str | Path | Sequence[str | Path],
    there: Sequence[Field],
    stack: Sequence[str],
    resize: tuple[int, int] | None,
) -> Source | Unread:
    if not isinstance(source, (str, Path, list, tuple)):
        return source  # type: ignore[return-value]
    return open_source(source, fields=[one.name for one in there], stack=stack, resize=resize)


def _same_fields(
    folder: Path, there: Sequence[Field], offered: Sequence[SourceField]
) -> dict[str, np.ndarray[Any, Any]]:
    """Hold a source against a dataset.

    Returns:
        By field with class names: the dataset's number of each of the source's classes.

    Raises:
        DataError: A field is missing, is of another type or shape, or has classes that the dataset has not.
    """
    by_name = {one.name: one for one in offered}
    wanted, codes = [], {}
    for one in there:
        if one.name not in by_name:
            raise DataError(
                f"the source has no field {one.name!r}", where=folder, hint=f"it has {', '.join(by_name)}"
            )
        found = by_name[one.name]
        if found.classes is not None:
            known = one.classes or []
            new = [word for word in found.classes if word not in known]
            if new:
                raise DataError(
                    f"field {one.name}: the dataset has no class {', '.join(map(repr, new[:5]))}",
                    where=folder,
                    hint=f"it has {', '.join(map(repr, known[:10]))}" if known else "its classes have no names",
                    field=one.name,
                )
            codes[one.name] = np.array([known.index(word) for word in found.classes], np.int64)
        wanted.append(replace(one, dtype=found.dtype.name, shape=found.shape, ragged=found.ragged))
    check_same_fields(folder, there, wanted)
    return codes


def _copy(
    source: Source, writer: ShardWriter, codes: dict[str, np.ndarray[Any, Any]], progress: Progress | None
) -> None:
    sizes = sizes_of(source, writer.fields)
    for start, stop in sizes.blocks(writer.samples, _BLOCK_BYTES, source.n):
        block = source.read(start, stop)
        for name, numbers in codes.items():
            block[name] = numbers[block[name]]
        writer.write_batch(block)
        if progress:
            progress("shard", stop, source.n)


def _sizes(source: Source, shards: int | None, fields: Sequence[Field]) -> list[int]:
    return even_sizes(source.n, shards, sizes_of(source, fields).before(source.n))


def even_sizes(samples: int, shards: int | None, data_bytes: int) -> list[int]:
    """Samples of each shard; they differ by one at most.

    Raises:
        DataError: There are fewer samples than shards.
    """
    if samples < 1:
        raise DataError("there are no samples")
    if shards is None:
        shards = max(1, round(data_bytes / SHARD_BYTES))
        shards = min(shards, samples)
    if not 1 <= shards <= samples:
        raise DataError(f"{samples} samples cannot be cut into {shards} shards")
    each, more = divmod(samples, shards)
    return [each + (number < more) for number in range(shards)]
