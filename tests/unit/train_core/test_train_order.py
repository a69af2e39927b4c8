"""Runs in each order: what is recorded, what a run may go on with, the last batch."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcmass.config import Project, job_from_values
from hpcmass.data import open_dataset, shard
from hpcmass.errors import ConfigError, RecipeError
from hpcmass.runs import RunFolder, State
from hpcmass.train.rank import train_rank
from hpcmass.workflow.sharding import check_job

# Writes into the file TELL what went through the transform in training, and the rows that reached the loss. The
# model has no batch statistics, so padding could reach the weights through the loss only.
RECIPE = """
import json, os
import torch

def tell(**what):
    with open(os.environ["TELL"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Net(torch.nn.Module):
    def __init__(self, form):
        super().__init__()
        self.inner, self.form = torch.nn.Linear(6, 2), form

    def forward(self, x):
        out = self.inner(x)
        return {"plain": out, "dict": {"logits": out}, "whole": {"logits": out, "aux": out.mean()}}[self.form]

def build_model(params):
    if params.get("form") == "sgd":
        from sklearn.linear_model import SGDClassifier
        return SGDClassifier(loss="log_loss")
    return Net(params.get("form", "plain"))

def transform(batch, train):
    if train:
        tell(ids=batch["sample_id"].tolist())
    return batch

def loss(outputs, targets):
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    tell(rows=[len(logits), len(targets)])
    return torch.nn.functional.cross_entropy(logits, targets)

def metrics(outputs, targets):
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    return {"loss": torch.nn.functional.cross_entropy(logits, targets, reduction="none")}
"""
N = {"a": 47, "b": 20}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.create(tmp_path_factory.mktemp("order") / "p", "tests")
    for number, (name, n) in enumerate(N.items()):
        x = np.random.default_rng(number).normal(size=(n, 6)).astype("float32")
        y = (np.arange(n) < 10).astype("int64")
        np.savez(made.root / "raw.npz", x=x, y=y)
        shard(made.root / "raw.npz", made.data / name, inputs=["x"], targets=["y"], shards=2, workers=1)
    (made.root / "recipe.py").write_text(RECIPE)
    return made


class Trial:
    """Runs in one folder, and what their recipe told."""

    def __init__(self, project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project, self.run = project, RunFolder(folder / "r")
        self._tell = folder / "tell"
        monkeypatch.setenv("TELL", str(self._tell))

    def go(
        self, data: dict[str, Any] | None = None, *, fresh: bool = False, form: str = "plain", **train: Any
    ) -> Any:
        job = job_from_values({
            "name": "j", "recipe": str(self.project.root / "recipe.py"), "params": {"form": form},
            "data": {"train": "data/a", "valid": "data/a", **(data or {})},
            "train": {"epochs": 2, "global_batch": 10, "lr": 0.02, "log_every_steps": 1, **train},
        })  # fmt: skip
        return train_rank(job, self.run, self.project, console=False, fresh=fresh)

    def told(self, what: str) -> list[Any]:
        lines = [json.loads(line) for line in self._tell.read_text().splitlines()]
        return [line[what] for line in lines if what in line]

    def order(self) -> dict[str, Any]:
        return json.loads((self.run.path / "order.json").read_text())


@pytest.fixture
def trial(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(project, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "data",
    [
        {"order": "sequential"},
        {"order": "global"},
        {"order": "block", "block": {"kib": 1}},
        {"order": "stratified"},
    ],
)
def test_each_order_trains_on_each_sample_once_and_is_recorded(trial: Trial, data: dict[str, Any]) -> None:
    assert trial.go(data).state is State.COMPLETED
    batches = trial.told("ids")
    assert [len(ids) for ids in batches] == [10, 10, 10, 10, 7] * 2
    for epoch in (batches[:5], batches[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(47))
    assert (batches[0] == batches[5]) == (data["order"] == "sequential")
    said = trial.order()
    assert (said["kind"], said["n"], said["format"]) == (data["order"], 47, 2)
    if data["order"] == "block":
        assert said["block_samples"] == 43  # rows of 24 bytes in 1 KiB
    if data["order"] == "stratified":
        y = open_dataset(trial.project.data_path("data/a")).batch(np.arange(47))["y"]
        ones = [int(y[ids].sum()) for ids in batches]
        assert set(ones) <= {2, 3}  # 10 of 47 are
        assert {ones[4], ones[9]} <= {1, 2}


def test_a_mixture_is_trained_in_its_proportion(trial: Trial) -> None:
    data = {"train": ["data/a", "data/b"], "mix": {"data/a": 0.75, "data/b": 0.25}}
    assert trial.go(data, global_batch=8).state is State.COMPLETED
    batches = trial.told("ids")
    assert [len(ids) for ids in batches[:8]] == [8, 8, 8, 8, 8, 8, 8, 6]  # 62 until the first is used up
    assert {sum(i >= 47 for i in ids) for ids in batches if len(ids) == 8} == {1, 2}
    assert len(set(itertools.chain(*batches[:8]))) == 62
    assert trial.run.status().samples_done == 62
    assert [one["name"] for one in trial.order()["of"]] == ["data/a", "data/b"]


def test_a_run_goes_on_in_its_order_only(
    trial: Trial, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.go({"order": "block"}, epochs=1)
    assert trial.go({"order": "block"}, epochs=2).step == 10
    before = (trial.run.path / "status.json").read_bytes()
    # The same job, but the choices come out otherwise: another default, or other data under the same name.
    monkeypatch.setattr("hpcmass.data.orders.block_samples", lambda *_: 5)
    with pytest.raises(ConfigError) as caught:
        trial.go({"order": "block"}, epochs=3)
    assert "block_samples: 47 then, 5 now" in caught.value.message
    assert (trial.run.path / "status.json").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setenv("TELL", str(trial._tell))
    assert trial.go({"order": "block"}, epochs=3).step == 15
    # A run of another format, and one of before there were any.
    for said in ({**trial.order(), "format": 1}, {**trial.order(), "format": 3}, None):
        (trial.run.path / "order.json").unlink()
        if said is not None:
            (trial.run.path / "order.json").write_text(json.dumps(said))
        with pytest.raises(ConfigError, match=r"format: [13] then, 2 now") as caught:
            trial.go({"order": "block"}, epochs=4)
        assert "--fresh" in str(caught.value.hint)
        if said is None:
            break
    assert trial.go({"order": "block"}, epochs=4, fresh=True).step == 20


def test_a_run_of_before_goes_on_where_its_order_is_the_same(trial: Trial) -> None:
    trial.go({"order": "sequential"}, epochs=1)
    (trial.run.path / "order.json").unlink()
    assert trial.go({"order": "sequential"}, epochs=2).step == 10


@pytest.mark.parametrize("form", ["plain", "dict"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_padding_counts_in_nothing(trial: Trial, tmp_path: Path, form: str, accumulation: int) -> None:
    trial.go(form=form, accumulation=accumulation, optimizer="SGD")
    kept, losses = load_file(trial.run.model / "weights.safetensors"), list(trial.run.records("train"))
    rows = trial.told("rows")
    trial.run, trial._tell = RunFolder(tmp_path / "padded"), trial._tell
    trial._tell.unlink()
    trial.go(form=form, accumulation=accumulation, optimizer="SGD", last_batch="pad")
    widths = {1: [10], 3: [4, 3, 3]}[accumulation]
    assert [len(ids) for ids in trial.told("ids")] == widths * 10  # every step has the same shapes
    assert trial.told("rows") == rows  # and the loss the rows of the samples alone
    for name, value in load_file(trial.run.model / "weights.safetensors").items():
        assert torch.allclose(value, kept[name], rtol=1e-5, atol=1e-7), name
    assert [one["loss"] for one in trial.run.records("train")] == pytest.approx([one["loss"] for one in losses])
    last = trial.told("ids")[4 * len(widths) : 5 * len(widths)]
    assert len({i for ids in last for i in ids}) == 7


def test_padding_that_cannot_be_taken_out_is_refused(trial: Trial) -> None:
    with pytest.raises(RecipeError, match="has not one row for each of 10 samples") as caught:
        trial.go(form="whole", last_batch="pad")
    assert caught.value.where == "train.last_batch"


def test_dropped_and_short(trial: Trial) -> None:
    trial.go(last_batch="drop")
    assert [len(ids) for ids in trial.told("ids")] == [10] * 8
    with pytest.raises(ConfigError, match="no whole batch of 100") as caught:
        trial.go(last_batch="drop", global_batch=100, fresh=True)
    assert caught.value.where == "train.last_batch"


def test_what_does_not_fit_leaves_no_run(trial: Trial) -> None:
    with pytest.raises(ConfigError, match="no single whole number"):
        trial.go({"order": "stratified", "stratify": "x"})
    assert not trial.run.path.exists()


def test_an_estimator_is_streamed_in_the_order(trial: Trial) -> None:
    mix = {"train": ["data/a", "data/b"], "mix": {"data/a": 0.75, "data/b": 0.25}}
    assert trial.go(mix, form="sgd", fit="stream", epochs=1, global_batch=8).state is State.COMPLETED
    batches = trial.told("ids")
    assert [len(ids) for ids in batches] == [8] * 7 + [6]
    assert {sum(i >= 47 for i in ids) for ids in batches} <= {1, 2}
    with pytest.raises(ConfigError, match="fitted whole"):
        trial.go(mix, form="sgd", fit="whole", epochs=1, global_batch=8, fresh=True)


def test_job_check_says_the_order(project: Project) -> None:
    (project.root / "job.toml").write_text(
        'name = "j"\nrecipe = "recipe.py"\n[data]\ntrain = "data/a"\norder = "block"\n[train]\nglobal_batch = 10\n'
    )
    notes = check_job(project.root / "job.toml", [], project)[1]
    assert any(note.startswith("order: block: 47 samples in 1 blocks of 47") for note in notes)
    with pytest.raises(ConfigError, match="no field of the data set"):
        check_job(project.root / "job.toml", ["data.order=stratified", "data.stratify=q"], project)
