"""The Pareto front."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Which of n points no other one dominates, in their order; O(n x front), of equals all."""
    order = sorted(range(len(losses)), key=lambda i: tuple(losses[i]))
    front: list[int] = []
    for i in order:  # whoever dominates i stands before it
        if not any(_dominates(losses[j], losses[i]) for j in front):
            front.append(i)
    return sorted(front)


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))
