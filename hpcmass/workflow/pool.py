"""Workers under Parsl: started, fed, and ended; no process and no block is left, however the driver ends."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import statistics
import sysconfig
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from parsl.dataflow.dflow import DataFlowKernel
from parsl.errors import ConfigurationError
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import ManagerLost

from hpcmass.config import Resources, Target
from hpcmass.errors import BlockLost, ConfigError, LaunchError
from hpcmass.files import make_dir, storage_errors
from hpcmass.launch import usable_cores
from hpcmass.workflow.block_shape import block_shape
from hpcmass.workflow.blocks import POLL_S, BlockBook
from hpcmass.workflow.blocks_left import end_blocks, past_drivers
from hpcmass.workflow.executors import LOST_AFTER_S, BlockExecutor
from hpcmass.workflow.interchange import UNANSWERED, watch_answers
from hpcmass.workflow.parsl_site import LABEL, config_of, local_executor, shell_safe, slurm_executor
from hpcmass.workflow.pilot import SHARE
from hpcmass.workflow.timed import timed
from hpcmass.workflow.watchdog import TAG, Watchdog, end_tagged

GRACE_S = 15.0
# How often it is asked which workers are there, and how far ahead items are bound to them, in seconds of work:
# a worker that waits for the way to the driver and back does nothing, and an item that waits behind a long one
# might have begun elsewhere.
_LOOK_S = 1.0
_AHEAD_S = 1.0
_BLOCKS_END_S = 90.0
_POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_OWN_SIGNAL_S = 5.0


@dataclass(eq=False)
class _Item:
    """A call that waits for a worker, or has one."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class Lane:
    """One executor: what is bound to it, and whether it can be used.

    Attributes:
        room: Slots of the workers that are there; None where it is the only executor.
        took: Seconds that its latest items took on their workers, and their median: a single one may stall.
    """

    label: str
    executor: Any
    bound: set[_Item] = field(default_factory=set)
    room: int | None = None
    took: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    usual_s: float = float("inf")
    broken: LaunchError | None = None

    def free(self) -> float:
        """Items that may be bound to it now."""
        if self.broken is not None:
            return 0
        if self.room is None:
            return float("inf")
        return self.room * (1 + _AHEAD_S / self.usual_s) - len(self.bound)

    def note(self, seconds: float) -> None:
        """Learn from an item that has ended."""
        self.took.append(seconds)
        self.usual_s = max(1e-4, statistics.median(self.took))

    def load(self) -> float:
        """Items a slot."""
        return len(self.bound) / (self.room or 1)


class Pool:
    """Workers that run functions; open one with `open_pool`.

    Items are bound late: with several executors an item stays here until a worker is free for it, and whoever
    is free takes the next one, while every executor's blocks come as the waiting items ask for them.

    Attributes:
        broken: Why no worker can be reached any more, or None.
        lanes: The executors by label.
    """

    def __init__(self, kernel: DataFlowKernel, tag: str, *, book: BlockBook | None = None) -> None:
        self._kernel = kernel
        self._lock = threading.RLock()
        self._queue: deque[_Item] = deque()
        self._book = book
        self._closed = False
        self._calls: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._submitting = threading.Lock()
        self.tag = tag
        self.broken: LaunchError | None = None
        self.lanes = {
            label: Lane(label, executor)
            for label, executor in kernel.executors.items()
            if not label.startswith("_")
        }
        for lane in self.lanes.values():
            in_blocks = isinstance(lane.executor, BlockExecutor)
            if in_blocks:
                lane.executor.demand = lambda lane=lane: len(lane.bound) + len(self._queue)
            else:
                watch_answers(lane.executor)
            if len(self.lanes) > 1:  # A single one may queue its items itself.
                lane.room = 0 if in_blocks else int(lane.executor.max_workers_per_node)

    # -- items ----------------------------------------------------------------------------------------
    def run(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a worker call a function of an importable module.

        The future holds an exception when the worker was lost (`BlockLost` where its node or block was), or
        when the function raised, and a `LaunchError` when no worker can be reached any more.
        """
        item = _Item(function, args)
        with self._lock:
            if self.broken is not None:
                item.future.set_exception(self.broken)
                return item.future
            self._queue.append(item)
        self._bind()
        return item.future

    def _bind(self) -> None:
        """Hand waiting items to executors with room, the least loaded first."""
        while True:
            with self._lock:
                if self._closed or not self._queue:
                    return
                lane = min((one for one in self.lanes.values() if one.free() >= 1), key=Lane.load, default=None)
                if lane is None:
                    return
                item = self._queue.popleft()
                lane.bound.add(item)
            self._submit(item, lane).add_done_callback(functools.partial(self._done, item, lane))

    def _submit(self, item: _Item, lane: Lane) -> Future[Any]:
        """Hand an item to Parsl's executor itself, which its data-flow kernel has started and scales.

        The kernel would resolve dependencies, retry and remember, at a cost: it is not wanted here.
        """
        call = self._calls.get(item.function)
        if call is None:
            call = functools.partial(timed, item.function)  # one for all its items: Parsl makes its text once
            call.__name__ = getattr(item.function, "__name__", "item")  # type: ignore[attr-defined]
            self._calls[item.function] = call
        try:
            with self._submitting:  # an executor's socket takes one thread at a time
                sent: Future[Any] = lane.executor.submit(call, {}, *item.args)
        except Exception as error:
            sent = Future()
            sent.set_exception(error)
        return sent

    def _done(self, item: _Item, lane: Lane, done: Future[Any]) -> None:
        error = done.exception()
        with self._lock:
            if item not in lane.bound:
                return  # Taken from this executor meanwhile.
            lane.bound.discard(item)
            reason = self._bad(lane, error)
            if error is None:
                seconds, result = done.result()
                lane.note(seconds)
        if reason is not None:
            self._give_up(lane, reason, item)
        elif error is None:
            item.future.set_result(result)
        elif isinstance(error, ManagerLost):
            lost = BlockLost(
                f"the workers on {error.hostname} (target '{lane.label}') are gone", transient=True
            )
            item.future.set_exception(lost)
        else:
            item.future.set_exception(error)
        self._bind()

    @staticmethod
    def _bad(lane: Lane, error: BaseException | None) -> LaunchError | None:
        """Why an executor takes nothing any more, where that is what the error of an item means."""
        known = getattr(lane.executor, "executor_exception", None)
        if error is None or not (
            isinstance(error, BadStateException) or (known is not None and error is known)
        ):
            return None
        return known if isinstance(known, LaunchError) else LaunchError(str(known or error))

    def _give_up(self, lane: Lane, reason: LaunchError, *items: _Item) -> None:
        """Use an executor no more: others take its items, or, where there is none, all fail."""
        with self._lock:
            lane.broken = lane.broken or reason
        if isinstance(lane.executor, BlockExecutor):
            lane.executor.give_up()  # Before its items begin elsewhere.
        with self._lock:
            moved, lane.bound = lane.bound, set()
            self._queue.extendleft([*items, *moved])
            if any(other.broken is None for other in self.lanes.values()):
                waiting: list[_Item] = []
            else:
                self.broken = reason
                waiting = list(self._queue)
                self._queue.clear()
        for item in waiting:
            item.future.set_exception(reason)

    # -- watching -------------------------------------------------------------------------------------
    def watch(self, closing: threading.Event) -> None:
        """Give up an executor whose interchange is gone; Parsl would wait for its word for ever."""
        while not closing.wait(1.0):
            for lane in self.lanes.values():
                code = lane.executor.interchange_proc.poll()
                if code is not None and lane.broken is None:
                    # Where all of a process group is told to end, this process is about to hear of it too.
                    if -code in _POLITE and closing.wait(_OWN_SIGNAL_S):
                        return
                    self._give_up(lane, LaunchError(f"Parsl's interchange ended (exit code {code})"))
                    self._bind()
            if self.broken is not None:
                return

    def look(self, closing: threading.Event) -> None:
        """Learn which workers are there, as long as it matters; in a thread of its own, for it may block."""
        while not closing.wait(_LOOK_S):
            for lane in self.lanes.values():
                if lane.room is not None and lane.broken is None and isinstance(lane.executor, BlockExecutor):
                    with contextlib.suppress(*UNANSWERED):  # `watch` gives it up.
                        lane.room = lane.executor.room()
                known = getattr(lane.executor, "executor_exception", None)
                if known is not None and lane.broken is None:
                    self._give_up(lane, known if isinstance(known, LaunchError) else LaunchError(str(known)))
            self._bind()

    # -- the end --------------------------------------------------------------------------------------
    def close(self, grace_s: float) -> bool:
        """End the workers, all that they started, and all blocks; False where Slurm did not confirm it."""
        told: set[int] = set()
        with self._lock:
            self._closed = True
        unreachable = any(lane.executor.interchange_proc.poll() is not None for lane in self.lanes.values())
        try:
            if not unreachable:
                told = _process_groups(self._kernel)
                self._kernel.cleanup()  # Sends TERM to local workers' process group, and cancels blocks.
        except UNANSWERED:
            unreachable = True  # A signal to the whole process group ends the interchange too.
        finally:
            if unreachable:
                # Parsl's own way out would ask the interchange, and wait for its answer.
                atexit.unregister(self._kernel.atexit_cleanup)
            ended = self._book is None or not self._book.touched or self._book.end(within_s=_BLOCKS_END_S)
            end_tagged(self.tag, grace_s=grace_s, told=told)
        return ended


@contextlib.contextmanager
def open_pool(
    targets: Target | Mapping[str, Target],
    *,
    parallel: int,
    folder: Path,
    threads: int | None = None,
    item: Resources | None = None,
    grace_s: float = GRACE_S,
    poll_s: float = POLL_S,
    lost_after_s: int = LOST_AFTER_S,
) -> Iterator[Pool]:
    """Start workers on one target or several; end them and all that they started when the body ends.

    On a local target there are `parallel` workers at once. On those of Slurm blocks come and go with the work,
    each with as many slots as its nodes hold of `item`.

    Args:
        targets: What the site offers: one, or several by name.
        parallel: Items at once.
        folder: Parsl's scripts and logs go to `folder/parsl`, and there to `blocks.jsonl` what is in Slurm.
        threads: CPU threads a local worker may use; by default its share of the cores.
        item: What one item asks for; default: one rank.
        grace_s: How long what runs may take to end by itself (to write a checkpoint, say), in seconds.
        poll_s: Seconds between two looks at the blocks.
        lost_after_s: Seconds of silence after which a node's workers count as lost.

    Raises:
        ConfigError: A target cannot take the items, or the folder's path cannot be handed on.
    """
    named = {LABEL: targets} if isinstance(targets, Target) else dict(targets)
    tag = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(_parsl_dir(folder, local=any(t.kind == "local" for t in named.values())))
        book = BlockBook(folder / "parsl", tag, poll_s=poll_s)
        executors = []
        for name, target in named.items():
            if target.kind == "local":
                environment = worker_environment(target, parallel, threads, tag)
                executors.append(local_executor(label=name, parallel=parallel, environment=environment))
                continue
            shape = block_shape(item or Resources(), target, name=name, parallel=parallel)
            executors.append(
                slurm_executor(
                    shape, target, book=book, run_dir=run_dir, environment=slurm_environment(target),
                    grace_s=grace_s, lost_after_s=lost_after_s,
                )
            )  # fmt: skip
        in_slurm = any(target.kind == "slurm" for target in named.values())
        if in_slurm:
            for driver in past_drivers(book.journal):
                end_blocks(book.slurm, driver, [], within_s=_BLOCKS_END_S)
        dog = stack.enter_context(Watchdog(tag, grace_s=grace_s, journal=book.journal if in_slurm else None))
        try:
            kernel = DataFlowKernel(config_of(executors, run_dir))
        except ConfigurationError as error:
            raise ConfigError(f"Parsl refuses its configuration: {error}") from error
        except BaseException:
            end_tagged(tag, grace_s=0)
            raise
        pool = Pool(kernel, tag, book=book)
        closing = threading.Event()
        threading.Thread(target=pool.watch, args=(closing,), daemon=True).start()
        threading.Thread(target=pool.look, args=(closing,), daemon=True).start()
        try:
            yield pool
        finally:
            closing.set()
            if not pool.close(grace_s):
                dog.keep()  # It goes on trying when this process is gone.


def _process_groups(kernel: DataFlowKernel) -> set[int]:
    groups = set()
    for executor in kernel.executors.values():
        provider = getattr(executor, "provider", None)
        for resource in cast(Any, provider).resources.values() if provider is not None else ():
            with contextlib.suppress(ProcessLookupError, KeyError):
                groups.add(os.getpgid(resource["remote_pid"]))
    return groups


def worker_environment(target: Target, parallel: int, threads: int | None, tag: str) -> dict[str, str]:
    """What workers and all that they start find in their environment beside the driver's own."""
    share = threads or max(1, (target.cores or usable_cores()) // parallel)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Parsl names its processes with setproctitle, which would write over the tag.
    environment = {
        TAG: tag,
        "SPT_NOENV": "1",
        SHARE: f"{1 / parallel:.6g}",
        **{name: str(share) for name in names},
    }
    home = Path(__file__).resolve().parents[2]
    if home != Path(sysconfig.get_path("purelib")).resolve():
        # hpcmass runs from a checkout: the workers are to find the same one.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return environment


def slurm_environment(target: Target) -> dict[str, str]:
    """The same for workers on nodes, where the pilot adds the threads and a tag of its own."""
    environment = worker_environment(target, 1, 1, "")
    threads = [name for name in environment if name.endswith("_NUM_THREADS")]
    return {name: value for name, value in environment.items() if name not in (TAG, SHARE, *threads)}


@contextlib.contextmanager
def _parsl_dir(folder: Path, *, local: bool) -> Iterator[Path]:
    """`folder/parsl`, or a temporary folder where a shell would read that path as something else."""
    if local and not shell_safe(folder):
        temporary = Path(tempfile.mkdtemp(prefix="hpcmass-parsl-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with storage_errors(folder, "make the folder"):
        make_dir(folder / "parsl")
    yield folder / "parsl"
