"""The strategies: every sample in one part, the rules of each, the same seed the same cut."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcmass.data.cut import STRATEGIES, Cut, deal, plan_cut, random_cut_sizes
from hpcmass.errors import DataError, NameNotAllowed

SPLITS = {"train": 0.8, "valid": 0.1, "test": 0.1}
seeds = st.integers(0, 10**6)


def cut_or_refusal(strategy, n, shards, splits, seed, codes) -> tuple[Cut | None, str]:
    """The cut, or None and what was said instead."""
    try:
        return plan_cut(strategy, n, shards=shards, splits=splits, seed=seed, codes=codes.astype(np.int64)), ""
    except DataError as error:
        return None, str(error)


def sizes_found(cut: Cut) -> list[int]:
    return np.bincount(cut.part_of(0, cut.n), minlength=len(cut.parts)).tolist()


@settings(max_examples=150, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    n=st.integers(1, 400),
    shards=st.integers(1, 6),
    splits=st.sampled_from([None, SPLITS, {"a": 0.5, "b": 0.5}, {"all": 1.0}]),
    seed=seeds,
    kinds=st.integers(1, 12),
)
def test_every_sample_in_one_part_and_no_part_empty(strategy, n, shards, splits, seed, kinds) -> None:
    codes = np.unique(np.random.default_rng(seed).integers(0, kinds, n), return_inverse=True)[1].reshape(-1)
    cut, refusal = cut_or_refusal(strategy, n, shards, splits, seed, codes)
    if cut is None:
        # Possible only where a split may have fewer samples than shards, or there are too few groups.
        few_samples = n < 10 * 6 * 3 or (strategy == "grouped" and splits is not None)
        assert few_samples or len(np.unique(codes)) < len(splits or [1]), refusal
        return
    assert sizes_found(cut) == [part.samples for part in cut.parts]
    assert min(part.samples for part in cut.parts) >= 1
    assert sum(part.samples for part in cut.parts) == n
    again = plan_cut(strategy, n, shards=shards, splits=splits, seed=seed, codes=codes.astype(np.int64))
    assert (again.part_of(0, n) == cut.part_of(0, n)).all()
    middle = n // 2
    assert (np.concatenate([cut.part_of(0, middle), cut.part_of(middle, n)]) == cut.part_of(0, n)).all()


@given(n=st.integers(1, 5000), count=st.integers(1, 40), seed=seeds)
def test_random_cut_makes_n_parts_none_empty(n: int, count: int, seed: int) -> None:
    assume(count <= n)
    sizes = random_cut_sizes(n, count, np.random.default_rng(seed))
    assert len(sizes) == count
    assert sum(sizes) == n
    assert min(sizes) >= 1


class Points:
    """Random numbers that were chosen beforehand."""

    def __init__(self, *points: float) -> None:
        self.points = list(points)

    def random(self) -> float:
        return self.points.pop(0)


def test_random_cut_follows_its_rule() -> None:
    # 100 samples, 3 parts. First cut: k = 3, m = 100, interval (1, 99]; u = 0.505 gives p = 99 - 0.505 * 98
    # = 49.51: behind it 50 whole samples are finished; sample 50 joins the first part, which then has 50.
    # Second cut: k = 2, m = 50, interval (0, 49]; u = 0.8 gives p = 9.8: 40 are finished, 10 are left.
    assert random_cut_sizes(100, 3, Points(0.505, 0.8)) == [10, 40, 50]  # type: ignore[arg-type]
    # The ends of the intervals: never an empty part.
    assert random_cut_sizes(5, 3, Points(0.0, 0.0)) == [3, 1, 1]  # type: ignore[arg-type]
    assert random_cut_sizes(5, 3, Points(0.9999999, 0.9999999)) == [1, 1, 3]  # type: ignore[arg-type]


def test_random_cut_points_are_uniform() -> None:
    rng = np.random.default_rng(0)
    firsts = np.bincount([random_cut_sizes(5, 2, rng)[0] for _ in range(4000)])[1:]
    assert len(firsts) == 4
    assert (abs(firsts - 1000) < 150).all()


@given(
    rows=st.lists(st.integers(0, 200), min_size=1, max_size=12).filter(any),
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    seed=seeds,
)
def test_dealing_keeps_both_margins_and_the_proportions(rows: list[int], weights: list[int], seed: int) -> None:
    n = sum(rows)
    columns = np.random.default_rng(seed).multinomial(n, np.array(weights) / sum(weights))
    shares = deal(np.array(rows), columns, np.random.default_rng(seed))
    assert shares.sum(axis=1).tolist() == rows
    assert shares.sum(axis=0).tolist() == columns.tolist()
    exact = np.multiply.outer(np.array(rows), columns) / n
    assert (abs(shares - exact) < 1 + 1e-9).all()
    assert (shares >= 0).all()


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 150), min_size=2, max_size=6), seed=seeds)
def test_stratified_keeps_class_proportions_in_splits_and_shards(counts: list[int], seed: int) -> None:
    n = sum(counts)
    assume(n >= 60)
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    cut = plan_cut("stratified", n, shards=3, splits=SPLITS, seed=seed, codes=codes)
    part_of = cut.part_of(0, n)
    splits = np.array([list(SPLITS).index(part.split or "") for part in cut.parts])
    for code, count in enumerate(counts):
        of_class = part_of[codes == code]
        for split in range(3):
            size = sum(part.samples for part, s in zip(cut.parts, splits, strict=True) if s == split)
            in_split = int((splits[of_class] == split).sum())
            assert abs(in_split - count * size / n) <= 1
            for number in np.flatnonzero(splits == split):
                share = in_split * cut.parts[number].samples / size
                assert abs(int((of_class == number).sum()) - share) <= 1


@settings(deadline=None)
@given(groups=st.lists(st.integers(1, 30), min_size=3, max_size=60), shards=st.integers(1, 4), seed=seeds)
def test_grouped_keeps_groups_together(groups: list[int], shards: int, seed: int) -> None:
    n = sum(groups)
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(groups)), groups))
    cut, refusal = cut_or_refusal("grouped", n, shards, SPLITS, seed, codes)
    if cut is None:
        assert "too few" in refusal
        return
    part_of = cut.part_of(0, n)
    splits = np.array([part.split for part in cut.parts])
    parts_of_group = [set(part_of[codes == group].tolist()) for group in range(len(groups))]
    for parts in parts_of_group:
        assert len({splits[part] for part in parts}) == 1
    for split in SPLITS:
        mine = [parts for parts in parts_of_group if splits[next(iter(parts))] == split]
        if len(mine) >= shards:
            assert all(len(parts) == 1 for parts in mine)


def test_grouped_sizes_come_near_the_fractions() -> None:
    codes = np.repeat(np.arange(200), 5)
    cut = plan_cut("grouped", 1000, shards=2, splits=SPLITS, codes=codes)
    assert [part.samples for part in cut.parts] == [400, 400, 50, 50, 50, 50]


def test_grouped_leaves_no_split_or_shard_empty() -> None:
    codes = np.repeat(np.arange(3), 100)
    cut = plan_cut("grouped", 300, shards=1, splits=SPLITS, codes=codes)
    assert [part.samples for part in cut.parts] == [100, 100, 100]
    few = plan_cut("grouped", 300, shards=5, codes=codes)
    assert sorted(part.samples for part in few.parts) == [50, 50, 50, 50, 100]


def test_even_is_balanced_and_random() -> None:
    cut = plan_cut("even", 1001, shards=4, seed=1)
    assert sizes_found(cut) == [251, 250, 250, 250]
    other = plan_cut("even", 1001, shards=4, seed=2)
    assert 0.6 < (cut.part_of(0, 1001) != other.part_of(0, 1001)).mean() < 0.9
    means = [np.flatnonzero(cut.part_of(0, 1001) == part).mean() for part in range(4)]
    assert all(400 < mean < 600 for mean in means)


def test_contiguous_keeps_the_order() -> None:
    cut = plan_cut("contiguous", 10, shards=2, splits={"a": 0.6, "b": 0.4})
    assert cut.part_of(0, 10).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


@given(n=st.integers(3, 10**6))
def test_split_sizes_are_within_one_of_exact(n: int) -> None:
    cut = plan_cut("contiguous", n, shards=1, splits=SPLITS)
    sizes = [part.samples for part in cut.parts]
    assert sum(sizes) == n
    exact = [n * Fraction(8, 10), n * Fraction(1, 10), n * Fraction(1, 10)]
    assert all(abs(size - share) < 1 or size == 1 or n < 20 for size, share in zip(sizes, exact, strict=True))
    assert min(sizes) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2, "splits": SPLITS}, "too few for 3 splits"),
        ({"n": 3, "shards": 4}, "too few for 4 shards"),
        ({"n": 9, "splits": {"a": 0.5, "b": 0.4}}, "add up to 0.9"),
        ({"n": 9, "splits": {"a": 1.5}}, "not between 0 and 1"),
        ({"n": 9, "splits": {"a": float("nan")}}, "not between 0 and 1"),
        ({"n": 9, "splits": {}}, "no split"),
        ({"n": 9, "shards": 0}, "0 shards"),
        ({"n": 9, "shards": {"x": 1}, "splits": {"y": 1.0}}, "do not name the same"),
        ({"n": 0}, "no samples"),
        ({"n": 9, "seed": -1}, "seed"),
    ],
)
def test_impossible_cuts_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_cut("even", **{"shards": 1, **arguments})


@pytest.mark.parametrize("name", ["../up", "$(reboot)", "a/b", "", ".hidden"])
def test_split_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(NameNotAllowed):
        plan_cut("even", 9, shards=1, splits={name: 1.0})
