"""Runs on samples of differing length: padded and packed, in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcmass.config import Project, job_from_values, load_job
from hpcmass.data import ShardWriter, open_dataset
from hpcmass.errors import ConfigError, HpcmassError, RecipeError
from hpcmass.evaluate.measure import evaluate
from hpcmass.evaluate.predictions import predict_file
from hpcmass.runs import RunFolder
from hpcmass.train.model import load_bundle
from hpcmass.train.rank import train_rank

FIELDS = {"tokens": ("uint16", (None,)), "tags": ("uint8", (None,)), "label": "int64"}
MODEL = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(30, 5), nn.Linear(5, 3)
    def forward(self, tokens, *rest):
        return self.out(self.words(tokens.long())).movedim(-1, 1)  # (rows, classes, length)

def build_model(params):
    return Tagger()
"""
SUM = """
def loss(outputs, tags):
    return cross_entropy(outputs, tags, reduction="sum"), (tags != -100).sum()
"""
MEAN = """
def loss(outputs, tags):
    return cross_entropy(outputs, tags)
"""
TREES = """
from sklearn.tree import DecisionTreeClassifier
def build_model(params):
    return DecisionTreeClassifier()
"""


def samples(n: int = 40, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 29, random.integers(0, 9)) for _ in range(n)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    project = Project.create(tmp_path / "p", "tests")
    with ShardWriter(project.data / "d", FIELDS, targets=["tags", "label"], shard_samples=15) as writer:
        for one in samples():
            writer.write({"tokens": one, "tags": one % 3, "label": len(one) % 2})
    return tmp_path / "p"


def train(
    root: Path, recipe: str, name: str = "run", *, data: dict | None = None, **train_: object
) -> RunFolder:
    (root / "recipe.py").write_text(recipe)
    chosen = {"train": "data/d", "valid": "data/d", "targets": ["tags"], **(data or {})}
    settings = {"optimizer": "SGD", "lr": 0.5, "global_batch": 16, "log_every_steps": 1, **train_}
    job = job_from_values({"name": "job", "recipe": str(root / "recipe.py"), "data": chosen, "train": settings})
    run = RunFolder(root / "runs" / name)
    train_rank(job, run, Project(root), console=False)
    return run


def losses(run: RunFolder, kind: str = "train") -> list[float]:
    return [record["loss"] for record in run.records(kind)]


def pack(length: int = 12) -> dict:
    return {"ragged": {"tokens": {"as": "pack", "length": length}}}


def test_a_step_is_that_of_the_mean_over_all_tokens(root: Path) -> None:
    """One step, against the gradient that torch alone has for all tokens at once."""
    run = train(root, MODEL + SUM, max_steps=1, global_batch=40, accumulation=3, seed=4)
    torch.manual_seed(4)
    words, out = torch.nn.Embedding(30, 5), torch.nn.Linear(5, 3)
    tokens = torch.from_numpy(np.concatenate(samples()))
    loss = torch.nn.functional.cross_entropy(out(words(tokens)), tokens % 3)
    loss.backward()
    assert losses(run)[0] == pytest.approx(loss.item(), rel=1e-6)
    weights = load_file(run.model / "weights.safetensors")
    torch.testing.assert_close(weights["words.weight"], (words.weight - 0.5 * words.weight.grad).detach())
    torch.testing.assert_close(weights["out.weight"], (out.weight - 0.5 * out.weight.grad).detach())


def test_padded_packed_and_by_default_it_is_the_same_training(root: Path) -> None:
    found = [
        train(root, MODEL, "default", data={"ragged": {"tokens": {"to_multiple": 4}}}, epochs=2),
        train(root, MODEL + SUM, "padded", epochs=2, accumulation=2),
        train(root, MODEL + SUM, "packed", data=pack(), epochs=2),
        train(root, MODEL, "packed-default", data=pack(9), epochs=2),
        train(root, MODEL + SUM, "staged", data={"stage": True, **pack()}, epochs=2),
        train(root, MODEL + SUM, "ordered", data=pack(), epochs=2, reproducible=True, micro_batches=3),
    ]
    for run in found[1:]:
        assert losses(run) == pytest.approx(losses(found[0]), rel=1e-5)
        assert losses(run, "valid") == pytest.approx(losses(found[0], "valid"), rel=1e-5)
        for name, weight in load_file(run.model / "weights.safetensors").items():
            torch.testing.assert_close(weight, load_file(found[0].model / "weights.safetensors")[name])


def test_a_run_goes_on_where_it_was(root: Path) -> None:
    whole = train(root, MODEL + SUM, "whole", data=pack(), epochs=2)
    for steps in (1, 4, None):
        train(root, MODEL + SUM, "parts", data=pack(), epochs=2, max_steps=steps)
    parts = RunFolder(root / "runs" / "parts")
    assert losses(parts) == losses(whole)
    files = [one.model / "weights.safetensors" for one in (parts, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_validation_and_evaluation_are_means_over_tokens(root: Path) -> None:
    run = train(root, MODEL + SUM, data=pack())
    model = load_bundle(run.model)
    weights = load_file(run.model / "weights.safetensors")
    tokens = torch.from_numpy(np.concatenate(samples()))
    logits = weights["words.weight"][tokens] @ weights["out.weight"].T + weights["out.bias"]
    expected = torch.nn.functional.cross_entropy(logits, tokens % 3).item()
    assert losses(run, "valid")[-1] == pytest.approx(expected, rel=1e-6)
    found = evaluate(model, open_dataset(root / "data" / "d"), batch_size=7).metrics["loss"]
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.low < expected < found.high
    outputs = predict_file(model, root / "data" / "d", batch_size=7).outputs
    assert outputs.shape == (40, 3, 12)  # a row a sample
    at = 0
    for row, one in zip(outputs, samples(), strict=True):
        np.testing.assert_allclose(row[:, : len(one)], logits[at : at + len(one)].T, rtol=1e-5, atol=1e-6)
        at += len(one)


def test_metrics_may_be_sums(root: Path) -> None:
    own = """
def metrics(outputs, tags):
    right = (outputs.argmax(1) == tags).sum()
    return {"accuracy": (right, (tags != -100).sum()), "long": (tags != -100).sum(1) > 4}
"""
    found = [train(root, MODEL, "default"), train(root, MODEL + SUM + own, "own", accumulation=2)]
    valid = [[record["accuracy"] for record in run.records("valid")] for run in found]
    assert valid[0] == valid[1]
    metrics = evaluate(load_bundle(found[1].model), open_dataset(root / "data" / "d"), batch_size=9).metrics
    assert metrics["accuracy"].value == pytest.approx(valid[0][-1])
    assert metrics["long"].value == np.mean([len(one) > 4 for one in samples()])


def test_prediction_pads_all_batches_to_one_length_and_a_model_takes_any(root: Path) -> None:
    run = train(root, MODEL, data={"ragged": {"tokens": {"to_multiple": 4}}})
    model = load_bundle(run.model)
    assert [(one.name, one.shape) for one in model.signature.inputs] == [
        ("tokens", (-1,)),
        ("tokens_length", ()),
    ]
    assert predict_file(model, root / "data" / "d", batch_size=3).outputs.shape == (40, 3, 8)
    assert model({"tokens": np.ones((2, 5), "u2"), "tokens_length": np.array([5, 2])}).shape == (2, 3, 5)
    said = json.loads((run.model / "model.json").read_text())["ragged"]
    assert said["tokens"]["to_multiple"] == said["tags"]["to_multiple"] == 4


def test_augment_sees_a_sample_without_padding(root: Path) -> None:
    recipe = (
        MODEL
        + SUM
        + """
def augment(sample, rng):
    assert sorted(sample) == ["label", "tags", "tokens"]
    assert len(sample["tokens"]) == len(sample["tags"])
    assert (sample["tokens"] % 3 == sample["tags"]).all()
    sample["tokens"][...] = 29

def transform(batch, train):
    if train and "tokens_segment" in batch:
        assert bool(((batch["tokens"] == 29) == (batch["tokens_segment"] > 0)).all())
    elif train:
        own = torch.arange(batch["tokens"].shape[1]) < batch["tokens_length"][:, None]
        assert bool(((batch["tokens"] == 29) == own).all())
    return batch
"""
    )
    train(root, recipe, "padded")
    train(root, recipe, "packed", data=pack())
    longer = recipe.replace('sample["tokens"][...] = 29', 'return {"tokens": sample["tokens"][:0]}')
    with pytest.raises(RecipeError, match="augment gave uint16"):
        train(root, longer, "longer")


def test_what_a_recipe_is_told(root: Path) -> None:
    told = MODEL.replace("(params)", "(params, data)").replace(
        "return Tagger()",
        'assert data["tokens"]["lengths"]["max"] == data["tokens_length"]["max"] == 8\n    return Tagger()',
    )
    train(root, told + SUM)


@pytest.mark.parametrize(
    ("recipe", "data", "settings", "error", "what"),
    [
        (MODEL + MEAN, pack(), {}, RecipeError, "returned one number"),
        (MODEL + SUM, {**pack(), "targets": ["label"]}, {}, ConfigError, "'label' has one value a sample"),
        (MODEL + SUM, pack(), {"last_batch": "pad"}, ConfigError, "repeats samples"),
        (MODEL + SUM, pack(7), {}, ConfigError, "a sample has 8 values of tokens, more than the length of 7"),
        (MODEL + SUM, {"ragged": {"words": {}}}, {}, ConfigError, "no ragged field 'words'"),
        (TREES, {"targets": ["label"]}, {}, RecipeError, "samples of 'tokens' differ in length"),
        (MODEL + SUM.replace("(tags != -100).sum()", "1.5"), {}, {}, RecipeError, "not a sum and a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    root: Path, recipe: str, data: dict, settings: dict, error: type[HpcmassError], what: str
) -> None:
    with pytest.raises(error, match=what):
        train(root, recipe, data=data, **settings)


def test_padding_of_decimals_is_not_taken_for_values(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", "tests")
    with ShardWriter(project.data / "d", {"x": ("float32", (None,)), "y": ("float32", (None,))}) as writer:
        writer.write({"x": [1.0, 2.0], "y": [1.0, 2.0]})
    recipe = "import torch\ndef build_model(params):\n    return M()\nclass M(torch.nn.Module):\n"
    recipe += "    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Linear(1, 1)\n"
    recipe += "    def forward(self, x, n):\n        return self.w(x[..., None])[..., 0]\n"
    with pytest.raises(RecipeError, match="takes padding for values"):
        train(tmp_path / "p", recipe, data={"targets": ["y"]})


def test_the_job_file(tmp_path: Path) -> None:
    head = 'name = "j"\nrecipe = "r.py"\n[data]\ntrain = "d"\n[data.ragged.tokens]\n'
    (tmp_path / "r.py").write_text("")
    for text, what in (
        ('az = "pad"', "unknown key 'data.ragged.tokens.az'"), ('as = "pakc"\nlength = 3', "did you mean 'pack'"),
        ('as = "pack"', "needs the length of a row"), ("length = 0", "length"), ('longer = "cut"', "needs a length"),
        ("length = 4\nto_multiple = 2", "either a length or to_multiple"),
    ):  # fmt: skip
        (tmp_path / "j.toml").write_text(head + text)
        with pytest.raises(ConfigError, match=what):
            load_job(tmp_path / "j.toml")
    (tmp_path / "j.toml").write_text(head + 'as = "pack"\nlength = 4')
    table = load_job(tmp_path / "j.toml").data.ragged["tokens"]
    assert (table.kind, table.length) == ("pack", 4)
