"""Precision, compiled models and the learning rate's scaling, in whole runs of one rank."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcmass.config import Project, job_from_values
from hpcmass.data import shard
from hpcmass.errors import ConfigError, TrainError
from hpcmass.runs import RunFolder, State, Status
from hpcmass.train.precision import Precision
from hpcmass.train.rank import train_rank

# Times 3000 a gradient overflows fp16 at the first scale (65536), and not at some smaller one.
RECIPE = """
import os
import torch

CALLS = []

def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

def transform(batch, train):
    CALLS.append(train)
    if os.environ.get("SEND_AT") and CALLS.count(True) == int(os.environ["SEND_AT"]):
        os.kill(os.getpid(), int(os.environ["SEND"]))
    return batch

class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")

def loss(outputs, targets):
    assert outputs.dtype == getattr(torch, os.environ.get("WANTED", "float32"))
    if os.environ.get("SPOIL"):
        outputs = Spoil.apply(outputs)
    return torch.nn.functional.cross_entropy(outputs * float(os.environ.get("TIMES", "1")), targets)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.create(tmp_path_factory.mktemp("precision") / "p", "tests")
    x = np.random.default_rng(0).normal(size=(47, 6)).astype("float32")
    np.savez(made.root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    shard(made.root / "raw.npz", made.data / "d", inputs=["x"], targets=["y"], shards=2, workers=1)
    (made.root / "recipe.py").write_text(RECIPE)
    return made


def go(project: Project, folder: Path, **train) -> tuple[RunFolder, Status]:
    base = {"epochs": 3, "global_batch": 10, "log_every_steps": 2, "lr": 0.02, "optimizer": "SGD"}
    job = job_from_values({
        "name": "j", "recipe": str(project.root / "recipe.py"), "data": {"train": "data/d"},
        "train": {**base, **train},
    })  # fmt: skip
    run = RunFolder(folder)
    return run, train_rank(job, run, project, console=False)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "weights.safetensors")


def test_fp16_skips_what_overflows_and_goes_on_exactly(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANTED", "float16")
    monkeypatch.setenv("TIMES", "3000")
    changes = {
        "precision": "fp16", "checkpoint_every_steps": 1, "clip_norm": 1.0, "schedule": {"name": "CosineAnnealingLR"},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, status = go(project, tmp_path / "whole", **changes)
    assert (status.state, status.step) == (State.COMPLETED, 15)
    told = list(whole.records("train"))
    skipped = [record["skipped_steps"] for record in told]
    assert skipped[0] == 2, "the first steps must overflow, or this test shows nothing"
    assert 0 in skipped, "the scale never became small enough"
    assert told[-1]["loss_scale"] == 65536 / 2 ** sum(skipped)
    run = RunFolder(tmp_path / "parts")
    monkeypatch.setenv("SEND", str(int(signal.SIGTERM)))
    for more, step in ((1, 1), (4, 5)):  # while the scale still falls, and at an epoch's end
        monkeypatch.setenv("SEND_AT", str(more))
        _, status = go(project, run.path, **changes)
        assert (status.state, status.step) == (State.STOPPED, step)
    monkeypatch.delenv("SEND_AT")
    assert go(project, run.path, **changes)[1].state is State.COMPLETED
    keys = ("step", "loss", "lr", "loss_scale", "skipped_steps")
    assert [[r[k] for k in keys] for r in run.records("train")] == [[r[k] for k in keys] for r in told]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(run)[name]), name


def test_gradients_that_no_scale_helps_end_the_run(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANTED", "float16")
    monkeypatch.setenv("SPOIL", "1")
    with pytest.raises(TrainError, match="gradients are NaN or infinite at step 27 "):
        go(project, tmp_path / "r", precision="fp16", epochs=10)
    assert go(project, tmp_path / "s", precision="fp16", epochs=5)[1].state is State.COMPLETED


def test_bf16(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTED", "bfloat16")
    run, status = go(project, tmp_path / "r", precision="bf16")
    assert status.state is State.COMPLETED
    assert "loss_scale" not in next(iter(run.records("train")))


def test_clipping_is_of_the_unscaled_gradients(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(precision: str, wanted: str) -> float:
        monkeypatch.setenv("WANTED", wanted)
        changes = {"precision": precision, "clip_norm": 1e-3, "lr": 1.0, "max_steps": 1}
        first = go(project, tmp_path / f"{precision}-0", **{**changes, "lr": 1e-12})[0]
        last = go(project, tmp_path / precision, **changes)[0]
        before, after = weights(first), weights(last)
        return torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()

    assert moved("fp32", "float32") == pytest.approx(1e-3, rel=1e-3)
    assert moved("fp16", "float16") == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.timeout(900)  # a cold compiler on a busy machine: three minutes
def test_a_compiled_model_is_kept_under_its_own_names(project: Project, tmp_path: Path) -> None:
    plain, _ = go(project, tmp_path / "plain", max_steps=3)
    run, status = go(project, tmp_path / "r", max_steps=3, compile=True)
    assert status.state is State.COMPLETED
    assert set(weights(run)) == set(weights(plain))
    (state,) = (run.checkpoints).glob("*.safetensors")
    assert not any("_orig_mod" in name for name in load_file(state))
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(tensor, weights(run)[name], rtol=1e-4, atol=1e-5)
    (record,) = run.records("start")
    assert record["training"]["compile"] is True


def test_no_compiler(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --fast")
    with pytest.raises(ConfigError, match="no-such-compiler") as caught:
        go(project, tmp_path / "r", compile=True)
    assert caught.value.where == "train.compile"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_grows_with_the_batch(project: Project, tmp_path: Path, scaling: str, factor: float) -> None:
    changes = {"global_batch": 20, "lr_batch": 5, "lr_scaling": scaling, "lr": 0.01, "max_steps": 2}
    run, _ = go(project, tmp_path / "r", **changes)
    assert [record["lr"] for record in run.records("train")] == [pytest.approx(0.01 * factor)]
    (record,) = run.records("start")
    assert record["training"]["lr"] == pytest.approx(0.01 * factor)
    assert record["training"]["lr_scaling"] == scaling


def test_scaling_needs_the_batch_that_the_rate_is_for() -> None:
    values = {"name": "j", "recipe": "r.py", "data": {"train": "d"}, "train": {"lr_scaling": "linear"}}
    with pytest.raises(ConfigError, match=r"train\.lr_batch"):
        job_from_values(values)


@pytest.mark.parametrize("resumed", [False, True])
def test_fp16_on_a_rank_without_a_sample_in_its_first_step(resumed: bool) -> None:
    precision = Precision("fp16", torch.device("cpu"))
    if resumed:
        other = Precision("fp16", torch.device("cpu"))
        precision.load({**(other.state() or {}), "scale": 1024.0})
    model = torch.nn.Linear(2, 1)
    for parameter in model.parameters():  # what came of the other ranks
        parameter.grad = torch.full_like(parameter, 1024.0)
    before = model.bias.item()
    assert precision.step(torch.optim.SGD(model.parameters(), lr=0.5), list(model.parameters()), None)
    assert before - model.bias.item() == pytest.approx(0.5 * 1024 / (1024 if resumed else 65536), rel=1e-4)
    assert precision.scale == (1024.0 if resumed else 65536.0)
