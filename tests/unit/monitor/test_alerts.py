"""Alerts run a command once an event; labels from a file meet answers; `hpcmass drift` and `labels`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.cli.root import run
from hpcmass.errors import DataError, HpcmassError
from hpcmass.files import publish
from hpcmass.monitor.alerts import ALERTS, Event, close_others, error_event, tell
from hpcmass.monitor.answers import Answers, check_label, live, wilson
from hpcmass.monitor.drift import VERDICTS
from hpcmass.monitor.facts import write_facts
from hpcmass.monitor.features import Side, Watched
from hpcmass.monitor.windows import Window
from hpcmass.workflow.drifting import Watched as Found
from hpcmass.workflow.drifting import accuracy, post_labels

from .test_drift import DAY, written


def event(on: bool | None, key: str = "3") -> Event:
    return Event("drift", key, on, "it drifts; $(touch /tmp/x)", {"a": 1})


def noted(folder: Path) -> list[dict]:
    path = folder / "out"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    text = "import os, sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10)); print(os.environ['HPCMASS_ALERT_TEXT'])"
    return [sys.executable, "-c", text, str(tmp_path / "out")]


def test_an_event_is_told_once_until_it_is_over_and_begins_anew(tmp_path: Path, command: list[str]) -> None:
    def at(hours: float, on: bool | None, key: str = "3") -> bool:
        return tell(tmp_path, event(on, key), command, cooldown_s=3600, now=hours * 3600, name="shop")

    assert at(10, False) is False
    assert [at(11, True), at(11.1, True), at(13, True), at(13.1, None)] == [True, False, False, False]
    assert at(13.2, True, "4") is True
    assert [at(14, False), at(14.1, True)] == [False, True]
    # It stops and comes back within the hour: silence, until it has been over and begins later.
    assert [at(14.2, False), at(14.3, True), at(16, True), at(17, False), at(18, True)] == [
        False, False, False, False, True,
    ]  # fmt: skip
    told = noted(tmp_path)
    assert [(one["kind"], one["key"], one["deployment"]) for one in told] == [
        ("drift", "3", "shop"), ("drift", "4", "shop"), ("drift", "3", "shop"), ("drift", "3", "shop"),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / ALERTS).read_text().splitlines()]
    assert lines[0]["said"].strip() == "it drifts; $(touch /tmp/x)"
    assert lines[0]["exit"] == 0


def test_a_command_that_fails_or_is_not_there_is_written_down(tmp_path: Path) -> None:
    assert tell(tmp_path, event(True), ["/no/such/program"], now=0.0)
    assert tell(tmp_path, event(True, "4"), ["false"], now=0.0)
    first, second = (json.loads(line) for line in (tmp_path / ALERTS).read_text().splitlines())
    assert "FileNotFoundError" in first["failed"]
    assert second["exit"] == 1


def test_errors_are_an_event_only_beyond_chance() -> None:
    def on(errors: int, good: int) -> bool | None:
        codes = {"200": good, "500": errors, "429": 50, "400": 10}
        return error_event([Window("r", "1", 0, 60, good, good, codes)], 0.01).on

    assert on(2, 100) is False  # 2 %, which may as well be chance
    assert on(30, 1000) is True
    assert error_event([], 0.01).on is None


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    watched = Watched((Side("x", (2,)),), (Side("probabilities", (3,)),), 3, ("cat", "dog", "7"))
    write_facts(tmp_path, "1", watched)
    answers = Answers(tmp_path, "r-1", "1", 1000)
    for number in range(100):
        answers.add(f"q{number}", np.eye(3)[[number % 3]], 3)
    answers.write()
    return tmp_path


def test_labels_from_a_file_give_live_accuracy(answered: Path) -> None:
    names = ["cat", "dog", "7"]
    lines = [f"q{n},{names[n % 3] if n % 10 else names[(n + 1) % 3]}" for n in range(60)]
    file = answered / "labels.csv"
    file.write_text("\n".join(["id,label", *lines, "other,cat", "q99,bird"]))
    assert post_labels(Found(answered), file) == 62
    (found,) = accuracy(Found(answered))
    assert (found.n, found.right, found.unknown) == (60, 54, 1)
    said = found.to_json()
    assert (said["low"], said["high"]) == wilson(54, 60)
    assert said["low"] == pytest.approx(0.7985, abs=1e-3)  # Wilson's interval of 54 of 60, from tables
    file.write_text("id,label\nq0,dog\nq0,cat\n")
    post_labels(Found(answered), file)
    assert accuracy(Found(answered))[0].right == 55


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "id,label\nq,\n", "id,label\n,1\n", "id,label\nq,nan\n", ""])
def test_a_file_that_is_no_labels_is_refused(answered: Path, text: str) -> None:
    (answered / "bad.csv").write_text(text)
    with pytest.raises(DataError):
        post_labels(Found(answered), answered / "bad.csv")
    assert live(answered, {}) == []


def test_answers_are_bounded(tmp_path: Path) -> None:
    answers = Answers(tmp_path, "r-1", "1", 80)
    for number in range(500):
        answers.add(f"q{number}", np.zeros((1, 2)), None)
        answers.write()
    lines = [line for path in tmp_path.glob("answers-*") for line in path.read_text().splitlines()]
    assert 80 <= len(lines) <= 90
    assert any('"q499"' in line for line in lines)


def test_the_commands(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture) -> None:
    import time

    start = time.time() // 3600 * 3600 - DAY
    written(tmp_path, 24, 0.5, start)
    words = ["drift", str(tmp_path), "--alert", " ".join([command[0], "-c", f'"{command[2]}"', command[3]])]
    assert run(words) == 1
    assert run(words) == 1
    assert len(noted(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "in:x[7]" in out
    assert out.count("alert: version 1 drifts: in:x[7]") == 1
    assert len((tmp_path / VERDICTS).read_text().splitlines()) == 2
    assert run(["drift", str(tmp_path), "--json", "--since", "3h"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "drift"
    assert run(["labels", str(tmp_path)]) == 0
    assert run(["drift", "nothing"]) != 0
    assert run(["drift", str(tmp_path), "--since", "soon"]) == 2


def test_an_alert_whose_teller_was_killed_is_told_by_the_next_one(tmp_path: Path, command: list[str]) -> None:
    publish(tmp_path / "alerts" / "drift-3-000001", "1000.0\n")  # and nothing was written down
    assert tell(tmp_path, event(True), command, now=1030.0) is False  # perhaps it is still at it
    assert tell(tmp_path, event(True), command, now=2000.0) is True
    assert tell(tmp_path, event(True), command, now=2001.0) is False
    assert len(noted(tmp_path)) == 1


def test_an_event_of_a_version_that_is_served_no_more_is_over(tmp_path: Path, command: list[str]) -> None:
    assert tell(tmp_path, event(True, "3"), command, now=0.0)
    close_others(tmp_path, "4", now=10.0)
    close_others(tmp_path, "4", now=11.0)
    last = [json.loads(line) for line in (tmp_path / ALERTS).read_text().splitlines()]
    assert [(one["key"], one["on"]) for one in last] == [("3", True), ("3", False)]
    # Rolled back to, it is told again.
    assert tell(tmp_path, event(True, "3"), command, now=9000.0)


def test_labels_that_a_full_disk_did_not_take_are_written_later(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "m", "r-1", "1", 100)
    (tmp_path / "m").write_text("no folder")
    answers.add("q", np.zeros((1, 2)), None)
    answers.label("q", [0, 0])
    with pytest.raises(HpcmassError):
        answers.write()
    (tmp_path / "m").unlink()
    (tmp_path / "m").mkdir()
    assert answers.waiting
    answers.write()
    assert not answers.waiting
    assert live(tmp_path / "m", {})[0].n == 2


def test_a_label_that_is_no_number_of_ours() -> None:
    with pytest.raises(DataError):
        check_label("q", 10**400)
