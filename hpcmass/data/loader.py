"""The loader: batches read ahead of their consumer by threads, into a ring of buffers that is used again.

The sample numbers come from a plan, which is worked out on the consumer's thread: it is cheap in bulk, and
a thread of its own would wait for the interpreter's lock at every step of it. The copying is done by threads
that drop that lock, several batches a call, so that a consumer busy in Python does not starve them. There
are no worker processes, and nothing has a name in /dev/shm.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import Ids, rank_slice
from hpcmass.data.reader import Batch, Dataset
from hpcmass.data.reading.choose import POOL_BYTES, Choice, choose, facts_of, reader_maker
from hpcmass.data.reading.rows import Reader

Memory = npt.NDArray[np.uint8]

_ALIGN = 64
_BATCHES_A_UNIT = 64
_RING_BYTES = 1 << 30
_IDS_AT_ONCE = 1 << 14


class Loaded(NamedTuple):
    """A batch: its sample numbers (b,), and an array a field, (b, *field.shape)."""

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
    """

    ids: Callable[[int, int], Ids]
    start: int
    stop: int
    batch: int
    rank: int = 0
    size: int = 1
    parts: int = 1

    def __iter__(self) -> Iterator[Ids]:
        # Numbers are cheap only in bulk; a slice of many positions is bulk by itself.
        steps = max(1, _IDS_AT_ONCE // self.batch)
        for first in range(self.start, self.stop, steps * self.batch):
            last = min(first + steps * self.batch, self.stop)
            known = self.ids(first, last) if steps > 1 or self.size == 1 else None
            for low in range(first, last, self.batch):
                begin, end = rank_slice(low, min(low + self.batch, last), self.rank, self.size)
                mine = self.ids(begin, end) if known is None else known[begin - first : end - first]
                yield from micro_batches(mine, self.parts)


def micro_batches(ids: Ids, parts: int) -> list[Ids]:
    """Cut sample numbers into micro-batches; none is empty."""
    cuts = [rank_slice(0, len(ids), part, parts) for part in range(parts)]
    return [ids[low:high] for low, high in cuts if high > low]


@dataclass
class _Unit:
    """Some batches that one thread reads at once."""

    ids: Ids
    ends: list[int]
    memory: Memory
    arrays: Batch
    ready: threading.Lock = field(default_factory=threading.Lock)
    error: BaseException | None = None
    last: int = -1  # number of its last batch, once all are handed out


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
        window_bytes: int | None = None,
        blocks: bool = False,
        pool_bytes: int = POOL_BYTES,
        allocate: Callable[[int], Memory] | None = None,
    ) -> None:
        """Prepare; threads begin, and shards are opened, when the first batch is asked for.

        Args:
            dataset: What is read.
            plan: Sample numbers batch by batch: a `Plan`, a list, a generator; taken a little ahead.
            read: `auto`, `map`, `pread` or `block`: see `hpcmass.data.reading.choose`.
            keep: For how many further requests a batch stays valid.
            depth: Units (several batches) read ahead; default: one more than there are threads.
            threads: Reading threads; default: what suits the way of reading.
            window_bytes: Bytes that are read at once; default: what suits the way of reading.
            blocks: Whether the plan's order takes neighbouring samples together.
            pool_bytes: What all buffers of the way `block` may take together.
            allocate: Makes a buffer of so many bytes (pinned memory, say): a uint8 array.
        """
        if keep < 1 or (depth is not None and depth < 1) or (threads is not None and threads < 1):
            raise ValueError("keep, depth and threads are at least 1")
        self._arguments = {
            "read": read, "keep": keep, "depth": depth, "threads": threads, "window_bytes": window_bytes,
            "blocks": blocks, "pool_bytes": pool_bytes, "allocate": allocate,
        }  # fmt: skip
        self.dataset, self.plan, self.keep = dataset, plan, keep
        self._read, self._blocks, self._pool_bytes = read, blocks, pool_bytes
        self._depth, self._asked_threads, self._window_bytes = depth, threads, window_bytes
        self._allocate = allocate or _allocate
        self._choice: Choice | None = None
        self._source: Iterator[npt.ArrayLike] | None = None
        self._ahead: deque[Ids] = deque()  # taken from the plan, not in a unit yet
        self._pending: deque[_Unit] = deque()  # with the threads
        self._used: deque[_Unit] = deque()  # handed out, not free yet
        self._free: list[Memory] = []
        self._buffers = self._largest = 0
        self._unit: _Unit | None = None
        self._number = 0  # of the batch within its unit
        self._given = 0  # batches asked for
        self._crew: _Crew | None = None
        self._closed = False
        self._row_bytes = dataset.row_bytes

    # -- what is there to see ---------------------------------------------------------------------------
    @property
    def choice(self) -> Choice:
        """How it reads, and why."""
        if self._choice is None:
            facts = facts_of(self.dataset, blocks=self._blocks)
            self._choice = choose(facts, self._read, cores=_cores(), pool_bytes=self._pool_bytes)
        return self._choice

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers so far."""
        held = [unit.memory for unit in (*self._pending, *self._used, *([self._unit] if self._unit else []))]
        return sum(memory.nbytes for memory in (*held, *self._free))

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
        given, self._given = self._given, self._given + 1
        unit = self._unit
        if unit is not None and self._number == len(unit.ends):
            unit.last = given - 1
            self._used.append(unit)
            self._unit = unit = None
        while self._used and self._used[0].last + self.keep <= given:
            self._free.append(self._used.popleft().memory)
        self._fill()
        if unit is None:
            if not self._pending:
                raise StopIteration
            unit = self._unit = self._pending.popleft()
            self._number = 0
            unit.ready.acquire()
            if unit.error is not None:
                raise unit.error
        low = unit.ends[self._number - 1] if self._number else 0
        high = unit.ends[self._number]
        self._number += 1
        return Loaded(unit.ids[low:high], {name: array[low:high] for name, array in unit.arrays.items()})

    def _begin(self) -> None:
        """Start threads; in a forked child: its own, which read again what the parent's were reading."""
        choice = self.choice
        self._crew = _Crew(reader_maker(self.dataset, choice), self._asked_threads or choice.threads)
        self._finalizer = weakref.finalize(self, self._crew.end)
        again, self._pending = self._pending, deque()
        for unit in again:
            self._submit(_Unit(unit.ids, unit.ends, unit.memory, unit.arrays))
        if self._source is None:
            self._source = iter(self.plan)

    def _fill(self) -> None:
        """Give the threads as much as there are buffers for."""
        crew = self._crew
        assert crew is not None
        while len(self._pending) < (self._depth or crew.threads + 1):
            ids = self._next_unit()
            if not ids:
                return
            memory = self._memory(sum(map(len, ids)) * self._row_bytes)
            if memory is None:
                self._ahead.extendleft(reversed(ids))
                return
            joined = np.concatenate(ids) if len(ids) > 1 else ids[0]
            ends = np.cumsum([len(one) for one in ids]).tolist()
            self._submit(_Unit(joined, ends, memory, self._views(memory, len(joined))))

    def _submit(self, unit: _Unit) -> None:
        assert self._crew is not None
        unit.ready.acquire()
        self._pending.append(unit)
        self._crew.tasks.put(unit)

    def _next_unit(self) -> list[Ids]:
        """Batches that are read at once: as many as fit into a unit, one at least."""
        limit = max(1, (self._window_bytes or self.choice.unit_bytes) // max(self._row_bytes, 1))
        most = _BATCHES_A_UNIT if self.choice.way != "block" else limit
        taken: list[Ids] = []
        rows = 0
        while len(taken) < most:
            if not self._ahead:
                assert self._source is not None
                one = next(self._source, None)
                if one is None:
                    break
                self._ahead.append(self.dataset.checked(one))
            if taken and rows + len(self._ahead[0]) > limit:
                break
            taken.append(self._ahead.popleft())
            rows += len(taken[-1])
        return taken

    def _memory(self, needed: int) -> Memory | None:
        """A buffer for so many bytes of rows; None while all are in use and there may be no more."""
        needed += _ALIGN * (len(self.dataset.fields) + 1)
        for number, memory in enumerate(self._free):
            if memory.nbytes >= needed:
                return self._free.pop(number)
        if self._free:  # none is large enough: one gives way to a larger one
            self._free.pop()
            self._buffers -= 1
        assert self._crew is not None
        limit = (self._depth or self._crew.threads + 1) + 1
        busy = bool(self._pending) or (self._unit is not None and self._number < len(self._unit.ends))
        if busy and (self._buffers >= limit or (self._buffers > 1 and self._buffers * needed > _RING_BYTES)):
            return None
        self._buffers += 1
        self._largest = max(self._largest, needed)
        return self._allocate(self._largest)

    def _views(self, memory: Memory, rows: int) -> Batch:
        """An array a field, one after the other in a buffer."""
        at = -memory.ctypes.data % _ALIGN
        arrays: Batch = {}
        for name, one in self.dataset.fields.items():
            size = rows * one.row_bytes
            part = memory[at : at + size].view(one.numpy_dtype)
            arrays[name] = part.reshape(rows, *one.shape)
            at += size + -size % _ALIGN
        return arrays

    # -- the end ----------------------------------------------------------------------------------------
    def close(self) -> None:
        """End the threads and give the buffers back. May be called twice; not while `next` runs."""
        self._closed = True
        if self._crew is not None:
            self._finalizer.detach()
            self._crew.end()
        self._pending.clear()
        self._used.clear()
        self._free.clear()
        self._unit = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "plan": self.plan, "arguments": self._arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["dataset"], state["plan"], **state["arguments"])  # type: ignore[misc]


class _Crew:
    """Threads that take units from a queue until told to end; they hold nothing of the loader."""

    def __init__(self, make: Callable[[], Reader], threads: int) -> None:
        self.pid = os.getpid()
        self.threads = threads
        self.tasks: SimpleQueue[_Unit | None] = SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=_work, args=(make, self.tasks, self._stop), name="hpcmass-read", daemon=True
            )
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let the threads finish what they are reading, and wait for them (not for ever: a server may hang)."""
        if self.pid != os.getpid():
            return  # they are another process's
        self._stop.set()
        for _ in self._threads:
            self.tasks.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)


def _work(make: Callable[[], Reader], tasks: SimpleQueue[_Unit | None], stop: threading.Event) -> None:
    reader: Reader | None = None
    try:
        while (unit := tasks.get()) is not None:
            try:
                if not stop.is_set():
                    reader = reader or make()
                    reader.read(unit.ids, unit.arrays)
            except BaseException as error:  # it is the consumer's
                unit.error = error
            unit.ready.release()
            del unit
    finally:
        if reader is not None:
            reader.close()


def _allocate(size: int) -> Memory:
    return np.empty(size, np.uint8)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
