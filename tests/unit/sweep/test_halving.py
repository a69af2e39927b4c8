"""Successive halving: trials pause at rungs, and those worth it go on from where they stopped."""

import random
import signal
from pathlib import Path

import pytest
from test_driver import drive
from toy_trials import toy_job, toy_trial

from hpcmass.config import job_from_values
from hpcmass.errors import ConfigError
from hpcmass.files import read_records
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.halving import Halving, rungs_of
from hpcmass.sweep.records import TrialSpec, read_trials

RUNGS = {
    "pruner": "halving",
    "min_evaluations": 1,
    "max_evaluations": 9,
    "params": {"epochs": 9, "seconds": 0.0},
}


def steps(spec):
    return [record["step"] for record in spec.run.records("report")]


def test_rungs_lie_below_the_whole_trial():
    assert rungs_of(1, 9) == [1, 3]
    assert rungs_of(2, 19) == [2, 6, 18]
    assert rungs_of(5, 5) == []


def test_the_better_third_goes_on_from_where_it_stopped_and_no_step_is_done_twice(tmp_path):
    result, started = drive(toy_job(trials=9, parallel=3, **RUNGS), tmp_path)
    trials = read_trials(tmp_path)
    assert result.counts["complete"] + result.counts["pruned"] == 9
    assert result.counts["complete"] >= 1
    for spec, outcome in trials:
        assert steps(spec) == list(range(1, len(steps(spec)) + 1))  # Each once, in order.
        assert len(steps(spec)) in (1, 3, 9)
        assert (outcome.state == "complete") == (len(steps(spec)) == 9)
    done = sorted(len(steps(spec)) for spec, _ in trials)
    assert sum(done) < 45, done
    best = min(spec.params["x"] for spec, _ in trials)
    assert result.best.params["x"] == best
    lost = next(outcome for _, outcome in trials if outcome.state == "pruned")
    assert "not among the best of the" in lost.reason
    # A pause is an end of an attempt; each goes on in another one.
    ends = [r for r in read_records(tmp_path / "attempts.jsonl") if r["kind"] == "end"]
    assert {r["next"] for r in ends if r["cause"] == "PAUSED"} == {"paused"}
    assert len(started) == len(ends) > 9


def test_maximize_promotes_the_largest(tmp_path):
    result, _ = drive(toy_job(trials=6, parallel=1, direction="maximize", **RUNGS), tmp_path)
    assert result.best.params["x"] == max(spec.params["x"] for spec, _ in read_trials(tmp_path))


@pytest.mark.parametrize("at", [2, 5, 9, 11])
def test_a_driver_that_dies_forgets_no_rung(tmp_path, at):
    class Died(Exception):
        pass

    class Events(list):
        def append(self, event):
            super().append(event)
            if sum(kind in ("paused", "started") for kind, _ in self) == at:
                raise Died

    job = toy_job(trials=9, parallel=1, **RUNGS)
    whole, _ = drive(job, tmp_path / "whole")
    with pytest.raises(Died):
        drive(job, tmp_path / "cut", events=Events())
    cut, _ = drive(job, tmp_path / "cut")
    assert cut.best.number == whole.best.number
    assert cut.counts == whole.counts
    for (one, _), (other, _) in zip(
        read_trials(tmp_path / "whole"), read_trials(tmp_path / "cut"), strict=True
    ):
        assert steps(one) == steps(other)


def test_a_trial_that_is_cut_off_on_its_way_to_a_rung_goes_on_to_it(tmp_path):
    lost = []

    def cut(path):
        run = RunFolder(path)
        if path.endswith("000000") and not lost and len(list(run.records("report"))) == 1:
            lost.append(path)
            raise RuntimeError("the worker is gone")
        return toy_trial(path)

    result, _ = drive(toy_job(trials=3, parallel=1, **RUNGS), tmp_path, cut)
    assert result.counts["complete"] >= 1
    assert all(len(steps(spec)) in (1, 3, 9) for spec, _ in read_trials(tmp_path))


def test_a_run_pauses_after_just_so_many_evaluations_whatever_it_did_before(tmp_path):
    run = RunFolder(tmp_path)
    run.create("", "")
    run.pause(3, "rung 1")
    for step in (1, 2):
        run.append({"kind": "report", "step": step, "loss": 1.0})
    assert run.asked_to_stop() is None
    run.append({"kind": "resume", "from_step": 1})
    run.append({"kind": "report", "step": 2, "loss": 1.0})
    assert run.asked_to_stop() is None  # The second one was taken back.
    run.append({"kind": "report", "step": 3, "loss": 1.0})
    assert run.asked_to_stop() == "paused: rung 1"
    run.update(state=State.STOPPED)
    run.pause(None)
    assert (run.asked_to_stop(), run.pause_at()) == (None, None)


def test_a_script_has_to_say_how_long_a_whole_trial_is():
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    with pytest.raises(ConfigError, match='"halving" needs sweep'):
        job_from_values({"name": "a", "command": ["true"], "sweep": {"space": space, "pruner": "halving"}})
    assert not Halving(toy_job().sweep, None).on


class Died(Exception):
    pass


def test_a_driver_that_is_told_to_end_gives_up_no_trial_at_a_rung(tmp_path):
    """With one trial at a time nothing runs when the paused ones are found again: that is not the end."""

    class Told(list):
        def __init__(self, at, then):
            super().__init__()
            self.at, self.then = at, then

        def append(self, event):
            super().append(event)
            if sum(kind == "paused" for kind, _ in self) == self.at:
                self.then()

    def die():
        raise Died

    job = toy_job(trials=9, parallel=1, **RUNGS)
    whole, _ = drive(job, tmp_path / "whole")
    with pytest.raises(Died):
        drive(job, tmp_path / "cut", events=Told(2, die))
    told, started = drive(job, tmp_path / "cut", events=Told(1, lambda: signal.raise_signal(signal.SIGTERM)))
    assert (told.signal, told.counts["pruned"], started) == (signal.SIGTERM, 0, [])
    cut, _ = drive(job, tmp_path / "cut")
    assert (cut.best.number, cut.counts) == (whole.best.number, whole.counts)


@pytest.mark.parametrize("last", [False, True])
def test_a_driver_that_dies_while_a_trial_goes_on_from_its_rung_loses_it_not(tmp_path, monkeypatch, last):
    """Between the two writes by which a pause ends: its goal is a further one, its word still there."""
    pause, unlink, cut_off = RunFolder.pause, Path.unlink, []

    def dies(file, **more):
        if file.name == "stop":
            cut_off.append(RunFolder(file.parent))
            raise Died
        unlink(file, **more)

    def cut(run, evaluations, reason=""):
        with monkeypatch.context() as patch:
            if (evaluations is None) == last:
                patch.setattr(Path, "unlink", dies)
            pause(run, evaluations, reason)

    job = toy_job(trials=9, parallel=1, **RUNGS)
    whole, _ = drive(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "pause", cut)
        with pytest.raises(Died):
            drive(job, tmp_path / "cut")
    result, _ = drive(job, tmp_path / "cut")
    assert (result.best.number, result.counts) == (whole.best.number, whole.counts)
    for spec, _ in read_trials(tmp_path / "cut"):
        assert steps(spec) == list(range(1, len(steps(spec)) + 1))
        assert len(steps(spec)) in (1, 3, 9)
    assert len(list(cut_off[0].records("report"))) == (9 if last else 3)


def test_who_goes_on_is_who_is_among_the_best_third_of_all_that_came_to_a_rung(tmp_path):
    """Against the same said plainly: sort all, take a third, the first of them that waits there goes on."""
    draw = random.Random(3)
    halving = Halving(toy_job(**RUNGS).sweep, 9)
    halving.send = lambda spec: halving._passed.setdefault(spec.number, 0)  # without run folders
    came, waits = [{}, {}], [set(), set()]
    specs = {n: TrialSpec(n, {}, {}, 0, tmp_path / str(n)) for n in range(300)}
    values, promoted, new = (
        {n: [[s, draw.choice([draw.random(), 0.5])] for s in (1, 2, 3)] for n in specs},
        [],
        iter(specs),
    )

    def expected(drained):
        for rung in (1, 0):
            best = sorted(came[rung], key=lambda n: (came[rung][n], n))
            for number in best[: max(1 if drained else 0, len(best) // 3)]:
                if number in waits[rung]:
                    waits[rung].discard(number)
                    return number
        return None

    def paused(number, rung):
        cut = values[number][: (1, 3)[rung]] if draw.random() > 0.05 else []  # some diverged
        halving.pause(specs[number], cut)
        came[rung][number] = cut[-1][1] if cut else float("inf")
        if cut:
            waits[rung].add(number)

    on_the_way = []
    for turn in range(2000):
        drained = turn >= 1500
        spec = halving.promote(drained=drained)
        assert (spec and spec.number) == expected(drained)
        if spec is not None:
            promoted.append(spec.number)
            on_the_way.append(spec.number)
        elif not drained and (number := next(new, None)) is not None:
            halving.send(specs[number])
            on_the_way.append(number)
        while on_the_way and (drained or draw.random() < 0.6):
            number = on_the_way.pop(draw.randrange(len(on_the_way)))
            if halving._passed[number] < 2:
                paused(number, halving._passed[number])
    assert len(promoted) > 100
    assert len({*promoted}) < len(promoted)  # some went on twice
