"""What to do about an attempt that ended without a result: by its cause. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcmass.config import Job
from hpcmass.sweep.causes import Cause

# Of a trial's changes: what is no key of its job, but asked of the workers. Seconds of wall time of a block.
WALL = "wall_s"
MEMORY = "resources.memory_gb"
_ACCUMULATION = "train.accumulation"
_LONGER = 2.0
# An attempt that its block's end cut off, and that had more than this part of the block, needs a longer one.
_WHOLE_BLOCK = 0.5
_MOST_AVOIDED = 8


@dataclass(frozen=True)
class Room:
    """What the workers could give a trial at most.

    Attributes:
        memory_gb: What the last attempt had on a node; `most_memory_gb`: what a node has; None: no limit.
        wall_s, most_wall_s: The same of a block's wall time.
    """

    memory_gb: float | None = None
    most_memory_gb: float | None = None
    wall_s: float | None = None
    most_wall_s: float | None = None


@dataclass(frozen=True)
class Remedy:
    """What the next attempt is to have, or that there is none.

    Attributes:
        again: Whether there is a next attempt.
        changes: What it has instead of what the trial's job says, earlier changes included.
        words: What was done, for people.
    """

    again: bool
    changes: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""


def remedy(
    cause: Cause, job: Job, changes: Mapping[str, Any], room: Room, *, ranks: int, ran_s: float, got_on: bool
) -> Remedy:
    """What to do about a cause. That it may be done only so often is the caller's matter.

    Args:
        cause: Why the attempt ended.
        job: The trial's job, as its folder has it.
        changes: What the attempt had instead of what its job says.
        room: What the workers could give.
        ranks: Of the trial.
        ran_s: How long the attempt ran.
        got_on: Whether it got further than any before it.
    """
    if cause in (Cause.USER, Cause.DIVERGED, Cause.COMPLETED, Cause.PRUNED, Cause.PAUSED):
        return Remedy(False, changes)
    if cause is Cause.OOM:
        return _for_memory(job, changes, room, ranks)
    if cause is Cause.TIMEOUT:
        return _for_time(changes, room, ran_s, got_on)
    return Remedy(True, changes)


def _for_memory(job: Job, changes: Mapping[str, Any], room: Room, ranks: int) -> Remedy:
    """More memory while a node has it; then smaller micro-batches, of the same global batch."""
    had, most = room.memory_gb, room.most_memory_gb
    if had is not None and most is not None and had < most:
        more = round(min(had * _LONGER, most), 3)
        return Remedy(True, {**changes, MEMORY: more}, f"with {more:g} GB instead of {had:g}")
    cut = job.train.accumulation
    if job.command is None and cut * _LONGER * ranks <= job.train.global_batch and not job.train.reproducible:
        more_cuts = int(cut * _LONGER)
        words = f"with the global batch of {job.train.global_batch} in {more_cuts} micro-batches a rank"
        return Remedy(True, {**changes, _ACCUMULATION: more_cuts}, words)
    has = "" if most is None else f": no node has more than the {most:g} GB that it had"
    return Remedy(False, changes, f"there is no more memory to give it{has}")


def _for_time(changes: Mapping[str, Any], room: Room, ran_s: float, got_on: bool) -> Remedy:
    """From its checkpoint; with a longer wall where it had a block to itself, or got nowhere."""
    had, most = room.wall_s, room.most_wall_s
    if had is None or (got_on and ran_s < _WHOLE_BLOCK * had):
        return Remedy(True, changes)
    longer = had * _LONGER if most is None else min(had * _LONGER, most)
    if longer <= had:
        return Remedy(True, changes)
    return Remedy(
        True, {**changes, WALL: round(longer)}, f"with a wall time of {longer:.0f} s instead of {had:.0f}"
    )


def avoiding(avoid: tuple[str, ...], node: str, cause: Cause) -> tuple[str, ...]:
    """The nodes that a trial's next attempt is to keep away from, newest last."""
    if not node or not cause.of_node:
        return avoid
    return (*(one for one in avoid if one != node), node)[-_MOST_AVOIDED:]
