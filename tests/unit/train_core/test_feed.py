"""Reading ahead: it foretells every batch of a run, and changes nothing of what is trained."""

from __future__ import annotations

import json
import subprocess
import sys
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
from hpcmass.errors import RecipeError
from hpcmass.runs import RunFolder, State
from hpcmass.train import gradients as gradients_module
from hpcmass.train import validate as validate_module
from hpcmass.train.augment import Augment
from hpcmass.train.feed import Key, ReadAhead, steps_ahead
from hpcmass.train.gradients import Gradients
from hpcmass.train.rank import train_rank
from hpcmass.train.recipe import load_recipe

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


AUGMENT = """
import threading

def augment(sample, rng):
    SEEN.add(threading.current_thread().name)
    x = sample["x"]
    x += rng.normal(size=x.shape).astype(x.dtype)  # in place
    if rng.random() < 0.3:
        return {"x": x[::-1]}

SEEN = set()
"""
BATCH = """
import numpy as np

def augment_batch(batch, rngs):
    assert len(rngs) == len(batch["x"]) == len(batch["label"])
    noise = np.stack([rng.normal(size=6) for rng in rngs])
    SEEN.add(threading.current_thread().name)
    return {"x": batch["x"] + noise.astype("float32")}
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


@pytest.mark.parametrize("batch", [False, True])
def test_samples_are_augmented_ahead_and_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    """On reading threads or when asked for, in one go or stopped and gone on with."""
    plain = train(tmp_path, "plain", ReadAhead, monkeypatch)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE + AUGMENT + (BATCH if batch else ""))
    monkeypatch.setattr(Counting, "made", [])
    whole = train(tmp_path, "whole", Counting, monkeypatch)
    assert (Counting.made[0].foretold, Counting.made[0].surprises) == (3 * 7 * 3, 0)
    names = {name for one in Counting.made if one._augment for name in one._augment._recipe.module.SEEN}
    assert names == {"hpcmass-read"}
    at_once = train(tmp_path, "at-once", AtOnce, monkeypatch)
    train(tmp_path, "parts", ReadAhead, monkeypatch, max_steps=10)
    parts = train(tmp_path, "parts", ReadAhead, monkeypatch)
    first, *others = (
        {
            name: values.numpy().tobytes()
            for name, values in load_file(run.model / "weights.safetensors").items()
        }
        for run in (whole, at_once, parts, plain)
    )
    assert [other == first for other in others] == [True, True, False]


def augmented(
    tmp_path: Path, rank: int, size: int, batch: int, begin: tuple[int, int, int], recipe: str = AUGMENT
) -> dict:
    """What a rank is given of each (epoch, sample), from a place in a run of 2 epochs to its end."""
    if not (tmp_path / "d").exists():
        np.savez(tmp_path / "a.npz", x=np.zeros((40, 6), np.float32), label=np.zeros(40, np.int64))
        shard(tmp_path / "a.npz", tmp_path / "d", shards=3, workers=1)
        (tmp_path / "r.py").write_text(RECIPE + recipe)
    loaded, dataset = load_recipe(tmp_path / "r.py"), open_dataset(tmp_path / "d")
    keys: dict[int, Key] = {}
    steps = -(-40 // batch)
    plan = list(
        steps_ahead(
            lambda epoch, low, high: (np.arange(low, high) * 7 + epoch) % 40, lambda: begin,
            usable=40, total_steps=2 * steps, batch=batch, cut=cutter(rank, size, 1, None), keys=keys,
        )
    )  # fmt: skip
    told = dict(keys)
    found = {}
    with ReadAhead(dataset, plan, read="pread", augment=Augment(loaded, 3), keys=keys) as data:
        for number, ids in enumerate(plan):
            arrays = data.batch(ids, told[number])
            found |= {
                (told[number].epoch, int(one)): arrays["x"][k].tobytes() for k, one in enumerate(ids.tolist())
            }
        assert data.surprises == 0
    return found


@pytest.mark.parametrize("recipe", [AUGMENT, "import threading\nSEEN = set()" + BATCH, AUGMENT + BATCH])
def test_what_is_random_in_a_sample_depends_on_its_place_alone(tmp_path: Path, recipe: str) -> None:
    whole = augmented(tmp_path, 0, 1, 10, (0, 0, 0), recipe)
    assert len(whole) == 80
    assert len(set(whole.values())) == 80
    for size in (2, 3):
        parts = [augmented(tmp_path, rank, size, 10, (0, 0, 0)) for rank in range(size)]
        assert {key: value for part in parts for key, value in part.items()} == whole
    assert augmented(tmp_path, 0, 1, 16, (0, 0, 0)) == whole
    rest = augmented(tmp_path, 0, 1, 10, (3, 0, 30))
    assert rest == {key: whole[key] for key in rest}
    assert len(rest) == 50


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {'x': sample['x'][:3]}", r"augment gave float32 \[3\] for 'x', which is float32 \[6\]"),
        ("return {'label': 0.5}", r"augment gave float64 \[\] for 'label', which is int64 \[\]"),
        ("return {'z': 1}", "augment gave a field 'z', which is ragged or not there"),
        ("return 5", "augment returned a int"),
        ("raise ValueError('no')", "augment: ValueError: no"),
    ],
)
def test_an_augment_that_is_wrong(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "r.py").write_text(RECIPE + f"\ndef augment(sample, rng):\n    {body}\n")
    augment = Augment(load_recipe(tmp_path / "r.py"), 0)
    arrays = {"x": np.zeros((2, 6), np.float32), "label": np.zeros(2, np.int64)}
    with pytest.raises(RecipeError, match=message):
        augment(0, 0, np.arange(2), arrays)


def cutter(rank: int, size: int, parts: int, padded: int | None) -> Any:
    train = SimpleNamespace(accumulation=parts, last="pad" if padded else "keep", global_batch=padded)
    made = Gradients.__new__(Gradients)
    made._job, made._comm, made._ends = train, SimpleNamespace(rank=rank, size=size), None
    return made._cut


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
    # What is said of several ranks, and by `status`, is the reason on record.
    assert "shard-00003.h5: " in json.loads((tmp_path / "runs" / "r" / "status.json").read_text())["reason"]
