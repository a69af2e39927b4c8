"""Which replicas to start and which to drain, so that what is served never falls below what is asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A replica as far as this matters.

    Attributes:
        rid: Its number.
        model: What it serves.
        ready: Whether it gets requests; else it is starting. One that drains is not here.
        leaving: Its job or its node ends soon: another one is to take its place first.
    """

    rid: str
    model: str
    ready: bool
    leaving: bool = False


@dataclass(frozen=True)
class Steps:
    """What to do now: models to start a replica of each, and the numbers of those to drain."""

    start: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()


def steps(
    pieces: Sequence[Piece],
    stable: str,
    count: int,
    *,
    canary: str | None = None,
    canaries: int = 0,
    surge: int = 1,
) -> Steps:
    """The next steps towards `count` replicas of `stable` and `canaries` of `canary`.

    A replica that is ready is drained only where `count` ready ones are left, or where `count` is lower than
    what is ready. Beyond `count` at most `surge` are started for an update, and one for each that leaves.
    """
    if canary == stable:
        canary, canaries = None, 0
    first, last = _of(pieces, stable, count, surge, also=lambda one: one.model not in (stable, canary))
    if canary is None:
        return Steps(tuple(first), tuple(last))
    more, less = _of(pieces, canary, canaries, surge, also=lambda one: False)
    return Steps((*first, *more), (*last, *less))


def _of(
    pieces: Sequence[Piece], model: str, count: int, surge: int, also: object
) -> tuple[list[str], list[str]]:
    assert callable(also)
    new = [one for one in pieces if one.model == model and not one.leaving]
    old = [one for one in pieces if (one.model == model and one.leaving) or also(one)]
    leaving = sum(one.leaving for one in old if one.ready)
    lacking = count - len(new)
    room = count + surge + leaving - len(new) - sum(one.ready for one in old)
    start = [model] * max(0, min(lacking, room))
    ready_new = [one for one in new if one.ready]
    ready_old = [one for one in old if one.ready]
    starting_new = [one for one in new if not one.ready]
    drain = [one.rid for one in old if not one.ready]  # nobody asks them yet
    # Those that leave go first; then the other versions; then the youngest.
    spare = len(ready_new) + len(ready_old) - count
    order = sorted(ready_old, key=lambda one: (not one.leaving, one.rid))
    drain += [one.rid for one in order[: max(0, spare)]]
    spare -= min(max(0, spare), len(ready_old))
    surplus = len(new) - count
    if surplus > 0:
        # One that is starting is spared only where a ready one could go instead; it is the cheaper loss.
        drop = [one.rid for one in reversed(starting_new)][:surplus]
        drain += drop
        surplus -= len(drop)
        drain += [one.rid for one in reversed(ready_new)][: max(0, min(surplus, spare))]
    return start, drain
