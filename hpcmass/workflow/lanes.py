"""Where a waiting item goes: what each executor has under way, how fast it is, whether waiting is better."""

from __future__ import annotations

import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hpcmass.config import Resources
from hpcmass.errors import LaunchError
from hpcmass.workflow.block_shape import BlockShape

# How far ahead items are bound to a worker, in seconds of work: a worker that waits for the way to the driver
# and back does nothing, and an item that waits behind a long one might have begun elsewhere.
_AHEAD_S = 1.0
_LOOKS_AT = 16
_MOST_PLANNED = 512
# Items differ in length, so that two medians of a few differ by chance: below this a target is not slower.
_SLOWER = 1.5


@dataclass(frozen=True)
class Ask:
    """What an item asks of a slot.

    Attributes:
        item: Ranks, threads, GPUs, memory; `target` where it may run on that one alone.
        wall_s: Wall time that its block has to have, in seconds; None: what blocks of the target have.
    """

    item: Resources
    wall_s: int | None = None


@dataclass(eq=False)
class Item:
    """A call that waits for a worker, or has one.

    Attributes:
        bound_at: When it was handed to an executor, by `time.monotonic`.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    ask: Ask
    place: int
    future: Future[Any] = field(default_factory=Future)
    bound_at: float = 0.0


@dataclass(eq=False)
class Lane:
    """One executor: what is bound to it, and whether it can be used.

    Attributes:
        shape: How its blocks are cut; None on this machine.
        room: Slots of the workers that are there; None where it is the only executor.
        took: Seconds that its latest items took on their workers, and their median: a single one may stall.
    """

    label: str
    executor: Any
    shape: BlockShape | None = None
    bound: set[Item] = field(default_factory=set)
    room: int | None = None
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_LOOKS_AT))
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

    def free_in(self, now: float) -> list[float]:
        """When each of its slots is likely to be free, in seconds from now."""
        busy = sorted(max(0.1 * self.usual_s, self.usual_s - (now - item.bound_at)) for item in self.bound)
        slots = self.room or 0
        return busy[:slots] + [0.0] * max(0, slots - len(busy))


def choose(lanes: Sequence[Lane], waiting: int, now: float | None = None) -> Lane | None:
    """The executor that takes the next of some waiting items, or None where they had better wait.

    The least loaded one with room. But one that is slower, by what items took there, takes none that would be
    done earlier if they all waited for the others: else the last items of a study run where they take longest.

    Args:
        lanes: Those that may take it.
        waiting: How many items wait for them or are still to come, this one included.
        now: As `time.monotonic` says.
    """
    now = time.monotonic() if now is None else now
    open_now = sorted(
        (lane for lane in lanes if lane.free() >= 1), key=lambda lane: (lane.load(), lane.usual_s)
    )
    for lane in open_now:
        if not lane.took or lane.room is None:
            return lane  # What it is worth is only known by trying.
        others = [one for one in lanes if one is not lane and one.broken is None and one.took and one.room]
        best_s = min((one.usual_s for one in others), default=float("inf"))
        if lane.usual_s <= max(_SLOWER * best_s, _done_in(others, waiting, now) if others else 0.0):
            return lane
    return None


def _done_in(lanes: Sequence[Lane], waiting: int, now: float) -> float:
    """When the last of the waiting items would be done if these executors did them all, in seconds from now."""
    slots = [(free_s + lane.usual_s, lane.usual_s) for lane in lanes for free_s in lane.free_in(now)]
    if waiting > _MOST_PLANNED:
        return float("inf")
    heapq.heapify(slots)
    done = 0.0
    for _ in range(waiting):
        ends, usual_s = slots[0]
        done = max(done, ends)
        heapq.heapreplace(slots, (ends + usual_s, usual_s))
    return done


__all__ = ["Ask", "Item", "Lane", "choose"]
