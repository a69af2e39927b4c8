"""How a study stands, read from its folder again and again; and the lines that are made of it."""

from __future__ import annotations

import json
import time

import pytest
from made_study import make_study
from test_driver import drive
from toy_trials import prepare, toy_job

from hpcmass.cli.lines import width
from hpcmass.cli.study_view import plain, render
from hpcmass.config import job_to_toml
from hpcmass.errors import NotFound
from hpcmass.files import Lease, append_record, replace_json
from hpcmass.runs import State
from hpcmass.sweep.records import TrialSpec, trial_path
from hpcmass.sweep.report.attempts import attempts
from hpcmass.sweep.show import study_summary
from hpcmass.sweep.standing import StudyWatch


def drawn(folder, job, number, x=0.5):
    spec = TrialSpec(number, {"x": x}, {"params.x": x}, 0, trial_path(folder, number))
    spec.publish()
    prepare(job, spec)
    return spec


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "job.toml").write_text(job_to_toml(toy_job(trials=12)))
    return folder


def test_what_a_driver_counted_is_what_is_shown(study):
    watch = StudyWatch(study)
    before = watch.look()
    assert (before.done, before.best, before.per_s, before.workers, before.idle) == (0, None, None, None, None)
    result, _ = drive(toy_job(trials=12), study)
    after, fresh = watch.look(), StudyWatch(study).look()
    for one in (after, fresh):
        assert one.counts == {"complete": 12}
        assert (one.best.number, one.best.value) == (result.best.number, result.best.value)
        assert one.course[-1] == one.best.value
        assert one.course == sorted(one.course, reverse=True)
        assert one.per_s > 0
        assert (one.running, one.waiting, one.driver) == ([], 0, None)


def test_of_what_the_log_counts_no_file_is_read(study):
    drive(toy_job(trials=12), study)
    before = StudyWatch(study).look()
    for name in ("000003", "000007"):
        (study / "trials" / name / "trial.json").write_text("no JSON")
        (study / "trials" / name / "outcome.json").write_text("no JSON")
    after = StudyWatch(study).look()
    assert (after.counts, after.best, after.course) == (before.counts, before.best, before.course)
    assert after.done == 12


def test_a_made_study_counts_as_its_summary_does(tmp_path):
    for several in (False, True):
        folder = make_study(tmp_path / f"made-{several}", 31, several=several)
        summary, one = study_summary(folder), StudyWatch(folder).look()
        assert one.counts == {k: v for k, v in summary.counts.items() if k in ("complete", "pruned", "failed")}
        assert one.front == (len(summary.front) if several else 0)
        assert several or one.best.number == summary.best.number


def test_a_trial_runs_where_its_worker_says_and_its_value_is_the_newest(study):
    job, watch = toy_job(trials=12), StudyWatch(study)
    first, second = drawn(study, job, 0), drawn(study, job, 1)
    begun = time.time() - 30
    slot = {"attempt": 1, "target": "gpu", "job_id": "7", "node": "gn1", "slot": 0}
    append_record(first.path / "slots.jsonl", {"kind": "begin", **slot, "time": begun})
    append_record(first.path / "slots.jsonl", {"kind": "end", **{**slot, "slot": 1}, "time": begun})
    first.run.update(state=State.RUNNING, attempt=1, step=20, total_steps=50, started=begun)
    first.run.append({"kind": "report", "step": 10, "loss": 0.5})
    with first.run.lease():
        one = watch.look()
        (running,) = one.running
        assert (running.number, running.target, running.step, running.value) == (0, "gpu", 20, 0.5)
        assert running.since == begun
        assert one.waiting == 1
        assert (one.workers, one.idle) == (2, 1)  # two slots worked of late, one of them has nothing now
        assert one.targets == {"gpu": [1, 0]}
        first.run.append({"kind": "report", "step": 20, "loss": 0.25})
        assert watch.look().running[0].value == 0.25
        lines = [line for line, _ in render(one, 100, 30)]
        assert any("gpu" in line and "20/50" in line and "0.5" in line and "x=0.5" in line for line in lines)
    assert watch.look().running == []
    assert second.number == 1


def test_what_is_not_known_is_said_and_what_is_known_shown(study):
    job, watch = toy_job(trials=12), StudyWatch(study)
    drawn(study, job, 0)
    text = "\n".join(line for line, _ in render(watch.look(), 100, 30))
    for words in (
        "node-hours not known",
        "how many are idle is not known",
        "none yet (to minimize loss)",
        "none at work",
    ):
        assert words in text
    used = {"wall_s": 1200.0, "node_s": 5400.0, "reserved_s": 1800.0, "ended": None, "time": time.time()}
    replace_json(study / "usage.json", {"format": 1, **used})
    for cause in ("OOM", "COMPLETED", "OOM", "NODE_FAIL"):
        record = {"kind": "end", "trial": 0, "target": "cpu", "cause": cause}
        append_record(study / "attempts.jsonl", record)
    with Lease(study / "lease"):
        one = watch.look()
    text = "\n".join(line for line, _ in render(one, 100, 30))
    assert "node-hours 1.5 (no limit), 0.5 more reserved; wall time 20 min" in text
    assert "OOM 2, NODE_FAIL 1" in text
    assert "driver    process" in text
    assert "COMPLETED" not in text
    assert one.targets == {"cpu": [0, 4]}


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
@pytest.mark.parametrize("rows", [5, 12, 40])
def test_no_line_is_wider_than_the_terminal_and_none_too_many(tmp_path, columns, rows):
    folder = make_study(tmp_path / "wide-本", 8, hostile=True)
    spec = trial_path(folder, 7)
    (spec / "job.toml").write_text("")
    replace_json(spec / "status.json", {"format": 1, "state": "RUNNING", "attempt": 2, "step": 3})
    with TrialSpec(7, {}, {}, 0, spec).run.lease():
        one = StudyWatch(folder).look()
        assert len(one.running) == 1
    lines = render(one, columns, rows)
    assert len(lines) <= rows
    assert all(width(line) <= columns for line, _ in lines)
    assert "\u202e" not in plain(one)
    assert "\n" not in plain(one)


def test_a_study_that_is_not_there_or_damaged(tmp_path, study):
    with pytest.raises(NotFound, match="no study here"):
        StudyWatch(tmp_path / "none")
    job = toy_job()
    spec = drawn(study, job, 0)
    (study / "usage.json").write_text("[")
    (study / "attempts.jsonl").write_text('{"kind":"end"}\n{"kind')
    (spec.path / "slots.jsonl").write_text('{"kind":"begin","time":"late"}\n')
    assert StudyWatch(study).look().waiting == 1
    (study / "trials/000001").mkdir()  # laid down, not drawn yet
    assert StudyWatch(study).look().waiting == 1
    assert json.loads((spec.path / "trial.json").read_text())["number"] == 0


def test_a_grid_is_done_when_its_points_are_and_a_trial_that_pauses_is_no_loss(tmp_path):
    space = {"x": {"type": "categorical", "choices": [0.0, 0.25, 0.5, 0.75]}}
    job = toy_job(
        trials=50, sampler="grid", space=space, pruner="halving", min_evaluations=1, max_evaluations=3,
    )  # fmt: skip
    (tmp_path / "job.toml").write_text(job_to_toml(job))
    drive(job, tmp_path)
    one = StudyWatch(tmp_path).look()
    assert (one.done, one.planned, study_summary(tmp_path).planned) == (4, 4, 4)
    assert one.counts["pruned"] > 0
    assert (one.causes, attempts(tmp_path)["causes"]) == ({}, [])
    assert attempts(tmp_path)["ended"] > 4
