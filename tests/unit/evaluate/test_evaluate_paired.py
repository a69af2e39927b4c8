"""Two models on the same samples: the tests' own promises, held by simulation."""

import math

import numpy as np
import pytest

from hpcmass.errors import DataError
from hpcmass.evaluate import Asked, Evaluation, evaluate_whole
from hpcmass.evaluate.paired import compare_paired, mcnemar
from hpcmass.evaluate.scores import Scores


def scores(**values):
    return Scores("classification", "d", {k: np.asarray(v, np.float64) for k, v in values.items()})


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(9, 3) == mcnemar(3, 9) == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    # Above the limit by the normal distribution, which there says nearly the same.
    assert mcnemar(5_100, 4_900) == pytest.approx(math.erfc(199 / math.sqrt(2 * 10_000)), rel=0.01)
    assert mcnemar(5_101, 4_900) == pytest.approx(math.erfc(200 / math.sqrt(2 * 10_001)), rel=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_a_difference_that_is_none_is_seen_in_one_of_twenty(metric):
    """The share of false alarms is what the test says: 5 %, or less as McNemar's is exact."""
    rng, alarms, covered = np.random.default_rng(1), 0, 0
    for seed in range(300):
        hard = rng.random(200)
        if metric == "accuracy":
            this, other = (rng.random(200) < hard for _ in range(2))
        else:
            this, other = (hard + rng.exponential(1.0, 200) for _ in range(2))
        one = compare_paired(scores(**{metric: this}), scores(**{metric: other}), "b", seed=seed)
        alarms += one.verdict(metric) != "no difference seen"
        covered += one.differences[metric].low <= 0 <= one.differences[metric].high
    assert alarms <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)
    assert covered >= 300 * 0.95 - 3.5 * math.sqrt(300 * 0.05 * 0.95)


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    other = rng.random(1000) < 0.8
    this = other | (rng.random(1000) < 0.08)  # right wherever the other is, and more
    found = compare_paired(scores(accuracy=this), scores(accuracy=other), "m@1")
    one = found.differences["accuracy"]
    assert one.only_other == 0
    assert one.value == pytest.approx(one.only_this / 1000)
    assert one.low > 0
    assert one.p < 1e-3
    assert found.verdict("accuracy") == "better"
    back = compare_paired(scores(accuracy=other), scores(accuracy=this), "m@2")
    assert back.verdict("accuracy") == "worse"
    assert back.differences["accuracy"].value == -one.value


def test_sums_over_values_are_compared_as_ratios():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, 400).astype(float)
    this, other = counts * 1.0 + rng.normal(0, 1, 400), counts * 1.2 + rng.normal(0, 1, 400)
    pair = (scores(loss=np.stack([values, counts], axis=1)) for values in (this, other))
    found = compare_paired(*pair, "m@1")
    assert found.differences["loss"].value == pytest.approx(
        this.sum() / counts.sum() - other.sum() / counts.sum()
    )
    assert found.verdict("loss") == "better"


def test_only_the_same_samples_are_compared():
    with pytest.raises(DataError, match="same samples"):
        compare_paired(scores(accuracy=[1, 0]), scores(accuracy=[1]), "x")
    with pytest.raises(DataError, match="no metric in common"):
        compare_paired(scores(accuracy=[1, 0]), scores(loss=[1, 0]), "x")


def test_an_evaluation_has_the_comparison(make, table, linear):
    worse = make.model(lambda x: linear.function(-x), ("x", "float32", (4,)), classes=("a", "b", "c"))
    data = make.dataset(table, ["label"], {"label": ["a", "b", "c"]})
    found = evaluate_whole(linear, data, Asked(), against=("poor", worse))
    assert found.paired.against == "poor"
    assert found.paired.verdict("accuracy") == "better"
    assert found.paired.verdict("log_loss") == "better"
    assert set(found.paired.differences) == {"accuracy", "log_loss", "brier"}
    assert Evaluation.from_json(found.to_json()).paired == found.paired
    assert any(title.startswith("against poor") for title, _, _ in found.tables())
