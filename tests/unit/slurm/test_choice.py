"""The choice between targets: never an impossible one, never by an unknown number, always for the goal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.config import Layout, Resources, Site, Target
from hpcmass.config.duration import span
from hpcmass.slurm.placement import (
    Candidate,
    Goal,
    Queue,
    Speed,
    Work,
    choose,
    estimate,
    layouts,
)


def layout(nodes: int = 1, time_s: int = 3600) -> Layout:
    return Layout(
        nodes=nodes,
        ranks=nodes,
        ranks_per_node=1,
        threads_per_rank=1,
        gpus_per_node=0,
        memory_gb=None,
        time_s=time_s,
    )


def candidate(name: str = "cpu", **values: object) -> Candidate:
    return Candidate(name, layout(), **values)  # type: ignore[arg-type]


NUMBER = st.none() | st.floats(1.0, 1e6)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        target=st.just("x"),
        layout=st.just(layout()),
        refusal=st.sampled_from(["", "", "", "too small"]),
        start_s=NUMBER,
        run_s=NUMBER,
        finish_s=NUMBER,
        node_hours=NUMBER,
        price=NUMBER,
        preemptible=st.booleans(),
    ),
    max_size=6,
).map(lambda found: [Candidate(**{**vars(each), "target": f"t{n}"}) for n, each in enumerate(found)])
GOALS = st.builds(
    Goal,
    deadline_s=st.none() | st.floats(1.0, 1e6),
    budget=st.none() | st.floats(1.0, 1e6),
    node_hours=st.booleans(),
)


def cost(each: Candidate, goal: Goal) -> float | None:
    return each.node_hours if goal.node_hours else each.price


def adjusted(each: Candidate) -> float:
    return (each.finish_s or 0.0) * (1.05 if each.preemptible else 1.0)


def serves(each: Candidate, goal: Goal) -> bool:
    """Written anew: possible, known, within deadline and budget."""
    if each.refusal or each.finish_s is None:
        return False
    needs_cost = goal.deadline_s is not None or goal.budget is not None
    price = cost(each, goal)
    if needs_cost and price is None:
        return False
    if goal.deadline_s is not None and each.finish_s > goal.deadline_s:
        return False
    return goal.budget is None or (price is not None and price <= goal.budget)


@given(CANDIDATES, GOALS)
def test_what_is_taken_serves_the_goal_and_nothing_that_does_is_better(
    candidates: list[Candidate], goal: Goal
) -> None:
    choice = choose(candidates, goal)
    fitting = [each for each in candidates if serves(each, goal)]
    assert (choice.target is None) == (not fitting)
    assert sorted(each.target for each in choice.candidates) == sorted(each.target for each in candidates)
    assert choice.reason
    taken = choice.chosen
    if taken is None:
        return
    assert serves(taken, goal)
    for other in fitting:
        if goal.deadline_s is not None:
            assert (cost(taken, goal) or 0.0) <= (cost(other, goal) or 0.0)
        else:
            assert adjusted(taken) <= adjusted(other) * 1.05


@given(CANDIDATES, GOALS)
def test_the_order_of_the_targets_does_not_matter_but_for_equal_ones(
    candidates: list[Candidate], goal: Goal
) -> None:
    one, other = choose(candidates, goal).chosen, choose(candidates[::-1], goal).chosen
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.finish_s, cost(one, goal), one.preemptible) == (
            other.finish_s,
            cost(other, goal),
            other.preemptible,
        )


@given(
    samples=st.integers(1, 10**9),
    rate=st.floats(0.1, 1e6),
    startup=st.floats(0, 3000),
    end=st.floats(0, 500),
    start=st.floats(0, 1e5),
    nodes=st.integers(1, 64),
    preemptible=st.booleans(),
)
def test_all_work_is_counted_once_and_every_hop_fits_its_time(
    samples: int, rate: float, startup: float, end: float, start: float, nodes: int, preemptible: bool
) -> None:
    found = estimate(
        Candidate("x", layout(nodes), preemptible=preemptible),
        Work(samples),
        Speed(rate, startup, end),
        Queue(start),
        2.0,
    )
    busy = samples / rate
    if startup + end >= 3600:
        assert "too short" in found.refusal
        return
    assert found.run_s is not None
    assert found.hops is not None
    assert found.finish_s is not None
    assert found.run_s >= busy + startup + end - 1e-6 * busy
    if not preemptible:
        assert found.run_s <= found.hops * 3600 * (1 + 1e-6)
        assert math.isclose(found.run_s, busy + found.hops * (startup + end), rel_tol=1e-9)
    assert found.finish_s >= found.run_s
    assert found.finish_s >= start
    assert math.isclose(found.node_hours or 0.0, found.run_s * nodes / 3600)
    assert math.isclose(found.price or 0.0, 2 * (found.node_hours or 0.0))


def test_an_impossible_target_is_refused_with_the_reason() -> None:
    site = Site(
        name="x",
        default_target="small",
        targets={
            "small": Target(kind="slurm", cores=4, max_nodes=1),
            "large": Target(kind="slurm", cores=4, max_nodes=8),
            "here": Target(),
        },
    )
    found = {each.target: each for each in layouts(Resources(ranks=8, threads_per_rank=1), site)}
    assert "2 nodes" in found["small"].refusal
    assert found["large"].refusal == ""
    assert found["large"].layout is not None
    assert "not run by Slurm" in found["here"].refusal
    never = estimate(found["large"], Work(1), Speed(1.0), Queue(None, "invalid account", impossible=True), None)
    assert "invalid account" in never.refusal


def test_unknown_stays_unknown() -> None:
    unmeasured = estimate(candidate(), Work(100), None, Queue(5.0), 1.0)
    assert (unmeasured.start_s, unmeasured.run_s, unmeasured.finish_s, unmeasured.price) == (
        5.0,
        None,
        None,
        None,
    )
    no_start = estimate(candidate(), Work(100), Speed(1.0), Queue(None, "does not answer"), None)
    assert (no_start.run_s, no_start.finish_s, no_start.price) == (100.0, None, None)
    choice = choose([unmeasured, no_start], Goal())
    assert choice.target is None
    assert "not all numbers are known" in choice.reason
    slow = candidate("slow", start_s=0.0, run_s=1e6, finish_s=1e6, node_hours=300.0)
    beside = choose([unmeasured, slow], Goal())
    assert beside.target == "slow"
    assert "unknown: cpu" in beside.reason


def test_a_run_longer_than_its_wall_time_waits_again_for_every_hop() -> None:
    found = estimate(candidate(), Work(10_000), Speed(1.0, 100.0, 60.0), Queue(600.0), None)
    assert found.hops == 3  # 10,000 s of work in hops of 3,600 - 160 s
    assert found.run_s == 10_000 + 3 * 160
    assert found.finish_s == found.run_s + 3 * 600
    assert any("3 jobs" in note for note in found.notes)


def test_a_preemptible_target_pays_for_what_it_risks_and_loses_a_tie() -> None:
    keeps = estimate(candidate("keeps"), Work(1800), Speed(1.0, 60.0, 60.0), Queue(300.0), 1.0)
    risks = estimate(
        Candidate("risks", layout(), preemptible=True), Work(1800), Speed(1.0, 60.0, 60.0), Queue(300.0), 0.5
    )
    assert (risks.finish_s or 0.0) > (keeps.finish_s or 0.0)
    assert any("assumed" in note for note in risks.notes)
    assert choose([risks, keeps], Goal()).target == "keeps"
    assert choose([risks, keeps], Goal(deadline_s=1e5)).target == "risks"
    equal = [candidate("risks", finish_s=100.0, preemptible=True), candidate("keeps", finish_s=103.0)]
    assert choose(equal, Goal()).target == "keeps"


def test_of_those_that_finish_as_early_the_cheapest_is_taken() -> None:
    found = [
        candidate("special", finish_s=100.0),
        candidate("dear", finish_s=101.0, price=9.0),
        candidate("cheap", finish_s=103.0, price=2.0),
        candidate("late", finish_s=120.0, price=0.1),
    ]
    choice = choose(found, Goal())
    assert choice.target == "cheap"
    assert "as early as any" in choice.reason
    assert [each.target for each in choice.candidates] == ["cheap", "dear", "special", "late"]


def test_those_who_wait_are_told() -> None:
    found = estimate(candidate(), Work(1), Speed(1.0), Queue(600.0, pending_jobs=2, idle_nodes=1), None)
    assert found.start_s == 600.0
    assert "2 jobs wait there; 1 nodes are idle" in found.notes


def test_without_a_price_the_reason_says_what_helps() -> None:
    free = [candidate(finish_s=10.0, node_hours=1.0)]
    assert "--node-hours" in choose(free, Goal(budget=5.0)).reason
    assert choose(free, Goal(budget=5.0, node_hours=True)).target == "cpu"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.4, "0 s"),
        (90, "90 s"),
        (600, "10 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
        (-3.0, "0 s"),
    ],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert span(seconds) == text
