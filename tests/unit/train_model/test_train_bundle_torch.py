from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcmass.errors import AlreadyExists, CorruptError, DataError, HpcmassError, NotFound, RecipeError
from hpcmass.files import sha256_file
from hpcmass.train.bundle_writer import write_ensemble_bundle, write_torch_bundle
from hpcmass.train.inputs import prepare
from hpcmass.train.model import load_bundle
from hpcmass.train.recipe import load_recipe

MLP = """
    import torch

    def build_model(params):
        return torch.nn.Sequential(
            torch.nn.Linear(2, params["width"]), torch.nn.BatchNorm1d(params["width"]),
            torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(params["width"], 3),
        )
"""
PARAMS = {"width": 8}


class Evil:
    """Unpickled, it makes a folder; so a test sees whether anything unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture
def trained(write_recipe: Callable[..., Path], classes_of_points: Any, tmp_path: Path) -> tuple[Path, Any]:
    recipe = load_recipe(write_recipe(MLP))
    torch.manual_seed(0)
    model = recipe.build_model(PARAMS)
    data = prepare(classes_of_points.batch(np.arange(240)), recipe, ["x"], ["label"], train=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        recipe.loss(model(*data.inputs), data.targets).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(*data.inputs)
    folder = write_torch_bundle(tmp_path / "model", model, recipe, PARAMS, classes_of_points, outputs[:4])
    return folder, outputs


def resign(folder: Path) -> None:
    """Give every file the checksum it has now, as someone who tampers with a model would."""
    meta = json.loads((folder / "model.json").read_text())
    for name in meta["files"]:
        file = folder / name
        meta["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / "model.json").write_text(json.dumps(meta))


def test_round_trip_gives_the_same_probabilities(trained: Any, classes_of_points: Any) -> None:
    folder, outputs = trained
    model = load_bundle(folder)
    x = classes_of_points.arrays["x"]
    probabilities = model(x, batch_size=50)
    np.testing.assert_allclose(probabilities, outputs.softmax(1).numpy(), rtol=1e-5, atol=1e-6)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (240, 3)
    labels = classes_of_points.arrays["label"]
    assert (model.predict(x) == labels).mean() > 0.9
    assert list(model.predict_labels(x[:3])) == [["red", "green", "blue"][i] for i in model.predict(x[:3])]
    assert (model.kind, model.task, model.classes) == ("torch", "classification", ["red", "green", "blue"])
    assert "x: float32[n, 2]" in repr(model)
    np.testing.assert_array_equal(model({"x": x}), model(x))
    assert model(x[:0]).shape == (0, 3)


def test_inputs_are_checked(trained: Any) -> None:
    model = load_bundle(trained[0])
    good = np.zeros((4, 2))
    assert model(good).shape == (4, 3)  # float64 is rounded
    assert model(good.astype(np.int16)).shape == (4, 3)
    for wrong, text in [
        (np.zeros((4, 3)), r"expected \(n, 2\)"),
        (np.zeros(2), r"x\[None\]"),
        (np.array([["a", "b"]]), "the model takes float32"),
        (np.zeros((4, 2), np.complex64), "the model takes float32"),
        ([[1, 2], [3]], "not an array"),
        ({"y": good}, "the model takes inputs x; given: y"),
        ({"x": good, "label": good}, "and no others"),
    ]:
        with pytest.raises(DataError, match=text):
            model(wrong)
    with pytest.raises(DataError, match="batch_size"):
        model(good, batch_size=0)


def test_written_once_and_nothing_beside_it(trained: Any, classes_of_points: Any, tmp_path: Path) -> None:
    folder, _ = trained
    recipe = load_recipe(folder / "recipe.py")
    with pytest.raises(AlreadyExists):
        write_torch_bundle(
            folder, recipe.build_model(PARAMS), recipe, PARAMS, classes_of_points, torch.zeros(2, 3)
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "recipe_under_test.py"]
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "recipe.py", "weights.safetensors"]
    assert load_bundle(folder).bundle.params == PARAMS


def test_of_many_writers_one_wins(
    write_recipe: Callable[..., Path], classes_of_points: Any, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(MLP))
    results: list[str] = []

    def write() -> None:
        try:
            model = recipe.build_model(PARAMS)
            write_torch_bundle(tmp_path / "m", model, recipe, PARAMS, classes_of_points, torch.zeros(2, 3))
            results.append("written")
        except AlreadyExists:
            results.append("refused")

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 5 + ["written"]
    load_bundle(tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "recipe_under_test.py"]


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.py"])
def test_a_changed_byte_or_a_cut_file_is_corrupt(trained: Any, name: str) -> None:
    file = trained[0] / name
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptError, match="checksum"):
        load_bundle(trained[0])
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptError, match="checksum"):
        load_bundle(trained[0])
    file.unlink()
    with pytest.raises(CorruptError, match="missing"):
        load_bundle(trained[0])


def test_a_pickle_in_place_of_the_weights_is_never_unpickled(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    made = tmp_path / "made-by-the-pickle"
    for data in (pickle.dumps(Evil(made)), b"", b"\xff" * 100):
        (folder / "weights.safetensors").write_bytes(data)
        resign(folder)
        with pytest.raises(CorruptError, match="safetensors"):
            load_bundle(folder)
    torch.save({"x": Evil(made)}, folder / "weights.safetensors")
    resign(folder)
    with pytest.raises(CorruptError, match="safetensors"):
        load_bundle(folder)
    assert not made.exists()
    pickle.loads(pickle.dumps(Evil(made)))
    assert made.exists(), "the pickle would have done it"


def test_weights_of_another_model(trained: Any) -> None:
    folder, _ = trained
    meta = json.loads((folder / "model.json").read_text())
    meta["params"]["width"] = 9
    (folder / "model.json").write_text(json.dumps(meta))
    with pytest.raises(CorruptError, match="does not fit the recipe's model"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"format": None},
        {"kind": "pickle"},
        {"signature": {}},
        {"signature": None},
        {"signature": {"inputs": [], "outputs": [], "classes": None, "task": "other"}},
        {"files": {"../../etc/passwd": {}}},
        {"files": []},
        {"files": {}},
        {"files": {"weights.safetensors": 3}},
        {"framework": 7},
        {"params": 7},
        {"kind": "ensemble"},
        {"kind": "ensemble", "combine": "vote", "members": ["../model"]},
        {"kind": "ensemble", "combine": "vote", "members": [3]},
        {"kind": "ensemble", "combine": "vote", "members": ["members/00"]},
    ],
)
def test_a_wrong_description_is_refused(trained: Any, change: dict[str, Any]) -> None:
    folder, _ = trained
    meta = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises((CorruptError, NotFound)):
        load_bundle(folder)


def test_the_targets_are_recorded_and_may_be_missing(trained: Any) -> None:
    folder, _ = trained
    meta = json.loads((folder / "model.json").read_text())
    assert meta["signature"]["targets"] == ["label"]
    assert load_bundle(folder).signature.targets == ("label",)
    del meta["signature"]["targets"]
    (folder / "model.json").write_text(json.dumps(meta))
    assert load_bundle(folder).signature.targets == ()
    meta["signature"]["targets"] = "label"
    (folder / "model.json").write_text(json.dumps(meta))
    with pytest.raises(CorruptError, match="targets"):
        load_bundle(folder)


def test_no_bundle_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_bundle(tmp_path)
    for text in ("", "[]", "{", "null", '"x"'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CorruptError):
            load_bundle(tmp_path)


def test_tied_weights_and_lazy_layers(write_recipe: Callable[..., Path], make: Any, tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe("""
        import torch
        class Tied(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a = torch.nn.Linear(3, 3)
                self.b = torch.nn.Linear(3, 3)
                self.b.weight = self.a.weight
                self.out = torch.nn.LazyLinear(1)
            def forward(self, x):
                return self.out(self.b(self.a(x)).to(self.out.weight.dtype))
        def build_model(params):
            return Tied()
        """)
    )
    data = make["line"]()
    model = recipe.build_model({})
    x = torch.as_tensor(data.arrays["x"]).float()
    outputs = model(x)
    folder = write_torch_bundle(tmp_path / "m", model, recipe, {}, data, outputs)
    loaded = load_bundle(folder)
    np.testing.assert_array_equal(loaded(data.arrays["x"]), outputs.detach().numpy())
    assert loaded.task == "regression"
    assert loaded.classes is None
    with pytest.raises(DataError, match="no classes"):
        loaded.predict_labels(data.arrays["x"])


def test_uint8_images_are_scaled_and_the_callers_array_stays(
    write_recipe: Callable[..., Path], make: Any, tmp_path: Path
) -> None:
    recipe = load_recipe(
        write_recipe("""
        import torch
        def transform(batch, train):
            batch["image"] = batch["image"].float().div_(255)
            batch["scale"].mul_(0)
            return batch
        class Net(torch.nn.Module):
            def forward(self, image, scale):
                return {"sum": image.flatten(1).sum(1), "pair": (scale, scale + 1)}
        def build_model(params):
            return Net()
        """)
    )
    images = np.full((5, 4, 4), 255, np.uint8)
    scale = np.ones((5,), np.float32)
    data = make["dataset"]({"image": (images, "input"), "scale": (scale, "input")})
    model = recipe.build_model({})
    batch = prepare(data.batch(np.arange(5)), recipe, ["image", "scale"], [], train=False)
    folder = write_torch_bundle(tmp_path / "m", model, recipe, {}, data, model(*batch.inputs))
    loaded = load_bundle(folder)
    outputs = loaded({"image": images, "scale": scale}, batch_size=2)
    np.testing.assert_array_equal(outputs["sum"], np.full(5, 16.0))
    np.testing.assert_array_equal(outputs["pair"][1], np.ones(5))
    np.testing.assert_array_equal(scale, np.ones(5))
    assert loaded.task == "other"
    assert loaded({"image": images.astype(np.int64), "scale": scale})["sum"][0] == 16
    with pytest.raises(DataError, match="the model takes uint8"):
        loaded({"image": images.astype(np.int64) + 1, "scale": scale})
    with pytest.raises(DataError, match="differ in their number"):
        loaded({"image": images, "scale": scale[:2]})
    with pytest.raises(DataError, match="dict of arrays"):
        loaded(images)


def test_the_model_raises(write_recipe: Callable[..., Path], make: Any, tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe("""
        import torch
        class Net(torch.nn.Linear):
            def forward(self, x):
                if x.max() > 2:
                    raise ArithmeticError("too much")
                return super().forward(x)
        def build_model(params):
            return Net(2, 3)
        """)
    )
    data = make["blobs"]()
    folder = write_torch_bundle(tmp_path / "m", recipe.build_model({}), recipe, {}, data, torch.zeros(1, 3))
    model = load_bundle(folder)
    assert model(np.zeros((1, 2))).shape == (1, 3)
    with pytest.raises(RecipeError, match=r"recipe\.py:6: .*ArithmeticError: too much"):
        model(np.full((1, 2), 3.0))


def test_loading_leaves_the_random_state_alone(trained: Any) -> None:
    torch.manual_seed(7)
    first = torch.rand(3)
    torch.manual_seed(7)
    load_bundle(trained[0])
    assert torch.equal(torch.rand(3), first)


def test_vote_ensemble(trained: Any, classes_of_points: Any, tmp_path: Path) -> None:
    folder, _ = trained
    recipe = load_recipe(folder / "recipe.py")
    other = write_torch_bundle(
        tmp_path / "other", recipe.build_model(PARAMS), recipe, PARAMS, classes_of_points, torch.zeros(2, 3)
    )
    both = load_bundle(write_ensemble_bundle(tmp_path / "both", [folder, other], "vote"))
    x = classes_of_points.arrays["x"]
    np.testing.assert_allclose(both(x), (load_bundle(folder)(x) + load_bundle(other)(x)) / 2, atol=1e-6)
    assert both.kind == "ensemble"
    (tmp_path / "both/members/01/weights.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptError):
        load_bundle(tmp_path / "both")


def test_members_that_do_not_fit(trained: Any, make: Any, tmp_path: Path) -> None:
    folder, _ = trained
    recipe = load_recipe(folder / "recipe.py")
    other = write_torch_bundle(
        tmp_path / "other", recipe.build_model(PARAMS), recipe, PARAMS, make["line"](), torch.zeros(2, 3)
    )
    with pytest.raises(RecipeError, match="inputs"):
        write_ensemble_bundle(tmp_path / "both", [folder, other], "vote")
    assert not (tmp_path / "both").exists()


def test_a_full_disk_leaves_nothing(trained: Any, classes_of_points: Any, tmp_path: Path) -> None:
    import resource
    import signal

    recipe = load_recipe(trained[0] / "recipe.py")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(HpcmassError, match=r"File too large|file size limit|disk full"):
            write_torch_bundle(
                tmp_path / "full",
                recipe.build_model(PARAMS),
                recipe,
                PARAMS,
                classes_of_points,
                torch.zeros(2, 3),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert not (tmp_path / "full").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
