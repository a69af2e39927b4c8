"""Points of the space: keyed random states, the unit cube, and when two points are one."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from operator import itemgetter
from typing import Any

from hpcmass.config.sweep import CategoricalDimension, Dimension, FloatDimension
from hpcmass.config.table import Scalar
from hpcmass.sweep.space import Params, Space


def seed_of(study_seed: int, number: int, redraw: int = 0) -> int:
    """The seed of one draw: 31 bits of SHA-256 over (study's seed, trial's number, how often drawn before)."""
    text = f"{study_seed}:{number}" + (f":{redraw}" if redraw else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def random_point(space: Space, state: random.Random) -> Params:
    """One point, each dimension drawn by itself; `random.random` is the same in every Python."""
    return space.draw(lambda _, dimension: from_unit(dimension, state.random()))


def point_of(space: Space, units: Mapping[str, float]) -> Params:
    """The point at a place of the unit cube; dimensions that do not exist there leave theirs unused."""
    return space.draw(lambda name, dimension: from_unit(dimension, units[name]))


def from_unit(dimension: Dimension, unit: float) -> Scalar:
    """The value of a dimension at `unit`, in [0, 1]."""
    if isinstance(dimension, CategoricalDimension):
        return dimension.choices[_cell(unit, len(dimension.choices))]
    low, high = dimension.low, dimension.high
    if isinstance(dimension, FloatDimension):
        if dimension.step is not None:  # in decimals, as the grid has it
            start, step = Decimal(repr(low)), Decimal(repr(dimension.step))
            return float(start + step * _cell(unit, _steps(dimension)))
        value = math.exp(_between(math.log(low), math.log(high), unit)) if dimension.log else 0.0
        return min(max(value if dimension.log else _between(low, high, unit), low), high)
    if dimension.log:
        value = math.exp(_between(math.log(low - 0.5), math.log(high + 0.5), unit))
        return int(min(max(round(value), low), high))
    return int(low + dimension.step * _cell(unit, _steps(dimension)))


def to_unit(dimension: Dimension, value: Any) -> float:
    """Where in [0, 1] a numeric value of a dimension lies; the middle of its cell where there are cells."""
    assert not isinstance(dimension, CategoricalDimension)
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log and not isinstance(dimension, FloatDimension):
        low, high = low - 0.5, high + 0.5
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    elif dimension.step is not None:
        return (round((float(value) - low) / dimension.step) + 0.5) / _steps(dimension)
    return 0.5 if high == low else min(max((float(value) - low) / (high - low), 0.0), 1.0)


def fits(dimension: Dimension, value: object) -> bool:
    """Whether a value is one that the dimension has."""
    if isinstance(dimension, CategoricalDimension):
        return any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in dimension.choices
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    if not isinstance(dimension, FloatDimension) and not float(value).is_integer():
        return False
    inside = dimension.low <= value <= dimension.high
    if not inside or dimension.step is None:
        return inside
    steps = (value - dimension.low) / dimension.step
    return abs(steps - round(steps)) < 1e-6


def fitted(space: Space, values: Mapping[str, Any]) -> Params | None:
    """The point that some values are, or None where one is missing or out of its range."""

    class Outside(Exception):
        pass

    def choose(name: str, dimension: Dimension) -> Scalar:
        value = values.get(name)
        if not fits(dimension, value):
            raise Outside
        if isinstance(dimension, CategoricalDimension):
            return next(one for one in dimension.choices if one == value)
        return float(value) if isinstance(dimension, FloatDimension) else int(value)  # type: ignore[arg-type]

    try:
        return space.draw(choose)
    except Outside:
        return None


def key_of(params: Params) -> str:
    """What two points have in common exactly when they are one."""
    return json.dumps(params, sort_keys=True)


def keyer(space: Space) -> Callable[[Params], Hashable]:
    """A quicker `key_of` for points of one space."""
    names = list(space.dimensions)
    for dimension in space.dimensions.values():
        if isinstance(dimension, CategoricalDimension) and len(set(dimension.choices)) < len(dimension.choices):
            return key_of  # to Python `1 == True == 1.0`
    whole, count = itemgetter(*names), len(names)

    def key(params: Params) -> Hashable:
        return whole(params) if len(params) == count else tuple(map(params.get, names))

    return key


def _between(low: float, high: float, unit: float) -> float:
    return low + (high - low) * unit


def _cell(unit: float, count: int) -> int:
    return min(int(unit * count), count - 1)


def _steps(dimension: Any) -> int:
    low, high, step = (Decimal(repr(x)) for x in (dimension.low, dimension.high, dimension.step))
    return int((high - low) / step) + 1
