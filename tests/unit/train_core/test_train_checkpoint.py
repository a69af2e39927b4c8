"""Checkpoints: complete or absent, verified when read, nothing pickled."""

import builtins
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpcmass.errors import CorruptError, StorageError, TrainError
from hpcmass.runs import RunFolder
from hpcmass.train import checkpoint, tensorfile

NEWEST = "step-000000001.json"


def state(step: int) -> dict:
    return {
        "model": {"w": torch.arange(6.0).reshape(2, 3) + step, "n": torch.tensor(step)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0), "m": torch.ones(3, dtype=torch.bfloat16)}},
            "empty": {},
        },
        "list": [1, 2.5, None, True, "text", (1, 2), torch.tensor([True, False]), torch.zeros(0)],
        "inf": float("inf"),
    }


def save(folder: Path, step: int, keep: int = 2) -> None:
    write(folder, state(step), checkpoint.Mark(step, 1, step * 10, 2), keep=keep)


def write(folder: Path, state: dict, mark: checkpoint.Mark, keep: int) -> None:
    """A checkpoint in one file, of the parts that the keeper makes it of."""
    tensors: dict[str, torch.Tensor] = {}
    skeleton = tensorfile.encode(state, "", tensors)
    layout = tensorfile.lay_out(tensors)
    (name,) = checkpoint.file_names(mark.step, 1)
    pieces = [layout.header(checkpoint.metadata(skeleton)), *tensorfile.bodies(layout, tensors)]
    checkpoint.commit(folder, mark, [checkpoint.write_part(folder / name, pieces)], keep=keep, pace={})


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_round_trip_keeps_types_and_the_newest_files(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    commit, loaded = checkpoint.load_latest(tmp_path)
    assert (commit.step, commit.epoch, commit.position) == (3, 1, 30)
    assert same(loaded, state(3))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"step-00000000{s}.{e}" for s in (2, 3) for e in ("json", "safetensors")]
    plain = load_file(commit.path)  # the library reads what our writer wrote
    assert torch.equal(plain["model/w"], state(3)["model"]["w"])
    assert plain["optimizer/state/0/m"].dtype == torch.bfloat16


def test_tied_tensors_are_both_kept(tmp_path: Path) -> None:
    tied = torch.ones(2, 2)
    write(tmp_path, {"a": tied, "b": tied.t()}, checkpoint.Mark(1, 0, 0, 1), keep=1)
    loaded = checkpoint.load_latest(tmp_path)[1]
    assert torch.equal(loaded["a"], loaded["b"])


def test_nothing_counts_without_its_commit(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "none") is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-000000002.json").unlink()
    (tmp_path / ".step-000000003.safetensors.host-1-ab.tmp").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path)[0].step == 1
    checkpoint.remove_leftovers(tmp_path)
    save(tmp_path, 2)  # over the orphan of the attempt that died
    assert checkpoint.load_latest(tmp_path)[0].step == 2
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    """As the first versions wrote them: one file, named in the commit itself."""
    save(tmp_path, 1)
    file = tmp_path / "step-000000001.json"
    now = json.loads(file.read_text())
    (part,) = now.pop("files")
    file.unlink()
    file.write_text(json.dumps({**now, **part, "format": 1}))
    commit, loaded = checkpoint.load_latest(tmp_path)
    assert (commit.step, commit.position, commit.path.name) == (1, 10, "step-000000001.safetensors")
    assert same(loaded, state(1))
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert [c.step for c in checkpoint.commits(tmp_path)] == [2, 3]
    assert not list(tmp_path.glob("step-000000001*"))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "step-000000001.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 3}))
    with pytest.raises(TrainError, match="newer hpcmass"):
        checkpoint.load_latest(tmp_path)


def parted(folder: Path, step: int, parts: int = 3) -> list[dict]:
    """The files of a checkpoint in parts, without its commit."""
    tensors: dict = {}
    skeleton = tensorfile.encode(state(step), "", tensors)
    said = []
    names = checkpoint.file_names(step, parts)
    for number, share in enumerate(tensorfile.share_out(tensors, parts)):
        mine = {name: tensors[name] for name in share}
        layout = tensorfile.lay_out(mine)
        header = layout.header(checkpoint.metadata(skeleton) if number == 0 else {})
        said.append(checkpoint.write_part(folder / names[number], [header, *tensorfile.bodies(layout, mine)]))
    return said


def test_parts_are_one_checkpoint(tmp_path: Path) -> None:
    checkpoint.commit(tmp_path, checkpoint.Mark(1, 0, 10, 3), parted(tmp_path, 1), keep=1, pace={})
    commit, loaded = checkpoint.load_latest(tmp_path)
    assert len(commit.parts) == 3
    assert same(loaded, state(1))
    commit.parts[2].path.write_bytes(commit.parts[2].path.read_bytes()[:-1])
    with pytest.raises(CorruptError) as caught:
        checkpoint.load_latest(tmp_path)
    assert caught.value.where == str(commit.parts[2].path)
    save(tmp_path, 2, keep=1)
    assert len(list(tmp_path.iterdir())) == 2, "parts of the old one stay"


def test_what_no_commit_names_is_removed_by_the_next_attempt(tmp_path: Path) -> None:
    said = parted(tmp_path, 1)
    parted(tmp_path, 1)  # of an attempt that died before its commit
    checkpoint.commit(tmp_path, checkpoint.Mark(1, 0, 10, 3), said, keep=2, pace={})
    parted(tmp_path, 2)
    save(tmp_path, 4)
    (tmp_path / "step-000000003.safetensors").write_bytes(b"orphan")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-000000005.json").write_text("{")
    (tmp_path / "step-000000005.safetensors").write_bytes(b"of a damaged commit: it stays")
    checkpoint.remove_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    five = {f"step-00000000{step}.{kind}" for step in (4, 5) for kind in ("json", "safetensors")}
    assert names == {*(part["file"] for part in said), "step-000000001.json", "notes.txt", *five}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_told_with_what_to_do(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-000000002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    if damage != "gone":
        file.write_bytes(data if damage == "flip" else data[:-3])
    with pytest.raises(CorruptError) as caught:
        checkpoint.load_latest(tmp_path)
    assert caught.value.where == str(file)
    assert caught.value.exit_code == 2
    assert "step 1" in caught.value.hint
    assert "step-000000002.json" in caught.value.hint
    (tmp_path / "step-000000001.safetensors").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"--fresh"):
        checkpoint.load_latest(tmp_path)


def test_damaged_commit_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for text in ("", "[]", json.dumps({"format": 1})):
        (tmp_path / "step-000000001.json").write_text(text)
        with pytest.raises(CorruptError, match=r"step-000000001\.json"):
            checkpoint.load_latest(tmp_path)


def test_a_damaged_commit_file_is_in_the_way_only_while_it_is_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-000000002.json").write_text("{")
    with pytest.raises(CorruptError, match=r"step-000000002\.json") as caught:
        checkpoint.load_latest(tmp_path)
    assert (
        "remove step-000000002.json and step-000000002.*safetensors to go on from step 1" in caught.value.hint
    )
    for step in (3, 4, 5):
        save(tmp_path, step)
    assert checkpoint.load_latest(tmp_path)[0].step == 5
    assert [commit.step for commit in checkpoint.commits(tmp_path)] == [4, 5]


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"w": torch.zeros(3, 2)}, "'w'"),
        ({}, "'w'"),
        ({"w": torch.zeros(2, 2), "x": torch.zeros(1)}, "'x'"),
    ],
)
def test_a_model_that_does_not_fit(state: dict, name: str, tmp_path: Path) -> None:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TrainError, match=name):
        checkpoint.load_model(model, state, tmp_path)
    assert torch.equal(model.w, torch.ones(2, 2))


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="function"):
        write(tmp_path, {"f": len}, checkpoint.Mark(1, 0, 0, 1), keep=1)
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


def test_a_rank_that_does_not_see_the_checkpoint_of_rank_0_refuses(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    commit, _ = checkpoint.load_latest(tmp_path, 1)
    assert commit.step == 1
    with pytest.raises(TrainError, match="step 3") as caught:
        checkpoint.load_latest(tmp_path, 3)
    assert caught.value.transient


def stale(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("where", "name", "action"),
    [
        pytest.param(os, "listdir", checkpoint.latest_step, id="list"),
        pytest.param(Path, "unlink", lambda p: checkpoint.write_part(p / "new", [b"1"]), id="replace"),
        pytest.param(Path, "stat", lambda p: checkpoint.load(checkpoint.read_commit(p / NEWEST)), id="look"),
        pytest.param(
            checkpoint, "load_file", lambda p: checkpoint.load(checkpoint.read_commit(p / NEWEST)), id="tensors"
        ),
        pytest.param(Path, "read_text", lambda p: RunFolder(p).asked_to_stop(), id="stop-file"),
    ],
)
def test_a_file_system_that_fails_is_told_as_such(
    where: object, name: str, action: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as failing:
        failing.setattr(where, name, stale)
        with pytest.raises(StorageError, match="Stale file handle") as caught:
            action(tmp_path)
    assert caught.value.transient


def test_a_checkpoint_whose_bytes_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    commit = checkpoint.read_commit(tmp_path / NEWEST)
    monkeypatch.setattr(checkpoint, "sha256_file", lambda _: commit.parts[0].sha256)
    monkeypatch.setattr(builtins, "open", stale)
    with pytest.raises(StorageError, match="cannot read the checkpoint"):
        checkpoint.load(commit)


def test_tidying_up_never_fails_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(os, "listdir", stale)
    save(tmp_path, 3)
    monkeypatch.undo()
    assert checkpoint.latest_step(tmp_path) == 3
    save(tmp_path, 4)  # takes away what the one before left
    assert [one.step for one in checkpoint.commits(tmp_path)] == [3, 4]


def test_a_checkpoint_is_hashed_where_that_is_asked_for_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    hashed = []
    monkeypatch.setattr(checkpoint, "sha256_file", lambda path: hashed.append(path.name))
    found = checkpoint.load_latest(tmp_path, 1, check=False)
    assert found is not None
    assert same(found[1], state(1))
    assert not hashed
    with pytest.raises(CorruptError, match="does not fit its SHA-256"):
        checkpoint.load_latest(tmp_path, 1)
    assert hashed
