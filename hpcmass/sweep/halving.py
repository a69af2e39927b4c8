"""Successive halving by pauses: trials stop at a rung, and those worth it go on later, from their checkpoints.

Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), as it promotes: a trial at a rung
leaves its worker, and goes on when it is among the best third of those that came there. All of this is read off
the trials' folders again, so a driver that is killed forgets nothing.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from hpcmass.config import SweepTable
from hpcmass.sweep.prune import REDUCTION
from hpcmass.sweep.records import Outcome, TrialSpec


def rungs_of(first: int, whole: int) -> list[int]:
    """The evaluations after which a trial pauses: first, three times as many, … below a whole trial's."""
    found, at = [], first
    while at < whole:
        found.append(at)
        at *= REDUCTION
    return found


class Halving:
    """Which trials wait at a rung, and which of them goes on next."""

    def __init__(self, table: SweepTable, evaluations: int | None) -> None:
        """Make one; without `pruner = "halving"` it pauses nobody.

        Args:
            table: `[sweep]`.
            evaluations: Of a whole trial.
        """
        self.on = table.pruner == "halving"
        self._sign = table.objectives[0].sign
        self._metric = table.objectives[0].name
        self._rungs = rungs_of(table.min_evaluations, evaluations or table.min_evaluations) if self.on else []
        self._losses: list[dict[int, float]] = [{} for _ in self._rungs]
        self._ranked: list[list[tuple[float, int]]] = [[] for _ in self._rungs]  # the same, best first
        self._heaps: list[list[tuple[float, int]]] = [[] for _ in self._rungs]  # those that came to wait there
        self._passed: dict[int, int] = {}  # by trial, the rung that it is on its way to
        self._waiting: dict[int, TrialSpec] = {}

    def recall(self, spec: TrialSpec, outcome: Outcome | None, read: Callable[[], list[list[float]]]) -> None:
        """Take in a trial of the folder.

        Args:
            spec: The trial.
            outcome: What it counts as, or None.
            read: Gives the values of one that has no outcome.
        """
        if not self.on:
            return
        values = outcome.values if outcome is not None else read()
        reached = sum(len(values) >= limit for limit in self._rungs)
        for rung in range(reached):
            self._enter(spec.number, rung, values)
        if outcome is not None:
            return  # it goes nowhere any more
        goal = spec.run.pause_at()
        on_its_way = [rung for rung, limit in enumerate(self._rungs) if limit == goal]
        if on_its_way:
            self._passed[spec.number] = on_its_way[0]
        elif goal is None and reached:
            self._passed[spec.number] = len(self._rungs)  # past all of them

    def _enter(self, number: int, rung: int, values: list[list[float]]) -> None:
        at = self._rungs[rung]
        losses, ranked = self._losses[rung], self._ranked[rung]
        if number in losses:
            del ranked[bisect_left(ranked, (losses[number], number))]
        losses[number] = self._sign * values[at - 1][1] if len(values) >= at else math.inf
        insort(ranked, (losses[number], number))

    def send(self, spec: TrialSpec) -> None:
        """Tell a trial that is about to run at which evaluation to pause."""
        if not self.on:
            return
        rung = self._passed.setdefault(spec.number, 0)
        spec.run.pause(self._rungs[rung] if rung < len(self._rungs) else None, f"rung {rung}")

    def pause(self, spec: TrialSpec, values: list[list[float]]) -> None:
        """A trial has come to its rung, and waits there."""
        rung = min(self._passed.setdefault(spec.number, 0), len(self._rungs) - 1)
        self._enter(spec.number, rung, values)
        self._waiting[spec.number] = spec
        if self._passed[spec.number] == rung:
            heapq.heappush(self._heaps[rung], (self._losses[rung][spec.number], spec.number))

    def promote(self, *, drained: bool) -> TrialSpec | None:
        """The trial that goes on next, with its way to the next rung free; of the highest rung that has one.

        Args:
            drained: Nothing runs and nothing is drawn any more: then the best of a rung goes on however few
                came there.
        """
        for rung in reversed(range(len(self._rungs))):
            ranked, heap = self._ranked[rung], self._heaps[rung]
            most = max(1 if drained else 0, len(ranked) // REDUCTION)
            # If the best of those that wait is not among the best, none of them is.
            if heap and heap[0][0] < math.inf and bisect_left(ranked, heap[0]) < most:
                number = heapq.heappop(heap)[1]
                self._passed[number] = rung + 1
                spec = self._waiting.pop(number)
                self.send(spec)
                return spec
        return None

    def left(self) -> Iterable[tuple[TrialSpec, str]]:
        """The trials that wait and will not go on, with the reason; they wait no longer."""
        waiting, self._waiting = self._waiting, {}
        self._heaps = [[] for _ in self._rungs]
        for number, spec in sorted(waiting.items()):
            rung = self._passed[number]
            of = len(self._losses[rung])
            yield spec, f"{self._metric} is not among the best of the {of} at rung {rung}"
