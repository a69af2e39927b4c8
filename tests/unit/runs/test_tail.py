"""Logs that grow, are cut, are replaced, and of later attempts."""

import os
from pathlib import Path

from hpcmass.runs.tail import LogFollower, Tail, batch_logs, rank_logs


def test_whole_lines_and_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "log"
    tail = Tail(file)
    assert tail.lines() == []
    file.write_text("one\ntw")
    assert tail.lines() == ["one"]
    assert tail.lines() == []
    with open(file, "a") as more:
        more.write("o\n 10%\r 90%\rdone\nlast")
    assert tail.lines() == ["two", "done"]
    assert tail.rest() == ["last"]
    assert tail.rest() == []


def test_a_log_that_is_cut_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("a long first line\n")
    tail = Tail(file)
    assert tail.lines() == ["a long first line"]
    os.truncate(file, 0)
    with open(file, "a") as more:
        more.write("new\n")
    assert (tail.lines(), tail.cut) == (["new"], 1)
    other = tmp_path / "other"
    other.write_text("another file, longer than before\n")
    os.replace(other, file)
    assert (tail.lines(), tail.cut) == (["another file, longer than before"], 2)


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"line {number}\n" for number in range(50_000)))
    assert Tail(file, last=2).lines() == ["line 49998", "line 49999"]
    assert Tail(file, last=0).lines() == []
    assert len(Tail(file, last=49_999).lines()) == 49_999
    assert len(Tail(file, last=60_000).lines()) == 50_000
    with open(file, "a") as more:
        more.write("torn")
    tail = Tail(file, last=2)
    assert (tail.lines(), tail.rest()) == (["line 49999"], ["torn"])


def test_following_over_attempts(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "attempt-1-rank-0.log").write_text("old\n")
    (logs / "attempt-2-rank-0.log").write_text("a\nb\n")
    (logs / "attempt-2-rank-1.log").write_text("c\n")
    (logs / "stray.log").write_text("no\n")
    follower = LogFollower(lambda: rank_logs(tmp_path), last=1)
    assert [(name.attempt, name.rank, line) for name, line in follower.read()] == [(2, 0, "b"), (2, 1, "c")]
    # A later attempt is read whole.
    (logs / "attempt-10-rank-0.log").write_text("d\ne\n")
    os.truncate(logs / "attempt-2-rank-1.log", 0)
    told = [(name.attempt, name.rank, line) for name, line in follower.read()]
    assert told[0][:2] == (2, 1)
    assert "cut" in told[0][2]
    assert told[1:] == [(10, 0, "d"), (10, 0, "e")]
    only = LogFollower(lambda: rank_logs(tmp_path), ranks=[0], attempt=1)
    assert [line for _, line in only.read()] == ["old"]


def test_outputs_of_batch_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("out-9.log", "out-12.log", "out-12_3.log", "job-0001.sbatch"):
        (folder / name).write_text("x\n")
    assert [name.title for name in batch_logs(tmp_path)] == ["job 9", "job 12", "job 12_3"]
    assert batch_logs(tmp_path / "none") == {}
