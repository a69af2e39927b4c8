"""The run folder: created once, honest about its state, records that count."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.errors import AlreadyExists, ConfigError, CorruptError, HpcmassError, NotFound
from hpcmass.files import append_record
from hpcmass.runs import RankError, RunFolder, State


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.create('name = "r"\n', 'name = "here"\n')
    return folder


def test_created_once(run: RunFolder) -> None:
    assert run.exists()
    assert run.status().state is State.CREATED
    with pytest.raises(AlreadyExists):
        run.create('name = "other"\n', "")
    assert run.job_file.read_text() == 'name = "r"\n'


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run"):
        RunFolder(tmp_path / "none").status()
    assert list(tmp_path.iterdir()) == []


def test_running_without_an_owner_is_unknown(run: RunFolder) -> None:
    with run.lease():
        run.update(state=State.RUNNING, step=5)
        assert run.status().state is State.RUNNING
    status = run.status()
    assert status.state is State.UNKNOWN
    assert status.step == 5
    assert json.loads((run.path / "status.json").read_text())["state"] == "RUNNING"


def test_running_and_killed_is_unknown(run: RunFolder) -> None:
    code = """
import os, sys
from hpcmass.runs import RunFolder, State
run = RunFolder(sys.argv[1])
run.lease().acquire()
run.update(state=State.RUNNING)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert run.status().state is State.UNKNOWN


def test_a_nan_metric_can_be_written_and_read(run: RunFolder) -> None:
    run.update(metrics={"loss": float("nan"), "lr": float("inf"), "accuracy": 0.5})
    metrics = run.status().metrics
    assert math.isnan(metrics["loss"])
    assert metrics["lr"] == math.inf
    assert metrics["accuracy"] == 0.5
    text = (run.path / "status.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1, "state": "DANCING"}', "{", '{"format": 1, "state": 3}']
)
def test_a_broken_status_is_a_plain_error(run: RunFolder, text: str) -> None:
    (run.path / "status.json").write_text(text)
    with pytest.raises(CorruptError):
        run.status()


def test_a_newer_format_is_refused(run: RunFolder) -> None:
    raw = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps({**raw, "format": 2}))
    with pytest.raises(HpcmassError, match="format 2"):
        run.status()


def test_records_that_a_resume_took_back_do_not_count(run: RunFolder) -> None:
    for step in (1, 2, 3, 4):
        run.append({"kind": "train", "step": step, "attempt": 1})
    run.append({"kind": "resume", "from_step": 2, "ranks": 2})
    for step in (3, 4):
        run.append({"kind": "train", "step": step, "attempt": 2})
    kept = [(record["step"], record["attempt"]) for record in run.records("train")]
    assert kept == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert len(list(run.records("resume"))) == 1


def test_the_first_word_of_a_rank_stays(run: RunFolder) -> None:
    run.record_exception(1, 0, ConfigError("first", where="job.toml:3", hint="mend it"), step=7)
    run.record_exception(1, 0, ValueError("second"))
    run.record_exception(1, 1, ValueError("other rank"))
    run.record_exception(2, 0, ValueError("other attempt"))
    first = run.errors(1)
    assert [(error.rank, error.message) for error in first] == [(0, "first"), (1, "other rank")]
    assert (first[0].hint, first[0].where, first[0].step, first[0].traceback) == (
        "mend it",
        "job.toml:3",
        7,
        None,
    )
    assert "ValueError: other rank" in (first[1].traceback or "")
    assert len(run.errors()) == 3


def test_torn_and_foreign_files_among_the_errors_are_skipped(run: RunFolder) -> None:
    run.record_error(RankError(attempt=1, rank=0, kind="exit", error="exit code 1", message="m"))
    (run.path / "errors" / "attempt-1-rank-1.json").write_text("{")
    (run.path / "errors" / "notes.json").write_text('{"format": 1, "a": 1}')
    assert [error.rank for error in run.errors()] == [0]


def test_stop(run: RunFolder) -> None:
    assert run.asked_to_stop() is None
    run.ask_to_stop("pruned at step 3")
    run.ask_to_stop("again")
    assert run.asked_to_stop() == "pruned at step 3"


def test_a_torn_metrics_line_is_no_record(run: RunFolder) -> None:
    run.append({"kind": "train", "step": 1})
    with open(run.metrics_file, "a") as file:
        file.write('{"kind":"train","st')
    append_record(run.metrics_file, {"kind": "train", "step": 2})
    assert [record["step"] for record in run.records()] == [1, 2]


def test_a_run_that_ends_between_two_looks_is_not_unknown(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update(state=State.RUNNING)

    class Ending:
        def owner(self) -> None:
            run.update(state=State.COMPLETED)

    monkeypatch.setattr(run, "lease", Ending)
    assert run.status().state is State.COMPLETED


def test_a_status_that_a_power_cut_left_empty_is_that_of_a_run_nobody_has_begun(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create("", "")
    (run.path / "status.json").write_text("")
    assert run.status().state is State.CREATED
    assert run.update(state=State.RUNNING, attempt=1).attempt == 1
    (run.path / "status.json").write_text("{")
    with pytest.raises(CorruptError):
        run.status()
