import itertools
import random

import numpy as np
from toy_trials import toy_job

from hpcmass.sweep.evolve import Elite, Evolution, Member, fronts_of
from hpcmass.sweep.front import pareto_front
from hpcmass.sweep.space import Space


def by_hand(losses):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [i for i, b in enumerate(losses) if not any(dominates(a, b) for a in losses)]


def test_the_front_is_what_its_definition_says():
    state = random.Random(1)
    for objectives, count in itertools.product((1, 2, 3), (1, 2, 7, 60)):
        losses = [tuple(state.randrange(6) for _ in range(objectives)) for _ in range(count)]
        assert pareto_front(losses) == by_hand(losses)
        fronts = fronts_of(np.array(losses, float), np.zeros(count))
        assert np.flatnonzero(fronts == 0).tolist() == by_hand(losses)
    assert pareto_front([]) == []


def test_what_keeps_to_the_constraints_stands_before_what_does_not():
    fronts = fronts_of(np.array([[9.0, 9.0], [0.0, 0.0], [1.0, 1.0]]), np.array([0.0, 2.0, 1.0]))
    assert fronts.tolist() == [0, 2, 1]


def test_the_elite_keeps_the_better_and_the_ends_of_the_front():
    elite = Elite(4)
    for number in range(30):
        x = ((number * 7) % 30) / 30
        elite.tell(Member(number, {}, (x, 1 - x)))
        elite.tell(Member(100 + number, {}, (x + 1, 2 - x)))
    assert 4 <= len(elite.members) <= 8
    ends = [min(m.losses[k] for m in elite.members) for k in (0, 1)]
    assert ends[0] == 0
    assert abs(ends[1] - 1 / 30) < 1e-9


def test_a_child_lies_in_the_space_also_where_dimensions_are_conditional():
    space = Space(
        toy_job(
            space={
                "f": {"type": "categorical", "choices": ["a", "b"]},
                "x": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.1, "when": {"f": "a"}},
                "n": {"type": "int", "low": 1, "high": 64, "log": True},
            }
        ).sweep.space
    )
    evolution, state = Evolution(space), random.Random(2)
    for number in range(200):
        params = evolution.propose(state)
        assert ("x" in params) == (params["f"] == "a")
        assert 1 <= params["n"] <= 64
        assert params.get("x", 0.0) in [round(k * 0.1, 1) for k in range(11)]
        evolution.elite.tell(Member(number, params, (float(params["n"]), params.get("x", 1.0))))
