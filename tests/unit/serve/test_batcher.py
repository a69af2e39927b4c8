"""The queue: what is computed together, what is refused, whose error is whose."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from hpcmass.errors import DataError
from hpcmass.serve.batcher import Batcher, Job
from hpcmass.serve.interfaces import Field, Interface, Limits, Refused
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.pace import Pace
from hpcmass.serve.protocol import Request, Wanted


class Doubler:
    """y = 2 x; remembers its batches; fails at 13 (its own fault) and 14 (the caller's)."""

    platform = "test"
    interface = Interface((Field("x", "int64", ()),), (Field("y", "int64", ()),))

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.batches: list[list[int]] = []
        self.hold = hold
        self.short = False

    def enter(self, threads: int) -> None:
        self.thread = threading.current_thread()

    def run(self, inputs):
        x = inputs["x"]
        self.batches.append(x.tolist())
        if self.hold is not None:
            self.hold.wait(30)
        if 13 in x:
            raise RuntimeError("unlucky")
        if 14 in x:
            raise DataError("14 is no number for me")
        return {"y": 2 * x[1:] if self.short else 2 * x}


def pace(limit: int = 4, row_s: float = 1e-4) -> Pace:
    made = Pace(1.0, limit)
    made.measure(lambda rows: rows * row_s, repeats=1)
    return made


class Asked:
    def __init__(self, values: list[int], key: tuple = ()) -> None:
        self.result: object = None
        self.job = Job(
            Request(None, len(values), {"x": np.array(values)}, (Wanted("y", False),), key), self.done
        )

    def done(self, outputs, error) -> None:
        assert self.result is None, "answered twice"
        self.result = error if error is not None else outputs["y"].tolist()


def served(
    asked: list[Asked], runner: Doubler, *, inline: bool = True, limits: Limits | None = None, limit: int = 4
):
    async def run() -> Batcher:
        batcher = Batcher(runner, pace(limit), limits or Limits(), Metrics(), inline=inline)
        for one in asked:
            batcher.submit(one.job)
        while not batcher.idle:
            await asyncio.sleep(0.001)
        batcher.close()
        return batcher

    return asyncio.run(run())


@pytest.mark.parametrize("inline", [True, False])
def test_what_waits_is_one_batch_and_each_gets_its_own(inline: bool) -> None:
    runner, asked = Doubler(), [Asked([n, 10 * n]) for n in range(1, 6)]
    batcher = served(asked, runner, inline=inline)
    assert [one.result for one in asked] == [[2 * n, 20 * n] for n in range(1, 6)]
    assert (runner.thread is threading.main_thread()) is inline
    assert max(len(batch) for batch in runner.batches) <= 4
    assert len(runner.batches) < 5 or not inline
    assert batcher.rows == 0
    assert batcher.metrics.rows == 10


def test_a_request_larger_than_a_batch_is_computed_in_pieces_and_lets_others_through() -> None:
    runner, asked = Doubler(), [Asked(list(range(100, 110))), Asked([1])]
    batcher = served(asked, runner)
    assert [one.result for one in asked] == [[2 * n for n in range(100, 110)], [2]]
    assert runner.batches == [[100, 101, 102, 103], [1], [104, 105, 106, 107], [108, 109]]
    assert batcher.rows == 0


def test_only_one_shape_in_a_batch() -> None:
    runner = Doubler()
    served([Asked([1], (3,)), Asked([2], (3,)), Asked([3], (4,))], runner)
    assert runner.batches == [[1, 2], [3]]


@pytest.mark.parametrize(("bad", "status"), [(13, 500), (14, 400)])
def test_one_request_that_fails_is_answered_alone(bad: int, status: int) -> None:
    runner, asked = Doubler(), [Asked([1]), Asked([bad]), Asked([3])]
    batcher = served(asked, runner)
    assert asked[0].result == [2]
    assert asked[2].result == [6]
    assert isinstance(asked[1].result, Refused)
    assert asked[1].result.status == status
    assert batcher.rows == 0


def test_outputs_that_lack_rows_reach_nobody() -> None:
    runner = Doubler()
    runner.short = True
    asked = [Asked([1]), Asked([2])]
    served(asked, runner)
    assert [one.result.status for one in asked] == [500, 500]


def test_a_full_queue_refuses_and_a_long_one_too() -> None:
    async def run() -> None:
        hold = threading.Event()
        runner = Doubler(hold)
        batcher = Batcher(runner, pace(), Limits(queue=3, wait_s=1.0), Metrics(), inline=False)
        asked = [Asked([n]) for n in range(4)]
        batcher.submit(asked[0].job)
        while not batcher.busy:
            await asyncio.sleep(0.001)
        for one in asked[1:]:
            batcher.submit(one.job)
        with pytest.raises(Refused, match="3 requests wait already") as caught:
            batcher.submit(Asked([9]).job)
        assert caught.value.status == 429
        assert caught.value.retry_after >= 1
        hold.set()
        while not batcher.idle:
            await asyncio.sleep(0.001)
        assert [one.result for one in asked] == [[0], [2], [4], [6]]
        batcher.pace.row_s = 0.2
        for n in range(2):
            batcher.submit(Asked([n] * 3).job)
        with pytest.raises(Refused):  # 6 rows of 0.2 s each are before it
            batcher.submit(Asked([9]).job)
        while not batcher.idle:
            await asyncio.sleep(0.001)
        batcher.close()

    asyncio.run(run())


def test_the_abandoned_are_not_computed_and_the_stale_are_refused() -> None:
    async def run() -> None:
        runner = Doubler()
        batcher = Batcher(runner, pace(), Limits(wait_s=0.01), Metrics(), inline=True)
        gone, stale, fresh = Asked([5]), Asked([6]), Asked([7])
        stale.job.queued -= 1.0
        for one in (gone, stale, fresh):
            batcher.submit(one.job)
        batcher.abandon(gone.job)
        while not batcher.idle:
            await asyncio.sleep(0.001)
        assert runner.batches == [[7]]
        assert gone.result is None
        assert stale.result.status == 503
        assert fresh.result == [14]
        assert batcher.rows == 0

    asyncio.run(run())


def test_the_pace_sets_the_size_of_batches_and_follows_what_happens() -> None:
    made = Pace(0.005, 64)
    made.measure(lambda rows: 0.001 * rows, repeats=1)
    assert made.limit == 4
    assert made.row_s == pytest.approx(0.001)
    for _ in range(200):
        made.took(4, 0.008)
    assert made.limit == 2
    before = dict(made.seconds)
    made.took(1, 1e9)  # the machine was away for a while
    assert made.seconds[1] < 1.5 * before[1]


def test_an_event_loop_is_free_while_a_slow_model_computes() -> None:
    async def run() -> None:
        hold = threading.Event()
        batcher = Batcher(Doubler(hold), pace(), Limits(), Metrics(), inline=False)
        one = Asked([1])
        batcher.submit(one.job)
        await asyncio.sleep(0.05)
        assert batcher.busy
        assert one.result is None
        hold.set()
        end = time.monotonic() + 30
        while one.result is None and time.monotonic() < end:
            await asyncio.sleep(0.001)
        assert one.result == [2]
        batcher.close()

    asyncio.run(run())


def test_a_model_that_turns_out_to_be_slow_leaves_the_loop_and_comes_back_when_it_is_quick() -> None:
    class Slow(Doubler):
        seconds = 0.03

        def run(self, inputs):
            time.sleep(self.seconds)
            return super().run(inputs)

    async def ask(batcher: Batcher, many: int) -> None:
        asked = [Asked([n % 10]) for n in range(many)]
        for one in asked:
            batcher.submit(one.job)
        while not batcher.idle:
            await asyncio.sleep(0.001)
        assert [one.result for one in asked] == [[2 * (n % 10)] for n in range(many)]

    async def run() -> None:
        runner = Slow()
        batcher = Batcher(runner, pace(1), Limits(wait_s=10), Metrics(), inline=True)
        for _ in range(2):
            runner.seconds = 0.03
            await ask(batcher, 6)
            assert not batcher.inline
            assert runner.thread is not threading.main_thread()
            runner.seconds = 0.0
            await ask(batcher, 10)
            assert not batcher.inline
            await ask(batcher, 60)
            assert batcher.inline
            assert runner.thread is threading.main_thread()
        batcher.close()
        gone = time.monotonic() + 10
        while any(one.name == "model" for one in threading.enumerate()):
            assert time.monotonic() < gone
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_size_that_was_slow_for_a_while_is_tried_again() -> None:
    made = Pace(0.005, 16)
    made.measure(lambda rows: rows * 1e-4, repeats=1)
    assert made.limit == 16
    for _ in range(60):  # the machine was away
        made.took(made.limit, 0.2)
    assert made.limit < 16
    for _ in range(200):
        made.took(made.limit, made.limit * 1e-4)
    assert made.limit == 16
