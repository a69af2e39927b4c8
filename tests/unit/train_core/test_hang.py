"""When a rank counts as hanging, and where its main thread is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpcmass.train import hang
from hpcmass.train.comm import agree
from hpcmass.train.hang import Clock, Waiting, main_place


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(hang, "time", made)
    return made


def idle(clock: Clock, time: Time, seconds: int) -> None:
    for _ in range(seconds):
        time.now += 1.0
        clock.tick()


def test_a_rank_hangs_after_the_limit_or_ten_of_its_longest_steps(clock: Time) -> None:
    mine = Clock(60.0)
    idle(mine, clock, 100)
    assert mine.idle_s < mine.limit_s == 180.0  # no step so far: it may be compiling
    mine.alive(step=True)
    idle(mine, clock, 1)
    assert (mine.idle_s, mine.limit_s) == (0.0, 1000.0)  # such a step took 100 s
    other = Clock(60.0)
    for _ in range(5):
        idle(other, clock, 3)
        other.alive(step=True)
    idle(other, clock, 61)
    assert other.idle_s == 60.0
    assert other.limit_s == 60.0


def test_a_process_that_was_stopped_has_not_hung_meanwhile(clock: Time) -> None:
    mine = Clock(60.0)
    mine.alive(step=True)
    idle(mine, clock, 1)
    clock.now += 100_000  # Slurm has suspended the job
    mine.tick()
    assert mine.idle_s <= 2.0


def test_where_the_main_thread_is() -> None:
    def look() -> tuple[bool, str, str]:
        found: list[tuple[bool, str, str]] = []
        thread = threading.Thread(target=lambda: found.append(main_place()))
        thread.start()
        thread.join()
        return found[0]

    waits, where, stack = look()
    assert not waits
    assert f"{__file__}:" in where
    assert "in look" in stack

    class Comm:
        rank, size = 0, 2

        def broadcast_object(self, value: object) -> object:
            return value

    # What rank 0 does for all is its own work.
    assert not agree.on_root(Comm(), look)[0]  # type: ignore[arg-type]


def test_ranks_that_wait_say_so(tmp_path: Path) -> None:
    ranks = [Waiting(tmp_path, 1, rank, 3) for rank in range(3)]
    ranks[0].say(7)
    ranks[2].say(7)
    assert ranks[0].silent() == [1]
    assert Waiting(tmp_path, 2, 0, 3).silent() == [0, 1, 2]
    for one in ranks:
        one.take_back()
    assert list(tmp_path.iterdir()) == []
    ranks[1].say(7)  # and is killed
    ranks[0].sweep()  # by a rank of the same attempt: it counts
    assert ranks[0].silent() == [0, 2]
    Waiting(tmp_path, 2, 0, 3).sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_gets_on_without_a_step_says_so(clock: Time, tmp_path: Path) -> None:
    mine, other = (Waiting(tmp_path, 1, rank, 2) for rank in range(2))
    mine.say(7)
    other.work(7)
    assert mine.others_work()
    assert not mine.others_work()  # it has not counted on since
    other.work(7)  # said a moment ago
    assert not mine.others_work()
    assert mine.silent() == [1]
    clock.now += 5
    other.work(7)
    assert mine.others_work()
    other.say(7)
    assert not mine.others_work()
    assert mine.silent() == []
    other.take_back()
    assert mine.silent() == [1]


def test_signs_of_life_are_no_steps(clock: Time) -> None:
    mine = Clock(60.0)
    for _ in range(70):
        mine.alive(step=False)
        idle(mine, clock, 1)
    assert mine.idle_s == 0.0
    assert mine.waited_for
    mine.alive(step=True)
    idle(mine, clock, 1)
    assert not mine.waited_for


def test_a_word_that_could_not_be_written_is_said_again(tmp_path: Path) -> None:
    (tmp_path / "waiting").write_text("in the way")
    mine = Waiting(tmp_path, 1, 0, 1)
    mine.say(7)
    assert mine.silent() == [0]
    (tmp_path / "waiting").unlink()
    mine.say(7)
    assert mine.silent() == []
