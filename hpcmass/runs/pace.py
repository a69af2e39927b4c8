"""What a run's records say of slow steps and slow ranks, in words. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

PARTS = ("input", "compute", "reduction", "checkpoint")
_GROUPS_SHOWN = 3


def step_in_words(record: Mapping[str, Any]) -> str:
    """A `slow-step` record: `step 412 took 3.1 s (usually 0.21 s): input of rank 3 on cn2, 2.9 s more`."""
    text = f"step {record.get('step')} took {_seconds(record.get('seconds'))}"
    text += f" (usually {_seconds(record.get('usual_s'))}): "
    return text + f"{_whose(record)}, {_seconds(record.get('part_s'))} more"


def rank_in_words(record: Mapping[str, Any]) -> str:
    """A `slow-rank` record: `rank 3 on cn2 takes 1.8 times as long as the others (compute)`."""
    times = record.get("times")
    said = f"{times:.2g} times as long" if isinstance(times, int | float) else "longer"
    return (
        f"rank {record.get('rank')} on {record.get('host')} takes {said} as the others ({record.get('part')})"
    )


def shares_in_words(record: Mapping[str, Any]) -> str:
    """A `train` record: `input 5 %, compute 80 %, reduction 15 %`; empty where it has no such seconds."""
    seconds = [(name, record.get(f"{name}_s")) for name in PARTS]
    known = [(name, float(value)) for name, value in seconds if isinstance(value, int | float)]
    total = sum(value for _, value in known)
    if total <= 0:
        return ""
    return ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in known if value / total >= 0.005)


def pace_lines(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is to be said of a run's pace, a line each; nothing where all went evenly.

    Args:
        records: All of the run.
    """
    lines: list[str] = []
    slow: list[Mapping[str, Any]] = []
    rank: Mapping[str, Any] | None = None
    for record in records:
        kind = record.get("kind")
        if kind == "slow-step":
            slow.append(record)
        elif kind == "slow-rank":
            rank = record
        elif kind == "start":
            rank = None  # Another attempt, on other nodes perhaps.
    if rank is not None and rank.get("rank") is not None:
        lines.append(rank_in_words(rank))
    if slow:
        worst = max(slow, key=lambda one: float(one.get("seconds") or 0.0))
        lines.append(step_in_words(worst))
    if len(slow) > 1:
        groups = Counter(_whose(one) for one in slow).most_common()
        told = [f"{whose} {count} times" for whose, count in groups[:_GROUPS_SHOWN]]
        if len(groups) > _GROUPS_SHOWN:
            told.append(f"{sum(count for _, count in groups[_GROUPS_SHOWN:])} others")
        lines.append(f"slow steps were seen {len(slow)} times: {', '.join(told)}")
    return lines


def _whose(record: Mapping[str, Any]) -> str:
    part, rank = record.get("part"), record.get("rank")
    return f"the {part}" if rank is None else f"{part} of rank {rank} on {record.get('host')}"


def _seconds(value: Any) -> str:
    return f"{value:.2g} s" if isinstance(value, int | float) else "? s"
