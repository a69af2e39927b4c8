import random

import pytest
from toy_trials import toy_job

from hpcmass.sweep.points import fits, fitted, from_unit, key_of, seed_of, to_unit
from hpcmass.sweep.space import Space


def space_of(**dimensions):
    return Space(toy_job(space=dimensions).sweep.space)


SPACE = space_of(
    x={"type": "float", "low": -1.0, "high": 3.0},
    lr={"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    s={"type": "float", "low": 0.1, "high": 0.7, "step": 0.2},
    n={"type": "int", "low": 1, "high": 64, "log": True},
    k={"type": "int", "low": 2, "high": 11, "step": 3},
    one={"type": "float", "low": 2.0, "high": 2.0},
    f={"type": "categorical", "choices": ["a", 1, True]},
)


def test_the_unit_interval_is_every_dimension_s_range():
    for dimension in SPACE.dimensions.values():
        values = [from_unit(dimension, unit / 1000) for unit in range(1001)]
        assert all(fits(dimension, value) for value in values)
        if dimension.type != "categorical":
            assert values == sorted(values)
            assert [values[0], values[-1]] == pytest.approx([dimension.low, dimension.high], rel=1e-12)
            for value in values[::50]:
                assert from_unit(dimension, to_unit(dimension, value)) == pytest.approx(value, rel=1e-9)
    assert {from_unit(SPACE.dimensions["s"], unit / 10) for unit in range(10)} == {0.1, 0.3, 0.5, 0.7}


def test_a_point_from_elsewhere_fits_whole_or_not_at_all():
    whole = {"x": 0, "lr": 0.01, "s": 0.3, "n": 7, "k": 5.0, "one": 2.0, "f": 1, "other": "is left out"}
    assert fitted(SPACE, whole) == {"x": 0.0, "lr": 0.01, "s": 0.3, "n": 7, "k": 5, "one": 2.0, "f": 1}
    for name, value in {"x": 4.0, "s": 0.4, "n": 7.5, "k": 6, "f": False, "lr": None, "one": "2"}.items():
        assert fitted(SPACE, {**whole, name: value}) is None


def test_random_states_are_keyed_and_keys_tell_points_apart():
    assert len({seed_of(s, n, r) for s in range(3) for n in range(30) for r in range(3)}) == 270
    assert random.Random(seed_of(0, 0)).random() == random.Random(seed_of(0, 0)).random()
    assert key_of({"a": 1, "b": 2.0}) == key_of({"b": 2.0, "a": 1}) != key_of({"a": True, "b": 2.0})
