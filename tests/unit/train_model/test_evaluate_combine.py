from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcmass.config.job import Job
from hpcmass.errors import AlreadyExists, DataError, HpcmassError, NotFound, RecipeError
from hpcmass.evaluate.combine import combine, fit_linear, fit_logistic
from hpcmass.runs import RunFolder
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.estimator import fit_estimator
from hpcmass.train.model import load_bundle
from hpcmass.train.recipe import load_recipe

JOB = Job.model_validate({"name": "j", "recipe": "r.py", "data": {"train": "t"}})
NET = """
    import torch
    def build_model(params):
        return torch.nn.Sequential(torch.nn.Linear(2, params.get("width", 4)), torch.nn.BatchNorm1d(4),
                                   torch.nn.Linear(4, 3))
"""


class Alone:
    rank, size = 0, 1

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return value


def only(data: Any, make: Any, labels: list[int]) -> Any:
    keep = np.isin(data.arrays["label"], labels)
    arrays = {"x": (data.arrays["x"][keep], "input"), "label": (data.arrays["label"][keep], "target")}
    return make["dataset"](arrays, {"label": ["red", "green", "blue"]})


@pytest.fixture
def fitted(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Path]]:
    def fit(expression: str, *parts: Any) -> list[Path]:
        lines = [
            "from sklearn.ensemble import *",
            "from sklearn.linear_model import *",
            "from sklearn.naive_bayes import *",
            "from sklearn.pipeline import make_pipeline",
            "from sklearn.preprocessing import StandardScaler",
            "from sklearn.tree import *",
            "def build_model(params):",
            f"    return {expression}",
        ]
        recipe = load_recipe(write_recipe("\n".join(lines)))
        folders = []
        for part in parts:
            run = RunFolder(tmp_path / f"part-{len(list(tmp_path.iterdir()))}")
            fit_estimator(recipe.build_model({}), recipe, JOB, part, None, run, Alone())
            folders.append(run.model)
        return folders

    return fit


@pytest.fixture
def nets(write_recipe: Callable[..., Path], make: Any, tmp_path: Path) -> list[Path]:
    recipe = load_recipe(write_recipe(NET))
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = recipe.build_model({})
        model(torch.randn(8, 2) * (seed + 1))  # running statistics differ
        if seed:
            model(torch.randn(8, 2))
        folders.append(
            write_torch_bundle(tmp_path / f"net{seed}", model, recipe, {}, make["blobs"](), torch.zeros(1, 3))
        )
    return folders


def test_average_weighs_parameters_and_buffers(nets: list[Path], tmp_path: Path) -> None:
    first, second = (load_bundle(folder).core.state_dict() for folder in nets)
    made = load_bundle(combine("average", nets, tmp_path / "out", weights=[300, 100]))
    assert made.kind == "torch"
    for name, value in made.core.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == int(first[name]) == 1 != int(second[name])
        else:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name])
    with pytest.raises(AlreadyExists):
        combine("average", nets, tmp_path / "out")


def test_vote_is_the_mean_and_may_mix_families(
    nets: list[Path], fitted: Callable[..., list[Path]], make: Any, tmp_path: Path
) -> None:
    members = [nets[0], *fitted("GaussianNB()", make["blobs"]())]
    x = make["blobs"](30, 5).arrays["x"]
    made = load_bundle(combine("vote", members, tmp_path / "out"))
    np.testing.assert_allclose(made(x), sum(load_bundle(m)(x) for m in members) / 2, atol=1e-6)


def test_stacking_beats_its_members_and_agrees_with_scikit_learn(
    nets: list[Path], fitted: Callable[..., list[Path]], make: Any, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression

    members = [nets[0], nets[1], *fitted("GaussianNB()", make["blobs"]())]
    valid, test = make["blobs"](200, 7), make["blobs"](200, 8)
    made = load_bundle(combine("stack", members, tmp_path / "out", valid_ds=valid))
    x, y = test.arrays["x"], test.arrays["label"]
    probabilities = made(x, batch_size=33)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (made.predict(x) == y).mean() >= max((load_bundle(m).predict(x) == y).mean() for m in members) - 0.02

    def features(data: Any) -> np.ndarray:
        return np.concatenate([load_bundle(m)(data.arrays["x"]) for m in members], axis=1).astype(np.float64)

    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(features(valid), valid.arrays["label"])
    np.testing.assert_allclose(probabilities, theirs.predict_proba(features(test)), atol=2e-4)


def test_stacked_regression_is_least_squares(
    fitted: Callable[..., list[Path]], make: Any, tmp_path: Path
) -> None:
    members = fitted("DecisionTreeRegressor(max_depth=3)", make["line"](seed=1), make["line"](seed=2))
    valid = make["line"](seed=3)
    made = load_bundle(combine("stack", members, tmp_path / "out", valid_ds=valid))
    features = np.stack([load_bundle(m)(valid.arrays["x"]) for m in members], axis=1)
    design = np.c_[features, np.ones(len(features))]
    best = np.linalg.lstsq(design, valid.arrays["y"], rcond=None)[0]
    np.testing.assert_allclose(made(valid.arrays["x"]), design @ best, atol=1e-4)
    assert made(valid.arrays["x"]).shape == (200,)


@pytest.mark.parametrize(
    "expression",
    [
        "RandomForestClassifier(7)",
        "ExtraTreesClassifier(7)",
        "BaggingClassifier(n_estimators=7, max_features=0.5)",
        "BaggingClassifier(GaussianNB(), n_estimators=7)",
    ],
)
@pytest.mark.parametrize("seen", [([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 1, 2]), ([0, 1], [1, 2]), ([2], [0, 1])])
def test_merged_forests_are_the_mean_of_all_their_trees(
    fitted: Callable[..., list[Path]], make: Any, tmp_path: Path, expression: str, seen: Any
) -> None:
    members = fitted(expression, *(only(make["blobs"](seed=i), make, labels) for i, labels in enumerate(seen)))
    x = make["blobs"](100, 9).arrays["x"]
    made = load_bundle(combine("merge", members, tmp_path / "out"))
    assert made.kind == "estimator"
    assert len(made.core.estimators_) == made.core.n_estimators == 14
    np.testing.assert_allclose(made(x), sum(load_bundle(m)(x) for m in members) / 2, atol=1e-6)
    assert set(made.core.classes_) == set(seen[0]) | set(seen[1])


def test_merged_regressors(fitted: Callable[..., list[Path]], make: Any, tmp_path: Path) -> None:
    members = fitted(
        "RandomForestRegressor(4, oob_score=True, bootstrap=True)", make["line"](), make["line"](50, 2)
    )
    made = load_bundle(combine("merge", members, tmp_path / "out"))
    x = make["line"](20, 3).arrays["x"]
    np.testing.assert_allclose(made(x), sum(load_bundle(m)(x) for m in members) / 2, rtol=1e-5)
    assert not hasattr(made.core, "oob_score_"), "that of one part says nothing of the whole"


@pytest.mark.parametrize("expression", ["HistGradientBoostingClassifier(max_iter=2)", "LogisticRegression()"])
def test_what_cannot_be_merged_says_what_can(
    fitted: Callable[..., list[Path]], make: Any, tmp_path: Path, expression: str
) -> None:
    members = fitted(expression, make["blobs"](), make["blobs"](seed=1))
    with pytest.raises(RecipeError, match="cannot be merged") as caught:
        combine("merge", members, tmp_path / "out")
    assert "RandomForestClassifier" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="cannot be averaged"):
        combine("average", members, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bag_of_pipelines_with_other_classes_is_refused(
    fitted: Callable[..., list[Path]], make: Any, tmp_path: Path
) -> None:
    parts = [only(make["blobs"](), make, labels) for labels in ([0, 1], [1, 2])]
    members = fitted("BaggingClassifier(make_pipeline(StandardScaler(), GaussianNB()), n_estimators=2)", *parts)
    with pytest.raises(RecipeError, match="cannot be renumbered"):
        combine("merge", members, tmp_path / "out")


def test_refusals(
    nets: list[Path], write_recipe: Callable[..., Path], fitted: Any, make: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused: list[tuple[type[HpcmassError], str, Any]] = [
        (DataError, "models cannot be combined", lambda: combine("median", nets, out)),
        (DataError, "needs validation data", lambda: combine("stack", nets, out)),
        (DataError, "weights are", lambda: combine("average", nets, out, weights=[1])),
        (DataError, "weights are", lambda: combine("average", nets, out, weights=[0, 0])),
        (DataError, "weights are", lambda: combine("average", nets, out, weights=[float("nan"), 1])),
        (RecipeError, "no models", lambda: combine("vote", [], out)),
        (NotFound, "no model here", lambda: combine("vote", [tmp_path], out)),
        (RecipeError, "no trees", lambda: combine("merge", nets, out)),
    ]
    ensemble = combine("vote", nets, tmp_path / "ensemble")
    refused.append((RecipeError, "ensemble", lambda: combine("average", [nets[0], ensemble], out)))
    recipe = load_recipe(write_recipe(NET + "\n", "other.py"))
    other = write_torch_bundle(
        tmp_path / "other", recipe.build_model({}), recipe, {}, make["blobs"](), torch.zeros(1, 3)
    )
    refused.append((RecipeError, "different recipes", lambda: combine("average", [nets[0], other], out)))
    more = write_torch_bundle(
        tmp_path / "more", recipe.build_model({}), recipe, {"depth": 2}, make["blobs"](), torch.zeros(1, 3)
    )
    refused.append((RecipeError, "different params", lambda: combine("average", [other, more], out)))
    renamed = shutil.copytree(nets[1], tmp_path / "renamed")
    text = (renamed / "model.json").read_text()
    assert '"label"' in text
    (renamed / "model.json").write_text(text.replace('"label"', '"side"'))
    refused.append((RecipeError, "differ in their targets", lambda: combine("vote", [nets[0], renamed], out)))
    for kind, text, call in refused:
        with pytest.raises(kind, match=text):
            call()
    assert not out.exists()


def test_solvers() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    x = np.c_[x, x[:, 0]]  # the same feature twice: least squares still has an answer
    y = np.c_[x[:, 0] + 2, x[:, 1] - 1]
    made = fit_linear(x, y)
    np.testing.assert_allclose(x @ made["weight"].T + made["bias"], y, atol=1e-9)
    labels = np.zeros(50, np.int64)  # one class only: the others get little, nothing fails
    made = fit_logistic(x, labels, 3)
    assert (np.argmax(x @ made["weight"].T + made["bias"], axis=1) == 0).all()
