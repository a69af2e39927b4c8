"""The sample order: bijections, keyed by seed and epoch, read at random; balanced slices of it."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.data.blocks import BlockOrder
from hpcmass.data.feistel import Permutation, permute_each
from hpcmass.data.order import FORMAT, PlainOrder, epoch_ids, rank_slice
from hpcmass.data.strata import MixedOrder, StratifiedOrder

GLOBAL_10 = [7, 2, 9, 4, 1, 6, 5, 8, 0, 3]
GLOBAL_1E10 = [1906591947, 8794913693, 6467216496, 913056448]
BLOCK_50 = [0, 1, 49, 30, 32, 13, 39, 15, 2, 6, 5, 9, 43, 25, 18, 41]
STRATIFIED_40 = [4, 5, 25, 39, 23, 35, 9, 16, 19, 2, 14, 24, 22, 20, 33, 36]
MIX_20 = [36, 53, 24, 3, 27, 58, 1, 47, 48, 57, 14, 8, 43, 18, 5, 10]

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


def chi_square(counts: np.ndarray, expected: float) -> float:
    """In standard deviations from what is expected of as many equally likely cells."""
    free = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free))


# The keys are fixed, so each figure is one number that does not change from run to run: a network that is too
# weak is far outside these bounds (with 4 rounds instead of 8 and 12, most of them).
BOUND = 4.5


@pytest.mark.parametrize("n", [60_000, 10**7, 10**10])
def test_positions_and_ids_are_independent(n: int) -> None:
    stretch = min(n // 4, 400_000)
    start = (n - stretch) // 3
    ids = epoch_ids("global", n, 7, 0, start, start + stretch)
    cells = np.histogram2d(np.arange(stretch), ids, bins=40, range=[[0, stretch], [0, n]])[0]
    assert abs(chi_square(cells, stretch / 1600)) < BOUND
    # The lowest bits as well: which of 256 neighbours, and in which order.
    assert abs(chi_square(np.bincount(ids % 256, minlength=256), stretch / 256)) < BOUND
    pairs = np.bincount((ids[:-1] % 32) * 32 + ids[1:] % 32, minlength=1024)
    assert abs(chi_square(pairs, (stretch - 1) / 1024)) < BOUND


@pytest.mark.parametrize("n", [1000, 60_000, 10**10])
def test_neighbours_lie_as_far_apart_as_by_chance(n: int) -> None:
    stretch = min(n, 200_000)
    ids = epoch_ids("global", n, 3, 5, 0, stretch).astype(np.float64)
    for lag in (1, 2, 3, 64, 256, 512):
        correlation = np.corrcoef(ids[:-lag], ids[lag:])[0, 1]
        assert abs(correlation) < BOUND / np.sqrt(stretch - lag), lag
        distance = (ids[lag:] - ids[:-lag]) % n
        counts = np.histogram(distance, bins=50, range=(0, n))[0]
        assert abs(chi_square(counts, (stretch - lag) / 50)) < BOUND, lag


def test_epochs_and_seeds_are_independent() -> None:
    n = 20_000
    orders = [epoch_ids("global", n, seed, epoch, 0, n) for seed in (0, 1) for epoch in range(6)]
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < BOUND / np.sqrt(n)
        assert (one == other).sum() < 10  # one on average
        cells = np.histogram2d(one, other, bins=20, range=[[0, n], [0, n]])[0]
        assert abs(chi_square(cells, n / 400)) < BOUND


@pytest.mark.parametrize(("n", "keys"), [(2, 2000), (3, 3000), (4, 4000), (5, 6000)])
def test_all_permutations_of_a_few_are_as_likely(n: int, keys: int) -> None:
    found = Counter(tuple(epoch_ids("global", n, seed, 0, 0, n).tolist()) for seed in range(keys))
    counts = np.array([found[one] for one in itertools.permutations(range(n))])
    assert abs(chi_square(counts, keys / counts.size)) < BOUND


@pytest.mark.parametrize("n", [12, 50, 257])
def test_all_pairs_of_images_are_as_likely(n: int) -> None:
    keys = 20_000
    groups = np.repeat(np.arange(keys), n)
    images = permute_each(np.tile(np.arange(n), keys), np.full(keys * n, n), groups, "k").reshape(keys, n)
    assert (np.sort(images, axis=1) == np.arange(n)).all()
    for a, b in ((0, 1), (0, n // 2), (1, n - 1)):
        counts = np.bincount(images[:, a] * n + images[:, b], minlength=n * n)
        others = counts[~np.eye(n, dtype=bool).reshape(-1)]
        assert abs(chi_square(others, keys / others.size)) < BOUND


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20), key=st.text(max_size=5), data=st.data())
def test_each_group_has_a_permutation_of_its_own(sizes: list[int], key: str, data: st.DataObject) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n = np.array(sizes)[groups]
    places = np.concatenate([np.arange(size) for size in sizes])
    mixed = np.array(data.draw(st.permutations(range(len(groups)))))
    images = np.empty(len(groups), np.int64)
    images[mixed] = permute_each(places[mixed], n[mixed], groups[mixed], key)
    for group, size in enumerate(sizes):
        own = images[groups == group]
        assert sorted(own.tolist()) == list(range(size))
        # What else is asked for in the same call changes nothing.
        alone = permute_each(np.arange(size), np.full(size, size), np.full(size, group), key)
        assert own.tolist() == alone.tolist()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 2**60), start=st.integers(0, 2**60), key=st.text(max_size=5))
def test_any_positions_have_the_images_of_their_range(n: int, start: int, key: str) -> None:
    start = start % n
    stop = min(n, start + 40)
    one = Permutation(n, key)
    images = one.range(start, stop)
    assert images.min() >= 0
    assert images.max() < n
    assert len(set(images.tolist())) == stop - start
    assert one.at(np.arange(start, stop)[::-1]).tolist() == images[::-1].tolist()


def test_the_orders_are_those_of_this_format() -> None:
    """Other ids for the same settings are another format: raise `FORMAT` where this changes."""
    assert FORMAT == 2
    assert epoch_ids("global", 10, 0, 0, 0, 10).tolist() == GLOBAL_10
    assert epoch_ids("global", 10**10, 1, 2, 5 * 10**9, 5 * 10**9 + 4).tolist() == GLOBAL_1E10
    block = BlockOrder(50, 3, batch=8, block=7, window=2, lanes=3)
    assert block.ids(1, 0, 16).tolist() == BLOCK_50
    labels = np.arange(40) % 3
    assert StratifiedOrder(labels, 3, batch=8, field="y").ids(1, 0, 16).tolist() == STRATIFIED_40
    mix = MixedOrder([PlainOrder("global", 9, 3), block], ["a", "b"], [5, 15], 3, batch=8)
    assert mix.ids(1, 0, 16).tolist() == MIX_20


def test_memory_at_1e10_is_that_of_the_answer() -> None:
    tracemalloc.start()
    try:
        epoch_ids("global", 10**10, 0, 0, 0, 10)
        tracemalloc.reset_peak()
        ids = epoch_ids("global", 10**10, 0, 1, 9 * 10**9, 9 * 10**9 + 10**6)
        assert tracemalloc.get_traced_memory()[1] < ids.nbytes + (2 << 20)
    finally:
        tracemalloc.stop()


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
