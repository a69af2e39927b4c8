"""Drift: its false-alarm rate, what it finds, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpcmass.errors import NotFound
from hpcmass.monitor.baseline import Baseline, keep_baseline
from hpcmass.monitor.drift import MONTH_S, VERDICTS, compare, look
from hpcmass.monitor.sketch import Sketch
from hpcmass.monitor.windows import Window, WindowFiles, read_windows, served

NO_FLOORS = dict.fromkeys(("ks", "psi", "mean", "missing", "class"), 0.0)
FEATURES = 8
DAY = 86400.0


def draw(rng: np.random.Generator, n: int, level: float = 0.0) -> dict[str, np.ndarray]:
    """Features of several kinds: normal, skewed, whole numbers, mostly zero, classes; some missing."""
    x = rng.normal(level, 1, (n, FEATURES))
    x[:, 1] = np.exp(x[:, 1])
    x[:, 2] = np.round(x[:, 2])
    x[:, 3] = np.maximum(x[:, 3] - 1, 0)
    x[rng.random(n) < 0.005, 4] = np.nan
    score = x[:, :1] * [0.5, 0, -0.5] + rng.gumbel(size=(n, 3))
    return {**{f"in:x[{i}]": x[:, i] for i in range(FEATURES)}, "out:class": score.argmax(axis=1) * 1.0}


def made(rng: np.random.Generator, rows: int = 5000) -> Baseline:
    baseline = Baseline("1", classes=3)
    for name, values in draw(rng, rows).items():
        baseline.add(name, values)
    return baseline


def block(baseline: Baseline, at: float, rows: dict[str, np.ndarray], span: float = 3600.0) -> Window:
    n = len(rows["in:x[0]"])
    sketches = {name: baseline.sketch(name, values) for name, values in rows.items()}
    return Window("r", "1", at, at + span, n, n, {"200": n}, [n], 0.1, n, sketches)


def alarms(wander: float, floors: dict[str, float], level: float, days: int, seed: int) -> int:
    """Days of 24 blocks without drift, of which so many are called drift."""
    found = 0
    rng = np.random.default_rng(seed)
    for day in range(days):
        baseline = made(rng, 3000) if day % 10 == 0 else baseline  # noqa: F821
        state, blocks = 0.0, []
        for hour in range(24):
            state = 0.7 * state + rng.normal(0, wander)
            blocks.append(block(baseline, hour * 3600.0, draw(rng, 100, state)))
        found += compare(baseline, blocks, level, floors)[0][0].drift
    return found


def test_the_false_alarm_rate_is_held_by_the_p_values_alone() -> None:
    # 200 days of independent samples, no floor of effect: at 10 % a look, 34 or more would be 1 in 1000.
    assert alarms(0.0, NO_FLOORS, 0.10, 200, 1) < 34


def test_p_values_are_not_so_careful_that_they_say_nothing() -> None:
    assert alarms(0.0, NO_FLOORS, 0.9, 60, 2) > 5


def test_samples_that_resemble_their_neighbours_give_no_alarm() -> None:
    # A mean that wanders by 0.2 standard deviations from hour to hour: the floors and the effective numbers
    # of samples leave none of 60 days at a level of 1 %.
    from hpcmass.monitor.drift import FLOORS

    assert alarms(0.12, FLOORS, 0.01, 60, 3) == 0


@pytest.mark.parametrize(
    ("change", "feature", "tests"),
    [
        (lambda r: r["in:x[0]"].__iadd__(0.5), "in:x[0]", {"ks", "psi", "mean"}),
        (lambda r: r["in:x[6]"].__imul__(1.8), "in:x[6]", {"ks", "psi"}),
        (lambda r: r["in:x[5]"].__setitem__(slice(None, None, 10), np.nan), "in:x[5]", {"missing"}),
        (lambda r: r["out:class"].__setitem__(slice(None, None, 3), 2.0), "out:class", {"class"}),
    ],
    ids=["half a deviation", "spread", "missing", "classes"],
)
def test_a_change_is_found_and_named(change, feature: str, tests: set[str]) -> None:
    rng = np.random.default_rng(4)
    baseline = made(rng)
    blocks = []
    for hour in range(24):
        rows = draw(rng, 200)
        change(rows)
        blocks.append(block(baseline, hour * 3600.0, rows))
    findings, _ = compare(baseline, blocks, 1e-4)
    drifted = {(one.feature, one.result.test) for one in findings if one.drift}
    assert {name for name, _ in drifted} == {feature}
    assert {test for _, test in drifted} & tests
    assert drifted <= {(feature, test) for test in ("ks", "psi", "mean", "missing", "class")}


def written(folder: Path, hours: int, shift: float = 0.0, start: float = 20_000 * DAY) -> Baseline:
    rng = np.random.default_rng(5)
    baseline = keep_baseline(folder, made(rng))
    files = [WindowFiles(folder, f"r-{number}") for number in (1, 2)]
    for hour in range(hours):
        for one in files:
            rows = draw(rng, 100)
            rows["in:x[7]"] += shift
            one.append(block(baseline, start + hour * 3600.0, rows))
    return baseline


def test_a_look_writes_its_verdict_and_looks_of_one_hour_are_one(tmp_path: Path) -> None:
    written(tmp_path, 30)
    now = 20_000 * DAY + 30 * 3600
    first, again, at_once = (look(tmp_path, now=at) for at in (now - 3600, now, now + 3599))
    assert [one.state for one in (first, again, at_once)] == ["clean"] * 3
    assert first.level * first.tests == pytest.approx(0.01 * 3600 / MONTH_S)
    # Who looks twice in an hour sees the same twice, and has no second chance of a false alarm.
    assert vars(at_once) | {"time": 0} == vars(again) | {"time": 0}
    assert first.until == again.until - 3600 == now - 3600
    lines = [json.loads(line) for line in (tmp_path / VERDICTS).read_text().splitlines()]
    assert [one["state"] for one in lines] == ["clean"] * 3
    assert len(lines[0]["findings"]) <= 20


def test_half_a_deviation_is_found_from_files(tmp_path: Path) -> None:
    written(tmp_path, 24, 0.5)
    found = look(tmp_path, now=20_000 * DAY + DAY)
    assert (found.state, found.findings[0].feature) == ("drift", "in:x[7]")
    assert found.requests == 24 * 2 * 100


def test_part_of_a_day_says_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    written(tmp_path, 6, 0.5)
    now = 20_000 * DAY + 6 * 3600
    early = look(tmp_path, now=now)
    assert (early.state, early.why) == ("too little", "6.0 of 24.0 hours were seen")
    assert look(tmp_path, now=now, period_s=6 * 3600.0).state == "drift"
    assert look(tmp_path, now=now, since=now - 4 * 3600.0, record=False).state == "drift"


def test_a_folder_without_windows_or_reference_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no window"):
        look(tmp_path)
    one = Window("r", "3", 0.0, 60.0, 5, 5, features={"in:x": Sketch.of(np.ones(5), None)})
    WindowFiles(tmp_path, "r").append(one)
    with pytest.raises(NotFound, match="version 3 has no reference"):
        look(tmp_path, now=3600.0)


def test_a_version_on_trial_is_not_taken_for_the_one_that_serves(tmp_path: Path) -> None:
    end = 20_000 * DAY + DAY
    written(tmp_path, 24)
    trial = WindowFiles(tmp_path, "r-3")
    for hour in range(24):  # its windows are the last ones, and have a tenth of the requests
        trial.append(Window("r-3", "2", end - DAY + hour * 3600 + 60, end - DAY + (hour + 1) * 3600, 20, 20))
    assert look(tmp_path, now=end).version == "1"
    new = WindowFiles(tmp_path, "r-4")  # taken over: the one before has no requests any more
    for hour in range(2):
        new.append(Window("r-4", "2", end + hour * 3600, end + (hour + 1) * 3600, 200, 200))
    assert served(read_windows(tmp_path)) == "2"
