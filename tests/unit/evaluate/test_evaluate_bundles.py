"""Real datasets and real bundles: from a reference to an evaluation and predictions."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hpcmass.catalogue import Catalogue  # noqa: E402
from hpcmass.data import open_dataset, shard  # noqa: E402
from hpcmass.errors import DataError, NotFound  # noqa: E402
from hpcmass.evaluate import cache_folder, evaluate, predict_file, resolve_bundle, resolve_model  # noqa: E402
from hpcmass.train.bundle_writer import write_torch_bundle  # noqa: E402
from hpcmass.train.recipe import load_recipe  # noqa: E402

RECIPE = """
import torch


def build_model(params):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, params["classes"]))
"""


@dataclass
class Project:
    runs: Path
    catalogue: Path


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path / "runs", tmp_path / "catalogue")


@pytest.fixture
def dataset(tmp_path):
    """90 images of 4 x 4, class = the brightest of three pixels; as shards on disk."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    image = rng.integers(0, 100, (90, 4, 4)).astype(np.uint8)
    image[np.arange(90), 0, label] = 255
    np.savez(tmp_path / "raw.npz", image=image, label=label)
    shard([tmp_path / "raw.npz"], tmp_path / "data", shards=2)
    return open_dataset(tmp_path / "data")


@pytest.fixture
def bundle(tmp_path, dataset):
    recipe_file = tmp_path / "recipe.py"
    recipe_file.write_text(RECIPE)
    recipe, params = load_recipe(recipe_file), {"classes": 3}
    model = recipe.build_model(params)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
        for index in range(3):
            model[1].weight[index, index] = 20.0
    return write_torch_bundle(tmp_path / "bundle", model, recipe, params, dataset, torch.zeros(2, 3))


def test_a_bundle_is_evaluated_and_predicts(tmp_path, dataset, bundle, project):
    model, told = resolve_model(str(bundle), None)
    assert told == str(bundle)
    found = evaluate(model, dataset, batch_size=32)
    assert (found.n, found.dataset) == (90, dataset.id)
    assert found.metrics["accuracy"].value == 1.0
    assert np.array_equal(np.diag(np.diag(found.confusion)), found.confusion)
    from_folder = predict_file(model, tmp_path / "data", batch_size=40)
    from_file = predict_file(model, tmp_path / "raw.npz")
    assert from_file.n == from_folder.n == 90
    truth = np.load(tmp_path / "raw.npz")["label"]
    assert from_file.labels == [str(label) for label in truth]
    everything = dataset.batch(np.arange(90))
    assert from_folder.labels == [str(label) for label in everything["label"]]
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(everything["image"][7]).save(tmp_path / "7.png")
    assert predict_file(model, tmp_path / "7.png").labels == [str(everything["label"][7])]
    other = tmp_path / "other"
    np.savez(tmp_path / "other.npz", x=np.zeros((10, 3), np.float32))
    shard([tmp_path / "other.npz"], other, shards=1, inputs=["x"])
    with pytest.raises(DataError, match="no input 'image'"):
        predict_file(model, other)


def test_references(bundle, project):
    catalogue = Catalogue(project.catalogue)
    version = catalogue.register("net", bundle, metrics={}, lineage={})
    catalogue.alias("net", "production", 1, why="")
    for ref in ("net", "net@1", "net@production", "net@latest"):
        model, told = resolve_model(ref, project)
        assert told == "net@1"
        assert model.task == "classification"
    assert os.listdir(cache_folder()) == [version.content_id]

    run = project.runs / "first"
    run.mkdir(parents=True)
    (run / "job.toml").touch()
    with pytest.raises(NotFound, match="no model yet"):
        resolve_bundle("first", project)
    bundle.rename(run / "model")
    assert resolve_bundle("first", project) == (run / "model", "run first", run)
    assert resolve_bundle("runs/first", project) == (Path("runs/first/model"), "runs/first", Path("runs/first"))
    assert resolve_bundle("runs/first/model", None) == (Path("runs/first/model"), "runs/first/model", None)
    for ref in ("nothing", "runs/nothing", "net@nothing", "runs", "../x", "", "$(id)"):
        with pytest.raises(NotFound):
            resolve_bundle(ref, project)
    with pytest.raises(NotFound, match="no project"):
        resolve_bundle("net@1", None)
    with pytest.raises(NotFound, match="did you mean net"):
        resolve_bundle("nett", project)


def test_a_damaged_cache_is_made_again(bundle, project):
    Catalogue(project.catalogue).register("net", bundle, metrics={}, lineage={})
    folder = resolve_bundle("net", project).folder
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert resolve_bundle("net", project)[0] == folder
    assert weights.read_bytes() == whole
    weights.unlink()
    resolve_bundle("net", project)
    assert weights.read_bytes() == whole
