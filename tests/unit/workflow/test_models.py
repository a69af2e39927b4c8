"""Evaluation of models by name: the right target, and the right run."""

import numpy as np
import pytest
from study_jobs import RECIPE, RECIPE_JOB, job_of

from hpcmass.config import Project
from hpcmass.data import open_dataset, shard
from hpcmass.errors import RecipeError
from hpcmass.train.bundle import read_bundle
from hpcmass.train.facts import facts_of
from hpcmass.workflow.models import evaluate_model, keep_run, load, register_run
from hpcmass.workflow.registry import open_catalogue
from hpcmass.workflow.sharding import check_job
from hpcmass.workflow.training import train


def test_a_model_is_held_against_the_target_of_its_job(tmp_path):
    project = Project.create(tmp_path / "project", "test")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 4)).astype(np.float32)
    good, other = (x[:, 0] > 0).astype(np.int64), rng.integers(0, 2, 240)
    np.savez(tmp_path / "raw.npz", x=x, label=other, side=good)
    shard(tmp_path / "raw.npz", project.data / "d", inputs=["x"], targets=["label"], meta=["side"], workers=1)
    (tmp_path / "recipe.py").write_text(RECIPE)
    text = RECIPE_JOB.partition("[sweep]")[0]
    text = text.replace("data/toy/train", "data/d").replace("data/toy/valid", "data/d")
    text = text.replace('test = "data/toy/test"', 'targets = ["side"]').replace("epochs = 2", "epochs = 15")
    run, status = train(job_of(project, text), project, console=False)
    assert status.metrics["accuracy"] > 0.85
    kept = evaluate_model("toy", "data/d", project)
    assert kept.metrics["accuracy"].value > 0.85
    assert len(list((run.path / "evaluations").iterdir())) == 1

    # A bundle's folder is a model too, though it is no name of a run.
    assert evaluate_model(str(run.model), "data/d", project).to_json() == kept.to_json()

    # Now the bare name is the catalogue's: its evaluation is not the run's.
    register_run("toy", project)
    (next((run.path / "evaluations").iterdir())).unlink()
    again = evaluate_model("toy", "data/d", project)
    assert again.metrics["accuracy"].value == kept.metrics["accuracy"].value
    assert list((run.path / "evaluations").iterdir()) == []


SQUEEZE = """
import torch
from torch import nn


class Squeeze(nn.Module):
    def __init__(self, facts, size):
        super().__init__()
        self.mean, self.std = facts["mean"], facts["std"]
        self.down = nn.Linear(facts["shape"][0], size)
        self.up = nn.Linear(size, facts["shape"][0])

    def forward(self, x, b, a):
        return self.mean + self.std * self.up(self.down((x - self.mean) / self.std))


def build_model(params, data):
    assert list(data) == ["x", "b", "a"]
    return Squeeze(data["x"], params["size"])


def loss(outputs, targets):
    return (outputs - targets["x"]).square().mean()


def metrics(outputs, targets):
    targets = targets["x"]
    return {"squares": (outputs - targets).square().mean(dim=1), "ones": torch.ones(len(targets))}
"""


def test_an_autoencoder_built_from_facts_is_measured_by_its_recipe(tmp_path):
    project = Project.create(tmp_path / "project", "test")
    rng = np.random.default_rng(0)
    x = (500 + 10 * rng.normal(size=(300, 1)) * np.linspace(1, 2, 6)).astype(np.float32)
    columns = {"x": x, "b": np.ones(300), "a": np.arange(300)}
    np.savez(tmp_path / "raw.npz", **columns, name=np.arange(300))
    shard(tmp_path / "raw.npz", project.data / "d", inputs=list(columns), meta=["name"], shards=2, workers=1)
    few = {name: values[:4] for name, values in columns.items()}
    (tmp_path / "recipe.py").write_text(SQUEEZE)
    text = """
name = "squeeze"
recipe = "recipe.py"
params = { size = 1 }
data = { train = "data/d", valid = "data/d" }
train = { epochs = 30, global_batch = 30, lr = 1e-2 }
"""
    job = job_of(project, text)
    run, status = train(job, project, console=False)
    assert status.metrics["squares"] < 0.05 * x.var()

    found = evaluate_model("squeeze", "data/d", project)
    assert (found.task, found.n, found.main) == ("other", 300, "squares")
    assert found.metrics["squares"].value == pytest.approx(status.metrics["squares"], rel=1e-4)
    assert found.metrics["squares"].low < found.metrics["squares"].value < found.metrics["squares"].high
    assert found.metrics["ones"].value == 1.0
    assert found.metrics["loss"].value == pytest.approx(found.metrics["squares"].value, rel=1e-4)

    # The facts lie in the model: it is the same one without the data.
    outputs = load("squeeze", project=project)(few)
    (project.data / "d").rename(project.data / "gone")
    np.testing.assert_array_equal(load("squeeze", project=project)(few), outputs)
    np.testing.assert_allclose(outputs, x[:4], atol=10)
    (project.data / "gone").rename(project.data / "d")
    facts = read_bundle(run.model).data
    assert facts == facts_of(open_dataset(project.data / "d"))

    # Kept once, however often it is asked; another run is another version.
    first = keep_run(run, project, evaluation=found, why="test")
    assert keep_run(run, project, evaluation=found, why="test").ref == first.ref == "squeeze@1"
    other, _ = train(job, project, run_name="second", console=False)
    assert keep_run(other, project).ref == "squeeze@2"
    assert [move.why for move in open_catalogue(project).history("squeeze", "production")] == ["test", ""]


def test_check_builds_a_model_that_needs_facts(tmp_path):
    project = Project.create(tmp_path / "project", "test")
    np.savez(tmp_path / "raw.npz", x=np.zeros((20, 6), np.float32))
    shard(tmp_path / "raw.npz", project.data / "d", inputs=["x"], workers=1)
    (tmp_path / "recipe.py").write_text(
        SQUEEZE.replace('    assert list(data) == ["x", "b", "a"]', '    data["y"]')
    )
    file = tmp_path / "job.toml"
    file.write_text('name = "a"\nrecipe = "recipe.py"\nparams = { size = 1 }\ndata = { train = "data/d" }\n')
    with pytest.raises(RecipeError, match="KeyError: 'y'"):
        check_job(file, (), project)
    check_job(file, (), None)
