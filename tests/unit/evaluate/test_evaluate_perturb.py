"""Noise and missing inputs, by the samples' numbers; time and memory by batch size."""

import numpy as np
import pytest

from hpcmass.errors import DataError
from hpcmass.evaluate import Asked, Evaluation, evaluate, evaluate_whole
from hpcmass.evaluate.perturb import Perturbed

EVERY = np.arange(600)


def test_noise_is_as_strong_as_it_says_and_a_samples_own(make, table):
    scale = np.array([1, 10, 100, 0.1], np.float32)
    data = make.dataset({"x": table["x"] * scale, "label": table["label"]}, ["label"])
    noisy = Perturbed(data, ["x"], "noise", 0.5)
    found = noisy.batch(EVERY)["x"]
    strength = (found - data.arrays["x"]).std(axis=0) / data.arrays["x"].std(axis=0)
    assert strength == pytest.approx(0.5, rel=0.1)
    assert (noisy.batch(EVERY)["label"] == table["label"]).all()
    # In any batch, in any order.
    order = np.random.default_rng(0).permutation(600)
    assert (np.concatenate([noisy.batch(order[:7])["x"], noisy.batch(order[7:])["x"]]) == found[order]).all()
    assert (Perturbed(data, ["x"], "noise", 0.5, seed=1).batch(EVERY)["x"] != found).any(axis=1).all()
    assert found.dtype == np.float32


def test_missing_values_are_the_mean(make, table):
    data = make.dataset({"x": table["x"] + 3, "label": table["label"]}, ["label"])
    found = Perturbed(data, ["x"], "missing", 0.2).batch(EVERY)["x"]
    gone = found != data.arrays["x"]
    assert gone.mean() == pytest.approx(0.2, abs=0.03)
    mean = data.arrays["x"].mean(axis=0)
    assert found[gone] == pytest.approx(np.broadcast_to(mean, found.shape)[gone], rel=1e-4)
    everything = Perturbed(data, ["x"], "missing", 1.0).batch(EVERY)["x"]
    assert everything == pytest.approx(np.broadcast_to(mean, found.shape), rel=1e-4)


def test_whole_numbers_stay_what_the_dataset_could_have(make):
    pixels = np.random.default_rng(0).integers(20, 200, (600, 4, 4)).astype(np.uint8)
    word = np.arange(600) % 3
    data = make.dataset({"pixels": pixels, "word": word}, [], {"word": ["a", "b", "c"]})
    found = Perturbed(data, ["pixels", "word"], "noise", 3.0).batch(EVERY)
    assert found["pixels"].dtype == np.uint8
    assert (found["pixels"].min(), found["pixels"].max()) == (20, 199)
    assert (found["word"] == word).all(), "a class has no noise"
    with pytest.raises(DataError, match="no input can be perturbed"):
        Perturbed(data, ["word"], "noise", 1.0)
    for kind, amount in (("noise", 0), ("noise", float("nan")), ("missing", 1.5)):
        with pytest.raises(DataError, match="cannot be"):
            Perturbed(data, ["pixels"], kind, amount)


def test_an_evaluation_has_a_slice_a_level(make, table, linear):
    data = make.dataset(table, ["label"], {"label": ["a", "b", "c"]})
    found = evaluate_whole(linear, data, Asked(noise=[0.1, 5.0], missing=[0.9]))
    plain = evaluate(linear, data)
    assert found.metrics == plain.metrics
    assert [(s.field, s.value, s.n) for s in found.slices] == [
        ("noise", "0.1", 600), ("noise", "5", 600), ("missing", "0.9", 600),
    ]  # fmt: skip
    little, much, missing = (s.metrics["accuracy"].value for s in found.slices)
    assert little > much
    assert plain.metrics["accuracy"].value - little < 0.05
    assert missing < 0.6
    again = evaluate_whole(linear, data, Asked(noise=[0.1, 5.0], missing=[0.9]))
    assert again.to_json() == found.to_json()


def test_latency_by_batch_size(make, table, linear):
    data = make.dataset({name: a[:100] for name, a in table.items()}, ["label"])
    linear.seen.clear()
    found = evaluate_whole(linear, data, Asked(latency=True))
    assert [one.batch for one in found.latency] == [1, 8, 64], "no batch is larger than the dataset"
    for one in found.latency:
        assert 0 < one.p50_ms <= one.p99_ms
        assert one.calls >= 20
        assert one.peak_rss_mb is None or one.peak_rss_mb > 5
        assert linear.seen.count(one.batch) >= one.calls
    assert Evaluation.from_json(found.to_json()).latency == found.latency
