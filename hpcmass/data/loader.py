"""The loader: batches read ahead of their consumer by threads, into a ring of buffers that is used again.

The sample numbers come from a plan, which is worked out on the consumer's thread: it is cheap in bulk, and
a thread of its own would wait for the interpreter's lock at every step of it. The copying is done by threads
that drop that lock, several batches a call, so that a consumer busy in Python does not starve them. There
are no worker processes, and nothing has a name in /dev/shm.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import Ids, rank_slice
from hpcmass.data.reader import Batch, Dataset
from hpcmass.data.reading.choose import (
    POOL_BYTES,
    POOLED,
    Choice,
    choose,
    facts_of,
    kept_fields,
    reader_maker,
)
from hpcmass.data.reading.crew import Crew, Each, Memory, Unit
from hpcmass.data.reading.memory import Pool, Ring
from hpcmass.data.reading.rows import BLOCK_BYTES

__all__ = ["Loaded", "Loader", "Memory", "Plan"]

_BATCHES_A_UNIT = 64
_IDS_AT_ONCE = 1 << 14


class Loaded(NamedTuple):
    """A batch: its sample numbers (b,), and an array a field, (b, *field.shape), as of `Dataset.batch`."""

    ids: Ids
    arrays: Batch


@dataclass(frozen=True)
class Plan:
    """One rank's batches over positions `start` … `stop` of an order; iterating gives sample numbers.

    Every `batch` positions are a step; a rank takes its slice of them, cut into `parts` micro-batches
    (those without a sample are left out). The last step may be smaller.

    Attributes:
        ids: Sample numbers at positions: `ids(start, stop)`, an int64 array.
        start: First position.
        stop: End position.
        batch: Positions a step, over all ranks.
        rank: This rank.
        size: Number of ranks.
        parts: Micro-batches that a rank's slice is cut into.
        pad: Whether the micro-batches of a smaller last step are as wide as the others', repeating samples.
    """

    ids: Callable[[int, int], Ids]
    start: int
    stop: int
    batch: int
    rank: int = 0
    size: int = 1
    parts: int = 1
    pad: bool = False

    def __iter__(self) -> Iterator[Ids]:
        # Numbers are cheap only in bulk; a slice of many positions is bulk by itself.
        steps = max(1, _IDS_AT_ONCE // self.batch)
        for first in range(self.start, self.stop, steps * self.batch):
            last = min(first + steps * self.batch, self.stop)
            known = self.ids(first, last) if steps > 1 or self.size == 1 else None
            for low in range(first, last, self.batch):
                if known is not None and self.size == self.parts == 1 and not self.pad:
                    yield known[low - first : min(low + self.batch, last) - first]
                    continue
                begin, end = rank_slice(low, min(low + self.batch, last), self.rank, self.size)
                mine = self.ids(begin, end) if known is None else known[begin - first : end - first]
                yield from self._micro_batches(mine)

    def _micro_batches(self, mine: Ids) -> Iterator[Ids]:
        share = rank_slice(0, self.batch, self.rank, self.size)
        for part in range(self.parts):
            low, high = rank_slice(0, len(mine), part, self.parts)
            begin, end = rank_slice(0, share[1] - share[0], part, self.parts)
            if high > low:
                yield np.resize(mine[low:high], end - begin) if self.pad else mine[low:high]


class Loader(Iterator[Loaded]):
    """Batches of a dataset, in the plan's order, read ahead.

    **A batch's arrays are views of a buffer that is used again: they are valid until the `keep`-th next
    batch is asked for** (keep = 1: until the next one is). Copy what must live longer. The values are
    exactly those of `dataset.batch(ids)`.

    Can be pickled (it then begins its plan anew) and carried over a fork (the child goes on with threads
    of its own). Call `close()`, or use it in a `with` statement; a forgotten one ends its threads too.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Iterable[npt.ArrayLike],
        *,
        read: str = "auto",
        keep: int = 1,
        depth: int | None = None,
        threads: int | None = None,
        unit_bytes: int | None = None,
        block: int | None = None,
        pool_bytes: int = POOL_BYTES,
        allocate: Callable[[int], Memory] | None = None,
        each: Each | None = None,
    ) -> None:
        """Prepare; threads begin, and shards are opened, when the first batch is asked for.

        Args:
            dataset: What is read.
            plan: Sample numbers batch by batch: a `Plan`, a list, a generator; taken a little ahead.
            read: `auto`, `map`, `pread`, `block`, `direct` or `memory`: see `hpcmass.data.reading.choose`.
            keep: For how many further requests a batch stays valid.
            depth: Units (several batches) read ahead; default: one more than there are threads.
            threads: Reading threads; default: what suits the way of reading.
            unit_bytes: Bytes that a thread reads at once, in whole batches; default: what suits.
            block: Samples a block, where the plan's order takes blocks of neighbouring samples together.
            pool_bytes: What the blocks held by the ways `block` and `direct` may take together.
            allocate: Makes a buffer of so many bytes (pinned memory, say): a uint8 array.
            each: Called on a reading thread as each(number, ids, arrays) for each batch that was read; may
                change the arrays' values.
        """
        if min(keep, depth or 1, threads or 1, block or 1) < 1 or 0 in (depth, threads, block):
            raise ValueError("keep, depth, threads and block are at least 1")
        self._arguments = {
            "read": read, "keep": keep, "depth": depth, "threads": threads, "unit_bytes": unit_bytes,
            "block": block, "pool_bytes": pool_bytes, "allocate": allocate, "each": each,
        }  # fmt: skip
        self.dataset, self.plan, self._keep = dataset, plan, keep
        self._read, self._block, self._pool_bytes = read, block, pool_bytes
        self._asked = (depth, threads, unit_bytes)
        self._allocate, self._each = allocate, each
        self._numbered = 0  # batches of the plan that are in units
        self._choice: Choice | None = None
        self._source: Iterator[npt.ArrayLike] | None = None
        self._ahead: deque[Ids] = deque()  # batches taken from the plan, not in a unit yet
        self._planned: deque[Unit] = deque()  # units without a buffer; their blocks are being read
        self._pending: deque[Unit] = deque()  # with the threads
        self._used: deque[Unit] = deque()  # handed out, their buffers not free yet
        self._unit: Unit | None = None
        self._number = 0  # of the batch within its unit
        self._given = 0  # batches asked for
        self._depth = 1
        self._crew: Crew | None = None
        self._ring: Ring | None = None
        self._pool: Pool | None = None
        self._decoded_bytes = 0  # of chunks that the threads hold
        self._closed = False

    # -- what is there to see ---------------------------------------------------------------------------
    @property
    def choice(self) -> Choice:
        """How it reads, and why."""
        if self._choice is None:
            facts = facts_of(self.dataset, blocks=self._block is not None)
            self._choice = choose(facts, self._read, cores=_cores(), pool_bytes=self._pool_bytes)
        return self._choice

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers and of the pools so far (not of fields held whole)."""
        pool = self._pool.bytes if self._pool else 0
        return (self._ring.bytes if self._ring else 0) + pool + self._decoded_bytes

    # -- the iterator -----------------------------------------------------------------------------------
    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Loaded:
        """The next batch.

        Raises:
            StopIteration: The plan is done, or the loader closed.
            CorruptError: A shard was cut off or removed; the message names it.
            StorageError: A shard cannot be read.
            IndexError: The plan names a sample that is not there.
        """
        if self._closed:
            raise StopIteration
        try:
            return self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> Loaded:
        if self._crew is None or self._crew.pid != os.getpid():
            self._begin()
        assert self._ring is not None
        given, self._given = self._given, self._given + 1
        unit = self._unit
        if unit is not None and self._number == len(unit.ends):
            unit.last = given - 1
            self._used.append(unit)
            self._unit = unit = None
        while self._used and self._used[0].last + self._keep <= given:
            self._ring.give_back(self._used.popleft())
        self._fill()
        if unit is None:
            if not self._pending:
                raise StopIteration
            unit = self._unit = self._pending.popleft()
            self._number = 0
            unit.wait()
            if self._pool is not None:
                self._pool.release(unit)
        low = unit.ends[self._number - 1] if self._number else 0
        high = unit.ends[self._number]
        batch = unit.batch(self._number)
        self._number += 1
        return Loaded(unit.ids[low:high], self.dataset.in_order(batch) if unit.frames else batch)

    def _begin(self) -> None:
        """Start threads; in a forked child: its own, which read again what the parent's were reading."""
        choice, dataset = self.choice, self.dataset
        depth, threads, _ = self._asked
        again = [ids for unit in (*self._pending, *self._planned) for ids in unit.batches()]
        self._ahead.extendleft(reversed(again))
        self._numbered -= len(again)
        for waiting in (self._pending, self._planned, self._used):
            waiting.clear()
        make = reader_maker(dataset, choice)
        self._decoded_bytes = int(getattr(make, "pool_bytes", 0))
        threads = threads or (choice.threads if self._each is None else max(choice.threads, min(_cores(), 8)))
        self._depth = depth or threads + 1
        self._ring = Ring(dataset.fixed, self._depth + 1, self._allocate)
        if choice.way in POOLED:
            held = {name: one for name, one in dataset.fixed.items() if name not in kept_fields(dataset)}
            block = self._block or default_block(dataset)
            self._pool = Pool(held, len(dataset), block, choice.pool_bytes) if held else None
        self._crew = Crew(make, threads)
        self._finalizer = weakref.finalize(self, self._crew.end)
        if self._source is None:
            self._source = iter(self.plan)

    def _fill(self) -> None:
        """Give the threads as much as there are places and buffers for."""
        crew, ring = self._crew, self._ring
        assert crew is not None
        assert ring is not None
        while len(self._pending) < self._depth:
            self._plan_units(crew)
            if not self._planned:
                return
            # Without a batch to hand out now or soon, one more buffer is made.
            starved = not self._pending and (self._unit is None or self._number == len(self._unit.ends))
            if not ring.equip(self._planned[0], must=starved):
                return
            self._pending.append(self._planned.popleft())
            crew.give(self._pending[-1])

    def _plan_units(self, crew: Crew) -> None:
        """Plan the next unit; with a pool as many as it has places for, whose blocks are then read."""
        ahead = sum(len(unit.ids) for unit in self._planned)
        # Where the pool holds all of a dataset, room alone would never end this.
        while not self._planned or (self._pool is not None and ahead < self._pool.rows):
            ids = self._next_batches()
            if not ids:
                return
            while self._pool is not None and len(ids) > 1 and self._pool.wide(np.concatenate(ids)):
                half = len(ids) // 2
                self._ahead.extendleft(reversed(ids[half:]))
                del ids[half:]
            joined = self.dataset.checked(np.concatenate(ids) if len(ids) > 1 else ids[0])
            unit = Unit(joined, np.cumsum([len(one) for one in ids]).tolist())
            if self.dataset.ragged:
                unit.frames = [self.dataset.framer.frame(one) for one in unit.batches()]
            if self._pool is not None:
                blocks = self._pool.plan(unit)
                if blocks is None:
                    self._ahead.extendleft(reversed(ids))
                    return
                for block in blocks:
                    crew.give(block)
            unit.each, unit.first = self._each, self._numbered
            self._numbered += len(ids)
            self._planned.append(unit)
            ahead += len(joined)
            if self._pool is not None and unit.blocks is None:
                return  # it needs no place of the pool, so nothing else would end this

    def _next_batches(self) -> list[Ids]:
        """Batches that are read at once: as many as fit into a unit, one at least."""
        limit = max(1, (self._asked[2] or self.choice.unit_bytes) // max(self.dataset.row_bytes, 1))
        taken: list[Ids] = []
        rows = 0
        while len(taken) < _BATCHES_A_UNIT:
            if not self._ahead:
                assert self._source is not None
                one = next(self._source, None)
                if one is None:
                    break
                self._ahead.append(np.ascontiguousarray(one, np.int64))
            if taken and rows + len(self._ahead[0]) > limit:
                break
            taken.append(self._ahead.popleft())
            rows += len(taken[-1])
        return taken

    # -- the end ----------------------------------------------------------------------------------------
    def close(self) -> None:
        """End the threads and give the memory back. May be called twice; not while `next` runs."""
        self._closed = True
        if self._crew is not None:
            self._finalizer.detach()
            self._crew.end()
        for waiting in (self._pending, self._planned, self._used):
            waiting.clear()
        self._unit = self._ring = self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "plan": self.plan, "arguments": self._arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["dataset"], state["plan"], **state["arguments"])  # type: ignore[misc]


def default_block(dataset: Dataset) -> int:
    """Samples a block where the order does not say: those that make a read worth its while."""
    return max(1, min(len(dataset), -(-BLOCK_BYTES // max(1, dataset.row_bytes))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
