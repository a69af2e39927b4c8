"""Reading ahead: it foretells every batch of a run, and changes nothing of what is trained."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hpcmass.config import Project, job_from_values
from hpcmass.data import open_dataset, rank_slice, shard
from hpcmass.runs import RunFolder, State
from hpcmass.train import gradients as gradients_module
from hpcmass.train import validate as validate_module
from hpcmass.train.feed import ReadAhead, steps_ahead
from hpcmass.train.gradients import Gradients
from hpcmass.train.rank import train_rank

RECIPE = """
import torch

def build_model(params):
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
    )

def transform(batch, train):
    batch["x"].mul_(0.5)  # in place: what the next batch is read into is not what the last one was changed to
    return batch
"""


class Counting(ReadAhead):
    """Keeps what it foretold."""

    made: ClassVar[list[Counting]] = []

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.made.append(self)


class AtOnce(ReadAhead):
    """Reads when asked."""

    def __init__(self, dataset: Any, plan: Any, **more: Any) -> None:
        super().__init__(dataset, plan, **more)
        self.close()


def train(tmp_path: Path, name: str, reader: type, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> RunFolder:
    if not (tmp_path / "data").exists():
        random = np.random.default_rng(0)
        np.savez(
            tmp_path / "a.npz", x=random.random((203, 6)).astype(np.float32), label=random.integers(0, 2, 203)
        )
        shard(tmp_path / "a.npz", tmp_path / "data", shards=3, workers=1)
        (tmp_path / "recipe.py").write_text(RECIPE)
        (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    monkeypatch.setattr(gradients_module, "ReadAhead", reader)
    monkeypatch.setattr(validate_module, "ReadAhead", reader)
    values = {
        "name": "r", "recipe": str(tmp_path / "recipe.py"),
        "data": {"train": str(tmp_path / "data"), "valid": str(tmp_path / "data")},
        "train": {"global_batch": 32, "accumulation": 3, "epochs": 3, "checkpoint_every_steps": 2, **keys},
    }  # fmt: skip
    run = RunFolder(tmp_path / name)
    status = train_rank(job_from_values(values), run, Project(tmp_path), console=False)
    assert status.state is State.COMPLETED
    return run


def test_a_run_is_foretold_and_its_weights_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "made", [])
    ahead = train(tmp_path, "ahead", Counting, monkeypatch)
    (trained, *validated) = Counting.made
    assert (trained.foretold, trained.surprises) == (3 * 7 * 3, 0)
    assert [(one.foretold, one.surprises) for one in validated] == [(7, 0)] * 3
    at_once = train(tmp_path, "at-once", AtOnce, monkeypatch)
    first, second = (load_file(run.model / "weights.safetensors") for run in (ahead, at_once))
    for name, values in first.items():
        assert values.numpy().tobytes() == second[name].numpy().tobytes(), name


def test_a_run_that_goes_on_is_foretold_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path, "whole", ReadAhead, monkeypatch)
    train(tmp_path, "parts", ReadAhead, monkeypatch, max_steps=10)
    monkeypatch.setattr(Counting, "made", [])
    parts = train(tmp_path, "parts", Counting, monkeypatch)
    assert (Counting.made[0].foretold, Counting.made[0].surprises) == ((21 - 10) * 3, 0)
    first, second = (load_file(run.model / "weights.safetensors") for run in (whole, parts))
    assert all(values.numpy().tobytes() == second[name].numpy().tobytes() for name, values in first.items())


def cutter(rank: int, size: int, parts: int, padded: int | None) -> Any:
    train = SimpleNamespace(accumulation=parts, last="pad" if padded else "keep", global_batch=padded)
    return partial(Gradients._cut, SimpleNamespace(_job=train, _comm=SimpleNamespace(rank=rank, size=size)))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 90), batch=st.integers(1, 40), size=st.integers(1, 4), parts=st.integers(1, 3),
    epochs=st.integers(1, 3), pad=st.booleans(), data=st.data(),
)  # fmt: skip
def test_what_is_foretold(n: int, batch: int, size: int, parts: int, epochs: int, pad: bool, data: Any) -> None:
    steps = -(-n // batch)
    total = data.draw(st.integers(1, steps * epochs))
    done = data.draw(st.integers(0, total))
    epoch, within = divmod(done, steps) if done else (0, 0)
    for rank in range(size):
        expected = []
        for step in range(done, total):
            start = (step % steps) * batch
            stop = min(start + batch, n)
            low, high = rank_slice(start, stop, rank, size)
            share = rank_slice(0, batch, rank, size)
            for part in range(parts):
                a, b = rank_slice(0, high - low, part, parts)
                c, d = rank_slice(0, share[1] - share[0], part, parts)
                ids = (step // steps) * 1000 + np.arange(low + a, low + b)
                if b > a:
                    expected.append((np.resize(ids, d - c) if pad else ids).tolist())
        at = (done, epoch, min(n, within * batch))
        found = steps_ahead(
            lambda e, low, high: e * 1000 + np.arange(low, high), lambda at=at: at, usable=n, total_steps=total,
            batch=batch, cut=cutter(rank, size, parts, batch if pad else None),
        )  # fmt: skip
        assert [ids.tolist() for ids in found] == expected


def test_a_surprise_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.arange(50))
    shard(tmp_path / "x.npy", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    with ReadAhead(dataset, [np.array([1, 2]), np.array([3]), np.array([4])]) as data:
        for ids in ([1, 2], [7], [4], [9, 9]):
            assert data.batch(np.array(ids))["x"].tolist() == ids
        assert (data.foretold, data.surprises) == (1, 3)


def test_a_shard_cut_off_while_training_ends_the_run_with_its_name(tmp_path: Path) -> None:
    """The whole way, in a process of its own: a signal would end it without a word."""
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((400, 2048)), label=np.arange(400) % 2)
    shard(tmp_path / "a.npz", tmp_path / "data", shards=4, workers=1)
    (tmp_path / "recipe.py").write_text(
        "import os, torch\n"
        "def build_model(params):\n    return torch.nn.Linear(2048, 2)\n"
        "def transform(batch, train):\n"
        "    if train and os.path.exists(params_file):\n"
        "        os.truncate(params_file, 5000)\n"
        "    batch['x'] = batch['x'].float()\n    return batch\n"
        f"params_file = {str(tmp_path / 'data' / 'shard-00003.h5')!r}\n"
    )
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "job.toml").write_text(
        f'name = "r"\nrecipe = "recipe.py"\n[data]\ntrain = "{tmp_path / "data"}"\nread = "pread"\n'
        "[train]\nglobal_batch = 10\nepochs = 50\n[resources]\nranks = 1\n"
    )
    command = [sys.executable, "-m", "hpcmass", "train", str(tmp_path / "job.toml"), "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "shard-00003.h5" in done.stderr
    assert "Traceback" not in done.stderr
