"""Statistics merged block by block against numpy on the whole."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpcmass.data.stats import MAX_BINS, FieldStats, merge_json


def gathered(values: np.ndarray, cuts: list[int], countable: bool = False) -> FieldStats:
    total = FieldStats()
    for block in np.split(values, sorted(cuts)):
        total.merge(FieldStats.of(np.ascontiguousarray(block), countable=countable))
    return total


@settings(deadline=None)
@given(
    values=hnp.arrays(
        np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
    ),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
def test_moments_and_histogram_do_not_depend_on_blocks(values: np.ndarray, cuts: list[int]) -> None:
    stats = gathered(values, cuts).to_json()
    assert stats["count"] == values.size
    assert stats["min"] == values.min()
    assert stats["max"] == values.max()
    assert stats["mean"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    assert stats["std"] == pytest.approx(values.std(), rel=1e-6, abs=1e-6)
    histogram = stats["histogram"]
    assert histogram == gathered(values, []).to_json()["histogram"]
    edges = np.array(histogram["edges"])
    assert len(edges) <= MAX_BINS + 1
    assert edges[0] <= values.min()
    assert values.max() < edges[-1] or values.max() == edges[-1]
    expected = [((values >= low) & (values < high)).sum() for low, high in itertools.pairwise(edges)]
    assert histogram["counts"] == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, np.bool_, np.float16, np.float32])
def test_every_type(dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 2, 1000).astype(dtype)
    stats = gathered(values, [100]).to_json()
    assert (stats["min"], stats["max"], stats["count"]) == (0, 1, 1000)
    assert sum(stats["histogram"]["counts"]) == 1000


def test_extremes() -> None:
    limits = np.array([np.iinfo(np.int64).min, 0, np.iinfo(np.int64).max])
    assert gathered(limits, [1]).to_json()["max"] == 2**63 - 1
    wide = gathered(np.array([-1e308, 5e-324, 1e308]), [1, 2]).to_json()
    assert sum(wide["histogram"]["counts"]) == 3
    assert gathered(np.zeros(3), [1]).to_json()["histogram"]["counts"] == [3]


def test_nan_and_infinity_are_counted_apart() -> None:
    stats = gathered(np.array([1.0, np.nan, 3.0, np.inf]), [2]).to_json()
    assert (stats["count"], stats["nonfinite"], stats["mean"]) == (2, 2, 2.0)
    only = gathered(np.array([np.nan]), []).to_json()
    assert (only["count"], only["min"], only["mean"]) == (0, None, None)


def test_classes_are_counted() -> None:
    labels = np.array([0, 2, 2, 1, 5])
    assert gathered(labels, [3], countable=True).to_json(6) == {"count": 5, "class_counts": [1, 1, 2, 0, 0, 1]}
    assert gathered(np.array([0, -1]), [1], countable=True).classes is None


def test_merging_what_manifests_say() -> None:
    values = np.random.default_rng(1).normal(size=100)
    first, second = (FieldStats.of(part, countable=False).to_json() for part in (values[:30], values[30:]))
    merged = merge_json(first, second)
    assert merged["mean"] == pytest.approx(values.mean())
    assert merged["std"] == pytest.approx(values.std())
    assert merged["max"] == values.max()
