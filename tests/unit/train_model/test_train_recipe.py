from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcmass.errors import ConfigError, DataError, NotFound, RecipeError
from hpcmass.train.defaults import default_loss, default_metrics
from hpcmass.train.inputs import flatten, forward, prepare, select_fields, to_tensors
from hpcmass.train.recipe import load_recipe

Write = Callable[..., Path]
BUILD = "import torch\ndef build_model(params):\n    return torch.nn.Linear(2, 3)\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("def build_model(params)\n    return 1\n", 1, "not valid Python"),
        ("x = 1\n\nraise ValueError('no good')\n", 3, "ValueError: no good"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("import notthere_xyz\n", 1, "ModuleNotFoundError"),
        ("def f():\n    return {}['key']\nf()\n", 2, "KeyError: 'key'"),
        ("x = 1\n", None, "no function build_model"),
        ("build_model = 3\n", None, "build_model is not a function"),
        (BUILD + "loss = 'mse'\n", None, "loss is not a function"),
    ],
)
def test_a_wrong_file_names_its_line(write_recipe: Write, text: str, line: int | None, message: str) -> None:
    path = write_recipe(text)
    names = set(sys.modules)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert not {name for name in set(sys.modules) - names if name.startswith("hpcmass_recipe")}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_recipe(tmp_path / "absent.py")
    with pytest.raises(NotFound):
        load_recipe(tmp_path)
    for data in (b"\xff\xfe\x00", b"x = '\x00'\n"):
        (tmp_path / "r.py").write_bytes(data)
        with pytest.raises(RecipeError):
            load_recipe(tmp_path / "r.py")


def test_control_c_passes_through(write_recipe: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_recipe(write_recipe("raise KeyboardInterrupt\n"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "None .is a `return` missing"),
        ("return torch.nn.Linear", "a type, neither"),
        ("return 3", "a int, neither"),
        ("return params['width']", "KeyError: 'width'"),
        ("import os; os._no_such()", "AttributeError"),
        ("exit(0)", "SystemExit"),
    ],
)
def test_build_model_is_checked(write_recipe: Write, body: str, message: str) -> None:
    path = write_recipe(f"import torch\ndef build_model(params):\n    {body}\n")
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path).build_model({})
    assert caught.value.where in (f"{path}:2", f"{path}:3")
    if "width" in body:
        assert "[params]" in str(caught.value.hint)


def test_the_module_is_private_and_complete(write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        import torch

        @dataclass
        class Config:
            width: int = 3

        def build_model(params):
            params["width"] = params["nested"]["list"].pop()
            return torch.nn.Linear(2, Config(params["width"]).width)
        """
    )
    before = list(sys.path)
    first, second = load_recipe(path), load_recipe(path)
    assert sys.path == before
    assert first.module.__name__ != second.module.__name__
    config = first.module.Config(5)
    assert pickle.loads(pickle.dumps(config)) == config
    params = {"nested": {"list": [7]}}
    assert first.build_model(params).out_features == first.build_model(params).out_features == 7
    assert params == {"nested": {"list": [7]}}
    assert list(tmp_path.iterdir()) == [path], "no byte code beside it"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def loss(o, t):\n    return (o - 1).abs().sum(1)", "loss returned a tensor of shape .4,."),
        ("def loss(o, t):\n    return 3.0", "loss returned a float"),
        ("def loss(o, t):\n    return o + torch.zeros(17)", "loss: RuntimeError"),
        ("def metrics(o, t):\n    return o", "metrics returned"),
        ("def metrics(o, t):\n    return {'a': o.mean()}", "one value per sample .4."),
        ("def metrics(o, t):\n    return {'a': 3.0}", "'a' is a float"),
        ("def metrics(o, t):\n    raise OSError('x')", "metrics: OSError: x"),
        ("def optimizer(m, p, lr):\n    return 3", "not a torch.optim.Optimizer"),
        ("def transform(b, train):\n    b['x'] += 1", "transform returned None"),
        ("def transform(b, train):\n    return {'label': b['label']}", "transform lost the field 'x'"),
        ("def transform(b, train):\n    return {**b, 'x': b['x'][:2]}", "transform gave .* not 4 samples"),
        ("def transform(b, train):\n    return {**b, 'x': b['nothing']}", "KeyError: 'nothing'"),
    ],
)
def test_every_function_is_checked(write_recipe: Write, function: str, message: str) -> None:
    recipe = load_recipe(write_recipe(BUILD + function + "\n"))

    def run() -> None:
        model = recipe.build_model({})
        batch = {"x": np.zeros((4, 2), np.float32), "label": np.arange(4) % 3}
        ready = prepare(batch, recipe, ["x"], ["label"], train=True)
        outputs = model(*ready.inputs)
        recipe.loss(outputs, ready.targets)
        recipe.metrics(outputs, ready.targets)
        if recipe.optimizer:
            recipe.optimizer(model, {}, 0.1)

    with pytest.raises(RecipeError, match=message) as caught:
        run()
    assert str(recipe.path) in str(caught.value.where)


def test_default_loss_and_metrics() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    made = default_metrics(logits, labels)
    expected = -logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(made["loss"], expected)
    torch.testing.assert_close(default_loss(logits, labels), expected.mean())
    torch.testing.assert_close(made["accuracy"], (logits.argmax(1) == labels).float())
    values, targets = torch.randn(6, 1), torch.randn(6)
    made = default_metrics(values, targets)
    torch.testing.assert_close(made["loss"], (values[:, 0] - targets) ** 2)
    torch.testing.assert_close(made["mae"], (values[:, 0] - targets).abs())
    images = torch.rand(4, 2, 5, 5)
    assert default_metrics(images, images + 1)["mae"].tolist() == pytest.approx([1.0] * 4)
    masks = torch.randint(0, 2, (4, 5, 5))
    assert {k: v.shape for k, v in default_metrics(images, masks).items()} == {"loss": (4,), "accuracy": (4,)}


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4), r"shape \(4, 2\) where the targets have \(4,\)"),
        (torch.zeros(4), torch.zeros(4, 4), "where the targets have"),
        (torch.zeros(4, 1), torch.zeros(4).long(), r"\(samples, classes\)"),
        (torch.zeros(4), torch.zeros(4).long(), r"\(samples, classes\)"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "a label is 3, but the model has 3 outputs"),
        (torch.zeros(4, 3), torch.tensor([0, -1, 2, 2]), "a label is -1"),
        ((torch.zeros(4, 3),), torch.zeros(4).long(), "one output and one target"),
        (torch.zeros(4, 3), {"a": torch.zeros(4)}, "one output and one target"),
    ],
)
def test_shapes_that_would_broadcast_in_silence_are_refused(outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        default_loss(outputs, targets)


def test_own_loss_is_what_the_metrics_report(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(BUILD + "def loss(o, t):\n    return o.sum() / len(o) * 10\n"))
    outputs = torch.ones(4, 3)
    made = recipe.metrics(outputs, torch.tensor([0, 0, 1, 2]))
    assert made["loss"].tolist() == [30.0] * 4
    assert made["accuracy"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert set(recipe.metrics(torch.ones(4, 7), torch.zeros(4))) == {"loss"}


def test_default_transform_and_targets(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(BUILD))
    batch = {
        "image": np.full((3, 2, 2), 255, np.uint8),
        "count": np.arange(3, dtype=np.int32),
        "wide": np.arange(3, dtype=np.uint16),
        "big": np.arange(3, dtype=">f8"),
        "label": np.arange(3, dtype=np.uint8),
        "value": np.ones(3, np.float64),
        "text": np.array([b"a", b"b", b"c"]),
    }
    inputs = ["image", "count", "wide", "big"]
    ready = prepare(batch, recipe, inputs, ["label"], train=False)
    assert [str(value.dtype) for value in ready.inputs] == [
        "torch.float32",
        "torch.int32",
        "torch.int32",
        "torch.float32",
    ]
    assert float(ready.inputs[0].max()) == 1.0
    assert isinstance(ready.targets, torch.Tensor)
    assert ready.targets.dtype == torch.int64
    assert ready.n == 3
    several = prepare(batch, recipe, ["image"], ["label", "value"], train=False).targets
    assert isinstance(several, dict)
    assert several["value"].dtype == torch.float32
    itself = prepare(batch, recipe, ["image"], [], train=False)
    assert itself.targets is itself.inputs[0]
    matrix = flatten(ready.inputs)
    assert matrix.shape == (3, 7)
    assert matrix.dtype == np.float32
    assert (batch["image"] == 255).all()
    with pytest.raises(DataError, match="not numeric"):
        to_tensors(batch, ["text"])
    with pytest.raises(DataError, match="no field 'nothing'"):
        to_tensors(batch, ["nothing"])


def test_fields_are_selected_by_role_or_name(make: Any) -> None:
    data = make["blobs"]()
    assert select_fields(data) == (["x"], ["label"])
    assert select_fields(data, ["label"]) == (["label"], [])
    assert select_fields(data, targets=[]) == (["x"], [])
    with pytest.raises(ConfigError, match="no field 'y'"):
        select_fields(data, ["y"])
    with pytest.raises(ConfigError, match="no input"):
        select_fields(data, [])


def test_forward_points_at_the_users_line_and_knows_about_types(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(BUILD))
    ready = prepare({"x": np.zeros((2, 2), np.int64)}, recipe, ["x"], [], train=True)
    with pytest.raises(RecipeError, match="forward: RuntimeError") as caught:
        forward(recipe.build_model({}), recipe, ready.inputs)
    assert "transform" in str(caught.value.hint)


def test_a_batchs_address_does_not_change_a_models_bits(write_recipe: Write) -> None:
    """MKL's products differ with the alignment of what they are given, on some processors."""
    recipe = load_recipe(write_recipe(BUILD))
    buffer = np.zeros(256, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    for offset in range(16):
        x = buffer[start + offset : start + offset + 60].reshape(10, 6)
        x[...] = np.arange(60).reshape(10, 6)
        ready = prepare({"x": x, "y": x}, recipe, ["x"], ["y"], train=True)
        assert ready.inputs[0].data_ptr() % 64 == 0
        assert ready.targets.data_ptr() % 64 == 0
        assert torch.equal(ready.inputs[0], torch.from_numpy(x))
