"""Evaluating callables on datasets."""

import json

import numpy as np
import pytest

from hpcmass.errors import CorruptError, DataError
from hpcmass.evaluate import Evaluation, compare, compare_table, evaluate
from hpcmass.evaluate.metrics import wilson


def test_classification(make, table, linear):
    data = make.dataset(table, ["label"], {"label": ["a", "b", "c"]})
    found = evaluate(linear, data, batch_size=128)
    assert linear.seen == [128, 128, 128, 128, 88]
    truth = table["label"] == table["x"][:, :3].argmax(1)
    accuracy = found.metrics["accuracy"]
    assert accuracy.value == pytest.approx(truth.mean())
    assert (accuracy.low, accuracy.high) == wilson(int(truth.sum()), 600)
    assert found.confusion.sum() == found.n == 600
    assert np.trace(found.confusion) == truth.sum()
    assert [c.support for c in found.per_class] == np.bincount(table["label"]).tolist()
    assert found.per_class[0].recall.value == pytest.approx(truth[table["label"] == 0].mean())
    assert found.dataset == data.id
    one = evaluate(linear, data, batch_size=7)
    assert json.dumps(one.to_json()["confusion"]) == json.dumps(found.to_json()["confusion"])
    assert one.metrics["log_loss"].value == pytest.approx(found.metrics["log_loss"].value)


def test_round_trip_and_what_is_printed(make, table, linear):
    found = evaluate(linear, make.dataset(table, ["label"], {"label": ["a", "b", "c"]}))
    text = json.dumps(found.to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(text))
    assert back.to_json() == found.to_json()
    assert back.headline() == f"test accuracy {found.metrics['accuracy'].fixed()} (n=600)"
    titles = [title for title, _, _ in back.tables()]
    assert titles == ["classification, n=600", "per class", "calibration", "confusion matrix"]
    for _, header, rows in back.tables():
        assert all(len(row) == len(header) for row in rows)
    assert back.flat()["accuracy_low"] == found.metrics["accuracy"].low
    for bad in ({}, [], None, {**json.loads(text), "format": 2}, {**json.loads(text), "metrics": 3}):
        with pytest.raises(CorruptError):
            Evaluation.from_json(bad)


def test_classes_are_matched_by_name(make, table, linear):
    plain = evaluate(linear, make.dataset(table, ["label"], {"label": ["a", "b", "c"]}))
    renumbered = {**table, "label": np.array([2, 0, 1])[table["label"]]}
    found = evaluate(linear, make.dataset(renumbered, ["label"], {"label": ["b", "c", "a"]}))
    assert found.to_json()["confusion"] == plain.to_json()["confusion"]
    # A class that the model does not know is never right.
    more = {**table, "label": np.where(np.arange(600) < 10, 3, table["label"])}
    found = evaluate(linear, make.dataset(more, ["label"], {"label": ["a", "b", "c", "d"]}))
    assert found.classes == ("a", "b", "c", "d")
    assert found.per_class[3].support == 10
    assert found.per_class[3].recall.value == 0
    assert found.per_class[3].precision is None
    linear.signature.classes = ("0", "1", "2")
    found = evaluate(linear, make.dataset(table, ["label"], {"label": ["a", "b", "c"]}))
    assert found.classes == ("a", "b", "c")
    assert found.to_json()["confusion"] == plain.to_json()["confusion"]
    linear.signature.classes = ("x", "y", "z")
    with pytest.raises(DataError, match="no class in common"):
        evaluate(linear, make.dataset(table, ["label"], {"label": ["a", "b", "c"]}))


def test_regression(make, table):
    y = table["x"][:, 0] * 2 + 1
    model = make.model(lambda x: x[:, :1] * 2 + 1.1, ("x", "float32", (4,)), task="regression")
    found = evaluate(model, make.dataset({"x": table["x"], "y": y}, ["y"]), batch_size=100)
    assert found.metrics["mse"].value == pytest.approx(0.01, rel=1e-4)
    assert found.metrics["mae"].value == pytest.approx(0.1, rel=1e-4)
    assert found.metrics["r2"].value > 0.99
    assert found.confusion is None
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()
    assert found.headline("valid").startswith("valid r2 0.99")


def test_several_inputs_and_a_named_target(make, table):
    arrays = {"a": table["x"][:, :2], "b": table["x"][:, 2:], "label": table["label"], "other": table["label"]}

    def model(inputs):
        assert set(inputs) == {"a", "b"}
        logits = np.concatenate([inputs["a"], inputs["b"][:, :1]], axis=1)
        e = np.exp(logits)
        return e / e.sum(1, keepdims=True)

    two = make.model(model, ("a", "float32", (2,)), ("b", "float32", (2,)))
    data = make.dataset(arrays, ["label", "other"])
    with pytest.raises(DataError, match="one target"):
        evaluate(two, data)
    assert evaluate(two, data, target="other").n == 600
    with pytest.raises(DataError, match="one target"):
        evaluate(two, data, target="nothing")


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (lambda x: np.full((len(x), 3), np.nan), "NaN"),
        (lambda x: np.ones((len(x), 3)), "no probabilities"),
        (lambda x: np.ones(len(x)), "expected"),
        (lambda x: np.eye(2)[np.zeros(len(x), int)], "known are 0 to 1"),
    ],
)
def test_outputs_that_are_none(make, table, outputs, match):
    model = make.model(outputs, ("x", "float32", (4,)))
    with pytest.raises(DataError, match=match):
        evaluate(model, make.dataset(table, ["label"]))


def test_data_that_does_not_fit(make, table, linear):
    with pytest.raises(DataError, match="lacks the model's input 'x'"):
        evaluate(linear, make.dataset({"y": table["x"], "label": table["label"]}, ["label"]))
    with pytest.raises(DataError, match="no samples"):
        evaluate(linear, make.dataset({name: a[:0] for name, a in table.items()}, ["label"]))
    with pytest.raises(DataError, match="no class indices"):
        evaluate(linear, make.dataset({"x": table["x"], "label": table["x"][:, 0]}, ["label"]))
    with pytest.raises(DataError, match="class -1"):
        evaluate(linear, make.dataset({"x": table["x"], "label": table["label"] - 1}, ["label"]))
    linear.signature.task = "other"
    with pytest.raises(DataError, match="not by 'label'"):
        evaluate(linear, make.dataset(table, ["label"]), target="label")


def test_the_target_that_a_model_was_trained_on(make, table, linear):
    data = make.dataset({**table, "other": np.zeros(600, np.int64)}, ["other"])
    expected = evaluate(linear, data, target="label")
    linear.signature.targets = ("label",)
    assert evaluate(linear, data).to_json() == expected.to_json()
    assert evaluate(linear, data, target="other").to_json() != expected.to_json()
    with pytest.raises(DataError, match="label"):
        evaluate(linear, make.dataset({"x": table["x"], "other": table["label"]}, ["other"]))


def test_compare(make, table, linear):
    worse = make.model(lambda x: linear.function(-x), ("x", "float32", (4,)), classes=("a", "b", "c"))
    data = make.dataset(table, ["label"], {"label": ["a", "b", "c"]})
    rows = compare({"part 0": worse, "vote": linear}, data)
    assert [row.name for row in rows] == ["part 0", "vote"]
    title, header, cells = compare_table(rows)
    assert header == ["model", "accuracy", "log_loss", "macro_f1"]
    assert cells[1][1].endswith("*")
    assert not cells[0][1].endswith("*")
    assert "n=600" in title
