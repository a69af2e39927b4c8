import random

import optuna
import pytest
from toy_trials import toy_job

from hpcmass.sweep import window as window_module
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
    study, records, running, order = Study(table, evaluations=3), {}, [], 0
    choice = random.Random(7)
    for number in range(trials):
        if number in restart_at:
            study = Study(table, list(records.values()), evaluations=3)
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
            study.tell(done, state, final, values)
            records[done] = Record(done, records[done].params, records[done].told, state, final, values, order)
            order += 1
    return records


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [(s, "none") for s in ("random", "qmc", "tpe", "cmaes", "nsga2")]
    + [("random", "median"), ("tpe", "asha"), ("tpe", "median"), ("cmaes", "asha"), ("qmc", "hyperband")],
)
def test_a_resumed_study_proposes_and_prunes_what_an_undisturbed_one_does(sampler, pruner):
    table = toy_job(space=SPACE, sampler=sampler, pruner=pruner, seed=3, max_evaluations=3).sweep
    undisturbed = play(table, 40)
    assert play(table, 40, restart_at={1, 5, 13, 14, 27, 38}) == undisturbed
    states = {record.state for record in undisturbed.values()}
    assert ("pruned" in states) == (pruner != "none")


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes", "nsga2"])
def test_the_seed_changes_what_is_proposed(sampler):
    first, second = (play(toy_job(space=SPACE, sampler=sampler, seed=s).sweep, 6) for s in (1, 2))
    assert [r.params for r in first.values()] != [r.params for r in second.values()]
    points = [tuple(sorted(r.params.items())) for r in first.values()]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2"])
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


def tell_all(study, numbers, values, violations=lambda params: ()):
    """Ask and tell one after the other; `values` and `violations` are functions of the parameters."""
    told = []
    for number in numbers:
        params = study.ask(number)
        told.append(Record(number, params, number, "complete", values(params), [], number, violations(params)))
        study.tell(number, "complete", told[-1].value, [], told[-1].violations)
    return told


BOX = dict.fromkeys(("x", "y", "w"), SPACE["x"])


def test_a_gaussian_process_learns_and_a_resumed_one_proposes_the_same():
    table = toy_job(space={"x": SPACE["x"]}, sampler="gp").sweep
    study = Study(table)
    told = tell_all(study, range(12), value_of)
    assert min(abs(record.params["x"] - 0.3) for record in told[10:]) < 0.1
    assert Study(table, told).ask(12) == study.ask(12)


def test_a_long_study_shows_its_sampler_the_best_and_the_newest_and_the_same_after_a_restart(monkeypatch):
    monkeypatch.setitem(window_module._LOOKS_AT, "tpe", 20)
    for several in ({}, {"metrics": ["a", "b"], "directions": ["minimize", "maximize"]}):
        table = toy_job(space=BOX, sampler="tpe", **several).sweep
        values = (lambda p: [p["x"], p["y"]]) if several else value_of
        study = Study(table)
        told = tell_all(study, range(58), values)
        seen = study._window._open().get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        assert 18 <= len(seen) <= 30
        best = min(told[:55], key=lambda record: value_of(record.params))
        assert several or best.params in [trial.params for trial in seen]
        assert told[54].params in [trial.params for trial in seen]
        again = Study(table, told)
        assert [r.params for r in tell_all(again, range(58, 70), values)] == [
            r.params for r in tell_all(study, range(58, 70), values)
        ]


def test_cma_es_forgets_old_generations_and_replays(monkeypatch):
    monkeypatch.setattr(window_module, "_CMA_KEEPS", 15)
    table = toy_job(space=BOX, sampler="cmaes", trials=80).sweep
    assert play(table, 50, restart_at={14, 15, 16, 31, 47}) == play(table, 50)


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes", "nsga2"])
def test_no_point_is_proposed_twice_while_there_is_another(sampler):
    space = {
        "n": {"type": "int", "low": 1, "high": 4},
        "f": {"type": "categorical", "choices": ["a", "b", "c"]},
    }
    table = toy_job(space=space, sampler=sampler).sweep
    study = Study(table)
    told = tell_all(study, range(9), lambda params: float(params["n"]))
    assert len({tuple(sorted(r.params.items())) for r in told}) == 9
    assert study.twins == {}
    told += tell_all(study, range(9, 30), lambda params: float(params["n"]))
    points = {tuple(sorted(r.params.items())) for r in told}
    assert len(points) + len(study.twins) == 30
    twin, first = max(study.twins.items())
    assert told[twin].params == told[first].params
    again = Study(table, told)
    assert again.ask(30) == study.ask(30)


def test_quasi_random_points_fill_the_space_evenly():
    points = [r.params for r in tell_all(Study(toy_job(space=BOX, sampler="qmc").sweep), range(64), value_of)]
    for name in BOX:
        assert sorted(int(params[name] * 64) for params in points) == list(range(64))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_several_objectives_are_traded_against_each_other(sampler):
    """ZDT1 in three dimensions: the front is where y = w = 0, at any x."""
    table = toy_job(space=BOX, sampler=sampler, metrics=["a", "b"], directions=["minimize", "maximize"]).sweep

    def values(params):
        g = 1 + 4.5 * (params["y"] + params["w"])
        return [params["x"], -g * (1 - (params["x"] / g) ** 0.5)]

    told = tell_all(Study(table), range(150), values)
    late = sorted(r.params["y"] + r.params["w"] for r in told[100:])
    early = sorted(r.params["y"] + r.params["w"] for r in told[:16])
    assert late[25] < 0.5 * early[8]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes"])
def test_a_constraint_turns_the_search_away(sampler):
    table = toy_job(space=BOX, sampler=sampler, constraints=["x >= 0.7"]).sweep
    told = tell_all(Study(table), range(90), lambda p: p["x"] + p["y"], lambda p: [max(0.7 - p["x"], 0.0)])
    assert sum(not any(r.violations) for r in told[60:]) >= 15  # 9 at random


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_what_is_known_from_elsewhere_is_learnt_from_and_is_no_trial(sampler):
    table = toy_job(space=BOX, sampler=sampler).sweep
    earlier = tell_all(Study(toy_job(space=BOX, seed=5).sweep), range(60), value_of)
    known = [Record(-1 - r.number, r.params, state="complete", value=[r.value]) for r in earlier]
    told = tell_all(Study(table, known=known), range(12), value_of)
    cold = tell_all(Study(table), range(12), value_of)
    assert sum(r.value for r in told) < 0.8 * sum(r.value for r in cold)
    again = Study(table, told[:7], known=known)
    assert [r.params for r in tell_all(again, range(7, 12), value_of)] == [r.params for r in told[7:]]
