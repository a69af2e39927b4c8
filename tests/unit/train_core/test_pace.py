"""The stopwatch of steps, and whose fault a slow one was."""

import numpy as np
import pytest

from hpcmass.train import pace
from hpcmass.train.pace import CHECKPOINT, COMPUTE, INPUT, REDUCTION, WIDTH, Pace, slow_rank, slow_step

HOSTS = ("cn1", "cn2", "cn3")


class Clock:
    """Time as a test lets it go by."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def run(stopwatch: Pace, clock: Clock, steps: dict[int, tuple[float, ...]], of: int = 20) -> np.ndarray:
    """Steps of 10 ms input, 80 ms compute, 10 ms reduction, but for those that are given."""
    for step in range(1, of + 1):
        stopwatch.begin(step)
        for part, seconds in enumerate(steps.get(step, (0.01, 0.08, 0.01, 0.0))):
            clock.now += seconds
            stopwatch.lap(part)
    stopwatch.end()
    return stopwatch.row()


def rows(clock: Clock, *ranks: dict[int, tuple[float, ...]]) -> np.ndarray:
    return np.stack([run(Pace(), clock, steps) for steps in ranks])


def test_seconds_by_part(clock: Clock) -> None:
    found = rows(clock, {}, {20: (0.01, 0.08, 0.01, 0.4)})
    assert found.shape == (2, WIDTH)
    said = pace.seconds_a_step(found)
    assert said == pytest.approx(
        {"input_s": 0.01, "compute_s": 0.08, "reduction_s": 0.01, "checkpoint_s": 0.01}, rel=1e-6
    )
    assert slow_step(rows(clock, {}, {}, {}), HOSTS) is None
    assert slow_rank(rows(clock, {}, {}, {}), HOSTS) is None


def test_the_rank_that_the_others_waited_for(clock: Clock) -> None:
    waits, late = {15: (0.01, 0.08, 2.01, 0.0)}, {15: (2.01, 0.08, 0.01, 0.0)}
    found = slow_step(rows(clock, waits, late, waits), HOSTS)
    assert found is not None
    assert (found["step"], found["rank"], found["host"], found["part"]) == (15, 1, "cn2", "input")
    assert (found["seconds"], found["usual_s"], found["part_s"]) == pytest.approx((2.1, 0.1, 2.0))


def test_a_checkpoint_lets_the_others_wait_in_the_next_step(clock: Clock) -> None:
    waits, writes = {16: (0.01, 0.08, 3.01, 0.0)}, {15: (0.01, 0.08, 0.01, 3.0)}
    found = slow_step(rows(clock, writes, waits, waits), HOSTS)
    assert found is not None
    assert (found["step"], found["rank"], found["part"]) == (15, 0, "checkpoint")


def keeping(stopwatch: Pace, clock: Clock, took_s: float, own_s: float) -> np.ndarray:
    """Twenty steps, and a checkpoint after each fifth one, of which this rank waits for all but `own_s`."""
    for step in range(1, 21):
        stopwatch.begin(step)
        for part, seconds in enumerate((0.01, 0.08, 0.01)):
            clock.now += seconds
            stopwatch.lap(part)
        if step % 5 == 0:
            clock.now += took_s
            stopwatch.lap(CHECKPOINT, own_s)
    stopwatch.end()
    return stopwatch.row()


def test_who_waits_for_anothers_checkpoint_is_not_told_as_its_cause(clock: Clock) -> None:
    waits = keeping(Pace(), clock, 2.0, 0.0)
    # It returns last, as the others do not have to be told.
    found = np.stack([waits, keeping(Pace(), clock, 1.99, 1.98), waits])
    said = slow_step(found, HOSTS)
    assert said is not None
    assert (said["rank"], said["part"]) == (1, "checkpoint")
    assert said["part_s"] == pytest.approx(1.98)
    behind = slow_rank(found, HOSTS)
    assert behind is not None
    assert (behind["rank"], behind["part"]) == (1, "checkpoint")
    assert pace.seconds_a_step(found)["checkpoint_s"] == pytest.approx(2.0 / 5, rel=0.01)


def test_a_slow_network_is_no_ranks_fault(clock: Clock) -> None:
    waits = {15: (0.01, 0.09, 2.01, 0.0)}
    found = slow_step(rows(clock, waits, waits, waits), HOSTS)
    assert found is not None
    assert (found["step"], found["part"]) == (15, "reduction")
    assert "rank" not in found


def test_the_first_steps_are_slow_by_nature(clock: Clock) -> None:
    assert slow_step(rows(clock, {1: (5.0, 5.0, 5.0, 0.0), 5: (3.0, 0.0, 0.0, 0.0)}), HOSTS) is None


def test_what_belongs_to_no_step_is_not_counted(clock: Clock) -> None:
    stopwatch = Pace()
    run(stopwatch, clock, {})
    clock.now += 50.0  # validation
    stopwatch.skip()
    row = run(stopwatch, clock, {})
    assert row[[INPUT, COMPUTE, REDUCTION, CHECKPOINT]].sum() == pytest.approx(2.0)
    assert row[5] == 0


def test_a_rank_on_a_slow_node(clock: Clock) -> None:
    fast, slow = (
        dict.fromkeys(range(21), (0.01, 0.08, 0.09, 0.0)),
        dict.fromkeys(range(21), (0.01, 0.16, 0.01, 0.0)),
    )
    found = slow_rank(rows(clock, fast, fast, slow), HOSTS)
    assert found is not None
    assert (found["rank"], found["host"], found["part"]) == (2, "cn3", "compute")
    assert found["times"] == pytest.approx(17 / 9)
    # One slow step makes no slow rank.
    late = {15: (4.01, 0.08, 0.01, 0.0)}
    assert slow_rank(rows(clock, {}, late, {}), HOSTS) is None
