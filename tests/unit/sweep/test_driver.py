import contextlib
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from toy_trials import prepare, toy_job, toy_trial

from hpcmass.config import job_to_toml, load_job
from hpcmass.errors import BlockLost, LeaseHeld, SweepError
from hpcmass.files import Lease, Owner, replace_json
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.driver import run_study
from hpcmass.sweep.records import read_outcome, read_trials
from hpcmass.sweep.show import study_summary, study_table
from hpcmass.sweep.watch import Values


class Threads:
    """Workers that are threads of this process."""

    def __init__(self, count, function=toy_trial):
        self.pool, self.function, self.started = ThreadPoolExecutor(count), function, []

    def submit(self, trial):
        self.started.append(trial.number)
        return self.pool.submit(self.function, str(trial.path))


def drive(job, folder, function=toy_trial, events=None, dies=False):
    workers = Threads(job.sweep.parallel, function)

    @contextlib.contextmanager
    def opened():
        if dies:  # The driver ends when its first trial is laid down and not yet started.
            raise ZeroDivisionError
        with workers.pool:
            yield workers

    notes = (lambda e: events.append((e.kind, e.number))) if events is not None else (lambda e: None)
    result = run_study(job, folder, workers=opened, prepare=partial(prepare, job), on_event=notes)
    return result, workers.started


def test_a_study_runs_to_its_end_and_knows_its_best(tmp_path):
    events = []
    result, started = drive(toy_job(trials=6), tmp_path, events=events)
    assert result.counts == {"complete": 6, "pruned": 0, "failed": 0, "unfinished": 0}
    assert started == list(range(6))
    values = {n: json.loads((tmp_path / f"trials/{n:06d}/outcome.json").read_text())["value"] for n in range(6)}
    best = min(values, key=values.get)
    assert (result.best.number, result.best.value) == (best, values[best])
    assert result.best.value == pytest.approx(result.best.params["x"] + 1 / 3)
    assert sum(kind == "complete" for kind, _ in events) == 6


def test_run_again_it_does_nothing_and_more_trials_go_on(tmp_path):
    first, _ = drive(toy_job(trials=3), tmp_path)
    again, started = drive(toy_job(trials=3), tmp_path)
    assert started == []
    assert (again.best, again.ran) == (first.best, 0)
    _, started = drive(toy_job(trials=5), tmp_path)
    assert started == [3, 4]


def test_maximize_takes_the_largest(tmp_path):
    result, _ = drive(toy_job(direction="maximize"), tmp_path)
    assert result.best.value == max(o.value for _, o in read_trials(tmp_path))


def test_pruning_really_stops_a_bad_trial_early(tmp_path, monkeypatch):
    job = toy_job(
        sampler="grid", pruner="median", trials=7, parallel=1,
        space={"x": {"type": "float", "low": 0.0, "high": 6.0, "step": 1.0}},
        params={"epochs": 6, "seconds": 0.0},
    )  # fmt: skip
    read, looks = Values.read, Counter()

    def counted(values):
        looks[values._run.path] += 1
        return read(values)

    def judged(run):
        """Until the driver, however slow, has looked at the evaluation and made up its mind: it looks again."""
        seen, end = looks[run.path], time.monotonic() + 240
        while looks[run.path] < seen + 2 and time.monotonic() < end:
            time.sleep(0.005)

    monkeypatch.setattr(Values, "read", counted)
    monkeypatch.setattr("hpcmass.sweep.driver._POLL_S", 0.02)
    result, _ = drive(job, tmp_path, partial(toy_trial, between=judged))
    assert result.counts["pruned"] >= 2
    for spec, outcome in read_trials(tmp_path):
        if outcome.state == "pruned":
            assert spec.params["x"] >= 4.0
            assert spec.run.status().state is State.STOPPED
            assert spec.run.status().step < 6
            assert len(outcome.values) < 6
            assert "pruned" in outcome.reason


def test_a_lost_worker_is_tried_again_and_goes_on(tmp_path):
    lost = []

    def loses_some(path):
        if path.endswith(("000001", "000002")) and lost.count(path) < 2:
            lost.append(path)
            raise RuntimeError("the worker is gone")
        return toy_trial(path)

    result, started = drive(toy_job(), tmp_path, loses_some)
    assert result.counts["complete"] == 4
    assert sorted(started) == [0, 1, 1, 1, 2, 2, 2, 3]
    assert read_outcome(tmp_path / "trials/000001").attempts == 3


def test_a_trial_lost_too_often_fails(tmp_path):
    def loses(path):
        if path.endswith("000001"):
            raise RuntimeError("the worker is gone")
        return toy_trial(path)

    result, started = drive(toy_job(retries=1), tmp_path, loses)
    assert result.counts == {"complete": 3, "pruned": 0, "failed": 1, "unfinished": 0}
    assert started.count(1) == 2
    assert "gone" in read_outcome(tmp_path / "trials/000001").reason


@pytest.mark.parametrize("gets_on", [True, False])
def test_lost_blocks_are_counted_anew_whenever_a_trial_got_on(tmp_path, gets_on):
    seen = []

    def cut(path):  # Every block ends in order after one step; or before it.
        run = RunFolder(path)
        seen.append(path)
        if len(seen) <= 30:
            run.update(state=State.STOPPED, step=len(seen) if gets_on else 0, attempt=len(seen))
            raise BlockLost("its block came to the end of its time", transient=True)
        return toy_trial(path)

    result, started = drive(toy_job(trials=1, parallel=1, retries=0), tmp_path, cut)
    if gets_on:
        assert (result.counts["complete"], len(started)) == (1, 31)
    else:
        assert (result.counts["failed"], len(started)) == (1, 21)
        assert "lost 21 times" in read_outcome(tmp_path / "trials/000000").reason


def test_the_users_error_is_not_retried(tmp_path):
    space = {"fails": {"type": "categorical", "choices": [False, True]}}
    result, started = drive(toy_job(space=space, sampler="grid"), tmp_path)
    assert (result.counts["complete"], result.counts["failed"]) == (1, 1)
    assert started == [0, 1]
    assert read_outcome(tmp_path / "trials/000001").reason == "RecipeError: it never works"


def test_when_all_fail_the_same_way_the_study_stops_with_the_reason(tmp_path):
    with pytest.raises(SweepError, match="failed the same way: RecipeError: it never works"):
        drive(toy_job(trials=50, params={"fails": True}), tmp_path)
    assert len(read_trials(tmp_path)) <= 5
    assert Lease(tmp_path / "lease").owner() is None


def test_a_metric_that_was_never_reported_is_named(tmp_path):
    result, _ = drive(toy_job(trials=1, metric="accuracy"), tmp_path)
    assert result.best is None
    assert read_outcome(tmp_path / "trials/000000").reason == (
        "the run never reported 'accuracy'; it reported loss"
    )


def test_values_that_the_job_refuses_fail_their_trial_only(tmp_path):
    space = {"train.lr": {"type": "categorical", "choices": [0.1, -1.0]}}
    result, started = drive(toy_job(space=space, sampler="grid"), tmp_path)
    assert (result.counts["complete"], result.counts["failed"], started) == (1, 1, [0])
    assert "train.lr" in read_outcome(tmp_path / "trials/000001").reason


def test_a_second_driver_is_refused(tmp_path):
    with Lease(tmp_path / "lease"), pytest.raises(LeaseHeld, match="another driver works on this study"):
        drive(toy_job(), tmp_path)
    assert not (tmp_path / "trials").exists()


def test_a_trial_that_somebody_runs_is_watched_and_not_started_again(tmp_path):
    job = toy_job(params={"epochs": 8, "seconds": 0.0})
    with pytest.raises(ZeroDivisionError):
        drive(job, tmp_path, dies=True)
    spec = read_trials(tmp_path)[0][0]
    events = []

    def until_attached(_):
        end = time.monotonic() + 240
        while ("attached", 0) not in events and time.monotonic() < end:
            time.sleep(0.01)

    thread = threading.Thread(target=toy_trial, args=(str(spec.path), until_attached))
    thread.start()
    while not list(spec.run.records("report")):
        time.sleep(0.01)
    result, started = drive(job, tmp_path, events=events)
    thread.join()
    assert ("attached", 0) in events
    assert 0 not in started
    assert events.count(("value", 0)) == 7  # What was there before is said by nobody again.
    assert result.counts["complete"] == 4


def test_what_ended_uncounted_is_counted_and_what_was_only_drawn_is_started(tmp_path):
    job = toy_job()
    with pytest.raises(ZeroDivisionError):
        drive(job, tmp_path, dies=True)
    drawn = read_trials(tmp_path)[0][0]
    toy_trial(str(drawn.path))
    result, started = drive(job, tmp_path)
    assert started == [1, 2, 3]
    assert result.counts["complete"] == 4
    assert (drawn.path / "own.log").read_text() == "start\ncompleted\n"


def test_proposals_of_a_resumed_study_are_those_of_an_undisturbed_one(tmp_path):
    def params(folder):
        return [spec.params for spec, _ in read_trials(folder)]

    for sampler in ("tpe", "cmaes"):
        space = {n: {"type": "float", "low": 0.0, "high": 1.0} for n in ("x", "y")}
        job = toy_job(sampler=sampler, parallel=1, trials=14, space=space, params={"epochs": 1, "seconds": 0.0})
        drive(job, tmp_path / sampler / "whole")
        for stop in (4, 9, 10, 14):
            cut = job.model_copy(update={"sweep": job.sweep.model_copy(update={"trials": stop})})
            drive(cut, tmp_path / sampler / "cut")
        assert params(tmp_path / sampler / "whole") == params(tmp_path / sampler / "cut")


def test_failures_under_an_earlier_driver_count_when_all_are_alike(tmp_path):
    bad = {"params": {"fails": True}, "parallel": 1}
    drive(toy_job(trials=2, **bad), tmp_path)
    with pytest.raises(SweepError, match="the first 3 trials failed the same way"):
        drive(toy_job(trials=50, **bad), tmp_path)
    with pytest.raises(SweepError, match="the first 4 trials failed the same way"):
        drive(toy_job(trials=50, **bad), tmp_path)
    assert len(read_trials(tmp_path)) == 4
    result, _ = drive(toy_job(trials=5, parallel=1), tmp_path)
    assert result.counts["complete"] == 1
    result, _ = drive(toy_job(trials=7, **bad), tmp_path)
    assert result.counts["failed"] == 6


def test_a_driver_that_was_taken_over_ends_and_writes_nothing_more(tmp_path, monkeypatch):
    leases = []

    def made(base):
        leases.append(Lease(base, ttl_s=0.2))
        return leases[-1]

    monkeypatch.setattr("hpcmass.sweep.driver.Lease", made)

    def taken_over_meanwhile(path):
        owner = Owner("some-other-host", 4711, 1, "another-boot", None, time.time())
        replace_json(tmp_path / "lease.2.json", vars(owner))
        until = time.monotonic() + 240
        while not leases[0].lost and time.monotonic() < until:
            time.sleep(0.01)
        return toy_trial(path)

    with pytest.raises(LeaseHeld, match="another process has taken this study over"):
        drive(toy_job(parallel=1), tmp_path, taken_over_meanwhile)
    # The second was drawn ahead, before that.
    assert [(spec.number, outcome) for spec, outcome in read_trials(tmp_path)] == [(0, None), (1, None)]
    assert "released" not in (tmp_path / "lease.1.beat").read_text()


def test_values_are_read_once_and_a_resume_takes_later_ones_back(tmp_path):
    run, job = RunFolder(tmp_path), toy_job()
    values = Values(run, job)
    assert values.read() == []
    for step in (1, 2, 3):
        run.append({"kind": "report", "step": step, "loss": step / 2})
    assert values.read() == [[1, 0.5], [2, 1.0], [3, 1.5]]
    size = run.metrics_file.stat().st_size
    with open(run.metrics_file, "r+b") as file:
        file.write(b"x" * (size - 1))  # What was read is not needed again.
    run.append({"kind": "resume", "from_step": 1, "ranks": 1})
    assert values.read() == [[1, 0.5]]
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"kind": "report", "step": 2, "loss"')
    assert values.read() == [[1, 0.5]]
    with open(run.metrics_file, "ab") as file:
        file.write(b": 0.25}\n")
    assert values.read() == [[1, 0.5], [2, 0.25]]
    run.append({"kind": "report", "step": 3, "loss": float("inf")})
    assert (values.read(), values.last()) == ([[1, 0.5], [2, 0.25]], None)


def test_a_trial_that_diverges_in_the_end_is_not_worth_what_it_was_before(tmp_path):
    def diverges(path):
        if path.endswith("000001"):
            run = RunFolder(path)
            with run.lease():
                run.update(state=State.RUNNING, attempt=1)
                for step, loss in enumerate((0.001, float("nan")), start=1):
                    run.append({"kind": "report", "step": step, "loss": loss})
                run.update(state=State.COMPLETED)
            return path
        return toy_trial(path)

    result, _ = drive(toy_job(trials=2), tmp_path, diverges)
    assert result.best.number == 0
    outcome = read_outcome(tmp_path / "trials/000001")
    assert (outcome.state, outcome.cause) == ("pruned", "DIVERGED")
    assert outcome.reason == "pruned: the last 'loss' is NaN, not a number"


def test_several_objectives_end_in_a_front_and_facts_of_the_run_are_among_them(tmp_path):
    """The loss falls with `size`, the model grows with it; one trial writes none."""

    def sized(path):
        run = RunFolder(path)
        size = load_job(run.job_file).params["size"]
        with run.lease():
            run.update(state=State.RUNNING, attempt=1, started=time.time())
            run.append({"kind": "report", "step": 1, "loss": abs(3 - size)})
            if size < 5:
                run.model.mkdir()
                (run.model / "weights.safetensors").write_bytes(b"x" * 1000 * size)
            run.update(state=State.COMPLETED, ended=time.time())
        return path

    job = toy_job(
        sampler="grid", trials=9, metrics=["loss", "bytes"], directions=["minimize", "minimize"],
        space={"size": {"type": "int", "low": 1, "high": 5}},
    )  # fmt: skip
    (tmp_path / "job.toml").write_text(job_to_toml(job))
    result, _ = drive(job, tmp_path, sized)
    assert [(t.params["size"], t.measured) for t in result.front] == [
        (size, {"loss": 3 - size, "bytes": 1000 * size}) for size in (1, 2, 3)
    ]
    assert (result.best, result.counts["complete"], result.counts["failed"]) == (None, 4, 1)
    assert read_outcome(tmp_path / "trials/000004").reason == "'bytes' is not known of this run"
    assert [row.front for row in study_table(tmp_path)] == [True, True, True, False, False]
    assert [t.number for t in study_summary(tmp_path).front] == [0, 1, 2]
    again, started = drive(job, tmp_path, sized)
    assert (again.front, started) == (result.front, [])


def test_the_best_keeps_to_the_constraints_and_where_none_does_this_is_said(tmp_path):
    space = {"x": {"type": "categorical", "choices": [0.0, 1.0, 2.0]}}
    for limit, best in ((1.0, 1), (5.0, None)):
        job = toy_job(space=space, sampler="grid", constraints=[f"loss >= {limit}", "train_s < 1000"])
        folder = tmp_path / str(limit)
        folder.mkdir()
        (folder / "job.toml").write_text(job_to_toml(job))
        result, _ = drive(job, folder)
        assert (result.best and result.best.number, result.beyond) == (best, 1 if best else 3)
        summary = study_summary(folder)
        assert (summary.best, summary.beyond) == (result.best, result.beyond)
        assert [row.feasible for row in study_table(folder)] == [False, best is not None, best is not None]


def test_a_metric_that_is_almost_named_is_offered(tmp_path):
    drive(toy_job(trials=1, metric="lossy"), tmp_path)
    assert "did you mean 'loss'?" in read_outcome(tmp_path / "trials/000000").reason


def test_a_point_that_comes_twice_says_so(tmp_path):
    space = {"n": {"type": "int", "low": 1, "high": 2}}
    drive(toy_job(space=space, trials=4, parallel=1), tmp_path)
    trials = [spec for spec, _ in read_trials(tmp_path)]
    assert [spec.twin for spec in trials[:2]] == [None, None]
    assert all(trials[spec.twin].params == spec.params for spec in trials[2:])
