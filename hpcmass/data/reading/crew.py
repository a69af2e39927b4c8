"""Threads that read, and what they are given to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import Ids
from hpcmass.data.reading.ragged import ShapedReader
from hpcmass.data.reading.rows import Arrays, Reader
from hpcmass.data.shaping import Frame

Memory = npt.NDArray[np.uint8]
Each = Callable[[int, Ids, dict[str, npt.NDArray[Any]]], None]
"""What changes a batch on a reading thread: its number in the plan, its sample numbers, an array a field.

Of a ragged field it is given `Pieces`: each sample's values, without padding.
"""


@dataclass
class Task:
    """Something for a thread to do; done when `wait` returns."""

    error: BaseException | None = field(default=None, init=False)
    # Held until it is done: a bare lock costs a tenth of an Event, and there is one a unit.
    _busy: Any = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._busy.acquire()

    def run(self, reader: Reader) -> None:
        """Do it, on one of the threads."""
        raise NotImplementedError

    def finish(self, error: BaseException | None) -> None:
        """It is done, or went wrong."""
        self.error = error
        self._busy.release()

    def done(self) -> bool:
        """Whether it is over."""
        return not self._busy.locked()

    def wait(self) -> None:
        """Wait for it.

        Raises:
            BaseException: What it raised.
        """
        with self._busy:  # whoever else waits comes after
            pass
        if self.error is not None:
            raise self.error


@dataclass
class Block(Task):
    """Neighbouring samples that are read into a place of the pool.

    Attributes:
        number: Which block of the dataset.
        place: Which place of the pool.
        users: Units that will take rows from it.
        ids: Its samples.
        out: Where they go, an array a field.
    """

    number: int
    place: int
    ids: Ids
    out: Arrays
    users: int = 0

    def run(self, reader: Reader) -> None:
        """See `Task`."""
        reader.read(self.ids, self.out)


@dataclass
class Unit(Task):
    """Some batches that one thread reads at once.

    Attributes:
        ids: Sample numbers of all its batches.
        ends: Where each batch ends in them.
        blocks: Blocks of the pool that hold the samples; None: they are read where they lie.
        rows: Rows of the pool that hold the samples.
        memory: The buffer.
        arrays: Views of it, an array a field.
        frames: Of each batch where the values of ragged fields go; none where there are no such fields.
        shaped: Of each batch the arrays of those; views of the buffer too.
        each: Is called with each batch, once it is read; None: nothing is.
        first: Number of its first batch, in the plan.
        last: Number of its last batch, once all are handed out.
    """

    ids: Ids
    ends: list[int]
    blocks: list[Block] | None = None
    rows: Ids | None = None
    pool: Arrays = field(default_factory=dict)
    memory: Memory | None = None
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    shaped: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    each: Each | None = None
    first: int = 0
    last: int = -1

    def run(self, reader: Reader) -> None:
        """See `Task`."""
        self._read(reader)
        if self.frames:
            assert isinstance(reader, ShapedReader)
            for frame, arrays in zip(self.frames, self.shaped, strict=True):
                reader.fill(frame, arrays)
        if self.each is not None:
            for number, (low, high) in enumerate(zip([0, *self.ends], self.ends, strict=False)):
                batch = self.batch(number)
                samples = self.frames[number].samples(batch) if self.frames else batch
                self.each(self.first + number, self.ids[low:high], samples)

    def batch(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one batch."""
        low, high = self.ends[number - 1] if number else 0, self.ends[number]
        batch = {name: array[low:high] for name, array in self.arrays.items()}
        return batch | self.shaped[number] if self.shaped else batch

    def _read(self, reader: Reader) -> None:
        if self.blocks is None or self.rows is None:
            reader.read(self.ids, self.arrays)
            return
        for block in self.blocks:
            block.wait()
        # Fields that the pool does not hold are in the reader's memory.
        reader.read(self.ids, {name: one for name, one in self.arrays.items() if name not in self.pool})
        for name, rows in self.pool.items():
            np.take(rows, self.rows, axis=0, out=self.arrays[name], mode="clip")

    def batches(self) -> list[Ids]:
        """Sample numbers batch by batch."""
        return [self.ids[low:high] for low, high in zip([0, *self.ends], self.ends, strict=False)]


class Crew:
    """Threads that take tasks from a queue, in order, until told to end; they hold nothing of the loader."""

    def __init__(self, make: Callable[[], Reader], threads: int) -> None:
        self.pid = os.getpid()
        self.threads = threads
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=_work, args=(make, self._tasks, self._stop), name="hpcmass-read", daemon=True
            )
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, task: Task) -> None:
        """Add a task; those that it waits for have been given before."""
        self._tasks.put(task)

    def end(self) -> None:
        """Let the threads finish what they are reading, and wait for them (not for ever: a server may hang)."""
        if self.pid != os.getpid():
            return  # they are another process's
        self._stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)


def _work(make: Callable[[], Reader], tasks: SimpleQueue[Task | None], stop: threading.Event) -> None:
    reader: Reader | None = None
    try:
        while (task := tasks.get()) is not None:
            error: BaseException | None = None
            try:
                if not stop.is_set():
                    reader = reader or make()
                    task.run(reader)
            except BaseException as caught:  # it is the consumer's
                error = caught
            task.finish(error)
            del task, error
    finally:
        if reader is not None:
            reader.close()
