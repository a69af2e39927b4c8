"""Workers of `shard`: spawned processes, or this process alone; results in order, few tasks waiting."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from hpcmass.data.scatter import Scatter, start_worker
from hpcmass.errors import HpcmassError

T = TypeVar("T")


class ProcessPool:
    """A context manager; `map` applies a function to argument tuples.

    Args:
        workers: Processes; 1 means that everything runs in this one.
        scatter: Given to every worker once, at its start.
    """

    def __init__(self, workers: int, scatter: Scatter) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None
        if self.parallel:
            # Spawned, not forked: the parent may hold threads and HDF5's state.
            self._executor = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(scatter,)
            )

    @property
    def parallel(self) -> bool:
        """Whether tasks run in other processes."""
        return self.workers > 1

    def map(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """Results in the order of the tasks; only a few tasks are taken from the iterable ahead.

        Raises:
            HpcmassError: A worker process died. What a task raises is raised here.
        """
        if self._executor is None:
            for task in tasks:
                yield function(*task)
            return
        running: deque[Future[T]] = deque()
        try:
            for task in tasks:
                running.append(self._executor.submit(function, *task))
                if len(running) > 2 * self.workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise HpcmassError(
                "a worker process of shard died (out of memory?)",
                hint="try workers=1; a script that calls shard() with workers needs "
                "`if __name__ == '__main__':`",
            ) from error

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
