"""Which way of reading fits a dataset where it lies: a pure function of facts, and what it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hpcmass.data.memory import memory_left
from hpcmass.data.reading.chunks import BothMaker, ChunkReader, Maps
from hpcmass.data.reading.files import DirectFiles, Files, open_files
from hpcmass.data.reading.filesystem import FileSystem, file_system, resident_share
from hpcmass.data.reading.packed import HeldRows, chunk_columns, chunk_pools, compressed_fields, stored_bytes
from hpcmass.data.reading.ragged import ShapedMaker
from hpcmass.data.reading.rows import BLOCK_BYTES, READ_BYTES, Column, MapReader, PreadReader, Reader
from hpcmass.errors import DataError

if TYPE_CHECKING:
    from hpcmass.data.reader import Dataset

Way = Literal["map", "pread", "block", "direct", "memory"]
WAYS = ("auto", "map", "pread", "block", "direct", "memory")
POOLED = ("block", "direct")  # ways that read blocks into a pool

KEPT_BYTES = 64 << 20  # fields of narrow rows that are held in memory rather than read row by row, together
_KEPT_ROW_BYTES = 64
POOL_BYTES = 256 << 20
_UNIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Facts:
    """What the choice is made from.

    Attributes:
        systems: File systems that the shards lie on, without repetition.
        data_bytes: Bytes of all rows.
        memory_bytes: What the node can give to the page cache, if known.
        resident: Share of the pages that the page cache holds, if known and asked.
        blocks: Whether the order takes blocks of neighbouring samples together.
        cores: Processors of the node; there may be as many ranks.
        stored_bytes: Bytes of the compressed chunks and of the plain rows; None: nothing is compressed.
    """

    systems: tuple[FileSystem, ...]
    data_bytes: int
    memory_bytes: int | None
    resident: float | None
    blocks: bool
    cores: int = 1
    stored_bytes: int | None = None

    @property
    def small(self) -> bool:
        """Whether every rank may hold all of it: a quarter of the memory, were there a rank a processor."""
        return self.memory_bytes is not None and self.data_bytes <= self.memory_bytes // (4 * self.cores)

    @property
    def fits(self) -> bool:
        """Whether the page cache can hold all of it."""
        stored = self.data_bytes if self.stored_bytes is None else self.stored_bytes
        return self.memory_bytes is None or stored <= 0.8 * self.memory_bytes


@dataclass(frozen=True)
class Choice:
    """How a dataset is read.

    Attributes:
        way: `map`, `pread`, `block`, `direct` or `memory`.
        why: One sentence.
        threads: Reading threads.
        unit_bytes: Bytes that a thread reads at once.
        pool_bytes: What blocks that are held for batches to come may take together, or decoded chunks of
            compressed shards; 0: there are none.
    """

    way: Way
    why: str
    threads: int
    unit_bytes: int
    pool_bytes: int = 0


def facts_of(dataset: Dataset, *, blocks: bool = False, ask_cache: bool = False) -> Facts:
    """Look at where a dataset lies.

    Args:
        dataset: The dataset.
        blocks: Whether the order takes neighbouring samples together.
        ask_cache: Whether to ask the page cache too, which opens every shard.
    """
    systems = tuple(dict.fromkeys(file_system(folder) for folder in dict.fromkeys(dataset.folders)))
    total = dataset.manifest.data_bytes
    resident = None
    if ask_cache:
        widest = max(dataset.stored, key=dataset.mean_bytes)
        resident = resident_share(dataset.extents(widest))
    stored = stored_bytes(dataset) if compressed_fields(dataset) else None
    return Facts(systems, total, memory_left(), resident, blocks, os.cpu_count() or 1, stored)


def choose(facts: Facts, asked: str = "auto", *, cores: int = 1, pool_bytes: int = POOL_BYTES) -> Choice:
    """Choose, or take what was asked for.

    Raises:
        DataError: There is no such way of reading.
    """
    if asked not in WAYS:
        raise DataError(f"there is no way of reading {asked!r}", hint=f"choose from {', '.join(WAYS)}")
    names = ", ".join(system.name for system in facts.systems)
    local = all(system.local for system in facts.systems)
    packed = facts.stored_bytes is not None
    if asked != "auto":
        way, why = asked, "it was asked for"
    elif facts.small:
        way = "memory"
        why = "it is so small that each rank can hold it, in large pages, where rows are gathered soonest"
        if packed:
            why = "it is so small that each rank can hold it decoded: every chunk is decoded once"
    elif not local:
        way = "block" if facts.blocks else "pread"
        why = f"{names} may be shared: a shard that changes must be an error, which it cannot be when mapped"
    elif packed and facts.blocks:
        way, why = "block", "it is compressed: the chunks of a block are decoded once for all samples in it"
    elif facts.fits:
        way, why = "map", f"{names} belongs to this node, and its memory can hold the data"
    else:
        way = "block" if facts.blocks else "pread"
        why = f"the data is larger than the memory at hand, though {names} belongs to this node"
    if way == "memory":
        return Choice("memory", why, max(1, min(2, cores)), _UNIT_BYTES)
    if way == "map":
        # Decoding is work for processors, of which more are of use than for copying.
        return Choice(
            "map", why, max(1, min(4 if packed else 2, cores)), _UNIT_BYTES, pool_bytes if packed else 0
        )
    if way == "block":
        return Choice("block", why, 4, _UNIT_BYTES, pool_bytes)
    if way == "direct":
        return Choice("direct", why, 4, _UNIT_BYTES, pool_bytes)
    return Choice("pread", why, 4, _UNIT_BYTES, pool_bytes if packed else 0)


def reader_maker(dataset: Dataset, choice: Choice) -> Callable[[], Reader]:
    """What makes a reader for each thread; what the readers share is made here.

    Raises:
        CorruptError: A shard has another size than the manifest says.
        StorageError: A shard cannot be read.
    """
    packed = compressed_fields(dataset)
    narrow = list(dataset.stored) if choice.way == "memory" else kept_fields(dataset)
    if choice.way == "map":
        narrow = [name for name in narrow if name in packed]
    make = fixed_maker(dataset, choice, keep(dataset, narrow))
    return ShapedMaker(make, dataset) if dataset.ragged else make


def batch_maker(dataset: Dataset) -> Callable[[], Reader]:
    """What makes a reader of the fixed fields for `Dataset.batch`: nothing is read ahead, little is held.

    Shards that are this node's own are mapped, others read: one that changes must be an error there.

    Raises:
        CorruptError: A shard has another size than the manifest says.
        StorageError: A shard cannot be read.
    """
    local = all(file_system(folder).local for folder in dict.fromkeys(dataset.folders))
    packed = compressed_fields(dataset)
    kept = keep(dataset, [name for name in kept_fields(dataset) if name in packed])
    return fixed_maker(dataset, Choice("map" if local else "pread", "", 1, _UNIT_BYTES), kept)


def fixed_maker(dataset: Dataset, choice: Choice, kept: Mapping[str, npt.NDArray[Any]]) -> Callable[[], Reader]:
    """What makes a reader of the fields whose samples are of one size.

    Args:
        dataset: The dataset.
        choice: How it is read.
        kept: Fields that are held in memory.
    """
    packed = compressed_fields(dataset)
    plain = [name for name in dataset.fixed if name not in packed]
    packed = [name for name in packed if name not in kept and name in dataset.fixed]
    kept = {name: whole for name, whole in kept.items() if name in dataset.fixed}
    files = DirectFiles if choice.way == "direct" else Files
    make: Callable[[], Reader]
    if choice.way == "map":
        rows = {name: dataset.rows(name) for name in plain} | {n: HeldRows(one) for n, one in kept.items()}
        make = partial(MapReader, rows, dataset.extents(next(iter(dataset.stored))))
    else:
        columns = {name: Column(dataset.extents(name), dataset.fixed[name].row_bytes) for name in plain}
        make = partial(PreadReader, columns, kept, advise=choice.way == "pread", files=files)
    if not packed:
        return make
    chunks = chunk_columns(dataset, packed)
    pools = {} if choice.way in POOLED else chunk_pools(dataset, chunks, choice.pool_bytes)
    # A compressed shard costs an open file while it is mapped.
    maps = Maps() if choice.way == "map" and len(dataset.folders) <= open_files() else None
    return BothMaker(make, chunks, maps, pools, files)


def kept_fields(dataset: Dataset) -> list[str]:
    """Names of the fields that are held in memory when nothing is mapped: labels and the like."""
    kept, left = [], KEPT_BYTES
    for one in sorted(dataset.fixed.values(), key=lambda one: one.row_bytes):
        size = one.row_bytes * len(dataset)
        if one.row_bytes <= _KEPT_ROW_BYTES and size <= left:
            kept.append(one.name)
            left -= size
    return kept


def keep(dataset: Dataset, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Whole fields in memory; a dataset's next reader finds them there.

    Raises:
        CorruptError: A shard is damaged, or has another size than the manifest says.
        StorageError: A shard cannot be read.
    """
    packed = set(compressed_fields(dataset))
    for name in names:
        if name in dataset.held:
            continue
        one = dataset.stored[name]
        extents = dataset.extents(name)
        whole = np.empty((sum(extent.rows for extent in extents), *one.shape), one.numpy_dtype)
        many = max(1, READ_BYTES // max(1, one.row_bytes))
        make: Callable[[], Reader]
        if name in packed:
            # Whole chunks, in the first shard at least.
            steps = [extent.chunks.samples for extent in extents if extent.chunks]
            many = -(-many // max(steps)) * max(steps)
            make = partial(ChunkReader, chunk_columns(dataset, [name]))
        else:
            columns = {name: Column(extents, one.row_bytes)}
            make = partial(PreadReader, columns, {}, gap_bytes=BLOCK_BYTES)
        _fill(make, name, whole, many, threads=4 if name in packed else 1)
        dataset.held[name] = whole
    return {name: dataset.held[name] for name in names}


def _fill(make: Callable[[], Reader], name: str, whole: npt.NDArray[Any], many: int, *, threads: int) -> None:
    """Read a whole field, `many` rows at a time; by several threads where there is something to decode."""
    starts = list(range(0, len(whole), many))

    def some(first: int) -> None:
        reader = make()
        try:
            for low in starts[first::threads]:
                ids = np.arange(low, min(low + many, len(whole)), dtype=np.int64)
                reader.read(ids, {name: whole[low : low + len(ids)]})
        finally:
            reader.close()

    threads = min(threads, len(starts), os.cpu_count() or 1)
    if threads <= 1:
        threads = 1
        some(0)
        return
    with ThreadPoolExecutor(threads, "hpcmass-read") as crew:
        list(crew.map(some, range(threads)))
