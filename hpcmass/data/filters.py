"""Compression of shards: its names, how many samples a chunk holds, and what HDF5 is told of it.

A chunk is what HDF5 compresses by itself, so it is also the least that can be decoded: a random order reads a
whole chunk for one sample of it. `docs/data.md` says how the sizes below were found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.data.manifest import Field, Manifest
from hpcmass.errors import DataError

BITSHUFFLE, GZIP, LZF, ZSTD = "bitshuffle-lz4", "gzip", "lzf", "zstd"
KINDS = (BITSHUFFLE, GZIP, LZF, ZSTD)
KEEP_PACKING, NO_PACKING = "keep", "none"

# Bytes of a chunk of several samples, at most. bitshuffle-lz4 loses next to nothing in small chunks (2 to 4 %
# from 64 to 4 KiB), the others find what repeats over longer stretches.
CHUNK_BYTES = {BITSHUFFLE: 4 << 10, GZIP: 32 << 10, LZF: 32 << 10, ZSTD: 32 << 10}
MAX_CHUNK_BYTES = (1 << 32) - 1  # HDF5's own limit
_ONE_BLOCK_BYTES = 64 << 10
_LEVELS = {GZIP: (1, 9, 4), ZSTD: (1, 22, 3)}  # least, most, default
_BITSHUFFLE_ID, _ZSTD_ID, _LZF_ID = 32008, 32015, 32000
_LZ4 = 2  # bitshuffle's number of the compressor


@dataclass(frozen=True)
class Compression:
    """How the chunks of a shard are compressed.

    Attributes:
        kind: One of `KINDS`.
        level: Of `gzip` and `zstd`, or None.
    """

    kind: str
    level: int | None = None

    @property
    def name(self) -> str:
        """As it is written, such as `gzip-4`."""
        return self.kind if self.level is None else f"{self.kind}-{self.level}"

    @property
    def shuffles(self) -> bool:
        """Whether bytes are shuffled by a filter of its own before they are compressed."""
        return self.kind != BITSHUFFLE


@dataclass(frozen=True)
class Packing:
    """What `shard` was asked for: a compression, and samples a chunk (None: as the fields suggest)."""

    compression: Compression
    chunk_samples: int | None = None


def parse_compression(name: str) -> Compression:
    """A compression by its name: `bitshuffle-lz4`, `gzip` or `gzip-1` … `gzip-9`, `lzf`, `zstd` or `zstd-1` ….

    Raises:
        DataError: There is none of this name.
    """
    if name in (BITSHUFFLE, LZF):
        return Compression(name)
    if found := re.fullmatch(r"(gzip|zstd)(?:-(\d{1,2}))?", name):
        least, most, default = _LEVELS[found[1]]
        level = default if found[2] is None else int(found[2])
        if least <= level <= most:
            return Compression(found[1], level)
    raise DataError(
        f"unknown compression {name!r}",
        hint="choose from bitshuffle-lz4, gzip-1 … gzip-9, lzf, zstd-1 … zstd-22",
    )


def check_packing(name: str | None, chunk: int | None) -> Packing | None:
    """What `shard` was asked for, before anything is written.

    Raises:
        DataError: An unknown compression, a chunk without one or below 1, or hdf5plugin is missing.
    """
    if chunk is not None and chunk < 1:
        raise DataError(f"chunks of {chunk} samples are not possible")
    if name is None:
        if chunk is not None:
            raise DataError("only compressed shards have chunks", hint="name a compression, or no chunk")
        return None
    found = parse_compression(name)
    if found.kind in (BITSHUFFLE, ZSTD):
        register()
    return Packing(found, chunk)


def packing_as(manifest: Manifest, name: str | None, chunk: int | None = None) -> Packing | None:
    """How shards are compressed that are made beside those of a dataset, or from them.

    Args:
        manifest: The dataset.
        name: `keep`: as most of its samples are; `none` or None: not; else a compression.
        chunk: Samples a chunk; None: as the dataset has them where its compression is kept, else by their size.

    Raises:
        DataError: As `check_packing`.
    """
    if name in (None, NO_PACKING):
        return check_packing(None, chunk)
    if name != KEEP_PACKING:
        return check_packing(name, chunk)
    samples: dict[str | None, int] = {}
    for shard in manifest.shards:
        of = next((one.compression for one in shard.chunks.values()), None)
        samples[of] = samples.get(of, 0) + shard.samples
    kept = max(samples, key=lambda one: samples[one])
    if kept is None:
        return check_packing(None, chunk)
    return check_packing(kept, chunk or _forced_chunk(manifest, parse_compression(kept)))


def _forced_chunk(manifest: Manifest, compression: Compression) -> int | None:
    """Samples a chunk where all fields have as many, and not as many as their size suggests."""
    forced, usual = set(), True
    for shard in manifest.shards:
        for one in manifest.fields:
            info = shard.chunks.get(one.name)
            if info is not None and info.compression == compression.name:
                rows = shard.rows(one)
                usual = usual and info.samples == chunk_samples(one, rows, compression)
                if info.samples < rows:  # else there is but one, and it says nothing
                    forced.add(info.samples)
    return forced.pop() if not usual and len(forced) == 1 else None


def chunk_samples(one: Field, samples: int, compression: Compression, asked: int | None = None) -> int:
    """Samples a chunk: as many as fit into `CHUNK_BYTES`, one at least, and no more than the shard has.

    Args:
        one: The field.
        samples: Samples of the shard.
        compression: How it is compressed.
        asked: What the user wants instead.

    Raises:
        DataError: A chunk would be larger than HDF5 allows.
    """
    fit = max(1, CHUNK_BYTES[compression.kind] // one.row_bytes)
    if fit > 8:
        fit -= fit % 8  # whole bytes of bits: bitshuffle leaves the rest of a chunk as it is
    many = min(asked or fit, samples)
    if many * one.row_bytes > MAX_CHUNK_BYTES:
        raise DataError(
            f"field {one.name}: a chunk of {many} samples is {many * one.row_bytes} bytes, HDF5's limit "
            f"is {MAX_CHUNK_BYTES}",
            hint="take fewer samples a chunk, or do not compress this data",
        )
    return many


def block_elements(one: Field, chunk: int) -> int:
    """Elements of bitshuffle's blocks within a chunk of so many samples; 0: its own choice of 8 KiB.

    A chunk that is one block can be decoded together with others in a single call.
    """
    elements = chunk * one.row_bytes // one.numpy_dtype.itemsize
    return elements if elements % 8 == 0 and chunk * one.row_bytes <= _ONE_BLOCK_BYTES else 0


def set_filters(properties: Any, one: Field, compression: Compression, chunk: int) -> None:
    """Tell HDF5 of it.

    Args:
        properties: A property list for making a data set (`h5py.h5p`), with its chunks set.
        one: The field.
        compression: How it is compressed.
        chunk: Samples a chunk.

    Raises:
        DataError: hdf5plugin is needed and missing.
    """
    from h5py import h5z

    if compression.kind in (BITSHUFFLE, ZSTD):
        register()
    if compression.shuffles and one.numpy_dtype.itemsize > 1:
        properties.set_shuffle()
    if compression.kind == BITSHUFFLE:
        values = (block_elements(one, chunk), _LZ4)
        properties.set_filter(_BITSHUFFLE_ID, h5z.FLAG_MANDATORY, values)
    elif compression.kind == ZSTD:
        assert compression.level is not None
        properties.set_filter(_ZSTD_ID, h5z.FLAG_MANDATORY, (compression.level,))
    elif compression.kind == GZIP:
        properties.set_deflate(compression.level)
    else:
        properties.set_filter(_LZF_ID, h5z.FLAG_OPTIONAL)


def register() -> None:
    """Give HDF5 the filters that hdf5plugin has.

    Raises:
        DataError: hdf5plugin is missing.
    """
    try:
        import hdf5plugin  # noqa: F401  it registers them when imported
    except ImportError as error:
        raise DataError(
            f"this compression needs the package hdf5plugin ({error})", hint="pip install hdf5plugin"
        ) from error


INDEX_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("mask", "<u4"), ("crc32", "<u4")])
"""A chunk in a shard's own table: first byte in the file, bytes, HDF5's mask of filters left out, CRC-32."""
