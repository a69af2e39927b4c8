"""Reliability, expected calibration error and Brier score, against what they are by definition."""

import json

import numpy as np
import pytest

from hpcmass.evaluate import Evaluation, evaluate
from hpcmass.evaluate.calibration import brier_scores, calibration_error, reliability


def drawn(n, shift=0.0, seed=0):
    """Confidences, and hits with that probability less `shift`."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1.0, n)
    return confidence, rng.random(n) < confidence - shift


def test_what_is_calibrated_has_no_error_and_what_is_not_has_its_own():
    for shift in (0.0, 0.1, 0.3):
        found = calibration_error(*drawn(20_000, shift))
        assert found.value == pytest.approx(shift, abs=0.015)
        assert found.low <= found.value <= found.high
        assert found.method == "bootstrap-1000"


def test_the_interval_holds_what_is_true():
    found = [calibration_error(*drawn(1000, 0.15, seed)) for seed in range(60)]
    assert sum(one.low <= 0.15 <= one.high for one in found) >= 60 * 0.95 - 3 * np.sqrt(60 * 0.05 * 0.95)


def test_error_and_bins_by_their_definition():
    confidence, hits = np.array([0.95, 0.95, 0.55, 0.6, 0.0]), np.array([True, False, True, True, True])
    bins = reliability(confidence, hits, 10)
    assert [b.n for b in bins] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert bins[9].accuracy.value == 0.5
    assert bins[9].confidence == pytest.approx(0.95)
    assert bins[1].accuracy is None
    expected = (2 * 0.45 + 2 * (1 - 0.575) + 1 * 1.0) / 5
    assert calibration_error(confidence, hits, 10).value == pytest.approx(expected)


def test_brier_is_the_squared_distance_from_the_truth(table):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 50)
    y = rng.integers(0, 3, 50)
    assert brier_scores(p, y) == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(axis=1))


def test_an_evaluation_has_them(make, table, linear):
    found = evaluate(linear, make.dataset(table, ["label"], {"label": ["a", "b", "c"]}))
    p = linear.function(table["x"])
    truth = np.eye(3)[table["label"]]
    assert found.metrics["brier"].value == pytest.approx(((p - truth) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert sum(b.n for b in found.calibration) == 600
    error = sum(b.n * abs(b.confidence - b.accuracy.value) for b in found.calibration if b.n) / 600
    assert found.metrics["ece"].value == pytest.approx(error)
    assert found.flat()["ece"] == found.metrics["ece"].value
    back = Evaluation.from_json(json.loads(json.dumps(found.to_json())))
    assert back.calibration == found.calibration
    old = {
        k: v for k, v in found.to_json().items() if k != "calibration"
    }  # as it was kept before there was one
    assert Evaluation.from_json(old).calibration == ()
