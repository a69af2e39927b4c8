"""The report of a study as data, and as a file: what it says is what the study's folder says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_study import BEGAN, HOSTILE, make_study
from test_driver import drive
from toy_trials import toy_job

from hpcmass.config import job_to_toml
from hpcmass.errors import NotFound
from hpcmass.files import append_record
from hpcmass.sweep.records import TrialSpec, read_trials
from hpcmass.sweep.report import gather, render, write_report
from hpcmass.sweep.report.curves import MOST_POINTS, MOST_TRIALS, learning_curves
from hpcmass.sweep.report.page import embedded
from hpcmass.sweep.report.timeline import HERE, cost, timeline
from hpcmass.sweep.report.trials import Stay, Told
from hpcmass.sweep.show import study_job, study_summary


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("report") / "digits", 41)


@pytest.fixture(scope="module")
def data(study: Path) -> dict:
    return gather(study)


def test_a_study_that_ran_is_reported_as_it_is(tmp_path):
    job = toy_job(trials=12)
    (tmp_path / "job.toml").write_text(job_to_toml(job))
    result, _ = drive(job, tmp_path)
    found = gather(tmp_path)
    assert found["front"] == [result.best.number]
    columns = found["trials"]
    assert columns["state"] == ["complete"] * 12
    (name, values), (x, points) = columns["measured"][0], columns["params"][0]
    assert (name, x) == ("loss", "x")
    assert values == [pytest.approx(v + 1 / 3) for v in points]
    assert found["curves"]["names"] == ["report loss"]
    number, series = found["curves"]["trials"][4]
    assert series["report loss"] == [[1, 2, 3], [pytest.approx(points[number] + 1 / s) for s in (1, 2, 3)]]
    # Workers that note no slots: the trials are laid out by time.
    assert found["time"]["assumed"]
    assert len(found["time"]["spans"]) == 12
    assert json.loads(embedded(found)) == found


def test_counts_front_and_columns_agree_with_the_study(study, data):
    summary, columns = study_summary(study), data["trials"]
    assert {s: columns["state"].count(s) for s in ("complete", "pruned", "failed")} == {
        s: summary.counts[s] for s in ("complete", "pruned", "failed")
    }
    assert columns["state"][-1] == "waiting"
    assert data["front"] == [summary.best.number]
    assert columns["measured"][0][1][summary.best.number] == pytest.approx(summary.best.value)
    assert [
        sum(values[n] is None for n in range(41)) > 0 for name, values in columns["params"] if name == "kernel"
    ] == [True]


def test_several_objectives_have_a_front_and_importances_each(tmp_path):
    found = gather(make_study(tmp_path / "two", 40, several=True))
    summary = study_summary(tmp_path / "two")
    assert found["front"] == [one.number for one in summary.front]
    assert [one["objective"] for one in found["importances"]] == ["accuracy", "latency_ms"]
    assert found["trials"]["feasible"].count(False) == summary.beyond > 0
    accuracy, latency = found["importances"]
    assert (accuracy["values"][0][0], latency["values"][0][0]) == ("lr", "depth")


def test_importances_are_shares_and_with_few_trials_there_are_none(tmp_path, data):
    (one,) = data["importances"]
    assert one["message"] is None
    assert one["values"][0][0] == "lr"
    assert sum(share for _, share in one["values"]) == pytest.approx(1)
    (few,) = gather(make_study(tmp_path / "few", 6))["importances"]
    assert few["values"] == []
    assert few["message"] == "too few to say: 4 complete trials, and 10 are needed"


def test_a_report_is_one_file_that_holds_what_is_hostile_as_data(tmp_path):
    folder = make_study(tmp_path / "evil", 14, hostile=True)
    file = write_report(folder)
    page = file.read_text(encoding="utf-8")
    assert file == folder / "report.html"
    assert HOSTILE not in page
    assert page.count("</script>") == 2  # the data's and the script's own
    assert not re.search(r"(?:src|href)=.?(?:https?:)?//", page)
    inside = page.split('id="data">')[1].split("</script>")[0]
    assert {"<", ">", "&"}.isdisjoint(inside)
    held = json.loads(inside)
    assert HOSTILE in [name for name, _ in held["trials"]["params"]]
    assert HOSTILE in held["failures"][0]["text"]


def test_marks_of_the_page_in_the_data_stay_data(tmp_path):
    page = render({**gather(make_study(tmp_path / "marks", 3)), "more": "@@DATA@@ @@SCRIPT@@ @@POLICY@@"})
    assert "@@DATA@@ @@SCRIPT@@ @@POLICY@@" in page


def test_failures_alike_but_for_numbers_are_one_kind(data):
    (kind,) = data["failures"]
    assert kind["cause"] == "RecipeError"
    assert kind["trials"] == [3, 13, 23, 33]
    assert (kind["hint"], kind["host"]) == ("make it smaller", "cn1")
    assert kind["text"] == "RecipeError: no room for 3 GB"


def test_the_time_line_knows_slots_blocks_and_what_was_idle(data):
    time = data["time"]
    assert [lane[:2] for lane in time["lanes"]] == [
        ["cpu", "cn1 slot 0"],
        ["cpu", "cn1 slot 1"],
        ["gpu", "gn1 slot 0"],
    ]
    assert len(time["spans"]) == 40
    assert not time["assumed"]
    assert {block[0]: block[2] for block in time["blocks"]} == {"101": BEGAN - 30, "103": BEGAN - 30}
    # Slots work without a pause until their last trial; the block's shorter slot then waits for the longer one.
    cpu = time["targets"]["cpu"]
    busy = [sum(2 + n / 10 for n in range(40) if n % 3 == lane) for lane in range(3)]
    assert cpu["busy_s"] == pytest.approx(busy[0] + busy[1])
    assert cpu["used"] == pytest.approx((busy[0] + busy[1]) / (2 * max(busy[:2])))
    assert time["targets"]["gpu"]["used"] == pytest.approx(1)
    assert data["cost"]["cpu_s"] == pytest.approx(3 * sum(busy))
    assert data["cost"]["node_s"] == pytest.approx(max(busy[:2]) + busy[2])


def told(number: int, *stays: Stay) -> Told:
    spec = TrialSpec(number, {}, {}, 0, Path("nowhere"))
    return Told(spec, None, "complete", {}, None, None, None, None, None, 1, None, list(stays))


def test_trials_without_a_slot_share_as_few_lanes_as_they_can():
    spans = [(0, 10), (0, 4), (5, 9), (10.02, 12)]
    found = timeline([told(n, Stay("", "", "", None, a, b)) for n, (a, b) in enumerate(spans)], [], 20.0)
    assert [lane[0] for lane in found["lanes"]] == [HERE, HERE]
    assert [(lane, trial) for lane, _, _, trial, _ in found["spans"]] == [(0, 0), (1, 1), (1, 2), (1, 3)]
    assert found["targets"][HERE]["used"] == pytest.approx((10 + 4 + 4 + 1.98) / 24)


def test_a_long_break_of_the_whole_study_is_not_idle_time():
    stays = [Stay("cpu", "7", "cn1", 0, 0.0, 100.0), Stay("cpu", "7", "cn1", 0, 5000.0, 5100.0)]
    found = timeline([told(n, stay) for n, stay in enumerate(stays)], [], 6000.0)
    assert found["targets"]["cpu"]["used"] == pytest.approx(1)


def test_a_lost_worker_and_a_running_trial():
    lost = Stay("cpu", "7", "cn1", 0, 0.0, 30.0, lost=True)
    runs = Stay("cpu", "7", "cn1", 1, 10.0, None)
    found = timeline([told(0, lost), told(1, runs)], [], 50.0)
    assert found["spans"] == [[0, 0.0, 30.0, 0, 1], [1, 10.0, 50.0, 1, 0]]
    assert cost([told(0, lost), told(1, runs)], found, 50.0)["cpu_s"] is None


def test_of_many_curves_a_part_is_shown_and_long_ones_are_thinned(tmp_path, study):
    job, pairs = study_job(study), read_trials(study)
    spec = TrialSpec(0, {}, {}, 0, tmp_path / "long")
    for step in range(1000):
        append_record(spec.run.metrics_file, {"kind": "report", "step": step, "accuracy": step / 1000})
    from dataclasses import replace

    from hpcmass.runs import State, Status

    many = [
        replace(
            told(n),
            spec=replace(spec, number=n),
            status=Status(State.COMPLETED, attempt=1),
            outcome=pairs[0][1],
        )
        for n in range(4 * MOST_TRIALS)
    ]
    found = learning_curves(job, many, [7, 300, 5])
    numbers = [number for number, _ in found["trials"]]
    assert len(numbers) == MOST_TRIALS
    assert {5, 7, 300, 4 * MOST_TRIALS - 1} <= set(numbers)
    steps, values = found["trials"][0][1]["report accuracy"]
    assert (len(steps), steps[0], steps[-1], values[-1]) == (MOST_POINTS, 0, 999, 0.999)


def test_a_record_that_is_torn_or_foreign_does_not_end_the_report(tmp_path):
    folder = make_study(tmp_path / "torn", 6)
    (folder / "trials/000000/status.json").write_text("{")
    (folder / "trials/000001/slots.jsonl").write_text(
        '{"kind":"begin"}\n[1]\n{"kind":"begin","time":"x"}\n{"ki'
    )
    (folder / "trials/000002/metrics.jsonl").unlink()
    found = gather(folder)
    assert len(found["trials"]["number"]) == 6
    assert found["trials"]["steps"][0] is None


def test_attempts_that_ended_early_are_told_by_cause(tmp_path):
    folder = make_study(tmp_path / "attempts", 4)
    for cause, free, after in (
        ("OOM", False, "again"),
        ("OOM", False, "failed"),
        ("NODE_FAIL", True, "again"),
        ("COMPLETED", False, "complete"),
    ):
        append_record(
            folder / "attempts.jsonl",
            {"kind": "end", "trial": 1, "cause": cause, "free": free, "next": after, "node_s": 1.5},
        )
    found = gather(folder)["attempts"]
    assert found == {"ended": 4, "node_s": 6.0, "causes": [["OOM", 2, 0, 1], ["NODE_FAIL", 1, 1, 1]]}


def test_no_study_no_report(tmp_path):
    with pytest.raises(NotFound, match="no study here"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_no_optuna_until_it_computes_importances():
    code = (
        "import sys, hpcmass.sweep.report; print([m for m in ('optuna', 'parsl', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
