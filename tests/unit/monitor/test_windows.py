"""Statistics that merge, and windows in files that are rolled up, set aside and read while they grow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.monitor import windows
from hpcmass.monitor.sketch import Sketch, edges_of, merged
from hpcmass.monitor.windows import Window, WindowFiles, merge_windows, read_windows

HOUR = 3600.0


@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=20), max_size=6))
def test_parts_merge_to_the_whole(parts: list[list[float]]) -> None:
    edges = np.array([-10.0, 0.0, 5.0])
    values = [value for part in parts for value in part]
    total, whole = merged(Sketch.of(part, edges) for part in parts), Sketch.of(values, edges)
    assert (total.count, total.missing, total.low, total.high) == (
        whole.count, whole.missing, whole.low, whole.high,
    )  # fmt: skip
    assert total.bins.sum() == whole.bins.sum() == whole.count
    assert total.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
    assert total.squares == pytest.approx(whole.squares, rel=1e-6, abs=1e-3)
    assert Sketch.from_json(total.to_json()).to_json() == total.to_json()


def test_what_is_often_the_same_has_a_bin_to_itself() -> None:
    values = np.concatenate([np.zeros(900), np.linspace(1, 2, 100)])
    edges = edges_of(values)
    bins = Sketch.of(values, edges).bins
    assert bins.max() == 900
    assert Sketch.of([0.0], edges).bins.argmax() == bins.argmax()
    assert Sketch.of([1e-9], edges).bins.argmax() != bins.argmax()


def window(start: float, replica: str = "a", version: str = "1", n: int = 3) -> Window:
    found = {"in:x": Sketch.of(np.full(n, start), np.array([0.0]))}
    return Window(replica, version, start, start + 60, n, n, {"200": n, "429": 1}, [n, 0], 0.5, n, found)


def test_hours_and_days_hold_what_the_windows_held(tmp_path: Path) -> None:
    files = WindowFiles(tmp_path, "a", limit_bytes=4000)
    for minute in range(0, 50 * 60, 5):
        files.append(window(minute * 60.0))
    assert (tmp_path / "windows-a.1.jsonl").exists()
    assert sum(path.stat().st_size for path in tmp_path.glob("windows-*")) < 10_000
    whole = merge_windows(read_windows(tmp_path))
    assert whole.requests == 3 * 600
    assert whole.answers == {"200": 1800, "429": 600}
    assert whole.features["in:x"].count == 1800
    recent = read_windows(tmp_path, since=49 * HOUR)
    assert sum(one.requests for one in recent) == 3 * 12
    assert [one.start for one in recent] == sorted(one.start for one in recent)


def test_a_replica_that_is_started_again_goes_on(tmp_path: Path) -> None:
    for minute in range(0, 200, 10):
        WindowFiles(tmp_path, "a").append(window(minute * 60.0))
    hours = [one for one in (tmp_path / "hours-a.jsonl").read_text().splitlines() if one]
    assert len(hours) == 3
    assert merge_windows(read_windows(tmp_path)).requests == 60


def test_replicas_and_versions_are_kept_apart(tmp_path: Path) -> None:
    for number in range(90):
        for replica in ("a", "a.1b", "c-d"):
            version = "1" if number < 45 else "2"
            WindowFiles(tmp_path, replica).append(window(number * 60.0, replica, version))
    found = read_windows(tmp_path)
    assert sum(one.requests for one in found) == 3 * 90 * 3
    assert {one.replica for one in found} == {"a", "a.1b", "c-d"}
    assert sum(one.requests for one in found if one.version == "2") == 3 * 45 * 3


def test_a_torn_line_and_nonsense_are_passed_over(tmp_path: Path) -> None:
    files = WindowFiles(tmp_path, "a")
    files.append(window(0.0))
    with open(tmp_path / "windows-a.jsonl", "a") as file:
        file.write('{"start": 1}\n[3]\n{"replica": "a", "ver')
    files.append(window(60.0))
    assert [one.start for one in read_windows(tmp_path)] == [0.0, 60.0]


def test_files_that_were_written_long_before_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("r-0001", "r-0002"):
        WindowFiles(tmp_path, name).append(Window(name, "1", 1e6, 1e6 + 60, 5, 5))
    os.utime(tmp_path / "windows-r-0001.jsonl", (1e6 + 60, 1e6 + 60))
    os.utime(tmp_path / "windows-r-0002.jsonl", (1e6 + 9000, 1e6 + 9000))
    read: list[str] = []
    records = windows._records
    monkeypatch.setattr(
        windows, "_records", lambda folder, level, one: read.append(one) or records(folder, level, one)
    )
    assert read_windows(tmp_path, since=1e6 + 8000) == []
    assert set(read) == {"r-0002"}
    assert len(read_windows(tmp_path, since=1e6)) == 2
