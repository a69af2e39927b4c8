"""Shares of a global batch that follow the ranks' speed."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcmass.train.gradients import Gradients
from hpcmass.train.pace import WIDTH
from hpcmass.train.shares import LEAST, MOST, equal_shares, fractions, measured_shares, part_of


def rows(seconds: list[float], samples: list[float]) -> np.ndarray:
    made = np.zeros((len(seconds), WIDTH))
    made[:, 12], made[:, 13] = seconds, samples
    return made


def settle(speed: list[float], n: float = 100.0) -> tuple[int, ...]:
    """Shares after some rounds, of ranks that take so many samples a second."""
    ends = equal_shares(len(speed))
    for _ in range(20):
        samples = [n * share for share in fractions(ends)]
        ends = (
            measured_shares(rows([s / v for s, v in zip(samples, speed, strict=True)], samples), ends) or ends
        )
    return ends


@given(st.integers(1, 40), st.integers(0, 500), st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_parts_are_one_after_the_other_and_all_of_it(size: int, n: int, speed: list[float]) -> None:
    for ends in (equal_shares(size), settle(speed)):
        parts = [part_of(n, rank, ends) for rank in range(len(ends))]
        assert parts[0][0] == 0
        assert parts[-1][1] == n
        assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
        assert all(low <= high for low, high in parts)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20))
def test_shares_stay_within_their_limits(speed: list[float]) -> None:
    found = fractions(settle(speed))
    assert sum(found) == pytest.approx(1)
    assert all(LEAST / len(speed) - 1e-4 <= share <= MOST / len(speed) + 1e-4 for share in found)


def test_they_come_to_the_speeds() -> None:
    assert fractions(settle([3.0, 1.0])) == pytest.approx([0.75, 0.25], abs=0.03)
    assert fractions(settle([2.0, 2.0, 1.0])) == pytest.approx([0.4, 0.4, 0.2], abs=0.03)
    assert fractions(settle([1000.0, 1.0])) == pytest.approx([0.875, 0.125], abs=0.03)


def test_noise_moves_nothing() -> None:
    ends = equal_shares(2)
    assert measured_shares(rows([1.0, 1.05], [50, 50]), ends) is None
    assert measured_shares(rows([1.0, 0.0], [50, 50]), ends) is None  # not measured
    assert measured_shares(rows([1.0], [50]), equal_shares(1)) is None


def test_half_of_the_way_at_once() -> None:
    ends = measured_shares(rows([1.0, 3.0], [50, 50]), equal_shares(2))
    assert ends is not None
    assert fractions(ends) == pytest.approx([0.625, 0.375], abs=1e-4)


@st.composite
def ends_and_batch(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    size = draw(st.integers(1, 5))
    inner = draw(st.lists(st.integers(0, 1 << 16), min_size=size - 1, max_size=size - 1))
    batch = draw(st.integers(2, 200))
    return (*sorted(inner), 1 << 16), batch, draw(st.integers(1, batch - 1))


@given(ends_and_batch(), st.integers(1, 3))
@example(((21808, 43921, 65536), 64, 63), 1)  # 21 samples of 63, and 21 - 1 of 64
def test_a_padded_batch_shows_every_sample_once_at_least(
    what: tuple[tuple[int, ...], int, int], accumulation: int
) -> None:
    ends, batch, n = what
    shown: set[int] = set()
    for rank in range(len(ends)):
        gradients = object.__new__(Gradients)
        gradients._job = SimpleNamespace(global_batch=batch, last="pad", accumulation=accumulation)
        gradients._comm = SimpleNamespace(rank=rank, size=len(ends))
        gradients._ends = ends
        for cut in gradients._cut(n):
            ids = np.arange(cut.low, cut.high)
            assert cut.padded(ids)[: len(ids)].tolist() == ids.tolist()
            shown |= set(cut.padded(ids).tolist())
    assert shown == set(range(n))
