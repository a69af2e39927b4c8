"""What is appended to a dataset is for runs that begin: one that goes on, or a part of one, keeps what it had."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmass.config import Project, job_from_values
from hpcmass.data import append, open_dataset, shard
from hpcmass.errors import ConfigError, RecipeError
from hpcmass.runs import RunFolder, State
from hpcmass.train.pins import read_pins, settle
from hpcmass.train.rank import train_rank

RECIPE = """
import json, os
import torch

def build_model(params):
    return torch.nn.Linear(6, 2)

def transform(batch, train):
    if train:
        with open(os.environ["TELL"], "a") as file:
            file.write(json.dumps(batch["sample_id"].tolist()) + "\\n")
        with open(os.environ["TELL"]) as file:
            if len(file.readlines()) == int(os.environ.get("RAISE_AT", "0")):
                raise RuntimeError("the recipe is at its end")
    return batch
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project.create(tmp_path / "p", "tests")
    for name, n in (("a", 47), ("b", 20)):
        save(made, n)
        shard(made.root / "raw.npz", made.data / name, inputs=["x"], targets=["y"], shards=2, workers=1)
    (made.root / "recipe.py").write_text(RECIPE)
    return made


def save(project: Project, n: int) -> Path:
    x = np.random.default_rng(n).normal(size=(n, 6)).astype("float32")
    np.savez(project.root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    return project.root / "raw.npz"


def train(
    project: Project, name: str, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> list[list[int]]:
    """Trains, or goes on; the samples of each step that this call made."""
    tell = project.root / "tell"
    tell.unlink(missing_ok=True)
    monkeypatch.setenv("TELL", str(tell))
    job = job_from_values({
        "name": "j", "recipe": str(project.root / "recipe.py"),
        "data": {"train": "data/a", "valid": "data/a", **data},
        "train": {"epochs": 2, "global_batch": 10, "lr": 0.02, "checkpoint_every_steps": 1},
    })  # fmt: skip
    try:
        assert train_rank(job, RunFolder(project.runs / name), project, console=False).state is State.COMPLETED
    except RecipeError:
        assert "RAISE_AT" in os.environ
    return [json.loads(line) for line in tell.read_text().splitlines()]


@pytest.mark.parametrize(
    "data",
    [
        {"order": "global"},
        {"order": "stratified"},
        {"train": ["data/a", "data/b"], "mix": {"data/a": 0.5, "data/b": 0.5}},
    ],
)
def test_a_run_that_goes_on_keeps_what_it_began_with(
    project: Project, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    undisturbed = train(project, "undisturbed", monkeypatch, data)
    monkeypatch.setenv("RAISE_AT", "7")
    begun = train(project, "r", monkeypatch, data)
    assert begun == undisturbed[:7]
    monkeypatch.delenv("RAISE_AT")
    before = open_dataset(project.data / "a").id
    append(project.data / "a", save(project, 31))
    rest = train(project, "r", monkeypatch, data)
    assert rest == undisturbed[-len(rest) :]
    assert len(rest) + 7 >= len(undisturbed)
    weights = [
        (project.runs / name / "model" / "weights.safetensors").read_bytes() for name in ("undisturbed", "r")
    ]
    assert weights[0] == weights[1]
    assert read_pins(project.runs / "r")["data/a"] == before
    new = train(project, "new", monkeypatch, data)
    assert {i for ids in new for i in ids} >= set(range(78)) if "mix" not in data else new != undisturbed
    assert read_pins(project.runs / "new")["data/a"] == open_dataset(project.data / "a").id != before


def test_data_that_was_cut_anew_is_another_dataset(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAISE_AT", "7")
    train(project, "r", monkeypatch, {})
    monkeypatch.delenv("RAISE_AT")
    shard(save(project, 47), project.data / "a", inputs=["x"], targets=["y"], shards=3, overwrite=True)
    with pytest.raises(ConfigError, match="begun with another dataset 'data/a'"):
        train(project, "r", monkeypatch, {})


def test_a_run_that_has_not_trained_yet_takes_what_is_there(project: Project) -> None:
    run = RunFolder(project.runs / "r")
    run.path.mkdir(parents=True)
    (run.path / "datasets.json").write_text(json.dumps({"format": 1, "datasets": {"data/a": "0" * 64}}))
    job = job_from_values({"name": "j", "recipe": "recipe.py", "data": {"train": "data/a"}})
    assert settle(job, project, run) == {"data/a": open_dataset(project.data / "a").id}
