"""What computes: torch or scikit-learn, or ONNX Runtime, by measurement, and only where both compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hpcmass.errors import RecipeError
from hpcmass.export import export_bundle
from hpcmass.serve.choice import Offer, choose, samples
from hpcmass.serve.interfaces import Field, Interface, Limits
from hpcmass.serve.runners import BundleRunner, OnnxRunner
from hpcmass.train.bundle import read_bundle
from hpcmass.train.model import load_bundle

from .conftest import Replica, request

RECIPE = """
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x, k):
        return self.layers(x) + k[:, None]

def build_model(params):
    torch.manual_seed(1)
    return Net()
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hpcmass.train.bundle_writer import model_state, write_weights
    from hpcmass.train.recipe import load_recipe
    from hpcmass.train.signature import FieldSpec, Signature

    folder = tmp_path_factory.mktemp("plain")
    (folder / "recipe.py").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.py")
    signature = Signature(
        (FieldSpec("x", "float32", (4,)), FieldSpec("k", "int64", ())), (FieldSpec("y", "float32", (3,)),),
        None, "regression", ("y",),
    )  # fmt: skip
    state = model_state(recipe.build_model({}, None))
    return write_weights(folder / "plain", state, recipe.source, {}, signature)


def answers(replica: Replica, x: list, k: list) -> np.ndarray:
    status, _, body = replica.ask("POST", f"/v2/models/{replica.state()['model']}/infer", request(x, k))
    assert status == 200, body
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32).reshape(-1, 3)


@pytest.mark.parametrize("runtime", ["auto", "torch", "onnxruntime"])
def test_the_choice_is_measured_and_told(tmp_path: Path, plain: Path, runtime: str) -> None:
    replica = Replica(tmp_path, str(plain), "--notice", "0", "--runtime", runtime)
    try:
        replica.until("ready")
        said = json.loads(replica.ask("GET", "/v2/models/plain")[2])
        told = said["parameters"]["runtime"]
        assert said["platform"] == told["chosen"]
        page = replica.ask("GET", "/metrics")[2].decode()
        if runtime == "torch":
            assert told["chosen"] == "hpcmass_torch"
            assert set(told["measured"]) == {"hpcmass_torch"}
        else:
            assert set(told["measured"]) == {"hpcmass_torch", "onnxruntime_onnx"}
            assert 0 <= told["largest_difference"] < 1e-4
            for name in told["measured"]:
                assert f'hpcmass_runtime_alone_seconds{{runtime="{name}"}}' in page
            assert page.count("# TYPE hpcmass_runtime_alone_seconds gauge") == 1
        if runtime == "onnxruntime":
            assert told["chosen"] == "onnxruntime_onnx"
        elif runtime == "auto":  # whichever it is on this machine, the reason fits it
            ratio = float(told["why"].split(" takes ")[1].split()[0])
            assert (told["chosen"] == "onnxruntime_onnx") == (ratio < 0.95) or ratio == 0.95
        assert f"{told['chosen']} serves" in replica.log.read_text()
        x, k = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32), list(range(7))
        right = load_bundle(plain)({"x": x, "k": np.array(k)})
        np.testing.assert_allclose(answers(replica, x.tolist(), k), right, atol=1e-5)
    finally:
        assert replica.stop() == 0


def test_the_form_in_onnx_is_made_once(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcmass.workflow.onnx_forms import onnx_form

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = onnx_form(plain)
    stamp = (made / "model.onnx").stat().st_mtime_ns
    begun = time.monotonic()
    assert onnx_form(plain) == made
    assert time.monotonic() - begun < 1.0  # no process was started
    assert (made / "model.onnx").stat().st_mtime_ns == stamp
    assert [one.name for one in made.parent.iterdir()] == [made.name]
    (made / "model.onnx").chmod(0o644)
    (made / "model.onnx").write_bytes(b"cut short")
    assert onnx_form(plain) == made  # anew
    assert len((made / "model.onnx").read_bytes()) > 100


def test_a_model_without_such_a_form_is_served_by_torch(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmass.workflow.onnx_forms import onnx_form

    for _ in range(2):  # made out, then known
        with pytest.raises(RecipeError, match=r"torch\.export cannot follow"):
            onnx_form(bundle)
    replica = Replica(tmp_path, str(bundle), "--notice", "0")
    try:
        replica.until("ready")
        told = json.loads(replica.ask("GET", "/v2/models/toy")[2])["parameters"]["runtime"]
        assert told["chosen"] == "hpcmass_torch"
        assert "torch.export cannot follow" in told["why"]
    finally:
        assert replica.stop() == 0
    forced = Replica(tmp_path, str(bundle), "--runtime", "onnxruntime")
    assert forced.process.wait(60) == 2
    assert "--runtime onnxruntime: ONNX Runtime cannot run it: torch.export cannot" in forced.log.read_text()
    assert "Traceback" not in forced.log.read_text()


def test_an_onnx_version_is_run_by_onnx_runtime(tmp_path: Path, plain: Path) -> None:
    model = load_bundle(plain)
    given = samples(BundleRunner(model).interface, 8)
    export_bundle(model, "onnx", tmp_path / "made", given)
    replica = Replica(tmp_path, "./made", "--notice", "0")
    try:
        replica.until("ready")
        assert json.loads(replica.ask("GET", "/v2/models/made")[2])["platform"] == "onnxruntime_onnx"
        right = model(given)
        np.testing.assert_allclose(answers(replica, given["x"].tolist(), given["k"].tolist()), right, atol=1e-5)
        for pad in range(9):  # tensors at any address within the body
            head = json.dumps({"id": "x" * pad, "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [8, 4], "parameters": {"binary_data_size": 128}},
                {"name": "k", "datatype": "INT64", "shape": [8], "parameters": {"binary_data_size": 64}},
            ]}).encode()  # fmt: skip
            body = head + given["x"].tobytes() + given["k"].tobytes()
            lines = {"Inference-Header-Content-Length": str(len(head))}
            status, _, found = replica.ask("POST", "/v2/models/made/infer", body, lines)
            assert status == 200, found
            values = np.array(json.loads(found)["outputs"][0]["data"], np.float32).reshape(-1, 3)
            np.testing.assert_allclose(values, right, atol=1e-5)
    finally:
        assert replica.stop() == 0
    done = subprocess.run(
        [sys.executable, "-m", "hpcmass", "serve", "./made", "--runtime", "torch"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "an ONNX file is run by ONNX Runtime alone" in done.stderr


def test_an_estimator_by_scikit_learn_and_by_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.ensemble import RandomForestRegressor

    from hpcmass.workflow.onnx_forms import onnx_form
    from tests.unit.export.export_lab import estimator_model

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2).astype(np.float32)
    forest = RandomForestRegressor(n_estimators=30, random_state=0).fit(x, y)
    model = estimator_model(tmp_path, forest, x, y, y[:1], task="regression")
    own = BundleRunner(model)
    other = OnnxRunner(read_bundle(onnx_form(tmp_path / "parent")), 1)
    chosen = choose(Offer((own, other)), Limits(), 1)
    assert chosen.difference is not None
    assert chosen.difference < 1e-3
    assert chosen.runner is other, chosen.why  # Python against a compiled loop: forty times
    np.testing.assert_allclose(chosen.runner.run({"x": x[:9]})["y"], forest.predict(x[:9]), atol=1e-4)


class Sum:
    """A real, if small, model: the sum of four numbers, computed in some seconds and with some error."""

    def __init__(self, platform: str, seconds: float, error: float = 0.0, fails: bool = False) -> None:
        self.platform, self.seconds, self.error, self.fails = platform, seconds, error, fails
        self.interface = Interface((Field("x", "float32", (4,)),), (Field("y", "float32", ()),))

    def enter(self, threads: int) -> None:
        pass

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if self.fails:
            raise RecipeError("no kernel for it")
        time.sleep(self.seconds)
        return {"y": inputs["x"].sum(axis=1) * np.float32(1 + self.error)}


@pytest.mark.parametrize(
    ("other", "forced", "taken", "why"),
    [
        (Sum("b", 0.001), False, "b", "b takes 0."),
        (Sum("b", 0.020), False, "a", "b takes "),
        (Sum("b", 0.001, error=0.05), False, "a", "outputs differ by up to"),
        (Sum("b", 0.001, error=float("nan")), False, "a", "outputs differ by up to inf"),
        (Sum("b", 0.020), True, "b", "asked for"),
        (Sum("b", 0.001, fails=True), False, "a", "b fails: no kernel"),
    ],
    ids=["quicker", "slower", "other", "nan", "forced", "fails"],
)
def test_only_what_is_quicker_and_the_same_takes_the_place(
    other: Sum, forced: bool, taken: str, why: str
) -> None:
    own = Sum("a", 0.006)
    chosen = choose(Offer((own, other), forced=forced), Limits(batch_rows=2), 1)
    assert chosen.runner.platform == taken
    assert why in chosen.why
    assert chosen.pace is chosen.paces[taken]
