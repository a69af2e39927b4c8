import random

import pytest
from toy_trials import toy_job

from hpcmass.sweep.study import Record, Study

SPACE = {
    "family": {"type": "categorical", "choices": ["a", "b"]},
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "y": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "n": {"type": "int", "low": 1, "high": 64, "log": True},
    "z": {"type": "float", "low": 0.0, "high": 1.0, "when": {"family": "b"}},
}


def value_of(params):
    return (params.get("x", 0.0) - 0.3) ** 2 + params.get("y", 0.0) + params.get("z", 0.1)


def play(table, trials, restart_at=()):
    """Three trials in flight, ended in a scrambled order; the study is rebuilt where `restart_at` says."""
    study, records, running, order = Study(table), {}, [], 0
    choice = random.Random(7)
    for number in range(trials):
        if number in restart_at:
            study = Study(table, list(records.values()))
        params = study.ask(number)
        if params is None:
            break
        records[number] = Record(number, params, told=order)
        running.append(number)
        while len(running) > 2:
            done = running.pop(choice.randrange(len(running)))
            value = value_of(records[done].params)
            values = [[e * 10, value + 1 / e] for e in range(1, 4)]
            state, final = "complete", value
            for evaluation, (_, shown) in enumerate(values, start=1):
                if study.report(done, evaluation, shown):
                    values, state, final = values[:evaluation], "pruned", shown
                    break
            study.tell(done, state, final)
            records[done] = Record(done, records[done].params, records[done].told, state, final, values, order)
            order += 1
    return records


@pytest.mark.parametrize("pruner", ["none", "median", "asha"])
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_a_resumed_study_proposes_and_prunes_what_an_undisturbed_one_does(sampler, pruner):
    table = toy_job(space=SPACE, sampler=sampler, pruner=pruner, trials=40, seed=3).sweep
    undisturbed = play(table, 40)
    assert play(table, 40, restart_at={1, 5, 13, 14, 27, 38}) == undisturbed
    states = {record.state for record in undisturbed.values()}
    assert ("pruned" in states) == (pruner != "none")


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_the_seed_changes_what_is_proposed(sampler):
    first, second = (play(toy_job(space=SPACE, sampler=sampler, seed=s).sweep, 6) for s in (1, 2))
    assert [r.params for r in first.values()] != [r.params for r in second.values()]
    points = [tuple(sorted(r.params.items())) for r in first.values()]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_it_learns(sampler):
    space = dict.fromkeys(("x", "y", "w"), SPACE["x"])

    def late_median(name):
        records = play(toy_job(space=space, sampler=name, trials=120).sweep, 120)
        return sorted(value_of(r.params) for r in records.values() if r.number >= 80)[20]

    assert late_median(sampler) < 0.7 * late_median("random")


def test_conditional_dimension_is_drawn_only_with_its_family():
    for record in play(toy_job(space=SPACE, sampler="tpe").sweep, 30).values():
        assert ("z" in record.params) == (record.params["family"] == "b")


def test_the_grid_ends():
    space = {"a": {"type": "int", "low": 1, "high": 3}, "b": {"type": "categorical", "choices": ["u", "v"]}}
    table = toy_job(space=space, sampler="grid", trials=100).sweep
    assert Study(table).grid_size == 6
    assert [tuple(r.params.values()) for r in play(table, 100, restart_at={4}).values()] == [
        (1, "u"), (1, "v"), (2, "u"), (2, "v"), (3, "u"), (3, "v"),
    ]  # fmt: skip


def test_no_trial_is_given_up_before_its_minimum():
    table = toy_job(space=SPACE, pruner="asha", min_evaluations=3, trials=30).sweep
    pruned = [r for r in play(table, 30).values() if r.state == "pruned"]
    assert pruned
    assert all(len(r.values) == 3 for r in pruned)
