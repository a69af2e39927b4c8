"""Estimators as ONNX: the recipe's transform in front, all of the dataset's classes behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

sys.path[:0] = [str(Path(__file__).parent)]

from export_lab import estimator_model, run_alone, signature_of  # noqa: E402

from hpcmass.errors import RecipeError  # noqa: E402
from hpcmass.export import export_bundle  # noqa: E402
from hpcmass.train.model import load_bundle  # noqa: E402

X = np.random.default_rng(1).integers(0, 256, (200, 3, 2)).astype(np.uint8)
FLAT = (X.reshape(200, 6) / 255).astype(np.float32)
CLASSES = ["none", "one", "two", "three"]


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 3]], ids=["three of four", "two of four"])
@pytest.mark.parametrize(
    "estimator",
    [
        ExtraTreesClassifier(10, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
        MLPClassifier((5,), max_iter=30, random_state=0),
        SGDClassifier(random_state=0),
        LinearSVC(),
        KNeighborsClassifier(3),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_classifier_gives_the_probabilities_of_all_classes(
    tmp_path: Path, estimator: Any, labels: list[int]
) -> None:
    y = np.array(labels)[(FLAT[:, 0] * len(labels)).astype(int).clip(0, len(labels) - 1)]
    estimator.fit(FLAT, y)
    parent = estimator_model(tmp_path, estimator, X, y, np.zeros((2, 4)), classes=CLASSES)
    made = export_bundle(parent, "onnx", tmp_path / "out", {"x": X})
    found = made.model(X)
    assert found.shape == (200, 4)
    assert np.all(found[:, [one for one in range(4) if one not in labels]] == 0)
    np.testing.assert_allclose(found, parent(X), rtol=1e-3, atol=1e-4)
    assert (made.model.predict(X) == parent.predict(X)).mean() > 0.99


@pytest.mark.parametrize(
    "estimator", [RandomForestRegressor(8, random_state=0), Ridge()], ids=["forest", "ridge"]
)
def test_a_regressor_gives_values_without_torch_and_hpcmass(tmp_path: Path, estimator: Any) -> None:
    y = FLAT @ np.arange(6.0) + 3
    estimator.fit(FLAT, y)
    parent = estimator_model(tmp_path, estimator, X, y, np.zeros(2), task="regression")
    export_bundle(parent, "onnx", tmp_path / "out", {"x": X})
    (name,) = [one["name"] for one in signature_of(tmp_path / "out")["outputs"]]
    for n in (1, 200):
        alone = run_alone(tmp_path / "out", {"x": X[:n]}, tmp_path)
        np.testing.assert_allclose(alone[name], parent(X[:n]), rtol=1e-3, atol=1e-4)


OWN = """
def build_model(params):
    raise NotImplementedError


def transform(batch, train):
    return {**batch, "x": (batch["x"].float() / 255 - 0.5).flatten(1)[:, :4]}
"""


def test_the_transform_of_the_recipe_is_part_of_it(tmp_path: Path) -> None:
    features = (FLAT - 0.5)[:, :4]
    estimator = LogisticRegression().fit(features, (features[:, 0] > 0).astype(int))
    parent = estimator_model(tmp_path, estimator, X, np.zeros(200, np.int64), np.zeros((2, 2)), OWN)
    made = export_bundle(parent, "onnx", tmp_path / "out", {"x": X})
    np.testing.assert_allclose(made.model(X), parent(X), rtol=1e-3, atol=1e-4)
    assert len(np.unique(made.model.predict(X))) == 2


@pytest.mark.parametrize("form", ["torch-export", "int8"])
def test_what_an_estimator_has_no_form_in_is_said(tmp_path: Path, form: str) -> None:
    estimator = ExtraTreesClassifier(3, random_state=0).fit(FLAT, np.arange(200) % 2)
    parent = estimator_model(tmp_path, estimator, X, np.arange(200) % 2, np.zeros((2, 2)))
    with pytest.raises(RecipeError, match="no form in"):
        export_bundle(parent, form, tmp_path / "out", {"x": X}, calibration=[{"x": X}])
    assert load_bundle(tmp_path / "parent").kind == "estimator"
    assert not (tmp_path / "out").exists()
