"""The rules of a deployment, which are pure: what to start and drain, how many, and whether a trial is worse."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.serve.canary import ALPHA, Seen, fisher, mann_whitney, worse
from hpcmass.serve.elastic import Load, Mind, Rule, decide
from hpcmass.serve.gateway_stats import BOUNDS, Window, quantile
from hpcmass.serve.rollout import Piece, steps

PIECES = st.lists(
    st.builds(Piece, st.uuids().map(str), st.sampled_from(["a", "b", "c"]), st.booleans(), st.booleans()),
    max_size=12,
)


# -- rollout ----------------------------------------------------------------------------------------------
@given(PIECES, st.integers(0, 6), st.integers(1, 3))
def test_never_below_what_is_asked(pieces: list[Piece], count: int, surge: int) -> None:
    found = steps(pieces, "a", count, surge=surge)
    ready = [one for one in pieces if one.ready]
    left = [one for one in ready if one.rid not in found.drain]
    assert len(left) >= min(len(ready), count)
    assert len(set(found.drain)) == len(found.drain)
    assert set(found.start) <= {"a"}
    leaving = sum(one.leaving for one in ready)
    staying = [one for one in pieces if one.ready or (one.model == "a" and not one.leaving)]
    assert not found.start or len(staying) + len(found.start) <= count + surge + leaving


@given(PIECES, st.integers(0, 5), st.integers(0, 2), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_it_comes_to_what_is_asked(pieces: list[Piece], count: int, canaries: int, draw: random.Random) -> None:
    now, number = list(pieces), 0
    for _ in range(200):
        found = steps(now, "a", count, canary="b", canaries=canaries)
        if not found.start and not found.drain and all(one.ready for one in now):
            break
        now = [one for one in now if one.rid not in found.drain]
        for model in found.start:
            number += 1
            now.append(Piece(f"n{number}", model, False))
        waiting = [one for one in now if not one.ready]
        if waiting:  # one of them becomes ready, in any order
            lucky = draw.choice(waiting)
            now[now.index(lucky)] = replace(lucky, ready=True)
    # One that leaves at the end stays only until another one is there.
    assert sorted(one.model for one in now if not one.leaving) == ["a"] * count + ["b"] * canaries
    assert all(one.leaving is False for one in now)


def test_one_that_leaves_is_replaced_first() -> None:
    pieces = [Piece("1", "a", True, leaving=True), Piece("2", "a", True)]
    assert steps(pieces, "a", 2) == steps([*pieces], "a", 2)
    assert steps(pieces, "a", 2).drain == ()
    assert set(steps(pieces, "a", 2).start) == {"a"}
    assert steps([*pieces, Piece("3", "a", True)], "a", 2).drain == ("1",)


# -- elastic ----------------------------------------------------------------------------------------------
RULE = Rule(1, 4, 10.0, up_s=2.0, down_s=20.0)
LOADS = st.builds(
    Load, st.just(0.0), st.integers(0, 6), st.floats(0, 1e4), st.none() | st.floats(0, 1e3), st.floats(0, 1),
    st.floats(0, 100), st.integers(0, 5), st.integers(0, 5), st.floats(0, 1e3), st.floats(0, 10),
)  # fmt: skip


@given(st.lists(LOADS, max_size=60), st.integers(0, 3), st.integers(0, 4))
def test_within_the_range_and_in_steps(loads: list[Load], least: int, more: int) -> None:
    rule = Rule(least, max(1, least + more), 10.0, budget_hours=8.0)
    mind = Mind(least)
    for second, load in enumerate(loads):
        new = decide(mind, replace(load, time=float(second)), rule)
        assert rule.least <= new.count <= rule.most
        assert new.count >= mind.count - 1 or new.why in ("budget", "range")
        assert new.count <= max(2 * mind.count, mind.count + 1)
        mind = new


def settle(work: float, count: int, seconds: int = 400) -> list[int]:
    """Counts second by second under work for so many replicas' whole time; a new one is ready after 3 s."""
    mind, ready, counts = Mind(count), count, []
    pending: list[float] = []
    for second in range(seconds):
        pending = [at for at in pending if at > second]
        ready = min(mind.count, mind.count - len(pending))
        busy = min(1.0, work / max(1, ready))
        p99 = 3.0 if busy < 0.9 else 50.0
        new = decide(mind, Load(float(second), ready, 100.0, p99, busy), RULE)
        pending += [second + 3.0] * max(0, new.count - mind.count)
        counts.append(new.count)
        mind = new
    return counts


@given(st.floats(0, 6), st.integers(1, 4))
@settings(deadline=None)
def test_steady_work_comes_to_rest(work: float, count: int) -> None:
    counts = settle(work, count)
    assert len(set(counts[-200:])) == 1, counts
    assert counts[-1] == 4 or work / counts[-1] <= 0.9


def test_a_step_of_load_up_and_down() -> None:
    up = settle(2.0, 1)
    assert up[:2] == [1, 1]  # not by the first moment of it
    assert up[-1] >= 3
    down = settle(0.1, 4)
    assert down[-1] == 1
    assert down[19] == 4  # not before `down_s`
    assert sorted(down, reverse=True) == down


def test_none_and_back() -> None:
    rule = Rule(0, 3, 10.0, idle_s=30.0)
    assert decide(Mind(1), Load(0.0, 1, idle_s=29.0), rule).count == 1
    assert decide(Mind(1), Load(0.0, 1, idle_s=31.0), rule).count == 0
    assert decide(Mind(0), Load(0.0, 0, held=1), rule).count == 1
    assert decide(Mind(0), Load(0.0, 0), rule).count == 0


def test_a_budget_that_is_used_up() -> None:
    rule = Rule(1, 4, 10.0, budget_hours=2.0)
    assert decide(Mind(4), Load(0.0, 4, 10.0, 50.0, 1.0, hours=2.0), rule) == Mind(1, why="budget")
    assert decide(Mind(1), Load(9.0, 1, 10.0, 50.0, 1.0, hours=2.0), rule).count == 1


# -- a trial ----------------------------------------------------------------------------------------------
def histogram(draw: random.Random, answers: int, mean_s: float) -> list[int]:
    window = Window()
    for _ in range(answers):
        window.observe(draw.lognormvariate(0, 0.4) * mean_s)
    return window.total


def test_against_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    draw = random.Random(0)
    assert fisher(7, 40, 12, 300) == pytest.approx(
        scipy.fisher_exact([[7, 33], [12, 288]], alternative="greater").pvalue
    )
    a, b = histogram(draw, 300, 0.0024), histogram(draw, 900, 0.002)
    values = [[place for place, n in enumerate(counts) for _ in range(n)] for counts in (a, b)]
    wanted = scipy.mannwhitneyu(*values, alternative="greater", method="asymptotic")
    p, superior = mann_whitney(a, b)
    assert p == pytest.approx(wanted.pvalue, rel=1e-6)
    assert superior == pytest.approx(wanted.statistic / (300 * 900))


def test_a_good_trial_is_hardly_ever_ended() -> None:
    ended = 0
    for seed in range(200):
        draw = random.Random(seed)
        trial, stable, errors, others = [0] * (len(BOUNDS) + 1), [0] * (len(BOUNDS) + 1), 0, 0
        for look in range(1, 31):
            trial = [a + b for a, b in zip(trial, histogram(draw, 20, 0.003), strict=True)]
            stable = [a + b for a, b in zip(stable, histogram(draw, 80, 0.003), strict=True)]
            errors += sum(draw.random() < 0.02 for _ in range(20))
            others += sum(draw.random() < 0.02 for _ in range(80))
            if worse(Seen(stable, others), Seen(trial, errors), look):
                ended += 1
                break
    assert ended / 200 <= ALPHA + 0.02


def test_a_bad_one_is_found_soon() -> None:
    draw = random.Random(1)
    good, slow = histogram(draw, 400, 0.003), histogram(draw, 60, 0.006)
    assert "latency" in str(worse(Seen(good, 0), Seen(slow, 0), 2))
    assert "errors" in str(worse(Seen(good, 4), Seen(histogram(draw, 50, 0.003), 12), 2))
    assert worse(Seen(good, 0), Seen([0] * len(good), 10), 1) is None  # too little is known
    bit = histogram(draw, 50_000, 0.00305)
    assert worse(Seen(histogram(draw, 50_000, 0.003), 0), Seen(bit, 0), 1) is None  # too small to matter


def test_quantiles_and_windows() -> None:
    window = Window()
    for number in range(1000):
        window.observe(0.001 + 0.00001 * number)
    window.error()
    window.tick()
    seen = window.summary()
    assert seen.rate == 1000.0
    assert seen.p50_ms == pytest.approx(6.0, rel=0.13)
    assert seen.p99_ms == pytest.approx(10.9, rel=0.13)
    assert seen.errors == 1
    assert quantile([0] * 5, 0.5) is None
