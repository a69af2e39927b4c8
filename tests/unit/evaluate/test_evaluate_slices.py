"""Metrics of the samples that have one value of a field."""

import numpy as np
import pytest

from hpcmass.errors import DataError
from hpcmass.evaluate import Evaluation, evaluate, with_slices


def test_slices_are_evaluations_of_their_samples(make, table, linear):
    site = np.random.default_rng(1).integers(0, 2, 600)
    data = make.dataset(
        {**table, "site": site}, ["label"], {"label": ["a", "b", "c"], "site": ["rome", "oslo"]}
    )
    found = with_slices(evaluate(linear, data), linear, data, ["site", "label"], batch_size=64)
    assert [(s.field, s.value) for s in found.slices] == [
        ("site", "rome"), ("site", "oslo"), ("label", "a"), ("label", "b"), ("label", "c"),
    ]  # fmt: skip
    assert sum(s.n for s in found.slices[:2]) == 600
    for s, value in zip(found.slices, (0, 1), strict=False):
        mine = make.dataset(
            {k: v[site == value] for k, v in table.items()}, ["label"], {"label": ["a", "b", "c"]}
        )
        assert s.metrics == evaluate(linear, mine).metrics
    # Of one class accuracy is its recall.
    assert [s.metrics["accuracy"] for s in found.slices[2:]] == [c.recall for c in found.per_class]
    again = Evaluation.from_json(found.to_json())
    assert again.slices == found.slices
    title, header, rows = found.tables()[2]
    assert (title, header[0], header[-1], rows[0][0]) == ("per slice", "slice", "n", "site == rome")
    assert "slices" not in evaluate(linear, data).to_json()


def test_a_recipes_own_metrics_get_the_samples_of_the_whole(make):
    class Own:
        signature = make.signature(("x", "float32", (1,)), task="other")

        def score(self, batch):
            return {"id": batch["sample_id"].astype(float)}

    x = np.zeros((10, 1), np.float32)
    odd = (np.arange(10) % 2).astype(bool)
    data = make.dataset({"x": x, "odd": odd}, [])
    found = with_slices(evaluate(Own(), data), Own(), data, ["odd"], batch_size=3)
    assert [(s.value, s.metrics["id"].value) for s in found.slices] == [("False", 4.0), ("True", 5.0)]


def test_what_is_nothing_to_slice_by(make, table, linear):
    many = np.arange(600)
    data = make.dataset({**table, "many": many}, ["label"], {"label": ["a", "b", "c"]})
    whole = evaluate(linear, data)
    for field, words in (("no", "no field 'no'"), ("x", "nothing to slice by"), ("many", "600 values")):
        with pytest.raises(DataError, match=words):
            with_slices(whole, linear, data, [field])
