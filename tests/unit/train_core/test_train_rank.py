"""Whole runs of one rank in this process."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcmass.config import Project, Site, job_from_values
from hpcmass.data import open_dataset, reader, shard
from hpcmass.errors import (
    ConfigError,
    CorruptError,
    HpcmassError,
    LeaseHeld,
    NotFound,
    RecipeError,
    StorageError,
    TrainError,
)
from hpcmass.files import Lease, Owner, replace_json
from hpcmass.runs import RunFolder, State, Status
from hpcmass.train import checkpoint, opening
from hpcmass.train.rank import _Rank, train_rank
from hpcmass.train.snapshot import Cancelled, Work, Worker

RECIPE = """
import os
import torch

CALLS = []

def build_model(params):
    if params.get("raise"):
        raise ValueError("no such model")
    width = params.get("width", 8)
    return torch.nn.Sequential(
        torch.nn.Linear(6, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(),
        torch.nn.Dropout(params.get("dropout", 0.3)), torch.nn.Linear(width, 2),
    )

def transform(batch, train):
    CALLS.append(train)
    if os.environ.get("SEND") and CALLS.count(True) == int(os.environ.get("SEND_AT", "1")):
        os.kill(os.getpid(), int(os.environ["SEND"]))
    batch["x"] = batch["x"].float()
    if os.environ.get("INF") and train:
        batch["x"] = batch["x"] * float("inf")
    return batch
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.create(tmp_path_factory.mktemp("rank") / "p", "tests")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(47, 6)).astype("float32")
    np.savez(made.root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    shard(made.root / "raw.npz", made.data / "d", inputs=["x"], targets=["y"], shards=2, workers=1)
    (made.root / "recipe.py").write_text(RECIPE)
    return made


def job(project: Project, *, params: dict | None = None, data: dict | None = None, **train):
    base = {"epochs": 3, "global_batch": 10, "log_every_steps": 1, "lr": 0.02}
    return job_from_values({
        "name": "j", "recipe": str(project.root / "recipe.py"), "params": params or {},
        "data": {"train": "data/d", "valid": "data/d", **(data or {})}, "train": {**base, **train},
    })  # fmt: skip


def go(project: Project, folder: Path, fresh: bool = False, **changes) -> tuple[RunFolder, Status]:
    run = RunFolder(folder)
    return run, train_rank(job(project, **changes), run, project, console=False, fresh=fresh)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "weights.safetensors")


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in run.records("train")]


def test_a_run_and_what_it_leaves(project: Project, tmp_path: Path) -> None:
    run, status = go(project, tmp_path / "r")
    assert (status.state, status.step, status.epoch, status.attempt) == (State.COMPLETED, 15, 2, 1)
    assert status.samples_done == 47
    assert set(status.metrics) == {"loss", "accuracy"}
    assert [r["step"] for r in run.records("valid")] == [5, 10, 15]
    assert losses(run)[-1][1] < losses(run)[0][1]
    assert (run.model / "model.json").exists()
    assert not list((tmp_path / "r").rglob(".*"))
    assert run.lease().owner() is None
    before = (run.path / "status.json").read_bytes()
    again, second = go(project, tmp_path / "r")
    assert second == status
    assert (again.path / "status.json").read_bytes() == before


@pytest.mark.parametrize("schedule", [{}, {"name": "OneCycleLR", "warmup_steps": 3, "args": {"max_lr": 0.1}}])
def test_stopped_anywhere_it_goes_on_exactly(
    project: Project, tmp_path: Path, schedule: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_every_steps": 1, "schedule": schedule, "log_every_steps": 2, "clip_norm": 1.0}
    whole, _ = go(project, tmp_path / "whole", **changes)
    run = RunFolder(tmp_path / "parts")
    monkeypatch.setenv("SEND", str(int(signal.SIGTERM)))
    for more, step in ((2, 2), (3, 5), (4, 9)):  # in mid-epoch, at an epoch's end, in mid-window
        monkeypatch.setenv("SEND_AT", str(more))
        _, status = go(project, run.path, **changes)
        assert (status.state, status.step) == (State.STOPPED, step)
    monkeypatch.delenv("SEND")
    _, status = go(project, run.path, **changes)
    assert status.state is State.COMPLETED
    assert status.attempt == 4
    assert losses(run) == losses(whole)
    assert [r["loss"] for r in run.records("valid")] == [r["loss"] for r in whole.records("valid")]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(run)[name]), name


def test_more_epochs_go_on_and_another_job_does_not(project: Project, tmp_path: Path) -> None:
    run, _ = go(project, tmp_path / "r", epochs=1)
    _, status = go(project, tmp_path / "r", epochs=2)
    assert (status.state, status.step, status.attempt) == (State.COMPLETED, 10, 2)
    assert [r["from_step"] for r in run.records("resume")] == [5]
    with pytest.raises(ConfigError) as caught:
        go(project, tmp_path / "r", epochs=1, lr=0.5, params={"width": 4})
    assert all(key in caught.value.message for key in ("params.width", "train.epochs", "train.lr"))
    _, status = go(project, tmp_path / "r", fresh=True, epochs=1, lr=0.5)
    assert (status.step, status.attempt) == (5, 1)
    assert (tmp_path / "r.old-1" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"data": {"train": "data/none"}}, HpcmassError, "data/none"),
        ({"params": {"raise": True}}, RecipeError, "no such model"),
        ({"optimizer": "Adam2"}, ConfigError, "Adam2"),
        ({"data": {"inputs": ["z"]}}, ConfigError, "'z'"),
        ({"global_batch": 100, "drop_last": True}, ConfigError, "no whole batch"),
    ],
)
def test_bad_input_leaves_nothing(
    project: Project, tmp_path: Path, changes: dict, kind: type, text: str
) -> None:
    with pytest.raises(kind) as caught:
        go(project, tmp_path / "runs" / "r", **changes)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nan_loss(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INF", "1")
    with pytest.raises(TrainError, match="step 1 ") as caught:
        go(project, tmp_path / "r")
    assert caught.value.exit_code == 2
    run = RunFolder(tmp_path / "r")
    assert run.status().state is State.FAILED
    assert "step 1 " in run.status().reason
    assert "each of samples" in run.status().reason  # though the recipe spoils them in training only
    assert [e.error for e in run.errors()] == ["TrainError"]
    monkeypatch.delenv("INF")
    assert go(project, tmp_path / "r")[1].state is State.COMPLETED


def test_some_steps_are_traced(project: Project, tmp_path: Path) -> None:
    run, status = go(project, tmp_path / "r", profile_steps=2)
    assert status.state is State.COMPLETED
    assert [p.name for p in (run.path / "profile").iterdir()] == ["trace-rank-0.json"]
    names = [
        e.get("name") for e in json.loads((run.path / "profile/trace-rank-0.json").read_text())["traceEvents"]
    ]
    assert len({name for name in names if str(name).startswith("ProfilerStep#")}) == 2
    assert any("backward" in str(name).lower() for name in names)
    plain, _ = go(project, tmp_path / "plain")
    assert not (plain.path / "profile").exists()
    assert losses(plain) == losses(run)
    short, _ = go(project, tmp_path / "short", profile_steps=50)  # more than there are
    assert [p.name for p in (short.path / "profile").iterdir()] == ["trace-rank-0.json"]


def test_the_samples_that_spoil_a_loss_are_named(project: Project, tmp_path: Path) -> None:
    """In spite of batch norm, whose running statistics are NaN by then too."""
    x = np.ones((47, 6), "float32")
    x[[13, 29], 2] = np.nan
    np.savez(tmp_path / "raw.npz", x=x, y=np.zeros(47, "int64"))
    shard(tmp_path / "raw.npz", tmp_path / "d", inputs=["x"], targets=["y"], workers=1)
    data = {"train": str(tmp_path / "d"), "order": "sequential"}
    with pytest.raises(TrainError, match=r"at step 1 \(epoch 1\): samples 13, 29\n"):
        go(project, tmp_path / "r", data=data, global_batch=40, accumulation=1)
    (found,) = RunFolder(tmp_path / "r").records("bad-loss")
    assert (found["step"], found["epoch"]) == (1, 0)
    assert found["ranks"] == [{"rank": 0, "loss": None, "batch": list(range(40)), "alone": [13, 29]}]


def test_a_diverging_loss_ends_the_run(project: Project, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss diverges .* at step \d+ \(epoch \d\): ") as caught:
        go(project, tmp_path / "r", optimizer="SGD", lr=1e6)
    assert "lower train.lr" in str(caught.value.hint)
    run = RunFolder(tmp_path / "r")
    (found,) = run.records("bad-loss")
    first = losses(run)[0][1]
    assert found["ranks"][0]["loss"] > 1000 * first
    assert sorted(found["ranks"][0]["alone"])[0] in found["ranks"][0]["batch"]
    assert run.status().step == found["step"] - 1
    # It may be allowed, and any other limit may be set.
    assert go(project, tmp_path / "all", optimizer="SGD", lr=1e6, max_loss=1e300, epochs=1)[1].step == 5
    with pytest.raises(TrainError, match=r"the limit is 0\.01\) at step 1 "):
        go(project, tmp_path / "low", max_loss=0.01)


def test_corrupted_checkpoint(project: Project, tmp_path: Path) -> None:
    run, _ = go(project, tmp_path / "r", epochs=2)
    file = run.checkpoints / "step-000000010.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        go(project, tmp_path / "r", epochs=3)
    assert "step-000000010" in caught.value.where
    assert "step 5" in caught.value.hint
    file.unlink()
    (run.checkpoints / "step-000000010.json").unlink()
    assert go(project, tmp_path / "r", epochs=3)[1].step == 15


def test_early_stop_counts_over_a_resume(project: Project, tmp_path: Path) -> None:
    early = {"metric": "loss", "patience": 2, "min_delta": 100.0}
    run, status = go(project, tmp_path / "r", epochs=20, early_stop=early)
    assert status.state is State.COMPLETED
    assert "early stop" in status.reason
    assert len(list(run.records("valid"))) == 3
    _, status = go(project, tmp_path / "r", epochs=30, early_stop=early)
    assert len(list(run.records("valid"))) == 3
    assert "early stop" in status.reason
    with pytest.raises(ConfigError, match="no metric 'f1'"):
        go(project, tmp_path / "s", early_stop={"metric": "f1"})


AUGMENT = """
def augment(sample, rng):
    if sample["y"] == 1 and sample["x"][0] > 1.5:  # few of the samples
        sample["x"] = sample["x"] * float("nan")
    return sample
"""


def test_a_sample_that_only_its_augmentation_spoils_is_named(project: Project, tmp_path: Path) -> None:
    made = Project.create(tmp_path / "p", "tests")
    shutil.copytree(project.data / "d", made.data / "d")
    (made.root / "recipe.py").write_text(RECIPE + AUGMENT)
    raw = open_dataset(made.data / "d").batch(range(47))
    spoilt = {int(one) for one in np.flatnonzero((raw["y"] == 1) & (raw["x"][:, 0] > 1.5))}
    assert spoilt
    with pytest.raises(TrainError, match=r": samples? \d"):
        go(made, tmp_path / "r")
    (told,) = next(RunFolder(tmp_path / "r").records("bad-loss"))["ranks"]
    assert told["alone"]
    assert set(told["alone"]) == set(told["batch"]) & spoilt


def test_steps_and_batches(project: Project, tmp_path: Path) -> None:
    assert go(project, tmp_path / "a", drop_last=True)[1].step == 12
    assert go(project, tmp_path / "b", max_steps=7)[1].step == 7
    one, _ = go(project, tmp_path / "c", params={"dropout": 0.0}, accumulation=1, epochs=1)
    assert len(losses(one)) == 5
    run, status = go(project, tmp_path / "d", precision="bf16")
    assert status.state is State.COMPLETED
    assert all(t.dtype != torch.bfloat16 for t in weights(run).values())


def test_nothing_of_the_process_is_changed(project: Project, tmp_path: Path) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    before = (
        torch.get_num_threads(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )
    go(project, tmp_path / "r", epochs=1)
    after = torch.get_num_threads(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert (before[0], before[2], before[3]) == (after[0], after[2], after[3])
    assert torch.equal(before[1], after[1])
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcmass")]
    done: list[Status] = []
    thread = threading.Thread(target=lambda: done.append(go(project, tmp_path / "t", epochs=1)[1]))
    thread.start()
    thread.join()
    assert done[0].state is State.COMPLETED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_after_a_checkpoint(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("SEND", str(int(number)))
    run, status = go(project, tmp_path / "r")
    assert (status.state, status.step) == (State.STOPPED, 1)
    assert number.name in status.reason
    assert [p.name for p in run.checkpoints.glob("*.json")] == ["step-000000001.json"]
    monkeypatch.delenv("SEND")
    assert go(project, tmp_path / "r")[1].state is State.COMPLETED


def test_a_run_in_use_is_refused(project: Project, tmp_path: Path) -> None:
    run, _ = go(project, tmp_path / "r", epochs=1)
    code = (
        "import sys, time; from hpcmass.runs import RunFolder; RunFolder(sys.argv[1]).lease().acquire();"
        "print(1, flush=True); time.sleep(3600)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, env=env)
    try:
        holder.stdout.readline()
        for fresh in (False, True):
            with pytest.raises(LeaseHeld):
                go(project, tmp_path / "r", epochs=2, fresh=fresh)
    finally:
        holder.kill()
        holder.communicate()
    assert go(project, tmp_path / "r", epochs=2)[1].state is State.COMPLETED


def test_full_disk_while_checkpointing(project: Project, tmp_path: Path) -> None:
    wide = {"params": {"width": 4096}}
    run = RunFolder(tmp_path / "r")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(HpcmassError) as caught:
            go(project, run.path, **wide)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(caught.value).__name__ == "StorageError"
    assert caught.value.exit_code == 2
    assert run.status().state is State.FAILED
    assert list(run.checkpoints.iterdir()) == []
    assert go(project, run.path, **wide)[1].state is State.COMPLETED


def test_missing_recipe_and_unwritable_folder(project: Project, tmp_path: Path) -> None:
    gone = job(project).model_copy(update={"recipe": str(tmp_path / "none.py")})
    with pytest.raises(NotFound):
        train_rank(gone, RunFolder(tmp_path / "r"), project, console=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(HpcmassError) as caught:
        go(project, tmp_path / "file" / "r")
    assert caught.value.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_start_that_comes_second_does_not_remove_the_folder_of_the_first(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before there was a folder; the other one then made it and took the lease."""
    run = RunFolder(tmp_path / "r")
    other = run.lease()
    acquire = Lease.acquire

    def late(lease: Lease) -> None:
        if lease is not other:
            acquire(other)
            (run.path / "metrics.jsonl").write_text("{}")
        acquire(lease)

    monkeypatch.setattr(Lease, "acquire", late)
    with pytest.raises(LeaseHeld):
        opening.take(job(project), run, Site.local(), fresh=False)
    assert run.metrics_file.exists()
    other.release()


def test_a_failed_creation_is_cleared_away_before_another_can_begin(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = RunFolder(tmp_path / "r"), RunFolder(tmp_path / "r")
    create, rmtree = RunFolder.create, shutil.rmtree

    def fails(folder: RunFolder, *args: object) -> None:
        create(folder, *args)
        folder.job_file.unlink()
        with pytest.raises(LeaseHeld):
            other.lease().acquire()
        raise StorageError("the disk is full")

    def begun_meanwhile(path: Path, **options: bool) -> None:
        other.hold(opening.take(job(project), other, Site.local(), fresh=False))
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "create", fails)
        with pytest.raises(StorageError):
            opening.take(job(project), run, Site.local(), fresh=False)
    assert list(tmp_path.iterdir()) == []

    def fails_once(folder: RunFolder, *args: object) -> None:
        monkeypatch.setattr(RunFolder, "create", create)
        raise StorageError("the disk is full")

    monkeypatch.setattr(RunFolder, "create", fails_once)
    monkeypatch.setattr(shutil, "rmtree", begun_meanwhile)
    with pytest.raises(StorageError):
        opening.take(job(project), run, Site.local(), fresh=False)
    assert other.exists()
    assert not other.lost
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_run_is_set_aside_under_its_lease(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = RunFolder(tmp_path / "r"), RunFolder(tmp_path / "r.old-1")
    opening.take(job(project), run, Site.local(), fresh=False).release()
    rename, renamed = os.rename, []

    def watched(source: Path, target: Path) -> None:
        with pytest.raises(LeaseHeld):
            run.lease().acquire()
        renamed.append(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    lease = opening.take(job(project), run, Site.local(), fresh=True)
    assert renamed == [run.path]
    assert (old.lease().owner(), run.lease().owner() is None) == (None, False)
    lease.release()


def test_a_run_that_was_taken_over_ends_and_writes_nothing_more(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ttl_s = RunFolder(tmp_path / "r"), 0.2
    leases, stands = [], {}

    def made(self: RunFolder) -> Lease:
        leases.append(Lease(self.path / "lease", ttl_s=ttl_s))
        return leases[-1]

    monkeypatch.setattr(RunFolder, "lease", made)

    def taken_over() -> None:
        kept = {f"step-00000000{step}.{kind}" for step in (5, 6) for kind in ("json", "safetensors")}
        until = time.monotonic() + 240  # a thread commits step 6, and removes step 4
        while {path.name for path in run.checkpoints.iterdir()} != kept:
            assert time.monotonic() < until
            time.sleep(0.01)
        owner = Owner("some-other-host", 4711, 1, "another-boot", None, time.time())
        replace_json(run.path / "lease.2.json", vars(owner))
        while not any(lease.lost for lease in leases):
            assert time.monotonic() < until
            time.sleep(0.01)
        stands.update({p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()})

    monkeypatch.setattr("hpcmass.runs.taken_over_in_test", taken_over, raising=False)
    recipe = tmp_path / "recipe.py"
    hook = (
        "    if CALLS.count(True) == 7:\n        from hpcmass import runs\n        runs.taken_over_in_test()\n"
    )
    recipe.write_text(RECIPE.replace("    CALLS.append(train)\n", "    CALLS.append(train)\n" + hook))
    mine = job(project, checkpoint_every_steps=1).model_copy(update={"recipe": str(recipe)})
    with pytest.raises(LeaseHeld, match="another process has taken this run over"):
        train_rank(mine, run, project, console=False)
    assert stands
    events = {p for p in run.path.rglob("*") if p.is_file() and p.parent.name != "events"}
    assert {p: p.read_bytes() for p in events} == {p: b for p, b in stands.items() if p.parent.name != "events"}
    assert [c.step for c in checkpoint.commits(run.checkpoints)][-1] == 6


def test_spoilt_weights_are_neither_kept_nor_a_model(project: Project, tmp_path: Path) -> None:
    """The loss of the one step is finite, what it makes of the weights is not."""
    with pytest.raises(TrainError, match="are NaN or infinite after step 1"):
        go(
            project,
            tmp_path / "r",
            max_steps=1,
            optimizer="SGD",
            lr=1e30,
            optimizer_args={"weight_decay": 1e30},
        )
    run = RunFolder(tmp_path / "r")
    assert run.status().state is State.FAILED
    assert not run.model.exists()
    assert not list(run.checkpoints.glob("*"))


def test_the_best_checkpoint_stays_over_a_resume_and_is_named(project: Project, tmp_path: Path) -> None:
    """The loss falls, so that of all evaluations the first one has the largest: where that is the best, it stays."""
    early = {"metric": "loss", "direction": "maximize", "patience": 100}
    train = {"keep_best": True, "keep_checkpoints": 1, "checkpoint_every_steps": 7, "early_stop": early}
    for epochs in (4, 5):
        run, _ = go(project, tmp_path / "r", params={"dropout": 0.0}, epochs=epochs, **train)
        losses_of_valid = [(r["step"], r["loss"]) for r in run.records("valid")]
        assert max(losses_of_valid, key=lambda one: one[1])[0] == 5
        kept = checkpoint.commits(run.checkpoints)
        assert [commit.step for commit in kept] == [5, 5 * epochs]
        assert kept[-1].best == checkpoint.Best(5, "loss", losses_of_valid[0][1])
        assert checkpoint.load(kept[0])["position"]["samples"] == 47
    run, _ = go(project, tmp_path / "s", params={"dropout": 0.0}, epochs=4, **{**train, "keep_best": False})
    assert [commit.step for commit in checkpoint.commits(run.checkpoints)] == [20]
    with pytest.raises(ConfigError, match=r"train\.keep_best needs data\.valid"):
        job(project, data={"valid": None}, keep_best=True)


def test_what_could_not_be_staged_is_verified_where_it_is(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    top = tmp_path / f"hpcmass-shards-{os.getuid()}"
    top.mkdir()
    os.chmod(top, 0o777)  # which is refused
    data = {"train": "data/d", "valid": None, "stage": True}
    go(project, tmp_path / "sound", data=data, max_steps=1)
    assert "shards are read from the shared file system" in capsys.readouterr().err
    shutil.copytree(project.data / "d", project.data / "flipped")
    file = project.data / "flipped" / "shard-00001.h5"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    os.chmod(file, 0o600)
    file.write_bytes(content)
    with pytest.raises(CorruptError, match=r"flipped/shard-00001\.h5.*checksum"):
        go(project, tmp_path / "run", data={**data, "train": "data/flipped"}, max_steps=1)


def test_the_reason_is_told_before_a_checkpoint_under_way_is_waited_for(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, waited = threading.Event(), []
    commit, record = checkpoint.commit, RunFolder.record_exception

    def slow(*args, **kwargs) -> None:
        waited.append(told.wait(120))
        commit(*args, **kwargs)

    def words(self, *args) -> None:
        record(self, *args)
        told.set()

    monkeypatch.setattr(checkpoint, "commit", slow)
    monkeypatch.setattr(RunFolder, "record_exception", words)
    made = shutil.copytree(project.root, tmp_path / "p")
    recipe = made / "recipe.py"
    recipe.write_text(
        RECIPE.replace('    batch["x"] =', '    assert CALLS.count(True) < 4\n    batch["x"] =', 1)
    )
    run = RunFolder(tmp_path / "r")
    values = job(project, checkpoint_every_steps=2).model_copy(update={"recipe": str(recipe)})
    with pytest.raises(RecipeError, match="transform"):
        train_rank(values, run, project, console=False)
    assert waited == [True], "the run's end was not told while its checkpoint was written"
    assert checkpoint.latest_step(run.checkpoints) == 2


def test_work_is_waited_for_so_long_and_then_commits_nothing(tmp_path: Path) -> None:
    go_on, worker = threading.Event(), Worker("test")

    def slow(work: Work) -> str:
        assert go_on.wait(120)
        work.check()
        return "committed"

    work = worker.start(slow)
    work.end(now=False, wait_s=0.01)
    go_on.set()
    with pytest.raises(Cancelled):
        work.result()
    worker.close()


def test_a_stop_does_not_change_which_loss_diverges(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = {"lr": 1e-9, "optimizer": "SGD"}
    found = [loss for _, loss in losses(go(project, tmp_path / "all", **flat)[0])]
    means = [found[0]]
    for loss in found[1:]:
        means.append(0.9 * means[-1] + 0.1 * loss)
    limit = 1.001 * max(means)
    odd = next(step for step, loss in enumerate(found, start=1) if loss > limit)  # one bad batch ends no run
    monkeypatch.setenv("SEND", str(int(signal.SIGTERM)))
    monkeypatch.setenv("SEND_AT", str(odd - 1))
    assert go(project, tmp_path / "r", max_loss=limit, **flat)[1].step == odd - 1
    monkeypatch.delenv("SEND")
    assert go(project, tmp_path / "r", max_loss=limit, **flat)[1].state is State.COMPLETED


def test_one_rank_looks_at_the_shards(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(reader, "check_shards", lambda folder, _: looked.append(folder) or [])
    for rank in (1, 0):
        assert not looked
        made = object.__new__(_Rank)
        made.job, made.run, made.project, made.pins = job(project), RunFolder(tmp_path / "r"), project, {}
        made.comm = SimpleNamespace(rank=rank)
        _, train, valid = made._open()
        assert len(train) == len(valid) == 47
    assert looked == [project.data / "d"] * 2
