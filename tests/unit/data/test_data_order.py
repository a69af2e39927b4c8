"""The sample order: bijections, keyed by seed and epoch, read at random; balanced slices of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.data.order import epoch_ids, rank_slice

seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 3000), seed=seeds, epoch=st.integers(0, 10**6))
def test_global_order_holds_every_sample_once(n: int, seed: int, epoch: int) -> None:
    ids = epoch_ids("global", n, seed, epoch, 0, n)
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 10**10 + 7), seed=seeds)
def test_any_stretch_is_the_same_stretch_of_the_whole(data: st.DataObject, n: int, seed: int) -> None:
    start = data.draw(st.integers(0, n - 1))
    stop = min(n, start + data.draw(st.integers(1, 500)))
    ids = epoch_ids("global", n, seed, 3, start, stop)
    assert len(set(ids.tolist())) == stop - start
    assert ids.min() >= 0
    assert ids.max() < n
    one_by_one = [
        int(epoch_ids("global", n, seed, 3, at, at + 1)[0]) for at in range(start, min(stop, start + 5))
    ]
    assert ids[:5].tolist() == one_by_one


def test_order_differs_by_seed_and_epoch() -> None:
    orders = [epoch_ids("global", 1000, seed, epoch, 0, 1000).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_ids("global", 1000, 0, 0, 0, 1000).tolist()


def test_order_looks_random() -> None:
    # A sample of 4000 positions into 20 x 20 cells (position, id): chi-square of 361 degrees of freedom.
    n = 4000
    ids = epoch_ids("global", n, 7, 0, 0, n)
    cells = np.histogram2d(np.arange(n), ids, bins=20, range=[[0, n], [0, n]])[0]
    chi_square = float(((cells - n / 400) ** 2 / (n / 400)).sum())
    assert 240 < chi_square < 500
    assert abs(np.corrcoef(np.arange(n), ids)[0, 1]) < 0.06
    firsts = np.array([epoch_ids("global", 10, seed, 0, 0, 1)[0] for seed in range(500)])
    assert np.bincount(firsts, minlength=10).min() > 25


def test_sequential_order() -> None:
    assert epoch_ids("sequential", 10, 5, 2, 3, 6).tolist() == [3, 4, 5]


@pytest.mark.parametrize(("kind", "start", "stop"), [("other", 0, 1), ("global", 5, 11), ("global", 3, 2)])
def test_impossible_orders_are_refused(kind: str, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"order|positions"):
        epoch_ids(kind, 10, 0, 0, start, stop)


@given(start=st.integers(0, 10**10), length=st.integers(0, 10**6), size=st.integers(1, 100))
def test_rank_slices_are_balanced_and_cover_the_range(start: int, length: int, size: int) -> None:
    slices = [rank_slice(start, start + length, rank, size) for rank in range(size)]
    assert slices[0][0] == start
    assert slices[-1][1] == start + length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(slices))
    sizes = [stop - low for low, stop in slices]
    assert max(sizes) - min(sizes) <= 1
