"""Pictures: the right size, and different for different content."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from hpcmass.evaluate import Evaluation  # noqa: E402
from hpcmass.evaluate.measure import classification_evaluation  # noqa: E402
from hpcmass.evaluate.metrics import regression_metrics  # noqa: E402
from hpcmass.evaluate.picture import TrialPoint, curves_of, sweep_picture, training_picture  # noqa: E402

RECORDS = [
    {"kind": "train", "step": 1, "loss": 2.0, "lr": 0.1},
    {"kind": "train", "step": 2, "loss": "NaN"},
    {"kind": "valid", "step": 2, "loss": 1.0, "accuracy": 0.5},
    {"kind": "resume", "from_step": 2},
    {"kind": "valid", "step": 4, "loss": 0.5, "accuracy": 0.75},
]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def evaluation(k):
    return classification_evaluation(
        np.eye(k, dtype=np.int64) * 9 + 1, [f"c{i}" for i in range(k)], 5.0, 9.0, "id"
    )


def test_curves_of_records():
    assert curves_of(RECORDS) == {
        "train loss": [(1.0, 2.0)],
        "valid loss": [(2.0, 1.0), (4.0, 0.5)],
        "valid accuracy": [(2.0, 0.5), (4.0, 0.75)],
    }


def test_training_pictures(tmp_path):
    y = np.random.default_rng(0).normal(size=(30, 1))
    regression = Evaluation("regression", 30, regression_metrics(y, y * 0.9))
    seen = set()
    cases = [(curves_of(RECORDS), evaluation(3)), ({}, evaluation(3)), ({}, evaluation(40)), ({}, regression)]
    for curves, found in cases:
        out = tmp_path / "sub" / "picture.png"
        training_picture(out, curves=curves, evaluation=found, title="$a_title^ with odd % characters")
        image = pixels(out)
        assert image.shape == (600, 1400, 3)
        assert (image != 255).mean() > 0.01
        seen.add(image.tobytes())
    assert len(seen) == 4


def test_sweep_picture(tmp_path):
    trials = [
        TrialPoint(i, 1.0 / (i + 1), ["cnn", "trees"][i % 2], ["complete", "pruned"][i % 3 == 2])
        for i in range(9)
    ]
    sweep_picture(tmp_path / "a.png", [*trials, TrialPoint(9, None, "cnn", "failed")])
    sweep_picture(tmp_path / "b.png", [], minimize=False)
    assert pixels(tmp_path / "a.png").shape == (500, 1400, 3)
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()
