"""torch models as ONNX and as programs of torch.export: raw arrays in, what the model gives out, any batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent)]

from export_lab import run_alone, signature_of, torch_model  # noqa: E402

from hpcmass.errors import CorruptError, DataError, MissingDependency, RecipeError  # noqa: E402
from hpcmass.export import export_bundle  # noqa: E402
from hpcmass.train.bundle_writer import write_ensemble_bundle  # noqa: E402
from hpcmass.train.model import Model, load_bundle  # noqa: E402

IMAGES = """
    import torch
    from torch import nn

    def build_model(params):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(64, 3),
        )

    def transform(batch, train):
        image = batch["image"].float().div(255)[:, None]
        if train:
            image = image + torch.randn_like(image)
        return {**batch, "image": (image - 0.13) / 0.31}
"""


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 8, 8)).astype(np.uint8)


def image_model(folder: Path) -> Model:
    labels = {"label": np.arange(6) % 3}
    return torch_model(folder, IMAGES, {"image": pixels(6)}, labels, torch.zeros(2, 3), ["a", "b", "c"])


def test_raw_pixels_go_in_and_probabilities_come_out_without_torch_and_hpcmass(tmp_path: Path) -> None:
    parent = image_model(tmp_path)
    made = export_bundle(parent, "onnx", tmp_path / "out", {"image": pixels(6)}, made_from="eyes@1")
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"model.json", "model.onnx", "signature.json"}
    for n in (1, 2, 7, 130):
        alone = run_alone(tmp_path / "out", {"image": pixels(n)}, tmp_path)
        assert alone["probabilities"].shape == (n, 3)
        np.testing.assert_allclose(alone["probabilities"], parent(pixels(n)), rtol=1e-4, atol=1e-6)
    said = signature_of(tmp_path / "out")
    assert said["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["n", 8, 8]}]
    assert (said["classes"], said["task"], said["made_from"]) == (["a", "b", "c"], "classification", "eyes@1")
    assert made.portability is not None
    assert made.portability.opsets == {"ai.onnx": 18}
    assert "Conv" in said["operators"]
    assert made.agreement.close == 1.0


def test_the_exported_model_is_a_model_to_hpcmass(tmp_path: Path) -> None:
    parent = image_model(tmp_path)
    export_bundle(parent, "onnx", tmp_path / "out", {"image": pixels(6)})
    model = load_bundle(tmp_path / "out")
    assert (model.kind, model.task, model.classes) == ("onnx", "classification", ["a", "b", "c"])
    assert model.signature == parent.signature
    np.testing.assert_allclose(model(pixels(5), batch_size=2), parent(pixels(5)), rtol=1e-4, atol=1e-6)
    assert list(model.predict_labels(pixels(5))) == list(parent.predict_labels(pixels(5)))
    assert model(pixels(0)).shape == (0, 3)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_no_line_and_no_path_of_whoever_exported_it_is_in_it(tmp_path: Path, form: str) -> None:
    export_bundle(image_model(tmp_path), form, tmp_path / "out", {"image": pixels(6)})
    for file in (tmp_path / "out").iterdir():
        data = file.read_bytes()
        assert str(tmp_path).encode() not in data, file
        assert b"recipe_of_the_lab" not in data, file
        assert b"torch/nn/modules" not in data, file


def test_a_program_of_torch_export_has_no_pickle_and_computes_the_same(tmp_path: Path) -> None:
    parent = image_model(tmp_path)
    export_bundle(parent, "torch-export", tmp_path / "out", {"image": pixels(6)})
    model = load_bundle(tmp_path / "out")
    assert model.kind == "torch-export"
    for n in (1, 2, 9):
        np.testing.assert_allclose(model(pixels(n)), parent(pixels(n)), rtol=1e-5, atol=1e-7)


SEVERAL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.line = nn.Embedding(5, 3), nn.Linear(5, 2)

        def forward(self, size, word):
            both = self.line(torch.cat([size, self.words(word)], dim=1))
            return {"mean": both[:, 0], "both": both}

    def build_model(params):
        return Net()

    def transform(batch, train):
        return {"size": batch["size"].float() / 1000, "word": batch["word"].long()}
"""


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_several_inputs_of_odd_types_and_a_dict_of_outputs(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "size": rng.integers(0, 60000, (12, 2)).astype(np.uint16),
        "word": rng.integers(0, 5, 12).astype(np.uint8),
    }
    outputs = {"mean": torch.zeros(2), "both": torch.zeros(2, 2)}
    parent = torch_model(tmp_path, SEVERAL, inputs, {"y": rng.normal(size=12).astype(np.float32)}, outputs)
    export_bundle(parent, form, tmp_path / "out", inputs)
    found, expected = load_bundle(tmp_path / "out")(inputs), parent(inputs)
    assert list(found) == ["mean", "both"]
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
    if form == "onnx":
        alone = run_alone(tmp_path / "out", {name: one[:1] for name, one in inputs.items()}, tmp_path)
        np.testing.assert_allclose(alone["both"], expected["both"][:1], rtol=1e-4, atol=1e-6)


AUTOENCODER = """
    from torch import nn

    def build_model(params):
        return nn.Linear(4, 4)
"""


def test_an_output_named_as_the_input_gets_another_name(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 4))
    parent = torch_model(tmp_path, AUTOENCODER, {"output": x}, {}, torch.zeros(2, 4))
    export_bundle(parent, "onnx", tmp_path / "out", {"output": x})
    assert [one["name"] for one in signature_of(tmp_path / "out")["outputs"]] == ["output_output"]
    alone = run_alone(tmp_path / "out", {"output": x}, tmp_path)
    np.testing.assert_allclose(alone["output_output"], parent(x), rtol=1e-4, atol=1e-6)


TOKENS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, tokens, tokens_length):
            past = torch.arange(tokens.shape[1])[None] >= tokens_length[:, None]
            x = self.layer(self.words(tokens.long()), src_key_padding_mask=past)
            return self.out(x.masked_fill(past[:, :, None], 0).sum(1) / tokens_length[:, None])

    def build_model(params):
        return Net()
"""


def tokens(n: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, length + 1, n)
    lengths[0] = length
    words = rng.integers(0, 50, (n, length)).astype(np.uint16)
    return {
        "tokens": words * (np.arange(length) < lengths[:, None]).astype(np.uint16),
        "tokens_length": lengths,
    }


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_samples_of_any_length_in_batches_of_any_size(tmp_path: Path, form: str) -> None:
    labels = {"label": np.arange(6) % 3}
    parent = torch_model(tmp_path, TOKENS, tokens(6, 5), labels, torch.zeros(2, 3), ragged=("tokens",))
    export_bundle(parent, form, tmp_path / "out", tokens(6, 5))
    model = load_bundle(tmp_path / "out")
    assert signature_of(tmp_path / "out")["inputs"][0]["shape"] == ["n", "any"]
    for n, length in ((1, 5), (4, 11), (9, 2)):
        given = tokens(n, length)
        np.testing.assert_allclose(model(given), parent(given), rtol=1e-3, atol=1e-5)


LOOKS_AT_VALUES = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(4, 1)

        def forward(self, x):
            return self.line(x) if x.sum() > 0 else -self.line(x)

    def build_model(params):
        return Net()
"""
RANDOM = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(4, 1)

        def forward(self, x):
            return self.line(x + torch.randn_like(x))

    def build_model(params):
        return Net()
"""


@pytest.mark.parametrize(
    ("recipe", "said"), [(LOOKS_AT_VALUES, "cannot follow the model"), (RANDOM, "computes something else")]
)
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, recipe: str, said: str) -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    parent = torch_model(tmp_path, recipe, {"x": x}, {"y": x[:, 0]}, torch.zeros(2, 1))
    with pytest.raises(RecipeError, match=said):
        export_bundle(parent, "onnx", tmp_path / "out", {"x": x})


def test_a_damaged_or_exchanged_file_is_refused(tmp_path: Path) -> None:
    import json

    from hpcmass.files import sha256_file

    export_bundle(image_model(tmp_path), "onnx", tmp_path / "out", {"image": pixels(6)})
    file, listing = tmp_path / "out" / "model.onnx", tmp_path / "out" / "model.json"
    data, raw = file.read_bytes(), json.loads(listing.read_text())
    assert raw["format"] == 2, "an hpcmass of before says that it has to be updated"
    file.write_bytes(data[:-20])
    with pytest.raises(CorruptError, match="checksum"):
        load_bundle(tmp_path / "out")
    for forged in (data[:-20], b"", b"MZ" * 400, data.replace(b"image", b"imagg")):
        file.write_bytes(forged)
        raw["files"]["model.onnx"] = {"bytes": len(forged), "sha256": sha256_file(file)}
        listing.write_text(json.dumps(raw))
        with pytest.raises(CorruptError):
            load_bundle(tmp_path / "out")


def test_without_onnx_runtime_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(image_model(tmp_path), "onnx", tmp_path / "out", {"image": pixels(6)})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"ONNX Runtime"):
        load_bundle(tmp_path / "out")


@pytest.mark.parametrize("combine", ["vote", "stack"])
def test_an_ensemble_of_torch_models_is_one_program(tmp_path: Path, combine: str) -> None:
    members = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        members.append(image_model(tmp_path / str(number)).bundle.folder)
    rng = np.random.default_rng(0)
    stack = {"weight": rng.normal(size=(3, 6)), "bias": rng.normal(size=3)} if combine == "stack" else None
    write_ensemble_bundle(tmp_path / "both", members, combine, stack)
    parent = load_bundle(tmp_path / "both")
    export_bundle(parent, "onnx", tmp_path / "out", {"image": pixels(6)})
    for n in (1, 5):
        alone = run_alone(tmp_path / "out", {"image": pixels(n)}, tmp_path)
        np.testing.assert_allclose(alone["probabilities"], parent(pixels(n)), rtol=1e-4, atol=1e-6)


def test_exported_models_vote_as_any_others(tmp_path: Path) -> None:
    parent = image_model(tmp_path)
    export_bundle(parent, "onnx", tmp_path / "out", {"image": pixels(6)})
    write_ensemble_bundle(tmp_path / "both", [tmp_path / "out", parent.bundle.folder], "vote")
    np.testing.assert_allclose(
        load_bundle(tmp_path / "both")(pixels(4)), parent(pixels(4)), rtol=1e-4, atol=1e-6
    )


def test_int8_without_samples_to_calibrate_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calibrate"):
        export_bundle(image_model(tmp_path), "int8", tmp_path / "out", {"image": pixels(6)})
    assert not (tmp_path / "out").exists()
