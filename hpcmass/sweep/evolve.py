"""NSGA-II with a steady state: each trial has two parents among the best that are known when it is drawn.

Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm (2002), with its constrained domination;
without generations, which would wait for their slowest trial: Durillo et al., On the Effect of the Steady-State
Selection Scheme (2009). Crossover and mutation of numbers in the unit cube: Deb and Agrawal (1995).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcmass.config.sweep import CategoricalDimension, Dimension
from hpcmass.config.table import Scalar
from hpcmass.sweep.points import from_unit, random_point, to_unit
from hpcmass.sweep.space import Params, Space

_CROSSOVER = 0.9
_CROSSOVER_INDEX = 15.0
_MUTATION_INDEX = 20.0


@dataclass(frozen=True)
class Member:
    """A finished trial.

    Attributes:
        losses: Its objectives, less is better.
        violation: By how much it is beyond the constraints, all together; 0 where it keeps to them.
    """

    number: int
    params: Params
    losses: tuple[float, ...]
    violation: float = 0.0


class Elite:
    """The best members told so far, `capacity` to twice as many: by front, within a front the less crowded."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.members: list[Member] = []
        self._ranks: list[tuple[int, float]] | None = None

    def tell(self, member: Member) -> None:
        """Take a member in; where there are more than twice `capacity`, the worse half goes."""
        self.members.append(member)
        self._ranks = None
        if len(self.members) > 2 * self.capacity:
            ranks = self.ranks()
            best = sorted(range(len(ranks)), key=lambda i: (ranks[i][0], -ranks[i][1], self.members[i].number))
            self.members = [self.members[place] for place in sorted(best[: self.capacity])]
            self._ranks = None

    def ranks(self) -> list[tuple[int, float]]:
        """Of each member the front, from 0, and the distance to its neighbours there."""
        if self._ranks is None:
            losses = np.array([member.losses for member in self.members])
            fronts = fronts_of(losses, np.array([member.violation for member in self.members]))
            crowding = np.zeros(len(fronts))
            for front in range(int(fronts.max(initial=-1)) + 1):
                inside = np.flatnonzero(fronts == front)
                crowding[inside] = _crowding(losses[inside])
            self._ranks = list(zip(fronts.tolist(), crowding.tolist(), strict=True))
        return self._ranks


class Evolution:
    """What to try next by NSGA-II."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.elite = Elite(min(50, max(16, 4 * len(space.dimensions))))

    def propose(self, state: random.Random) -> Params:
        """A child of two members; a random point while there are not yet as many as parents are wanted."""
        if len(self.elite.members) < self.elite.capacity:
            return random_point(self._space, state)
        first, second = self._parent(state), self._parent(state)
        crossed = state.random() < _CROSSOVER
        rate = 1.0 / len(self._space.dimensions)

        def choose(name: str, dimension: Dimension) -> Scalar:
            values = [p[name] for p in (first, second) if name in p]
            if not values or (isinstance(dimension, CategoricalDimension) and state.random() < rate):
                return from_unit(dimension, state.random())
            if isinstance(dimension, CategoricalDimension):
                return values[int(crossed and state.random() < 0.5) % len(values)]  # type: ignore[no-any-return]
            units = [to_unit(dimension, value) for value in values]
            unit = _cross(units[0], units[-1], state) if crossed else units[0]
            if state.random() < rate:
                unit = _mutate(unit, state)
            if not crossed and unit == units[0]:
                return values[0]  # type: ignore[no-any-return]
            return from_unit(dimension, unit)

        return self._space.draw(choose)

    def _parent(self, state: random.Random) -> Params:
        """The better of two, drawn at random."""
        ranks, members = self.elite.ranks(), self.elite.members
        one, other = state.randrange(len(members)), state.randrange(len(members))
        better = min((one, other), key=lambda i: (ranks[i][0], -ranks[i][1], members[i].number))
        return members[better].params


def fronts_of(losses: NDArray[np.float64], violations: NDArray[np.float64]) -> NDArray[np.int64]:
    """The front of each of n members, from 0.

    Args:
        losses: Shape (n, objectives), less is better.
        violations: Shape (n,); one that violates less is better whatever its objectives.
    """
    count = len(losses)
    fronts = np.full(count, -1, dtype=np.int64)
    if not count:
        return fronts
    no_worse = (losses[:, None] <= losses[None]).all(axis=2)
    better = (losses[:, None] < losses[None]).any(axis=2)
    same = violations[:, None] == violations[None]
    dominates = (violations[:, None] < violations[None]) | (same & no_worse & better)
    front, left = 0, dominates.sum(axis=0)
    while (fronts < 0).any():
        now = (fronts < 0) & (left == 0)
        fronts[now] = front
        left = left - dominates[now].sum(axis=0)
        front += 1
    return fronts


def _crowding(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each member of one front the side of the box to its neighbours, summed; the ends have infinity."""
    total = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        total[order[0]] = total[order[-1]] = np.inf
        if span > 0 and len(order) > 2:
            total[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return total


def _cross(one: float, other: float, state: random.Random) -> float:
    u = state.random()
    power = 1.0 / (_CROSSOVER_INDEX + 1.0)
    spread: float = (2 * u) ** power if u <= 0.5 else (1.0 / (2 * (1 - u))) ** power
    sign = 1.0 if state.random() < 0.5 else -1.0
    return min(max(0.5 * ((one + other) + sign * spread * (one - other)), 0.0), 1.0)


def _mutate(unit: float, state: random.Random) -> float:
    u = state.random()
    power = 1.0 / (_MUTATION_INDEX + 1.0)
    shift: float = (2 * u) ** power - 1.0 if u < 0.5 else 1.0 - (2 * (1 - u)) ** power
    return min(max(unit + shift, 0.0), 1.0)
