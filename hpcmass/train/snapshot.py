"""A copy of the state in memory that is reused, and work done in a thread while training goes on.

The copy is a real one, made before training goes on: a writer that reads the live tensors instead writes what
has changed meanwhile (pytorch#144657).
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcmass.data.memory import memory_left
from hpcmass.errors import HpcmassError
from hpcmass.train.tensorfile import Layout

# What of the free memory a copy may take: the rest is for whatever else grows.
SHARE = 0.8
_PIECE_BYTES = 1 << 23


class Cancelled(HpcmassError):
    """A checkpoint was given up before it was committed."""


class Snapshot:
    """Memory of one layout: the body of a safetensors file, with a view into it for every tensor."""

    def __init__(self) -> None:
        self._flat = torch.empty(0, dtype=torch.uint8)
        self._layout = Layout((), 0)
        self._views: list[Tensor] = []
        self._helpers: list[Worker] = []

    def make_room(self, layout: Layout, device: torch.device, *, copies: int = 1) -> bool:
        """Have memory for a copy of these tensors; what is there already is used again.

        Args:
            layout: Of the tensors that are to be copied.
            device: Where they lie; a GPU's go into page-locked memory.
            copies: Ranks of this node that take as much at the same time.

        Returns:
            Whether there is enough; else nothing is held.
        """
        if layout == self._layout:
            return True
        self._views, self._layout = [], Layout((), 0)
        if layout.nbytes > len(self._flat):
            self._flat = torch.empty(0, dtype=torch.uint8)
            left = memory_left()
            if left is not None and layout.nbytes * copies > SHARE * left:
                return False
            try:
                self._flat = torch.empty(layout.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
            except (RuntimeError, MemoryError):  # torch's own word for memory that is not there
                return False
        for slot in layout.slots:
            self._views.append(self._flat[slot.start : slot.end].view(slot.dtype).view(slot.shape))
        self._layout = layout
        return True

    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of the tensors as they are now."""
        on_gpu, moves = False, []
        with torch.no_grad():
            for slot, view in zip(self._layout.slots, self._views, strict=True):
                tensor = tensors[slot.name]
                if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg():
                    moves.append((view.data_ptr(), tensor.data_ptr(), slot.end - slot.start))
                    continue
                on_gpu = on_gpu or tensor.is_cuda
                view.copy_(tensor, non_blocking=True)
        if not self._helpers:
            self._helpers = [Worker("hpcmass-copy") for _ in range(torch.get_num_threads() - 1)]
        move(moves, self._helpers)
        if on_gpu:
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """Give the memory and the threads back."""
        for helper in self._helpers:
            helper.close()
        self._helpers, self._views, self._layout = [], [], Layout((), 0)
        self._flat = torch.empty(0, dtype=torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """The copies by name."""
        return {slot.name: view for slot, view in zip(self._layout.slots, self._views, strict=True)}

    def pieces(self, job: Work | None = None) -> Iterator[memoryview]:
        """The bytes of the body.

        Raises:
            Cancelled: `job` is not wanted any more.
        """
        data = self._flat[: self._layout.nbytes].numpy().data
        for first in range(0, len(data), _PIECE_BYTES):
            if job is not None:
                job.check()
            yield data[first : first + _PIECE_BYTES]


class Work:
    """One piece of work that a `Worker` does."""

    def __init__(self, work: Callable[[Work], Any]) -> None:
        """Prepare.

        Args:
            work: Called with this object, whose `check` it calls before what must not happen once it is
                cancelled.
        """
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self._cancelled = threading.Event()
        self._done = threading.Event()

    def do(self) -> None:
        """Do it, and keep what comes of it."""
        try:
            self._value = self._work(self)
        except BaseException as error:  # whoever asks for the result is told
            self._error = error
        self._done.set()

    def check(self) -> None:
        """Raise `Cancelled` when it is."""
        if self._cancelled.is_set():
            raise Cancelled("the checkpoint was given up")

    @property
    def running(self) -> bool:
        """Whether it is still to be done, or being done."""
        return not self._done.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return not self.running and self._error is not None

    def result(self) -> Any:
        """Wait for the end; what the work returned.

        Raises:
            Exception: What it raised.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def end(self, *, now: bool, wait_s: float | None = None) -> None:
        """Wait for the end, whatever it is.

        Args:
            now: Give it up: nothing is committed from here on, and only a file system that hangs is waited
                for, a few seconds.
            wait_s: Give it up after so many seconds; None: never.
        """
        if now:
            self._cancelled.set()
        if not self._done.wait(5.0 if now else wait_s):
            self._cancelled.set()


class Worker:
    """A thread that does one job after the other.

    It lives on between jobs: on a busy machine the start of a thread is waited for, handing over a job is not.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def start(self, work: Callable[[Work], Any]) -> Work:
        """Hand a job over."""
        job = Work(work)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        """End the thread after the jobs that it has; one that hangs is left behind."""
        self._jobs.put(None)
        self._thread.join(5.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.do()


def move(moves: Sequence[tuple[int, int, int]], helpers: Sequence[Worker]) -> None:
    """Copy memory: (to, from, bytes) each, in this thread and those of the helpers that get to it.

    One parallel loop for each tensor, as torch does it, waits for its slowest thread hundreds of times, which
    took ten times as long on a busy machine. Here a helper that is late costs nothing.
    """
    chunks = deque(
        (to + at, origin + at, min(_PIECE_BYTES, size - at))
        for to, origin, size in moves
        for at in range(0, size, _PIECE_BYTES)
    )
    many, done = len(chunks), threading.Semaphore(0)

    def work(_: object = None) -> None:
        while chunks:
            try:
                to, origin, size = chunks.popleft()
            except IndexError:
                return
            ctypes.memmove(to, origin, size)  # drops the interpreter's lock
            done.release()

    if sum(size for _, _, size in moves) > _PIECE_BYTES:
        for helper in helpers:
            helper.start(work)
    work()
    for _ in range(many):
        done.acquire()
