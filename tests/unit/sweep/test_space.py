import pytest
from toy_trials import toy_job

from hpcmass.errors import ConfigError
from hpcmass.sweep.space import Space


def space_of(**dimensions):
    return Space(toy_job(space=dimensions).sweep.space)


FAMILY = {"type": "categorical", "choices": ["cnn", "forest"]}


def test_conditional_dimensions_exist_only_where_their_condition_holds():
    space = space_of(
        family=FAMILY,
        depth={"type": "int", "low": 1, "high": 2, "when": {"family": "cnn"}},
        trees={"type": "int", "low": 10, "high": 30, "step": 10, "when": {"family": ["forest"]}},
        bonus={"type": "categorical", "choices": [True, False], "when": {"depth": 2}},
    )
    assert list(space.grid()) == [
        {"family": "cnn", "depth": 1},
        {"family": "cnn", "depth": 2, "bonus": True},
        {"family": "cnn", "depth": 2, "bonus": False},
        {"family": "forest", "trees": 10},
        {"family": "forest", "trees": 20},
        {"family": "forest", "trees": 30},
    ]


def test_true_is_not_one():
    space = space_of(
        flag={"type": "categorical", "choices": [1, True]},
        deep={"type": "int", "low": 5, "high": 5, "when": {"flag": True}},
    )
    assert list(space.grid()) == [{"flag": 1}, {"flag": True, "deep": 5}]


def test_float_grid_has_exact_points_and_its_upper_end():
    space = space_of(x={"type": "float", "low": 0.1, "high": 0.7, "step": 0.2})
    assert [point["x"] for point in space.grid()] == [0.1, 0.3, 0.5, 0.7]


def test_float_without_step_cannot_be_a_grid():
    with pytest.raises(ConfigError, match="step") as caught:
        space_of(x={"type": "float", "low": 0.1, "high": 1.0, "log": True}).grid()
    assert caught.value.where == "sweep.space.x"


def test_overrides_are_job_keys():
    assert space_of(x=FAMILY).overrides({"x": 1, "train.lr": 0.1}) == {"params.x": 1, "train.lr": 0.1}
