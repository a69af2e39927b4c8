"""Weights to begin with: read as tensors alone, held against the model, applied once, written down."""

import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project, job_from_values
from hpcmass.data import shard
from hpcmass.errors import ConfigError, CorruptError, HpcmassError, NotFound, TrainError
from hpcmass.runs import RunFolder, State
from hpcmass.train import checkpoint, initial, tensorfile
from hpcmass.train.checkpoint import Mark
from hpcmass.train.rank import train_rank

RECIPE = """
import torch

def build_model(params):
    if params.get("trees"):
        from sklearn.tree import DecisionTreeClassifier
        return DecisionTreeClassifier()
    return torch.nn.Sequential(torch.nn.Linear(6, params.get("width", 8)), torch.nn.Linear(params.get("width", 8), 2))

def transform(batch, train):
    batch["x"] = batch["x"].float()
    if train and __import__("os").environ.get("DIE"):
        raise RuntimeError("the recipe is at its end")
    return batch
"""
SEEN: list[str] = []


def touched() -> None:
    SEEN.append("code of the file was run")


class Hostile:
    """Unpickled in full, it calls a function."""

    def __reduce__(self) -> tuple:
        return touched, ()


def model(width: int = 8) -> torch.nn.Module:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Linear(width, 2))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project.create(tmp_path / "p", "tests")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype("float32")
    np.savez(made.root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    shard(made.root / "raw.npz", made.data / "d", inputs=["x"], targets=["y"], shards=1, workers=1)
    (made.root / "recipe.py").write_text(RECIPE)
    return made


def go(project: Project, name: str = "r", params: dict | None = None, **train: object) -> RunFolder:
    run = RunFolder(project.runs / name)
    job = job_from_values({
        "name": name, "recipe": str(project.root / "recipe.py"), "params": params or {},
        "data": {"train": "data/d", "valid": "data/d"},
        "train": {"epochs": 1, "global_batch": 10, "optimizer": "SGD", "lr": 1e-30, **train},
    })  # fmt: skip
    train_rank(job, run, project, console=False)
    return run


def trained(run: RunFolder) -> dict[str, torch.Tensor]:
    return checkpoint.load_latest(run.checkpoints)[1]["model"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


KINDS = ["plain", "lightning", "wrapped", "safetensors", "checkpoint", "commit", "run", "model", "catalogue"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(kind: str, project: Project) -> None:
    weights = model().state_dict()
    file = project.root / "w.pt"
    source = "w.pt"
    if kind == "plain":
        torch.save(weights, file)
    elif kind == "lightning":
        torch.save({"epoch": 3, "state_dict": weights, "lr": 0.1}, file)
    elif kind == "wrapped":
        torch.save(OrderedDict((f"_orig_mod.{name}", value) for name, value in weights.items()), file)
    elif kind == "safetensors":
        save_file(weights, file)
    elif kind in ("checkpoint", "commit"):
        state = {"model": weights, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
        tensors: dict[str, torch.Tensor] = {}
        skeleton = tensorfile.encode(state, "", tensors)
        layout = tensorfile.lay_out(tensors)
        pieces = [layout.header(checkpoint.metadata(skeleton)), *tensorfile.bodies(layout, tensors)]
        part = checkpoint.write_part(project.root / "step-000000005.safetensors", pieces)
        checkpoint.commit(project.root, Mark(5, 0, 0, 1), [part], keep=1, pace={})
        source = "step-000000005" + (".json" if kind == "commit" else ".safetensors")
    else:
        torch.save(weights, file)
        go(project, "before", init_from="w.pt")
        source = {"run": "runs/before", "model": "runs/before/model", "catalogue": "m@1"}[kind]
        if kind == "catalogue":
            Catalogue(project.catalogue).register(
                "m", project.runs / "before" / "model", metrics={}, lineage={}
            )
    run = go(project, init_from=source)
    assert same(trained(run), weights)
    said = json.loads((run.path / "init.json").read_text())
    assert (said["format"], said["from"], said["tensors"], said["of"], said["missing"]) == (1, source, 4, 4, [])


def test_nothing_else_is_unpickled(project: Project) -> None:
    for bad in (Hostile(), {"state_dict": Hostile()}, model()):
        torch.save(bad, project.root / "w.pt")
        with pytest.raises(CorruptError, match=r"w\.pt: is not a file of tensors alone"):
            go(project, init_from="w.pt")
    assert SEEN == []
    for text in (b"", b"garbage", b"\x10\0\0\0\0\0\0\0{ not json     "):
        (project.root / "w.pt").write_bytes(text)
        with pytest.raises(CorruptError, match=r"w\.pt"):
            go(project, init_from="w.pt")
    torch.save([1, 2], project.root / "w.pt")
    with pytest.raises(CorruptError, match="no state_dict"):
        go(project, init_from="w.pt")
    assert not (project.runs / "r").exists(), "bad input leaves nothing"


def test_what_does_not_fit_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    weights = model(16).state_dict()
    del weights["1.bias"]
    weights["head.weight"] = torch.ones(3)
    torch.save(weights, project.root / "w.pt")
    with pytest.raises(TrainError) as caught:
        go(project, init_from="w.pt")
    for text in ("1.bias", "head.weight", "0.weight (8, 6) here, (16, 6) there"):
        assert text in caught.value.message
    assert not (project.runs / "r").exists()
    with pytest.raises(TrainError, match="0 of the model's 4 tensors fit"):
        go(project, init_from="w.pt", init_strict=False)
    weights["1.bias"] = torch.tensor([3.0, 4.0])
    torch.save(weights, project.root / "w.pt")
    run = go(project, init_from="w.pt", init_strict=False)
    assert torch.equal(trained(run)["1.bias"], torch.tensor([3.0, 4.0]))
    said = json.loads((run.path / "init.json").read_text())
    assert (said["tensors"], said["unexpected"]) == (1, ["head.weight"])
    assert said["shapes"] == ["0.weight", "0.bias", "1.weight"]
    weights["1.bias"][0] = float("nan")
    torch.save(weights, project.root / "w.pt")
    with pytest.raises(TrainError, match=r"1\.bias.*NaN"):
        go(project, "s", init_from="w.pt", init_strict=False)


def test_half_precision_is_taken_as_the_model_s_own(project: Project) -> None:
    weights = {name: value.half() for name, value in model().state_dict().items()}
    torch.save(weights, project.root / "w.pt")
    got = trained(go(project, init_from="w.pt"))
    assert same({name: value.half() for name, value in got.items()}, weights)
    assert {value.dtype for value in got.values()} == {torch.float32}


def test_it_is_applied_where_the_run_begins_and_not_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(model().state_dict(), project.root / "w.pt")
    monkeypatch.setenv("DIE", "1")
    with pytest.raises(HpcmassError, match="at its end"):
        go(project, init_from="w.pt")
    monkeypatch.delenv("DIE")
    torch.save({name: value + 1 for name, value in model().state_dict().items()}, project.root / "w.pt")
    with pytest.raises(TrainError, match="not what it was"):  # no checkpoint yet: it would begin with others
        go(project, init_from="w.pt")
    torch.save(model().state_dict(), project.root / "w.pt")
    run = go(project, init_from="w.pt")
    assert same(trained(run), model().state_dict())
    os.unlink(project.root / "w.pt")
    go(project, init_from="w.pt", epochs=2)  # goes on from its checkpoint; the file is not needed
    assert run.status().state is State.COMPLETED
    with pytest.raises(ConfigError, match=r"train\.init_from"):
        go(project, init_from="other.pt", epochs=2)


def test_nothing_there(project: Project) -> None:
    for source in ("none.pt", "runs", "none@3"):
        with pytest.raises(NotFound):
            go(project, init_from=source)
    torch.save(model().state_dict(), project.root / "w.pt")
    with pytest.raises(ConfigError, match="estimator"):
        go(project, params={"trees": True}, init_from="w.pt")
    assert not (project.runs / "r").exists()
    shutil.copy(project.root / "w.pt", project.root / "a b.pt")
    assert initial.begin_with(model(), "a b.pt", project, strict=True)["tensors"] == 4
