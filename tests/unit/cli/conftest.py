"""A small project with a dataset, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hpcmass.cli.root import run as run_command

RECIPE = """\
from torch import nn


def build_model(params):
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""

JOB = """\
name = "tiny"
recipe = "recipe.py"

[data]
train = "data/tiny/train"
valid = "data/tiny/valid"

[train]
epochs = 2
global_batch = 16
lr = 0.01
"""


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Lab:
    """A project folder, with the working folder in it."""

    root: Path
    hpcmass: Callable[..., Answer]

    def tree(self) -> set[str]:
        return {str(p.relative_to(self.root)) for p in self.root.rglob("*")}


def write_npz(file: Path, samples: int = 90) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(samples) % 3
    x = rng.normal(size=(samples, 8)).astype(np.float32) + label[:, None]
    np.savez(file, x=x, label=label.astype(np.int64))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lab:
    """A project with the sharded dataset `data/tiny`, `recipe.py` and `job.toml`."""
    monkeypatch.delenv("HPCMASS_PROJECT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: str) -> Answer:
        capfd.readouterr()
        code = run_command(list(words))
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    root = tmp_path / "lab"
    monkeypatch.chdir(tmp_path)
    assert call("init", "lab", "--bare").code == 0
    monkeypatch.chdir(root)
    (root / "recipe.py").write_text(RECIPE)
    (root / "job.toml").write_text(JOB)
    write_npz(root / "tiny.npz")
    answer = call(
        "shard", "tiny.npz", "--out", "data/tiny", "--shards", "2", "--workers", "1",
        "--split", "train=0.6,valid=0.2,test=0.2", "--strategy", "stratified", "--by", "label",
    )  # fmt: skip
    assert answer.code == 0, answer.text
    return Lab(root, call)
