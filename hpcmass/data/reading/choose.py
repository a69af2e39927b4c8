"""Which way of reading fits a dataset where it lies: a pure function of facts, and what it makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hpcmass.data.memory import memory_left
from hpcmass.data.reading.filesystem import FileSystem, file_system, resident_share
from hpcmass.data.reading.rows import BLOCK_BYTES, READ_BYTES, Column, MapReader, PreadReader, Reader
from hpcmass.errors import DataError

if TYPE_CHECKING:
    from hpcmass.data.reader import Dataset

Way = Literal["map", "pread", "block", "memory"]
WAYS = ("auto", "map", "pread", "block", "memory")

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
    """

    systems: tuple[FileSystem, ...]
    data_bytes: int
    memory_bytes: int | None
    resident: float | None
    blocks: bool
    cores: int = 1

    @property
    def small(self) -> bool:
        """Whether every rank may hold all of it: a quarter of the memory, were there a rank a processor."""
        return self.memory_bytes is not None and self.data_bytes <= self.memory_bytes // (4 * self.cores)

    @property
    def fits(self) -> bool:
        """Whether the page cache can hold all of it."""
        return self.memory_bytes is None or self.data_bytes <= 0.8 * self.memory_bytes


@dataclass(frozen=True)
class Choice:
    """How a dataset is read.

    Attributes:
        way: `map`, `pread`, `block` or `memory`.
        why: One sentence.
        threads: Reading threads.
        unit_bytes: Bytes that a thread reads at once.
        pool_bytes: What blocks that are held for batches to come may take together; 0: there are none.
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
    total = dataset.row_bytes * len(dataset)
    resident = None
    if ask_cache:
        widest = max(dataset.fields.values(), key=lambda one: one.row_bytes)
        resident = resident_share(dataset.extents(widest.name))
    return Facts(systems, total, memory_left(), resident, blocks, os.cpu_count() or 1)


def choose(facts: Facts, asked: str = "auto", *, cores: int = 1, pool_bytes: int = POOL_BYTES) -> Choice:
    """Choose, or take what was asked for.

    Raises:
        DataError: There is no such way of reading.
    """
    if asked not in WAYS:
        raise DataError(f"there is no way of reading {asked!r}", hint=f"choose from {', '.join(WAYS)}")
    names = ", ".join(system.name for system in facts.systems)
    local = all(system.local for system in facts.systems)
    if asked != "auto":
        way, why = asked, "it was asked for"
    elif facts.small:
        way = "memory"
        why = "it is so small that each rank can hold it, in large pages, where rows are gathered soonest"
    elif not local:
        way = "block" if facts.blocks else "pread"
        why = f"{names} may be shared: a shard that changes must be an error, which it cannot be when mapped"
    elif facts.fits:
        way, why = "map", f"{names} belongs to this node, and its memory can hold the data"
    else:
        way = "block" if facts.blocks else "pread"
        why = f"the data is larger than the memory at hand, though {names} belongs to this node"
    if way == "map" or way == "memory":
        return Choice("map" if way == "map" else "memory", why, max(1, min(2, cores)), _UNIT_BYTES)
    if way == "block":
        return Choice("block", why, 4, _UNIT_BYTES, pool_bytes)
    return Choice("pread", why, 4, _UNIT_BYTES)


def reader_maker(dataset: Dataset, choice: Choice) -> Callable[[], Reader]:
    """What makes a reader for each thread; what the readers share is made here.

    Raises:
        CorruptError: A shard has another size than the manifest says.
        StorageError: A shard cannot be read.
    """
    if choice.way == "map":
        rows = {name: dataset.rows(name) for name in dataset.fields}
        extents = dataset.extents(next(iter(dataset.fields)))
        return lambda: MapReader(rows, extents)
    columns = {name: Column(dataset.extents(name), one.row_bytes) for name, one in dataset.fields.items()}
    kept = _keep(dataset, columns, list(dataset.fields) if choice.way == "memory" else kept_fields(dataset))
    return lambda: PreadReader(columns, kept, advise=choice.way == "pread")


def kept_fields(dataset: Dataset) -> list[str]:
    """Names of the fields that are held in memory when nothing is mapped: labels and the like."""
    kept, left = [], KEPT_BYTES
    for one in sorted(dataset.fields.values(), key=lambda one: one.row_bytes):
        size = one.row_bytes * len(dataset)
        if one.row_bytes <= _KEPT_ROW_BYTES and size <= left:
            kept.append(one.name)
            left -= size
    return kept


def _keep(dataset: Dataset, columns: dict[str, Column], names: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Whole fields in memory; a dataset's next reader finds them there."""
    reader = PreadReader(columns, {}, gap_bytes=BLOCK_BYTES)
    try:
        for name in names:
            if name not in dataset.held:
                one = dataset.fields[name]
                whole = np.empty((len(dataset), *one.shape), one.numpy_dtype)
                many = max(1, READ_BYTES // max(1, one.row_bytes))
                for low in range(0, len(dataset), many):
                    ids = np.arange(low, min(low + many, len(dataset)), dtype=np.int64)
                    reader.read(ids, {name: whole[low : low + len(ids)]})
                dataset.held[name] = whole
    finally:
        reader.close()
    return {name: dataset.held[name] for name in names}
