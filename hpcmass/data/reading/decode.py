"""Compressed chunks into plain bytes, on any thread, without the interpreter's lock.

bitshuffle-lz4 and zstd are decoded by the libraries that hdf5plugin brings along, called through ctypes, which
drops the lock; gzip by zlib, which does so too. What a chunk says of itself is checked before it reaches C.
(Measured: an AVX2 build of bitshuffle is no quicker than hdf5plugin's SSE2 one, LZ4 being half of the time.)
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.filters import BITSHUFFLE, GZIP, ZSTD, Compression, set_filters
from hpcmass.data.manifest import Field

Bytes = npt.NDArray[np.uint8]

_HEAD = 12  # of a chunk of bitshuffle: bytes when decoded (8), bytes of a block (4), big endian
_BLOCK_HEAD = 4  # of each of its blocks: compressed bytes
_ELEMENTS = 8  # bitshuffle takes so many together

_numbers = itertools.count()


class BadChunk(Exception):
    """Chunk `number` of those given cannot be decoded."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


class Decoder:
    """Decodes chunks that are all of one size.

    Args:
        chunk_bytes: Bytes of a decoded chunk.
        itemsize: Bytes of an element.
    """

    def __init__(self, chunk_bytes: int, itemsize: int) -> None:
        self.chunk_bytes, self.itemsize = chunk_bytes, itemsize

    def decode(self, raw: Sequence[memoryview], masks: Sequence[int], out: Bytes) -> None:
        """Decode chunks into the rows of `out`, shape (len(raw), chunk_bytes), C-contiguous.

        Args:
            raw: The chunks as they lie in the file.
            masks: HDF5's filter masks: bit i is set where filter i was left out.
            out: Where they go.

        Raises:
            BadChunk: One is damaged.
        """
        raise NotImplementedError


class BitshuffleDecoder(Decoder):
    """bitshuffle-lz4; chunks that are one block each are decoded together in one call."""

    def __init__(self, library: Any, chunk_bytes: int, itemsize: int) -> None:
        super().__init__(chunk_bytes, itemsize)
        self._call = library.bshuf_decompress_lz4
        self._elements = chunk_bytes // itemsize
        # Fewer elements than bitshuffle takes together are in no block.
        self._least = _HEAD + (_BLOCK_HEAD if self._elements >= _ELEMENTS else 0)

    def decode(self, raw: Sequence[memoryview], masks: Sequence[int], out: Bytes) -> None:
        """See `Decoder`."""
        for number, (one, mask) in enumerate(zip(raw, masks, strict=True)):
            if mask or len(one) < self._least:
                raise BadChunk(number, f"has {len(one)} bytes and the filter mask {mask}")
        heads = np.frombuffer(b"".join([one[:_HEAD] for one in raw]), ">u4").reshape(-1, 3)
        high, low = divmod(self.chunk_bytes, 1 << 32)
        wrong = np.flatnonzero((heads[:, 0] != high) | (heads[:, 1] != low))
        if len(wrong):
            raise BadChunk(int(wrong[0]), f"does not say that it holds {self.chunk_bytes} bytes")
        if self._elements % _ELEMENTS == 0 and (heads[:, 2] == self.chunk_bytes).all():
            self._together(raw, out)
            return
        for number, one in enumerate(raw):
            self._alone(number, one, int(heads[number, 2]), out[number])

    def _together(self, raw: Sequence[memoryview], out: Bytes) -> None:
        said = np.frombuffer(b"".join([one[_HEAD : _HEAD + _BLOCK_HEAD] for one in raw]), ">u4")
        sizes = np.array([len(one) for one in raw], np.int64) - (_HEAD + _BLOCK_HEAD)
        wrong = np.flatnonzero(said != sizes)
        if len(wrong):
            raise BadChunk(int(wrong[0]), "is longer or shorter than its block")
        joined = b"".join([one[_HEAD:] for one in raw])
        elements = self._elements
        used = self._call(joined, out.ctypes.data, elements * len(raw), self.itemsize, elements)
        if used != len(joined):
            # One of them is damaged: which one is found by decoding each by itself.
            for number, one in enumerate(raw):
                self._alone(number, one, self.chunk_bytes, out[number])
            raise BadChunk(0, f"cannot be decoded ({used})")

    def _alone(self, number: int, raw: memoryview, block_bytes: int, out: Bytes) -> None:
        block, rest = divmod(block_bytes, self.itemsize)
        if rest or not block or block % _ELEMENTS:
            raise BadChunk(number, f"says that its blocks have {block_bytes} bytes")
        full, tail = divmod(self._elements, block)
        at = _HEAD
        for _ in range(full + (tail >= _ELEMENTS)):
            if at + _BLOCK_HEAD > len(raw):
                raise BadChunk(number, "ends within a block")
            at += _BLOCK_HEAD + struct.unpack_from(">I", raw, at)[0]
        at += tail % _ELEMENTS * self.itemsize
        if at != len(raw):
            raise BadChunk(number, f"has blocks of {at} bytes together and is {len(raw)} bytes long")
        body = np.frombuffer(raw, np.uint8)[_HEAD:]
        used = self._call(body.ctypes.data, out.ctypes.data, self._elements, self.itemsize, block)
        if used != len(body):
            raise BadChunk(number, f"cannot be decoded ({used})")


class ShuffledDecoder(Decoder):
    """A byte codec behind HDF5's shuffle of bytes, which elements of one byte do without."""

    def __init__(self, chunk_bytes: int, itemsize: int) -> None:
        super().__init__(chunk_bytes, itemsize)
        self._shuffled = itemsize > 1

    def decode(self, raw: Sequence[memoryview], masks: Sequence[int], out: Bytes) -> None:
        """See `Decoder`."""
        shuffled = self._shuffled
        for number, (one, mask) in enumerate(zip(raw, masks, strict=True)):
            if mask >> (1 + shuffled):
                raise BadChunk(number, f"has the filter mask {mask}")
            plain = one if mask >> shuffled & 1 else self._unpack(number, one)
            if len(plain) != self.chunk_bytes:
                raise BadChunk(number, f"holds {len(plain)} bytes instead of {self.chunk_bytes}")
            values = np.frombuffer(plain, np.uint8)
            if shuffled and not mask & 1:
                values = values.reshape(self.itemsize, -1).T
            np.copyto(out[number].reshape(values.shape), values)

    def _unpack(self, number: int, raw: memoryview) -> Any:
        raise NotImplementedError


class GzipDecoder(ShuffledDecoder):
    """Deflate by zlib."""

    def _unpack(self, number: int, raw: memoryview) -> Any:
        try:
            return zlib.decompressobj().decompress(raw, self.chunk_bytes + 1)
        except zlib.error as error:
            raise BadChunk(number, f"cannot be decoded ({error})") from None


class ZstdDecoder(ShuffledDecoder):
    """Zstandard by the library within hdf5plugin."""

    def __init__(self, library: Any, chunk_bytes: int, itemsize: int) -> None:
        super().__init__(chunk_bytes, itemsize)
        self._library = library

    def _unpack(self, number: int, raw: memoryview) -> Any:
        plain, source = np.empty(self.chunk_bytes, np.uint8), np.frombuffer(raw, np.uint8)
        got = self._library.ZSTD_decompress(plain.ctypes.data, plain.nbytes, source.ctypes.data, source.nbytes)
        if self._library.ZSTD_isError(got):
            raise BadChunk(number, "cannot be decoded")
        return plain[:got]


class Hdf5Decoder(ShuffledDecoder):
    """What has no decoder here: HDF5 itself decodes, one chunk at a time under h5py's lock.

    The raw chunk becomes the only one of a file in memory, so the shard need not be opened once more. Shuffled
    bytes are put in order here: HDF5 forgets the filter mask of a chunk that was put there directly.
    """

    def __init__(self, compression: Compression, chunk_bytes: int, itemsize: int) -> None:
        super().__init__(chunk_bytes, itemsize)
        self._shuffled = compression.shuffles and itemsize > 1
        self._compression = compression
        self._lock = threading.Lock()
        self._set: Any = None

    def _unpack(self, number: int, raw: memoryview) -> Any:
        with self._lock:
            chunk = self._set or self._make()
            try:
                chunk.id.write_direct_chunk((0, 0), bytes(raw))
                return chunk[...].reshape(-1).view(np.uint8)
            except (OSError, RuntimeError, ValueError) as error:
                raise BadChunk(number, f"cannot be decoded ({error})") from None

    def _make(self) -> Any:
        import h5py

        # HDF5 takes two files of one name for the same, in memory too.
        name = f"hpcmass-chunk-{os.getpid()}-{next(_numbers)}"
        file = h5py.File(name, "w", driver="core", backing_store=False, rdcc_nbytes=0)
        size = 1 if self._compression.shuffles else self.itemsize
        one = Field("chunk", f"uint{8 * size}", (self.chunk_bytes // size,))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, *one.shape))
        set_filters(properties, one, self._compression, 1)
        space = h5py.h5s.create_simple((1, *one.shape))
        kind = h5py.h5t.py_create(one.numpy_dtype)
        self._set = h5py.Dataset(h5py.h5d.create(file.id, b"chunk", kind, space, properties))
        return self._set


def decoder_for(compression: Compression, chunk_bytes: int, itemsize: int) -> Decoder:
    """What decodes such chunks: HDF5 itself where nothing else can (lzf; a hdf5plugin built otherwise)."""
    if compression.kind == GZIP:
        return GzipDecoder(chunk_bytes, itemsize)
    if compression.kind == BITSHUFFLE and (library := _bitshuffle()) is not None:
        return BitshuffleDecoder(library, chunk_bytes, itemsize)
    if compression.kind == ZSTD and (library := _zstd()) is not None:
        return ZstdDecoder(library, chunk_bytes, itemsize)
    return Hdf5Decoder(compression, chunk_bytes, itemsize)


@lru_cache
def _bitshuffle() -> Any:
    library = _library("libh5bshuf.so")
    if library is None or not hasattr(library, "bshuf_decompress_lz4"):
        return None
    size, place = ctypes.c_size_t, ctypes.c_void_p
    library.bshuf_decompress_lz4.argtypes = [place, place, size, size, size]
    library.bshuf_decompress_lz4.restype = ctypes.c_int64
    return library


@lru_cache
def _zstd() -> Any:
    library = _library("libh5zstd.so")
    if library is None or not hasattr(library, "ZSTD_decompress") or not hasattr(library, "ZSTD_isError"):
        return None
    size, place = ctypes.c_size_t, ctypes.c_void_p
    library.ZSTD_decompress.argtypes = [place, size, place, size]
    library.ZSTD_decompress.restype = size
    library.ZSTD_isError.argtypes = [size]
    return library


def _library(name: str) -> Any:
    """A library of hdf5plugin, without importing it (and h5py with it); None where there is none."""
    found = find_spec("hdf5plugin")
    for folder in (found.submodule_search_locations or ()) if found else ():
        try:
            return ctypes.CDLL(str(Path(folder) / "plugins" / name))
        except OSError:
            continue
    return None
