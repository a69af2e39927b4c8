"""From a plain shard, all of whose rows are written, to the finished one. Light, as workers import it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcmass.data.filters import Packing
from hpcmass.data.manifest import ChunkInfo, Field, ShardInfo
from hpcmass.data.scatter import finish_shard, make_durable
from hpcmass.files import storage_errors


def finish_part(
    plain: Path,
    whole: Path,
    fields: Sequence[Field],
    samples: int,
    offsets: Mapping[str, int],
    packing: Packing | None,
    values: Mapping[str, int],
) -> ShardInfo:
    """Make the finished shard of a part, durably.

    Done again after an interruption, it makes the same one. Of a compressed shard the plain one stays.

    Args:
        plain: The shard that the part's rows lie in.
        whole: The finished one.
        fields: Its fields.
        samples: Number of its samples.
        offsets: Byte offset of each field's rows in the plain one.
        packing: How it is to be compressed; None: it is the plain one under another name.
        values: Of each ragged field the number of its values.

    Returns:
        Its entry in the manifest.
    """
    chunks: dict[str, ChunkInfo] = {}
    places = dict(offsets)
    if packing is not None:
        from hpcmass.data.compress import compress_shard  # not every worker needs HDF5

        chunks, places = compress_shard(plain, fields, samples, offsets, packing, whole, values)
    elif plain.exists():
        make_durable([plain])
        with storage_errors(whole, "name the shard"):
            os.rename(plain, whole)
    size, digest = finish_shard(whole)
    return ShardInfo(whole.name, samples, size, digest, places, chunks, dict(values))


def finish_parts(parts: Sequence[tuple[Any, ...]]) -> list[ShardInfo]:
    """`finish_part` of several."""
    return [finish_part(*part) for part in parts]


def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Tasks of several kinds in one queue."""
    return function(*arguments)
