"""Where a study ends, beside the number of its trials; and what it says that it used."""

import pytest
from test_driver import Threads, drive
from toy_trials import toy_job, toy_trial

from hpcmass.config import job_from_values, job_to_toml, load_job
from hpcmass.errors import ConfigError
from hpcmass.sweep.budget import Nodes, read_used
from hpcmass.sweep.records import read_trials
from hpcmass.sweep.show import study_summary


def test_a_value_that_is_good_enough_ends_the_study_with_the_trial_named(tmp_path):
    job = toy_job(trials=50, budget={"value": 1.0})
    result, started = drive(job, tmp_path)
    assert result.best.value <= 1.0
    assert f"trial {result.best.number} reached loss" in result.ended
    assert len(started) < 50
    again, started = drive(job, tmp_path)
    assert (again.ended, started) == (result.ended, [])


def test_a_value_of_a_trial_beyond_the_constraints_is_not_enough(tmp_path):
    result, _ = drive(toy_job(trials=5, budget={"value": 5.0}, constraints=["loss > 100"]), tmp_path)
    assert (result.ended, result.counts["complete"]) == ("all 5 trials are counted", 5)


def test_wall_time_is_that_of_all_drivers_and_a_longer_one_goes_on(tmp_path):
    params = {"epochs": 3, "seconds": 0.15}
    result, _ = drive(toy_job(trials=500, budget={"wall": "2s"}, params=params), tmp_path)
    assert result.ended == "the budget's wall time of 2s is used"
    assert 0 < result.counts["complete"] < 60
    assert read_used(tmp_path).wall_s >= 2
    assert read_used(tmp_path).ended == result.ended
    again, started = drive(toy_job(trials=500, budget={"wall": "2s"}, params=params), tmp_path)
    assert (started, again.ran) == ([], 0)
    more, started = drive(toy_job(trials=500, budget={"wall": "4s"}, params=params), tmp_path)
    assert more.counts["complete"] > result.counts["complete"]


def test_node_hours_are_the_workers_word_and_end_the_study(tmp_path, monkeypatch):
    used = iter([0.0] * 3 + [3599.0] * 3 + [3700.0] * 1000)
    monkeypatch.setattr(Threads, "nodes", lambda self: Nodes(next(used), 10.0, local=0), raising=False)
    job = toy_job(trials=500, budget={"node_hours": 1.0}, params={"epochs": 1, "seconds": 0.05})
    (tmp_path / "job.toml").write_text(job_to_toml(job))
    assert load_job(tmp_path / "job.toml").sweep.budget.node_hours == 1.0
    result, started = drive(job, tmp_path)
    assert result.ended == "1.028 of the budget's 1 node-hours are used"
    assert len(started) < 500
    assert study_summary(tmp_path).used["node-hours"].startswith("1.028 of 1.0")
    monkeypatch.setattr(Threads, "nodes", lambda self: Nodes(0.0, 0.0, local=0, spent=True))
    spent, _ = drive(toy_job(trials=5, budget={"node_hours": 1.0}), tmp_path / "spent")
    assert "the rest is not enough for a block" in spent.ended


def test_a_budget_that_makes_no_sense_is_refused():
    two = {"metrics": ["a", "b"], "directions": ["minimize", "minimize"], "budget": {"value": 1.0}}
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    with pytest.raises(ConfigError, match="one objective"):
        job_from_values({"name": "a", "command": ["true"], "sweep": {"space": space, **two}})
    with pytest.raises(ConfigError, match="node_hours"):
        job_from_values(
            {"name": "a", "command": ["true"], "sweep": {"space": space, "budget": {"node_hours": -1}}}
        )


def test_a_value_that_an_earlier_driver_did_not_count_begins_nothing_more(tmp_path):
    job = toy_job(trials=10, parallel=3, budget={"value": 100.0})
    with pytest.raises(ZeroDivisionError):
        drive(job, tmp_path, dies=True)
    toy_trial(str(read_trials(tmp_path)[0][0].path))
    result, started = drive(job, tmp_path)
    assert (started, result.counts["complete"], result.best.number) == ([], 1, 0)
    assert "trial 0 reached loss" in result.ended
