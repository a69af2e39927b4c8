"""Which running trial to give up.

What is known is kept sorted, so a report costs the same in a study of any length. Values come as losses (less
is better), and evaluations are counted from 1.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from statistics import median
from typing import Protocol

from hpcmass.config.sweep import SweepTable
from hpcmass.sweep.points import seed_of

Ended = tuple[int, list[float], bool]  # number, the loss of each evaluation, whether it ran to its end

REDUCTION = 3  # of each rung one of three goes on
_MEDIAN_STARTUP_TRIALS = 4


class Pruner(Protocol):
    """A rule by which trials are given up."""

    def report(self, number: int, evaluation: int, loss: float) -> bool:
        """Note a value of a trial; whether to give the trial up."""
        ...

    def complete(self, number: int) -> None:
        """Note that a trial, whose values were reported, ran to its end."""
        ...

    def replay(self, trials: Iterable[Ended]) -> None:
        """Learn what `report` and `complete` of these would have taught, all at once."""
        ...


def make_pruner(table: SweepTable, evaluations: int | None) -> Pruner | None:
    """The pruner that the table names.

    Args:
        table: `[sweep]`.
        evaluations: Of a whole trial, where that is known.
    """
    if table.pruner == "median":
        return Median(table.min_evaluations)
    if table.pruner == "asha":
        return Rungs(table.min_evaluations)
    if table.pruner == "hyperband":
        return Hyperband(table.min_evaluations, evaluations or table.min_evaluations, table.seed)
    return None


class Median:
    """A trial is given up whose best value so far is worse than the median at that evaluation.

    Golovin et al., Google Vizier (2017); against trials that ran to their end, of which there have to be some.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._reported: dict[int, dict[int, float]] = {}
        self._known: dict[int, list[float]] = {}
        self._complete = 0

    def report(self, number: int, evaluation: int, loss: float) -> bool:
        """As `Pruner.report`."""
        reported = self._reported.setdefault(number, {})
        reported[evaluation] = loss
        if self._complete < _MEDIAN_STARTUP_TRIALS or evaluation < self._warm_up:
            return False
        known = self._known.get(evaluation)
        return bool(known) and min(reported.values()) > median(known or ())

    def complete(self, number: int) -> None:
        """As `Pruner.complete`."""
        self._complete += 1
        for evaluation, loss in self._reported.pop(number, {}).items():
            insort(self._known.setdefault(evaluation, []), loss)

    def replay(self, trials: Iterable[Ended]) -> None:
        """As `Pruner.replay`."""
        for _, losses, complete in trials:
            if complete:
                self._complete += 1
                for evaluation, loss in enumerate(losses, start=1):
                    self._known.setdefault(evaluation, []).append(loss)
        for known in self._known.values():
            known.sort()


class Rungs:
    """Asynchronous successive halving: of those that came to a rung the better third goes on.

    Li et al., A System for Massively Parallel Hyperparameter Tuning (2020): rungs at first * 3^k evaluations.
    The first one that comes to a rung goes on, whatever it is worth.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._passed: dict[int, int] = {}
        self._losses: dict[int, list[float]] = {}

    def report(self, number: int, evaluation: int, loss: float) -> bool:
        """As `Pruner.report`."""
        while evaluation >= self._first * REDUCTION ** (rung := self._passed.get(number, 0)):
            self._passed[number] = rung + 1
            losses = self._losses.setdefault(rung, [])
            insort(losses, loss)
            if loss > losses[max(len(losses) // REDUCTION, 1) - 1]:
                return True
        return False

    def complete(self, number: int) -> None:
        """As `Pruner.complete`."""
        self._passed.pop(number, None)

    def replay(self, trials: Iterable[Ended]) -> None:
        """As `Pruner.replay`."""
        for _, losses, _ in trials:
            rung, evaluation = 0, self._first
            while evaluation <= len(losses):
                self._losses.setdefault(rung, []).append(losses[evaluation - 1])
                rung, evaluation = rung + 1, evaluation * REDUCTION
        for known in self._losses.values():
            known.sort()


class Hyperband:
    """Several successive halvings, whose first rungs lie at first * 3^b evaluations: some give nobody up early.

    Li et al., Hyperband (2018), with asynchronous rungs. Which bracket a trial is in follows from (study's
    seed, its number), in the shares by which all brackets have about the same evaluations to spend.
    """

    def __init__(self, first: int, last: int, seed: int) -> None:
        self._seed = seed
        count = 1
        while first * REDUCTION**count <= last:
            count += 1
        self._brackets = [Rungs(first * REDUCTION**bracket) for bracket in range(count)]
        self._shares = [math.ceil(count / (b + 1)) * REDUCTION**b for b in reversed(range(count))]

    def bracket(self, number: int) -> int:
        """The bracket of a trial; 0 gives up earliest."""
        place = seed_of(self._seed, number, -1) % sum(self._shares)
        for bracket, share in enumerate(self._shares):
            if place < share:
                return bracket
            place -= share
        raise AssertionError

    def report(self, number: int, evaluation: int, loss: float) -> bool:
        """As `Pruner.report`."""
        return self._brackets[self.bracket(number)].report(number, evaluation, loss)

    def complete(self, number: int) -> None:
        """As `Pruner.complete`."""
        self._brackets[self.bracket(number)].complete(number)

    def replay(self, trials: Iterable[Ended]) -> None:
        """As `Pruner.replay`."""
        shares: list[list[Ended]] = [[] for _ in self._brackets]
        for one in trials:
            shares[self.bracket(one[0])].append(one)
        for bracket, share in zip(self._brackets, shares, strict=True):
            bracket.replay(share)
