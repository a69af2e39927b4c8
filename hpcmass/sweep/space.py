"""The space of a study: which dimensions a trial has, the grid, and what a draw means for the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

from hpcmass.config.sweep import CategoricalDimension, Dimension, FloatDimension, IntDimension, SweepTable
from hpcmass.config.table import Scalar
from hpcmass.errors import ConfigError

Params = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """The dimensions of a study, by name, in the order in which they are drawn.

    A dimension with `when` exists only in trials where the dimension that it names was drawn before, with
    that value (or one of those values).
    """

    dimensions: Mapping[str, Dimension]

    def draw(self, choose: Callable[[str, Dimension], Scalar]) -> Params:
        """One point: `choose` is asked, in order, for every dimension that exists at that point."""
        params: Params = {}
        for name, dimension in self.dimensions.items():
            if _exists(dimension, params):
                params[name] = choose(name, dimension)
        return params

    def grid(self) -> Iterator[Params]:
        """Every point of the grid, the last dimension changing fastest.

        Raises:
            ConfigError: A float dimension has no `step`, so that its points cannot be counted.
        """
        values = {name: _grid_values(name, dimension) for name, dimension in self.dimensions.items()}
        names = list(self.dimensions)

        def points(params: Params, depth: int) -> Iterator[Params]:
            if depth == len(names):
                yield params
            elif not _exists(self.dimensions[names[depth]], params):
                yield from points(params, depth + 1)
            else:
                for value in values[names[depth]]:
                    yield from points({**params, names[depth]: value}, depth + 1)

        return points({}, 0)

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A draw as dotted job keys; a name without a dot is a name of `[params]`."""
        return overrides_of(params)


def planned(table: SweepTable) -> int:
    """Trials that a study has in the end: no more than `trials`, and no more than its grid has points.

    Raises:
        ConfigError: A grid over a float dimension without `step`.
    """
    grid = Space(table.space).grid() if table.sampler == "grid" else None
    return table.trials if grid is None else sum(1 for _ in islice(grid, table.trials))


def overrides_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """As `Space.overrides`, which is the same in every space."""
    return {name if "." in name else f"params.{name}": value for name, value in params.items()}


def _exists(dimension: Dimension, params: Params) -> bool:
    return all(
        name in params and any(_same(params[name], value) for value in _several(wanted))
        for name, wanted in (dimension.when or {}).items()
    )


def _several(wanted: Scalar | list[Scalar]) -> list[Scalar]:
    return wanted if isinstance(wanted, list) else [wanted]


def _same(a: object, b: object) -> bool:
    # In Python `True == 1`; in a job file they are two things.
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _grid_values(name: str, dimension: Dimension) -> list[Scalar]:
    if isinstance(dimension, CategoricalDimension):
        return list(dimension.choices)
    if isinstance(dimension, IntDimension):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    if dimension.step is None:
        raise ConfigError(
            "a grid needs a 'step' for a float dimension",
            where=f"sweep.space.{name}",
            hint="give it a step, or make it categorical with the values to try",
        )
    # In decimals, so that 0.1 + 2 * 0.1 is 0.3 and the upper end is not lost to rounding.
    low, high, step = (Decimal(repr(x)) for x in (dimension.low, dimension.high, dimension.step))
    return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


__all__ = ["FloatDimension", "IntDimension", "Params", "Space", "planned"]
