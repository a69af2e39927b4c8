from __future__ import annotations

import functools
import json
import math
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import FunctionTransformer

from hpcmass.config.job import Job
from hpcmass.data import Dataset, open_dataset, shard
from hpcmass.errors import CorruptError, HpcmassError, RecipeError
from hpcmass.files import sha256_file
from hpcmass.runs import RunFolder
from hpcmass.train import estimator as estimators
from hpcmass.train.estimator import fit_estimator
from hpcmass.train.model import load_bundle
from hpcmass.train.recipe import load_recipe
from hpcmass.train.skops_files import check_storable


class Alone:
    rank, size = 0, 1

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return value


def job(fit: str = "auto", **train: Any) -> Job:
    return Job.model_validate(
        {
            "name": "j",
            "recipe": "r.py",
            "data": {"train": "t"},
            "train": {"fit": fit, "global_batch": 32, **train},
        }
    )


def recipe_of(write_recipe: Callable[..., Path], expression: str, extra: str = "") -> Any:
    text = f"import sklearn, numpy as np\nfrom sklearn import *\n{extra}\ndef build_model(params):\n"
    text = text.replace("from sklearn import *", IMPORTS)
    return load_recipe(write_recipe(text + f"    return {expression}\n"))


IMPORTS = """
from sklearn.ensemble import *
from sklearn.linear_model import *
from sklearn.neural_network import *
from sklearn.neighbors import *
from sklearn.svm import *
from sklearn.naive_bayes import *
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, FunctionTransformer
from sklearn.calibration import CalibratedClassifierCV
from sklearn.tree import *
"""

CLASSIFIERS = [
    "RandomForestClassifier(10)",
    "ExtraTreesClassifier(10)",
    "HistGradientBoostingClassifier(max_iter=10)",
    "GradientBoostingClassifier(n_estimators=5)",
    "BaggingClassifier(n_estimators=5)",
    "AdaBoostClassifier(n_estimators=5)",
    "LogisticRegression()",
    "MLPClassifier((8,), max_iter=30, learning_rate_init=0.02)",
    "MLPClassifier((8,), max_iter=30, solver='sgd', learning_rate_init=0.1)",
    "SGDClassifier(loss='log_loss')",
    "SGDClassifier()",
    "make_pipeline(StandardScaler(), LogisticRegression())",
    "make_pipeline(StandardScaler(), KNeighborsClassifier())",
    "KNeighborsClassifier()",
    "KNeighborsClassifier(algorithm='ball_tree', metric='manhattan')",
    "SVC()",
    "LinearSVC()",
    "GaussianNB()",
    "DecisionTreeClassifier()",
    "CalibratedClassifierCV(LinearSVC(), cv=2)",
    "NearestCentroid()",
    "VotingClassifier([('a', GaussianNB()), ('b', DecisionTreeClassifier())], voting='soft')",
]
REGRESSORS = [
    "RandomForestRegressor(10)",
    "HistGradientBoostingRegressor(max_iter=10)",
    "HistGradientBoostingRegressor(max_iter=10, categorical_features=[2])",
    "GradientBoostingRegressor(n_estimators=10, loss='huber')",
    "LinearRegression()",
    "Ridge()",
    "make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=20))",
    "KNeighborsRegressor()",
    "SVR()",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("expression", CLASSIFIERS)
def test_classifiers_round_trip(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path, expression: str
) -> None:
    recipe = recipe_of(write_recipe, expression)
    train, valid, run = make["blobs"](), make["blobs"](60, 1), RunFolder(tmp_path / "run")
    estimator = recipe.build_model({})
    metrics = fit_estimator(estimator, recipe, job(), train, valid, run, Alone())
    x, y = valid.arrays["x"], valid.arrays["label"]
    model = load_bundle(run.model)
    probabilities = model(x, batch_size=25)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.predict(x), estimator.predict(x))
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(probabilities, estimator.predict_proba(x), atol=1e-6)
    assert metrics["accuracy"] == pytest.approx((estimator.predict(x) == y).mean())
    assert metrics["accuracy"] > 0.85
    clipped = np.log(np.clip(probabilities[np.arange(60), y], 1e-7, 1))
    assert metrics["loss"] == pytest.approx(-clipped.mean(), rel=1e-3, abs=1e-4)
    (record,) = run.records("valid")
    assert {k: record[k] for k in metrics} == pytest.approx(metrics)
    assert run.status().metrics == pytest.approx(metrics)
    assert model.classes == ["red", "green", "blue"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("expression", REGRESSORS)
def test_regressors_round_trip(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path, expression: str
) -> None:
    recipe = recipe_of(write_recipe, expression)
    train, valid, run = make["line"](), make["line"](50, 1), RunFolder(tmp_path / "run")
    estimator = recipe.build_model({})
    metrics = fit_estimator(estimator, recipe, job(), train, valid, run, Alone())
    x, y = valid.arrays["x"], valid.arrays["y"]
    model = load_bundle(run.model)
    expected = estimator.predict(x.astype(np.float32))
    np.testing.assert_allclose(model(x), expected, rtol=1e-6)
    assert metrics == pytest.approx(
        {"loss": ((expected - y) ** 2).mean(), "mae": abs(expected - y).mean()}, rel=1e-4
    )
    assert model.task == "regression"


def test_streaming_learns_records_every_epoch_and_stops_early(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(write_recipe, "SGDClassifier(loss='log_loss')")
    run = RunFolder(tmp_path / "run")
    metrics = fit_estimator(
        recipe.build_model({}),
        recipe,
        job("stream", epochs=4),
        make["blobs"](),
        make["blobs"](60, 1),
        run,
        Alone(),
    )
    records = list(run.records("valid"))
    assert [r["step"] for r in records] == [8, 16, 24, 32]
    assert metrics["accuracy"] > 0.85
    assert load_bundle(run.model)(make["blobs"](5).arrays["x"]).shape == (5, 3)
    run = RunFolder(tmp_path / "early")
    early = job("stream", epochs=50, early_stop={"metric": "accuracy", "direction": "maximize", "patience": 2})
    fit_estimator(recipe.build_model({}), recipe, early, make["blobs"](), make["blobs"](60, 1), run, Alone())
    values = [r["accuracy"] for r in run.records("valid")]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 50


def test_a_stop_file_ends_a_stream_without_a_model(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(write_recipe, "SGDClassifier(loss='log_loss')")
    run = RunFolder(tmp_path / "run")
    run.ask_to_stop("pruned")
    fit_estimator(
        recipe.build_model({}),
        recipe,
        job("stream", epochs=9),
        make["blobs"](),
        make["blobs"](60),
        run,
        Alone(),
    )
    assert len(list(run.records("valid"))) == 1
    assert not run.model.exists()


def test_a_class_never_seen_has_probability_zero_in_its_place(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(write_recipe, "RandomForestClassifier(5)")
    whole = make["blobs"]()
    keep = whole.arrays["label"] != 1
    part = make["dataset"](
        {"x": (whole.arrays["x"][keep], "input"), "label": (whole.arrays["label"][keep], "target")},
        {"label": ["red", "green", "blue"]},
    )
    run = RunFolder(tmp_path / "run")
    metrics = fit_estimator(recipe.build_model({}), recipe, job(), part, whole, run, Alone())
    probabilities = load_bundle(run.model)(whole.arrays["x"])
    assert probabilities.shape == (240, 3)
    assert (probabilities[:, 1] == 0).all()
    assert set(load_bundle(run.model).predict_labels(whole.arrays["x"])) == {"red", "blue"}
    assert math.isfinite(metrics["loss"])


def test_several_inputs_and_the_transform_reach_the_estimator(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    extra = """
def transform(batch, train):
    batch["a"] = batch["a"].float() * 2
    return batch
"""
    recipe = recipe_of(write_recipe, "LinearRegression()", extra)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (80, 2, 2)).astype(np.uint8), rng.normal(size=80)
    y = (a.sum((1, 2)) * 2.0 + b).astype(np.float32)
    data = make["dataset"]({"a": (a, "input"), "b": (b, "input"), "y": (y, "target")})
    run = RunFolder(tmp_path / "run")
    estimator = recipe.build_model({})
    assert fit_estimator(estimator, recipe, job(), data, data, run, Alone())["loss"] < 1e-6
    np.testing.assert_allclose(estimator.coef_, [1, 1, 1, 1, 1], atol=1e-4)
    np.testing.assert_allclose(load_bundle(run.model)({"a": a, "b": b}), y, atol=1e-4)


@pytest.mark.parametrize(
    ("expression", "fit", "data", "text"),
    [
        ("RandomForestClassifier(5)", "stream", "blobs", "no partial_fit"),
        ("RandomForestClassifier(5)", "auto", "line", "target 'y' is not an integer"),
        (
            "RandomForestClassifier(n_estimators=-3)",
            "auto",
            "blobs",
            "fit: InvalidParameterError: .*n_est",
        ),
        ("SGDRegressor(loss='nothing')", "stream", "line", "partial_fit: InvalidParameterError"),
        ("make_pipeline(FunctionTransformer(np.save), GaussianNB())", "auto", "blobs", "numpy.save"),
        (
            "make_pipeline(FunctionTransformer(helper), GaussianNB())",
            "auto",
            "blobs",
            "stored|allow",
        ),
        ("Mine()", "auto", "blobs", "Mine"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    write_recipe: Callable[..., Path],
    make: Any,
    tmp_path: Path,
    expression: str,
    fit: str,
    data: str,
    text: str,
) -> None:
    extra = "def helper(x):\n    return x\nclass Mine(GaussianNB):\n    pass\n"
    recipe = recipe_of(write_recipe, expression, extra)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RecipeError, match=text):
        fit_estimator(recipe.build_model({}), recipe, job(fit), make[data](), make[data](), run, Alone())
    assert not run.path.exists()


def test_an_exception_on_rank_0_is_raised_on_every_rank(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    """Two ranks as threads: the second waits in the broadcast and must get the first one's error."""
    recipe = recipe_of(write_recipe, "RandomForestClassifier(n_estimators=-3)")
    run, barrier, told = RunFolder(tmp_path / "run"), threading.Barrier(2), []

    class Rank:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def broadcast_object(self, value: Any, root: int = 0) -> Any:
            if self.rank == root:
                told.append(value)
            barrier.wait(300)
            return told[0]

    raised: dict[int, HpcmassError] = {}

    def work(rank: int) -> None:
        try:
            fit_estimator(recipe.build_model({}), recipe, job(), make["blobs"](), None, run, Rank(rank))
        except HpcmassError as error:
            raised[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert type(raised[0]) is type(raised[1]) is RecipeError
    assert raised[0].message == raised[1].message


def test_seed_and_threads_of_the_job(write_recipe: Callable[..., Path], make: Any, tmp_path: Path) -> None:
    recipe = recipe_of(write_recipe, "make_pipeline(StandardScaler(), RandomForestClassifier(5))")
    outputs = []
    for seed in (1, 1, 2):
        run = RunFolder(tmp_path / f"run{len(outputs)}")
        estimator = recipe.build_model({})
        fit_estimator(estimator, recipe, job(seed=seed), make["blobs"](), None, run, Alone())
        params = estimator.get_params()
        assert params["randomforestclassifier__random_state"] == seed
        assert params["randomforestclassifier__n_jobs"] is None, "the machine's threads stay out of the model"
        outputs.append(load_bundle(run.model)(make["blobs"](50, 9).arrays["x"]))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


# -- tampering --------------------------------------------------------------------------------------------
def resign(folder: Path) -> None:
    meta = json.loads((folder / "model.json").read_text())
    for name in meta["files"]:
        meta["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / "model.json").write_text(json.dumps(meta))


@pytest.fixture
def forest(write_recipe: Callable[..., Path], make: Any, tmp_path: Path) -> Path:
    recipe = recipe_of(write_recipe, "RandomForestClassifier(2)")
    run = RunFolder(tmp_path / "forest")
    fit_estimator(recipe.build_model({}), recipe, job(), make["blobs"](), None, run, Alone())
    return run.model


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.path,)


def test_a_pickle_in_place_of_the_estimator_is_never_unpickled(forest: Path, tmp_path: Path) -> None:
    made = tmp_path / "made-by-the-pickle"
    file = forest / "estimator.skops"
    whole = file.read_bytes()
    for data in (pickle.dumps(Evil(made)), b"", whole[: len(whole) // 2], whole[100:]):
        file.write_bytes(data)
        with pytest.raises(CorruptError, match="checksum"):
            load_bundle(forest)
        resign(forest)
        with pytest.raises(CorruptError, match="skops"):
            load_bundle(forest)
    # A whole skops file, in which one array is a pickle.
    file.write_bytes(whole)
    with zipfile.ZipFile(file) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    array = next(name for name in parts if name.endswith(".npy"))
    parts[array] = pickle.dumps(Evil(made))
    rewrite(file, parts)
    resign(forest)
    with pytest.raises(CorruptError):
        load_bundle(forest)
    assert not made.exists()


@pytest.mark.parametrize(
    "function", [os.system, eval, np.load, functools.partial(functools.partial, os.system)]
)
def test_a_partial_allows_no_function_of_its_own(function: Any) -> None:
    with pytest.raises(RecipeError, match="does not allow"):
        check_storable(FunctionTransformer(functools.partial(function, "echo")))


def rewrite(file: Path, parts: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)


@pytest.mark.parametrize(
    "gadget",
    ["os.system", "numpy.testing._private.utils.runstring", "sklearn.utils._testing.check_skip_network"],
)
def test_types_that_are_not_listed_are_refused_by_name(forest: Path, gadget: str) -> None:
    file = forest / "estimator.skops"
    with zipfile.ZipFile(file) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    schema = json.loads(parts["schema.json"])
    module, _, name = gadget.rpartition(".")
    schema["__class__"], schema["__module__"] = name, module
    parts["schema.json"] = json.dumps(schema).encode()
    rewrite(file, parts)
    resign(forest)
    with pytest.raises(CorruptError, match=f"not allowed: .*{name}"):
        load_bundle(forest)


def test_a_tree_that_leads_out_of_its_nodes_is_refused(forest: Path, make: Any) -> None:
    """The compiled tree follows its indices without a look: a forged one would crash the process."""
    import skops.io

    from hpcmass.train.skops_files import load_estimator

    file = forest / "estimator.skops"
    estimator = load_estimator(file)
    tree = estimator.estimators_[1].tree_
    for field, value in (("left_child", 10**7), ("left_child", 0), ("feature", 10**7)):
        state = tree.__getstate__()
        state["nodes"] = state["nodes"].copy()
        old = state["nodes"][field][0]
        state["nodes"][field][0] = value
        tree.__setstate__(state)
        skops.io.dump(estimator, file)
        resign(forest)
        with pytest.raises(CorruptError, match="a tree"):
            load_bundle(forest)
        state["nodes"][field][0] = old
        tree.__setstate__(state)
    skops.io.dump(estimator, file)
    resign(forest)
    assert load_bundle(forest)(make["blobs"](4).arrays["x"]).shape == (4, 3)


def test_metrics_of_the_recipe_see_log_probabilities(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    extra = """
def metrics(outputs, targets):
    return {"top": outputs.exp().max(dim=1).values}
"""
    recipe = recipe_of(write_recipe, "GaussianNB()", extra)
    data, run = make["blobs"](), RunFolder(tmp_path / "run")
    estimator = recipe.build_model({})
    metrics = fit_estimator(estimator, recipe, job(), data, data, run, Alone())
    top = torch.from_numpy(estimator.predict_proba(data.arrays["x"])).max(1).values.mean()
    assert metrics["top"] == pytest.approx(float(top), rel=1e-4)
    assert set(metrics) == {"loss", "top"}


@pytest.mark.parametrize("fit", ["whole", "stream"])
def test_data_is_read_ahead_as_the_job_says(
    fit: str, write_recipe: Callable[..., Path], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = make["blobs"](200)
    np.savez(tmp_path / "raw.npz", x=blobs.arrays["x"], label=blobs.arrays["label"])
    shard(tmp_path / "raw.npz", tmp_path / "d", inputs=["x"], targets=["label"], shards=3, workers=1)
    data, by_hand, ways = open_dataset(tmp_path / "d"), [], []
    batch, ahead = Dataset.batch, estimators.ReadAhead
    monkeypatch.setattr(Dataset, "batch", lambda self, ids: by_hand.append(len(ids)) or batch(self, ids))

    def read_ahead(*args: Any, **kwargs: Any) -> Any:
        ways.append(kwargs["read"])
        return ahead(*args, **kwargs)

    monkeypatch.setattr(estimators, "ReadAhead", read_ahead)
    recipe = recipe_of(write_recipe, "SGDClassifier(loss='log_loss')")
    table = job(fit, epochs=3)
    table = table.model_copy(update={"data": table.data.model_copy(update={"read": "pread"})})
    metrics = fit_estimator(
        recipe.build_model({}), recipe, table, data, data, RunFolder(tmp_path / "r"), Alone()
    )
    assert metrics["accuracy"] > 0.8
    assert set(ways) == {"pread"}
    assert max(by_hand, default=0) <= 2, "more than the bundle's sample outputs"


def test_auto_streams_what_the_memory_left_to_the_job_does_not_hold(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(write_recipe, "SGDClassifier(loss='log_loss')")
    blobs = make["blobs"]()
    for left, records in ((1 << 40, 1), (1000, 3)):
        monkeypatch.setattr(estimators, "memory_left", lambda left=left: left)
        run = RunFolder(tmp_path / str(left))
        fit_estimator(recipe.build_model({}), recipe, job("auto", epochs=3), blobs, blobs, run, Alone())
        assert len(list(run.records("valid"))) == records
