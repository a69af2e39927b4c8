"""When which slot of which target worked on what, how much of it was idle, and what it cost. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmass.sweep.report.trials import Stay, Told

_BREAK_S = 600.0  # so long without any trial, and nobody drove the study
HERE = "this machine"


@dataclass
class _Lane:
    target: str
    label: str
    block: str
    spans: list[tuple[float, float]]


def timeline(trials: Sequence[Told], blocks: Iterable[Mapping[str, Any]], now: float) -> dict[str, Any]:
    """Lanes (a slot each), what was on them, the blocks, and by target how much of its slots' time was used.

    Args:
        trials: All trials.
        blocks: Records of the study's `parsl/blocks.jsonl`.
        now: The time of the report, at which what still runs ends.

    Returns:
        `{"lanes": [[target, label, block]], "spans": [[lane, begin, end, trial, lost]],
        "blocks": [[job, target, submitted, first, last, nodes]], "targets": {target: {…}},
        "assumed": whether lanes are made up}`.
    """
    stays = sorted(
        ((stay, trial.number) for trial in trials for stay in trial.stays), key=lambda pair: pair[0].begin
    )
    lanes: list[_Lane] = []
    spans: list[list[Any]] = []
    places: dict[tuple[str, str, str, int], int] = {}
    free: list[tuple[float, int]] = []  # lanes of trials whose slot nobody wrote down
    for stay, number in stays:
        end = max(stay.begin, now if stay.end is None else stay.end)
        place = _lane_of(stay, lanes, places, free)
        if stay.slot is None:
            heapq.heappush(free, (end, place))
        lanes[place].spans.append((stay.begin, end))
        spans.append([place, round(stay.begin, 3), round(end, 3), number, int(stay.lost)])
    order = sorted(range(len(lanes)), key=lambda i: (lanes[i].target, lanes[i].block, _natural(lanes[i].label)))
    rank = {old: new for new, old in enumerate(order)}
    for span in spans:
        span[0] = rank[span[0]]
    return {
        "lanes": [[lanes[i].target, lanes[i].label, lanes[i].block] for i in order],
        "spans": spans,
        "blocks": _blocks(stays, blocks, now),
        "targets": _targets(lanes, now),
        "assumed": any(stay.slot is None for stay, _ in stays),
    }


def _lane_of(
    stay: Stay, lanes: list[_Lane], places: dict[tuple[str, str, str, int], int], free: list[tuple[float, int]]
) -> int:
    if stay.slot is not None:
        key = (stay.target, stay.job_id, stay.node, stay.slot)
        if key not in places:
            places[key] = len(lanes)
            lanes.append(_Lane(stay.target or HERE, f"{stay.node} slot {stay.slot}", stay.job_id, []))
        return places[key]
    if free and free[0][0] <= stay.begin + 0.05:
        return heapq.heappop(free)[1]
    lanes.append(_Lane(HERE, f"lane {sum(not one.block for one in lanes) + 1}", "", []))
    return len(lanes) - 1


def _natural(label: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in label.split()]


def _blocks(
    stays: Sequence[tuple[Stay, int]], records: Iterable[Mapping[str, Any]], now: float
) -> list[list[Any]]:
    submitted = {str(r.get("job_id")): r for r in records if r.get("kind") == "block"}
    first: dict[str, list[Any]] = {}
    for job, record in submitted.items():
        target = str(record.get("executor") or "").removesuffix("-nodes")
        first[job] = [job, target, record.get("time"), None, None, set()]
    for stay, _ in stays:
        if not stay.job_id:
            continue
        block = first.setdefault(stay.job_id, [stay.job_id, stay.target, None, None, None, set()])
        end = now if stay.end is None else stay.end
        block[3] = stay.begin if block[3] is None else min(block[3], stay.begin)
        block[4] = end if block[4] is None else max(block[4], end)
        block[5].add(stay.node)
    return [[*block[:5], len(block[5])] for block in first.values()]


def _targets(lanes: Sequence[_Lane], now: float) -> dict[str, dict[str, Any]]:
    """By target: slots, hours in which they worked, and in which they were there.

    A slot is there from the first to the last trial of its block (on this machine: of the study), without
    the times when nothing ran anywhere for long.
    """
    everything = _union(span for lane in lanes for span in lane.spans)
    found: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[str, str], list[_Lane]] = {}
    for lane in lanes:
        groups.setdefault((lane.target, lane.block), []).append(lane)
    for (target, _), group in groups.items():
        spans = [span for lane in group for span in lane.spans]
        begin, end = min(b for b, _ in spans), max(e for _, e in spans)
        breaks = sum(
            min(end, b) - max(begin, a)
            for (_, a), (b, _) in itertools.pairwise(everything)
            if b - a > _BREAK_S and a < end and b > begin
        )
        known = found.setdefault(target, {"slots": 0, "busy_s": 0.0, "there_s": 0.0, "trials": 0})
        known["slots"] += len(group)
        known["trials"] += len(spans)
        known["busy_s"] += sum(e - b for lane in group for b, e in _union(lane.spans))
        known["there_s"] += len(group) * (end - begin - breaks)
    for known in found.values():
        known["used"] = known["busy_s"] / known["there_s"] if known["there_s"] > 0 else None
    return found


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans joined where they overlap, by time."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def cost(trials: Sequence[Told], times: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Hours by what came of the trials, processor time and node-hours; None what is not known.

    A block's node-hours are those from its first trial to its last one on the nodes that worked: the least
    that it took.
    """
    by_state: dict[str, float] = {}
    cpu_s, unknown, without = 0.0, 0, 0
    for trial in trials:
        seconds = sum(max(0.0, (now if s.end is None else s.end) - s.begin) for s in trial.stays)
        by_state[trial.state] = by_state.get(trial.state, 0.0) + seconds
        cpu_s += sum(stay.cpu_s or 0.0 for stay in trial.stays)
        unknown += any(stay.cpu_s is None for stay in trial.stays)
        without += not trial.stays
    by_target: dict[str, float] = {}
    for _, target, _, first, last, nodes in times["blocks"]:
        if nodes:
            by_target[target] = by_target.get(target, 0.0) + (last - first) * nodes
    return {
        "by_state_s": by_state,
        "cpu_s": cpu_s if unknown < len(trials) - without else None,
        "cpu_unknown": unknown,
        "node_s": sum(by_target.values()) if by_target else None,
        "node_s_by_target": by_target,
    }
