"""Workers under Parsl, fed: what waits goes to whoever has room for it; and ended, with what they started."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import ManagerLost

from hpcmass.config import Resources, Target
from hpcmass.errors import BlockLost, ConfigError, LaunchError
from hpcmass.workflow.attached import LeftBlocks
from hpcmass.workflow.block_shape import BlockShape, block_shape
from hpcmass.workflow.blocks import BlockBook
from hpcmass.workflow.executors import BlockExecutor
from hpcmass.workflow.interchange import UNANSWERED, watch_answers
from hpcmass.workflow.lanes import Ask, Item, Lane, choose
from hpcmass.workflow.ledger import LEAST_S
from hpcmass.workflow.parsl_site import LABEL
from hpcmass.workflow.quota import Quota
from hpcmass.workflow.timed import timed
from hpcmass.workflow.watchdog import end_tagged

# How often it is asked which workers are there.
_LOOK_S = 1.0
BLOCKS_END_S = 90.0
_POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_OWN_SIGNAL_S = 5.0


class Pool:
    """Workers that run functions; open one with `open_pool`.

    Items are bound late: with several executors an item stays here until a worker is free for it, and whoever
    is free takes the next one, while every executor's blocks come as the waiting items ask for them. Items that
    ask for slots of another size get an executor of their own on each target that has such slots.

    Attributes:
        broken: Why no worker can be reached any more, or None.
        lanes: The executors by label.
        targets: Where items run, by name.
        book: The driver's blocks in Slurm.
        left: Those of earlier drivers, as far as they are left alone.
        to_come: Items that whoever has them run knows of and has not handed on yet.
    """

    def __init__(
        self,
        kernel: DataFlowKernel,
        tag: str,
        *,
        book: BlockBook | None = None,
        targets: Mapping[str, Target] | None = None,
        usual: Ask | None = None,
        parallel: int | None = None,
        make: Callable[[BlockShape], BlockExecutor] | None = None,
        left: LeftBlocks | None = None,
    ) -> None:
        self._kernel = kernel
        self._lock = threading.RLock()
        self._queues: dict[Ask, deque[Item]] = {}
        self._places = itertools.count()
        self._closed = False
        self._calls: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._submitting = threading.Lock()
        self._usual = usual or Ask(Resources())
        self._parallel = parallel
        self._make = make
        self._ways: dict[Ask, list[Lane]] = {}
        self._opening: set[Ask] = set()
        self.tag, self.book, self.left = tag, book, left
        self.targets = dict(targets or {})
        self.to_come = 0
        self.broken: LaunchError | None = None
        self._quotas = {
            name: Quota(target.max_blocks, target.max_nodes or target.block_nodes)
            for name, target in self.targets.items()
        }
        self.lanes: dict[str, Lane] = {}
        for label, executor in kernel.executors.items():
            if not label.startswith("_"):
                self._add(label, executor)
        self._ways[self._usual] = list(self.lanes.values())

    def _add(self, label: str, executor: Any) -> Lane:
        """Have a further executor, which has been started, take items."""
        in_blocks = isinstance(executor, BlockExecutor)
        lane = Lane(label, executor, executor.shape if in_blocks else None)
        if in_blocks:
            executor.demand = lambda: len(lane.bound) + self._waiting_for(lane)
            quota, left = self._quotas.get(executor.shape.target), self.left
            if left is not None:
                executor.left = functools.partial(left.on, executor.shape.target)
            if quota is not None:
                quota.members.append(executor)
                executor.quota = quota
        else:
            watch_answers(executor)
        with self._lock:
            self.lanes[label] = lane
            if len(self.lanes) > 1:  # A single one may queue its items itself.
                for one in self.lanes.values():
                    if one.room is None:
                        blocks = isinstance(one.executor, BlockExecutor)
                        one.room = 0 if blocks else int(one.executor.max_workers_per_node)
        return lane

    def _waiting_for(self, lane: Lane) -> int:
        with self._lock:
            return sum(len(queue) for ask, queue in self._queues.items() if lane in self._ways.get(ask, ()))

    # -- items ----------------------------------------------------------------------------------------
    def run(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a worker call a function of an importable module.

        The future holds an exception when the worker was lost (`BlockLost` where its node or block was), or
        when the function raised, and a `LaunchError` when no worker can be reached any more.
        """
        return self.run_as(self._usual, function, *args)

    def run_as(self, ask: Ask, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """The same in a slot of another size; a future with a `ConfigError` where no target has such slots."""
        item = Item(function, args, ask, next(self._places))
        with self._lock:
            lanes = self._ways.get(ask)
            if self.broken is not None or (lanes is not None and _all_broken(lanes)):
                item.future.set_exception(self.broken or _without_lanes(lanes or []))
                return item.future
            self._queues.setdefault(ask, deque()).append(item)
            known = ask in self._ways or ask in self._opening
            if not known:
                self._opening.add(ask)
        if not known:  # Executors take a second to start.
            threading.Thread(target=self._open, args=(ask,), daemon=True).start()
        self._bind()
        return item.future

    # -- executors of another size --------------------------------------------------------------------
    def shapes(self, ask: Ask) -> dict[str, BlockShape | None]:
        """The targets that can take an item, with how their blocks are cut for it (None on this machine).

        Raises:
            ConfigError: None can.
        """
        found: dict[str, BlockShape | None] = {}
        refusal: ConfigError | None = None
        for name, target in self.targets.items():
            if ask.item.target is not None and ask.item.target != name:
                continue
            if target.kind == "local":
                found[name] = None
                continue
            try:
                found[name] = block_shape(
                    ask.item, target, name=name, parallel=self._parallel, wall_s=ask.wall_s
                )
            except ConfigError as error:
                refusal = error
        if not found:
            raise refusal or ConfigError(f"no target named '{ask.item.target}' takes trials of this study")
        return found

    def _open(self, ask: Ask) -> None:
        """Find the executors that items of a size may go to, and start those that are not there."""
        lanes: list[Lane] = []
        failed: Exception | None = None
        try:
            for name, shape in self.shapes(ask).items():
                lane = next((x for x in self.lanes.values() if self._serves(x, name, shape)), None)
                lanes.append(lane or self._begin(cast(BlockShape, shape)))
        except Exception as error:
            failed = error
        with self._lock:
            self._opening.discard(ask)
            waiting = self._queues.pop(ask, deque()) if failed is not None else deque()
            if failed is None:
                self._ways[ask] = lanes
        for item in waiting:
            item.future.set_exception(cast(Exception, failed))
        self._bind()

    @staticmethod
    def _serves(lane: Lane, target: str, shape: BlockShape | None) -> bool:
        if shape is None:
            return lane.shape is None and lane.label in (target, LABEL)
        return lane.shape == shape

    def _begin(self, shape: BlockShape) -> Lane:
        with self._submitting:
            count = sum(
                lane.shape is not None and lane.shape.target == shape.target for lane in self.lanes.values()
            )
            if self._closed or self._make is None:
                raise LaunchError("the workers are being ended")
            executor = self._make(replace(shape, variant=f"v{count + 1}"))
            self._kernel.add_executors([executor])
            return self._add(executor.label, executor)

    # -- binding --------------------------------------------------------------------------------------
    def _bind(self) -> None:
        """Hand waiting items to executors with room, the one that waits longest first."""
        while True:
            with self._lock:
                bound = None if self._closed else self._next()
            if bound is None:
                return
            item, lane = bound
            self._submit(item, lane).add_done_callback(functools.partial(self._done, item, lane))

    def _next(self) -> tuple[Item, Lane] | None:
        heads = sorted(
            (queue[0].place, ask) for ask, queue in self._queues.items() if queue and ask in self._ways
        )
        for _, ask in heads:
            queue = self._queues[ask]
            lane = choose(self._ways[ask], len(queue) + self.to_come)
            if lane is not None:
                item = queue.popleft()
                item.bound_at = time.monotonic()
                lane.bound.add(item)
                return item, lane
        return None

    def _submit(self, item: Item, lane: Lane) -> Future[Any]:
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

    def _done(self, item: Item, lane: Lane, done: Future[Any]) -> None:
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

    def _give_up(self, lane: Lane, reason: LaunchError, *items: Item) -> None:
        """Use an executor no more: others take its items, or, where there is none, all fail."""
        with self._lock:
            lane.broken = lane.broken or reason
        if isinstance(lane.executor, BlockExecutor):
            lane.executor.give_up()  # Before its items begin elsewhere.
        with self._lock:
            moved, lane.bound = lane.bound, set()
            for item in sorted({*items, *moved}, key=lambda one: -one.place):
                self._queues.setdefault(item.ask, deque()).appendleft(item)
            failing: list[tuple[Item, Exception]] = []
            if _all_broken(self.lanes.values()):
                self.broken = reason
                failing += [(item, reason) for queue in self._queues.values() for item in queue]
                self._queues.clear()
            for ask, lanes in self._ways.items():
                if lane in lanes and _all_broken(lanes):
                    none_left = _without_lanes(lanes)
                    failing += [(item, none_left) for item in self._queues.pop(ask, deque())]
        for item, error in failing:
            item.future.set_exception(error)

    # -- watching -------------------------------------------------------------------------------------
    def watch(self, closing: threading.Event) -> None:
        """Give up an executor whose interchange is gone; Parsl would wait for its word for ever."""
        while not closing.wait(1.0):
            for lane in list(self.lanes.values()):
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
            for lane in list(self.lanes.values()):
                if lane.room is not None and lane.broken is None and isinstance(lane.executor, BlockExecutor):
                    with contextlib.suppress(*UNANSWERED):  # `watch` gives it up.
                        lane.room = lane.executor.room()
                known = getattr(lane.executor, "executor_exception", None)
                if known is not None and lane.broken is None:
                    self._give_up(lane, known if isinstance(known, LaunchError) else LaunchError(str(known)))
            self._bind()

    def spent(self) -> bool:
        """Whether no block is there, and the budget has room for none that anything waits for."""
        lanes = [lane for lane in list(self.lanes.values()) if lane.shape is not None and lane.broken is None]
        if self.book is None or self._opening or any(lane.executor.live_blocks() for lane in lanes):
            return False
        if self.book.ledger.settling(self.book.driver) or (self.left is not None and self.left.drivers):
            return False  # What a block that has just ended had reserved may pay for another one.
        # A block that could be paid, and that none of those that wait fits, would be waited for in vain.
        wanted = [lane for lane in lanes if lane.bound or self._waiting_for(lane)] or lanes
        return not any(self.book.ledger.grant(lane.executor.shape.nodes, LEAST_S) for lane in wanted)

    # -- the end --------------------------------------------------------------------------------------
    def close(self, grace_s: float) -> bool:
        """End the workers, all that they started, and all blocks; False where Slurm did not confirm it."""
        told: set[int] = set()
        with self._lock:
            self._closed = True
        unreachable = any(
            lane.executor.interchange_proc.poll() is not None for lane in list(self.lanes.values())
        )
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
            ended = self.book is None or not self.book.touched or self.book.end(within_s=BLOCKS_END_S)
            end_tagged(self.tag, grace_s=grace_s, told=told)
        return ended


def _all_broken(lanes: Iterable[Lane]) -> bool:
    return all(lane.broken is not None for lane in lanes)


def _without_lanes(lanes: Iterable[Lane]) -> ConfigError:
    """What is said of items of one size where no target takes these any more, and takes others."""
    said = next((lane.broken.message for lane in lanes if lane.broken is not None), "none is left")
    return ConfigError(f"no target takes trials of this size any more: {said}")


def _process_groups(kernel: DataFlowKernel) -> set[int]:
    groups = set()
    for executor in kernel.executors.values():
        provider = getattr(executor, "provider", None)
        for resource in cast(Any, provider).resources.values() if provider is not None else ():
            with contextlib.suppress(ProcessLookupError, KeyError):
                groups.add(os.getpgid(resource["remote_pid"]))
    return groups
