"""How many replicas a deployment should have, from what was seen in the last seconds. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

HIGH, AIM, LOW = 0.75, 0.55, 0.45  # shares of the replicas' time: grow above, grow to, shrink to no more than
UP_S, DOWN_S = 1.0, 60.0  # for how long it has to be so
_WORKS = 0.2
_CALM = 0.7  # of the latency asked for: above it nothing is taken away


@dataclass(frozen=True)
class Load:
    """What was seen.

    Attributes:
        time: Seconds, monotonic.
        ready: Replicas that get requests.
        rate: Answers a second.
        p99_ms: Latency at the gateway; None where nobody asked.
        busy: Share of their time that the ready replicas computed, 0 to 1, their mean.
        queued: Requests that wait in replicas.
        held: Requests that wait for a replica.
        refused: Requests that were refused for want of room, in the last seconds.
        idle_s: Seconds since the last request.
        hours: Replica hours used so far.
    """

    time: float
    ready: int
    rate: float = 0.0
    p99_ms: float | None = None
    busy: float = 0.0
    queued: float = 0.0
    held: int = 0
    refused: int = 0
    idle_s: float = 0.0
    hours: float = 0.0


@dataclass(frozen=True)
class Rule:
    """What is asked: `least` to `most` replicas, a latency, when the last one goes, a budget."""

    least: int
    most: int
    slo_p99_ms: float
    idle_s: float = 300.0
    budget_hours: float | None = None
    up_s: float = UP_S
    down_s: float = DOWN_S


@dataclass(frozen=True)
class Mind:
    """What is decided, and since when more or fewer would do."""

    count: int
    high_since: float | None = None
    low_since: float | None = None
    why: str = ""


def decide(mind: Mind, load: Load, rule: Rule) -> Mind:
    """The next count.

    More at once where requests wait for a first replica; more when replicas are busy, requests queue up or are
    refused, or the latency is too high, for `up_s`, and only when those that were added before are ready (what
    is not there yet cannot have helped). One fewer when one fewer would not be busy, for `down_s`; then it
    waits as long again. Within the two shares nothing changes.
    """
    top = rule.most
    if rule.budget_hours is not None and load.hours >= rule.budget_hours:
        top = min(top, max(rule.least, 1 if load.held or load.idle_s < rule.idle_s else 0))
    count = min(max(mind.count, rule.least), top)
    if count != mind.count:
        return Mind(count, why="range" if top == rule.most else "budget")
    if count == 0:
        return Mind(min(1, top), why="first request") if load.held else Mind(0)
    if rule.least == 0 and count == 1 and load.idle_s >= rule.idle_s and not load.held:
        return Mind(0, why="nobody asks")
    # Where they have next to nothing to do, the model is slow by itself, and more of them would not help.
    slow = load.p99_ms is not None and load.p99_ms > rule.slo_p99_ms and load.busy > _WORKS
    backlog = load.queued > 8 * max(1, load.ready) or load.refused > 0 or load.held > 0
    if load.ready >= count and (load.busy > HIGH or slow or backlog):
        since = load.time if mind.high_since is None else mind.high_since
        if load.time - since < rule.up_s or count >= top:
            return replace(mind, high_since=since, low_since=None, why="")
        need = math.ceil(load.ready * load.busy / AIM)
        why = "busy" if load.busy > HIGH else "latency" if slow else "queue"
        return Mind(min(top, max(count + 1, min(need, 2 * count))), why=why)
    calm = load.p99_ms is None or load.p99_ms <= _CALM * rule.slo_p99_ms or load.busy < _WORKS / 2
    floor = max(rule.least, 1)
    if count > floor and calm and not backlog and load.ready * load.busy / (count - 1) <= LOW:
        since = load.time if mind.low_since is None else mind.low_since
        if load.time - since < rule.down_s:
            return replace(mind, low_since=since, high_since=None, why="")
        return Mind(count - 1, low_since=load.time, why="spare")
    return Mind(count)
