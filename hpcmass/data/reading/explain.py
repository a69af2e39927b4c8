"""Say how a dataset would be read from here, why, how quick that should be, and how quick it is."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hpcmass.data.loader import Loader, Plan, default_block
from hpcmass.data.order import Ids, Order
from hpcmass.data.orders import make_order
from hpcmass.data.reader import Dataset
from hpcmass.data.reading.choose import POOLED, Choice, Facts, facts_of, kept_fields, reader_maker
from hpcmass.data.reading.packed import compressed_fields, stored_bytes
from hpcmass.data.reading.ragged import ShapedReader
from hpcmass.data.reading.rows import Reader

_PROBES = 24
_DECODED = 5
# Of a memcpy's rate, what gathering rows at random reaches from memory (benchmarks/loader.py): narrow rows
# wait for memory, and preadv has its price a row.
_OF_MEMCPY = {
    "map": (0.7, 0.95),
    "pread": (0.1, 0.9),
    "block": (0.6, 0.8),
    "direct": (0.6, 0.8),
    "memory": (0.75, 0.95),
}
_WIDE_ROW_BYTES = 16 << 10
# Seconds of the consumer's thread, which decide where datasets or batches are tiny.
_EPOCH_S, _BATCH_S = 2.5e-4, 1e-5


@dataclass(frozen=True)
class Explained:
    """What `explain` found.

    Attributes:
        facts: Where the dataset lies, and how much of it the page cache held beforehand.
        choice: The way of reading.
        kept: Fields that are held in memory as a whole.
        memory_rate: Samples a second if all of it were in memory (compressed: as fast as it is decoded).
        storage_rate: Samples a second if none of it were, from a few reads; None where all of it was.
        expected: Samples a second, from the two and the share that was in memory.
        measured: Samples a second of the loader, over `measured_samples`.
        measured_samples: How many were read for that.
        buffer_bytes: Bytes of the loader's buffers and pool.
    """

    facts: Facts
    choice: Choice
    kept: list[str]
    memory_rate: float
    storage_rate: float | None
    expected: float
    measured: float
    measured_samples: int
    buffer_bytes: int


def explain(
    dataset: Dataset, *, batch_size: int = 256, order: str = "global", read: str = "auto", seconds: float = 2.0
) -> Explained:
    """Look, choose, and read for a while.

    Args:
        dataset: The dataset; an empty one is not possible.
        batch_size: Samples a batch.
        order: `global`, `sequential` or `block`, as a job with its defaults has it.
        read: As of `Loader`.
        seconds: How long to read.

    Raises:
        DataError: There is no such way of reading.
        CorruptError: A shard is not what it was.
    """
    made = make_order(order, dataset, batch=batch_size)
    block = getattr(made, "block", None)
    facts = facts_of(dataset, blocks=block is not None, ask_cache=True)
    loader = Loader(dataset, _plan(made, batch_size), read=read, block=block)
    choice = loader.choice
    kept = {"map": [], "memory": list(dataset.stored)}.get(choice.way, kept_fields(dataset))
    packed = compressed_fields(dataset)
    if choice.way == "map":
        kept = [name for name in kept_fields(dataset) if name in packed]
    memory = _memory_rate(dataset, batch_size, choice)
    if dataset.ragged or not set(packed) <= set(kept):  # what it costs to put values in place is measured
        memory = min(memory, _decode_rate(dataset, choice, batch_size, block or default_block(dataset)))
    storage = (
        None
        if facts.resident == 1.0 or choice.way == "memory"
        else _storage_rate(dataset, choice, block or default_block(dataset))
    )
    share = facts.resident if facts.resident is not None else 0.0
    expected = memory if storage is None else 1 / (share / memory + (1 - share) / min(storage, memory))
    n = len(dataset)
    expected = 1 / (1 / expected + _EPOCH_S / n + _BATCH_S / min(batch_size, n))
    with loader:
        next(loader)  # threads, mappings and buffers are there
        began, count, most = time.perf_counter(), 0, 0
        for ids, _ in loader:
            count, most = count + len(ids), loader.buffer_bytes
            if time.perf_counter() - began > seconds:
                break
        took = time.perf_counter() - began
    return Explained(facts, choice, kept, memory, storage, expected, count / took, count, most)


def _plan(order: Order, batch_size: int) -> Iterator[Ids]:
    """Batches without an end."""
    epoch = 0
    while True:
        yield from Plan(partial(order.ids, epoch), 0, order.n, batch_size)
        epoch += 1


def _memory_rate(dataset: Dataset, batch_size: int, choice: Choice) -> float:
    """Samples a second gathered from memory by threads: a memcpy's rate, less what is known of the way."""
    size = max(1, batch_size * dataset.row_bytes)
    source = np.ones(min(8 * size, max(size, 64 << 20)), np.uint8)
    target = np.ones(size, np.uint8)
    best = 0.0
    for low in range(0, len(source) - size + 1, size):
        began = time.perf_counter()
        np.copyto(target, source[low : low + size])
        best = max(best, size / max(time.perf_counter() - began, 1e-9))
    widest = max(dataset.mean_bytes(name) for name in dataset.stored)
    share = _OF_MEMCPY[choice.way][widest >= _WIDE_ROW_BYTES]
    return best * share * min(choice.threads, 2) / max(1, dataset.row_bytes)


def _decode_rate(dataset: Dataset, choice: Choice, batch_size: int, block: int) -> float:
    """Samples a second that the threads decode: of some batches, or whole blocks, read a second time."""
    reader = reader_maker(dataset, replace(choice, pool_bytes=0))()
    random, rates = np.random.default_rng(1), []
    try:
        for _ in range(_DECODED):
            if choice.way in POOLED:
                start = int(random.integers(0, max(1, len(dataset) - block + 1)))
                ids = np.arange(start, min(start + block, len(dataset)), dtype=np.int64)
            else:
                ids = random.integers(0, len(dataset), min(batch_size, len(dataset)), dtype=np.int64)
            _read(reader, dataset, ids)
            began = time.perf_counter()
            _read(reader, dataset, ids)
            rates.append(len(ids) / max(time.perf_counter() - began, 1e-9))
    finally:
        reader.close()
    return statistics.median(rates) * min(choice.threads, os.cpu_count() or 1)


def _read(reader: Reader, dataset: Dataset, ids: Ids) -> None:
    """Samples into memory of their own."""
    out = {name: np.empty((len(ids), *one.shape), one.numpy_dtype) for name, one in dataset.fixed.items()}
    reader.read(ids, out)
    if isinstance(reader, ShapedReader):
        frame = dataset.framer.frame(ids)
        reader.fill(frame, {name: np.empty(shape, dtype) for name, dtype, shape in frame.specs})


def _layout(dataset: Dataset) -> str:
    """How the rows lie: contiguous, or in chunks, of which kind and how far they are compressed."""
    shards, packed = dataset.manifest.shards, compressed_fields(dataset)
    if not packed:
        return "contiguous rows"
    chunks = {name: [shard.chunks[name] for shard in shards if name in shard.chunks] for name in packed}
    kinds = ", ".join(sorted({one.compression for found in chunks.values() for one in found}))
    widest = max(packed, key=dataset.mean_bytes)
    many = max(one.samples for one in chunks[widest])
    size = many * dataset.stored[widest].row_bytes
    ratio = dataset.row_bytes * len(dataset) / max(1, stored_bytes(dataset))
    what = "values" if widest in dataset.ragged else "samples"
    return f"chunks of {many} {what} ({size} bytes) of {widest}, {kinds}, to 1/{ratio:.2f} of the bytes"


def _storage_rate(dataset: Dataset, choice: Choice, block: int) -> float:
    """Samples a second from a few reads as the way makes them: single rows, or whole blocks."""
    reader = reader_maker(dataset, choice)()
    many = block if choice.way in POOLED else 1
    starts = np.random.default_rng(0).integers(0, max(1, len(dataset) - many + 1), _PROBES)
    try:
        seconds = []
        for start in starts.tolist():
            began = time.perf_counter()
            _read(reader, dataset, np.arange(start, start + many, dtype=np.int64))
            seconds.append(time.perf_counter() - began)
    finally:
        reader.close()
    # What the page cache held was quick and says nothing of the storage: the slower half does.
    slow = sorted(seconds)[_PROBES // 2 :]
    return many * choice.threads * len(slow) / max(sum(slow), 1e-9)


def sentences(found: Explained, dataset: Dataset, batch_size: int) -> dict[str, str]:
    """What was found, in words, by what it is about."""
    facts, choice, row = found.facts, found.choice, dataset.row_bytes
    systems = ", ".join(
        f"{one.name} ({'this node' if one.local else 'may be shared'})" for one in facts.systems
    )
    memory = "unknown" if facts.memory_bytes is None else f"{facts.memory_bytes / 1e9:.1f} GB"
    cached = "the file system does not say" if facts.resident is None else f"{facts.resident:.0%} of the pages"
    held = f", {', '.join(found.kept)} held whole" if found.kept else ""
    what = "blocks" if choice.way in POOLED else "decoded chunks"
    pool = f"; a pool of {choice.pool_bytes / 1e6:.0f} MB of {what}" if choice.pool_bytes else ""
    limit = "memory" if set(compressed_fields(dataset)) <= set(found.kept) else "decoding"
    if found.storage_rate is not None and found.storage_rate <= found.memory_rate:
        limit = "the storage"
    return {
        "layout": f"{_layout(dataset)}, {row} bytes a sample, {len(dataset.manifest.shards)} shards",
        "file system": systems,
        "memory": f"{memory} at hand for {facts.data_bytes / 1e9:.3f} GB of data",
        "page cache": f"{cached} before this",
        "read": f"{choice.way}: {choice.why}",
        "how": f"{choice.threads} threads{pool}{held}",
        "expected": f"{_rate(found.expected, row)}, limited by {limit}",
        "measured": f"{_rate(found.measured, row)} over {found.measured_samples} samples, "
        f"batches of {batch_size}, {found.buffer_bytes / 1e6:.1f} MB of buffers",
    }


def _rate(samples: float, row_bytes: int) -> str:
    return f"{samples:,.0f} samples/s ({samples * row_bytes / 1e6:,.0f} MB/s)"
