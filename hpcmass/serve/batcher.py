"""Requests that wait for the model, and the batches made of them.

Nothing ever waits for a batch to fill: a batch is what has queued up while the one before was computed. A
model that answers within two milliseconds is computed on the event loop's own thread, which costs no hop
and no contention for the interpreter's lock; a slower one on a thread of its own, so that the replica goes
on refusing early, answering probes and reading requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

from hpcmass.errors import DataError, HpcmassError
from hpcmass.serve.interfaces import Array, Limits, Refused, Runner
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.pace import Pace
from hpcmass.serve.protocol import Request

log = logging.getLogger("hpcmass.serve")
INLINE_S = 0.002
_STALE = 5  # times `Limits.wait_s`: the pace has changed so much that the promise cannot be kept

_TELL_S = 10.0
_GATHER_S = 0.001
_TOO_LONG_S = 0.020

Outputs = Mapping[str, Array]
Done = Callable[[Outputs | None, Refused | None], None]


class Job:
    """A request that waits, or of which a part has been computed.

    Args:
        request: What is to be computed.
        done: Called once, on the event loop, with outputs or an error, unless the job is abandoned.
    """

    __slots__ = ("abandoned", "alone", "at", "done", "parts", "queued", "request")

    def __init__(self, request: Request, done: Done) -> None:
        self.request = request
        self.done = done
        self.queued = perf_counter()
        self.at = 0
        self.parts: list[Outputs] = []
        self.abandoned = False
        self.alone = False


Batch = list[tuple[Job, int, int]]  # job, its rows from, to


class Batcher:
    """One model's queue; all of it is used from the event loop's thread.

    Args:
        runner: The model, warm.
        pace: How long its batches take.
        limits: Of the queue and of batches.
        metrics: What is counted.
        inline: Compute on the event loop's thread.
        threads: Cores of one computation.
    """

    def __init__(
        self, runner: Runner, pace: Pace, limits: Limits, metrics: Metrics, *, inline: bool, threads: int = 1
    ) -> None:
        self.runner, self.pace, self.limits, self.metrics = runner, pace, limits, metrics
        self.inline = inline
        self.rows = 0
        self.busy = False
        self._queue: deque[Job] = deque()
        self._scheduled = False
        self._seen = -1  # of `Metrics.events`
        self._since = 0.0
        self._told = -_TELL_S
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._threads = threads
        self._slow = 0.0
        self._left = False  # whether it has its thread because batches were slow for a while
        if inline:
            runner.enter(threads)
        else:
            self._start_worker()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        return not self._queue and not self.busy

    def submit(self, job: Job) -> None:
        """Take a job on.

        Raises:
            Refused: The queue is full, or what waits takes longer than the limit.
        """
        ahead_s = self.rows * self.pace.row_s
        if len(self._queue) >= self.limits.queue or ahead_s > self.limits.wait_s:
            raise Refused(
                429, f"{len(self._queue)} requests wait already", retry_after=max(1, math.ceil(ahead_s))
            )
        self._queue.append(job)
        self.rows += job.request.rows
        self._schedule()

    def abandon(self, job: Job) -> None:
        """Forget a job whose client has left."""
        job.abandoned = True
        self.metrics.abandoned += 1

    def close(self) -> None:
        """End the thread, if there is one."""
        self._work.put(None)

    def _schedule(self) -> None:
        # Not at once: the loop reads all sockets that are ready first, and what they bring is one batch.
        if not self._scheduled and not self.busy and self._queue:
            self._scheduled = True
            self._seen, self._since = -1, perf_counter()
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        # uvloop accepts one connection in each round of its loop: go round until nothing more is there,
        # else clients that come anew would be computed one by one, and wait where nobody counts them.
        if self.inline and self._seen != self.metrics.events and perf_counter() - self._since < _GATHER_S:
            self._seen = self.metrics.events
            self._loop.call_soon(self._turn)
            return
        self._scheduled = False
        batch = self._take()
        if not batch:
            return
        self.busy = True
        if self.inline:
            self._finish(batch, *self._compute(batch))
        else:
            self._work.put(batch)

    def _take(self) -> Batch:
        room = self.pace.limit
        now = perf_counter()
        batch: Batch = []
        while self._queue and room > 0:
            job = self._queue[0]
            if batch and (job.alone or batch[0][0].alone or job.request.key != batch[0][0].request.key):
                break
            self._queue.popleft()
            left = job.request.rows - job.at
            if job.abandoned:
                self.rows -= left
                continue
            waited = now - job.queued
            if not job.at:
                if waited > _STALE * self.limits.wait_s:
                    self.rows -= left
                    job.done(None, Refused(503, f"it waited {waited:.2f} s", retry_after=1))
                    continue
                self.metrics.queue_s.observe(waited)
            rows = min(left, room)
            if batch and rows < left:  # it would be cut only because others are in front of it
                self._queue.appendleft(job)
                break
            batch.append((job, job.at, job.at + rows))
            room -= rows
        return batch

    def _start_worker(self) -> None:
        self.inline = False
        self._work = queue.SimpleQueue()  # its own: an earlier thread may not have seen its end yet
        words = (self._work, self._threads)
        threading.Thread(target=self._worker, args=words, name="model", daemon=True).start()

    def _watch(self, seconds: float) -> None:
        """Leave the loop's thread where batches take much longer than zeros did, and come back some time later.

        Long samples do that, and so does a machine that was away for a while.
        """
        self._slow = 0.9 * self._slow + (seconds > _TOO_LONG_S)
        if self.inline and self._slow > 2.5:
            self._left = True
            self._start_worker()
        elif self._left and self._slow < 0.01:  # the last fifty were quick
            self._left = False
            self._work.put(None)
            self.inline = True
            self.runner.enter(self._threads)

    # -- computing: the part that may run on the other thread ---------------------------------------------
    def _worker(self, work: queue.SimpleQueue[Batch | None], threads: int) -> None:
        self.runner.enter(threads)
        while (batch := work.get()) is not None:
            outcome = self._compute(batch)
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, *outcome)
            except RuntimeError:  # the loop has been closed: the replica is ending
                return

    def _compute(self, batch: Batch) -> tuple[Outputs | Exception, float]:
        begun = perf_counter()
        try:
            return self._outputs(batch), perf_counter() - begun
        except Exception as error:  # whatever a model raises ends its request, never the replica
            return error, perf_counter() - begun

    def _outputs(self, batch: Batch) -> Outputs:
        if len(batch) == 1:
            job, start, stop = batch[0]
            inputs = {name: value[start:stop] for name, value in job.request.arrays.items()}
        else:
            names = batch[0][0].request.arrays
            inputs = {
                name: np.concatenate([job.request.arrays[name][start:stop] for job, start, stop in batch])
                for name in names
            }
        rows = sum(stop - start for _, start, stop in batch)
        outputs = self.runner.run(inputs)
        for field in self.runner.interface.outputs:
            found = outputs.get(field.name)
            if found is None or not found.ndim or len(found) != rows:
                shape = None if found is None else found.shape
                raise HpcmassError(f"the model gave {shape} as {field.name!r} for {rows} rows")
        return outputs

    # -- back on the loop ---------------------------------------------------------------------------------
    def _finish(self, batch: Batch, outcome: Outputs | Exception, seconds: float) -> None:
        self.busy = False
        self._watch(seconds)
        if isinstance(outcome, Exception):
            self._failed(batch, outcome)
        else:
            rows = sum(stop - start for _, start, stop in batch)
            self.pace.took(rows, seconds)
            self.metrics.batch_s.observe(seconds)
            self.metrics.batch_rows.observe(rows)
            self.metrics.rows += rows
            self.rows -= rows
            self._deliver(batch, outcome)
        self._schedule()

    def _deliver(self, batch: Batch, outputs: Outputs) -> None:
        low = 0
        for job, start, stop in batch:
            high = low + stop - start
            part = outputs if len(batch) == 1 else {name: value[low:high] for name, value in outputs.items()}
            low = high
            if job.abandoned:
                self.rows -= job.request.rows - stop
                continue
            if stop - start == job.request.rows:
                job.done(part, None)
                continue
            job.parts.append(part)
            job.at = stop
            if stop < job.request.rows:
                self._queue.append(job)  # behind those who came meanwhile
                continue
            job.done({name: np.concatenate([one[name] for one in job.parts]) for name in part}, None)

    def _failed(self, batch: Batch, error: Exception) -> None:
        if len(batch) > 1:  # whose fault it is shows when each is computed by itself
            for job, _, _ in reversed(batch):
                job.alone = True
                self._queue.appendleft(job)
            return
        job, start, _ = batch[0]
        self.rows -= job.request.rows - start
        if job.abandoned:
            return
        if isinstance(error, DataError):
            job.done(None, Refused(400, error.message))
            return
        if (now := perf_counter()) - self._told > _TELL_S:  # a hostile client must not fill the disk
            self._told = now
            log.error("the model failed", exc_info=error)
        said = error.message if isinstance(error, HpcmassError) else type(error).__name__
        job.done(None, Refused(500, f"the model failed: {said}"))
