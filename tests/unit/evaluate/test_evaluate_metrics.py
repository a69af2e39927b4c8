"""Metrics against scikit-learn and published numbers, intervals against their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.evaluate.metrics import (
    Metric,
    confusion_matrix,
    f1_metrics,
    f1_scores,
    log_losses,
    mean_metric,
    proportion,
    regression_metrics,
    wilson,
)

skm = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score, no continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_value_and_stays_inside(pair):
    successes, n = pair
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    other = wilson(n - successes, n)
    assert (1 - other[1], 1 - other[0]) == pytest.approx((low, high), abs=1e-12)


def test_of_nothing_is_none():
    assert proportion(0, 0) is None


def test_classification_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    y[y == 4] = 3  # a class without a sample
    confusion = confusion_matrix(y, p, 5)
    assert (confusion == skm.confusion_matrix(y, p, labels=range(5))).all()
    assert confusion.dtype == np.int64
    assert f1_scores(confusion) == pytest.approx(skm.f1_score(y, p, average=None, labels=range(5)))
    probabilities = rng.dirichlet(np.ones(5), 300)
    assert log_losses(probabilities, y).mean() == pytest.approx(skm.log_loss(y, probabilities, labels=range(5)))
    assert log_losses(np.array([[0.0, 1.0]]), np.array([0]))[0] == pytest.approx(-np.log(1e-15))


def test_f1_intervals_are_those_of_resampling_the_samples():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 200)
    p = np.where(rng.random(200) < 0.8, y, rng.integers(0, 3, 200))
    rows, macro = f1_metrics(confusion_matrix(y, p, 3))
    drawn = []
    for _ in range(1500):
        ids = rng.integers(0, 200, 200)
        drawn.append(skm.f1_score(y[ids], p[ids], average=None, labels=range(3)))
    drawn = np.array(drawn)
    for i, row in enumerate(rows):
        assert (row.low, row.high) == pytest.approx(tuple(np.percentile(drawn[:, i], [2.5, 97.5])), abs=0.015)
    assert (macro.low, macro.high) == pytest.approx(tuple(np.percentile(drawn.mean(1), [2.5, 97.5])), abs=0.015)
    assert f1_metrics(confusion_matrix(y, p, 3)) == (rows, macro)  # seeded


def test_f1_of_a_class_that_never_occurs_is_none():
    rows, _ = f1_metrics(np.diag([3, 4, 0]))
    assert rows[2] is None
    assert rows[0].value == 1.0


def test_regression_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(400, 1)) + 1000.0
    p = y + 0.3 * rng.normal(size=(400, 1))
    found = regression_metrics(y, p)
    assert found["mse"].value == pytest.approx(skm.mean_squared_error(y, p))
    assert found["mae"].value == pytest.approx(skm.mean_absolute_error(y, p))
    assert found["r2"].value == pytest.approx(skm.r2_score(y, p))
    drawn = []
    for _ in range(1500):
        ids = rng.integers(0, 400, 400)
        drawn.append((skm.mean_squared_error(y[ids], p[ids]), skm.r2_score(y[ids], p[ids])))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    assert (found["mse"].low, found["mse"].high) == pytest.approx((low[0], high[0]), rel=0.05)
    assert (found["r2"].low, found["r2"].high) == pytest.approx((low[1], high[1]), abs=0.005)
    assert found["mse"].method == "bootstrap-1000"
    assert regression_metrics(y, p) == found


def test_regression_of_several_outputs_and_of_a_constant():
    rng = np.random.default_rng(3)
    y, p = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    assert regression_metrics(y, p)["mse"].value == pytest.approx(skm.mean_squared_error(y, p))
    pooled = 1 - ((y - p) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert regression_metrics(y, p)["r2"].value == pytest.approx(pooled)
    assert set(regression_metrics(np.full((9, 1), 0.1), rng.normal(size=(9, 1)))) == {"mse", "mae"}
    assert regression_metrics(np.zeros((1, 1)), np.ones((1, 1)))["mse"].value == 1.0


def test_mean_with_its_normal_interval():
    values = np.random.default_rng(4).normal(3, 2, 500)
    found = mean_metric(values.sum(), (values**2).sum(), 500)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(500)
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )
    assert mean_metric(2.0, 4.0, 1) == Metric(2.0)


def test_metric_text_and_json():
    metric = Metric(0.97251, 0.95, 0.98, "wilson")
    assert metric.fixed() == "0.973 [0.950, 0.980]"
    assert Metric.from_json(metric.to_json()) == metric
    assert Metric.from_json(Metric(1.5).to_json()) == Metric(1.5)
