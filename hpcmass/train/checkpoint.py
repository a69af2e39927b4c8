"""Checkpoints: safetensors files, committed by a small JSON file that is published last.

Nested state (model, optimizer, schedule) becomes tensors plus a JSON skeleton in the first file's metadata;
nothing is pickled. A small state is one file; of a large one each of several ranks writes a part. A checkpoint
exists when its `.json` does, and every file that it names fits its size and SHA-256. When it is written, and
by whom, says `keeping`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpcmass.errors import CorruptError, HpcmassError, TrainError
from hpcmass.files import publish_json, publishing, read_json, sha256_file, storage_errors
from hpcmass.train.tensorfile import decode, write_pieces

FORMAT = 2
_NAME = re.compile(r"step-(\d{9})\.json")
_FILE = re.compile(r"(step-\d{9})(\.[0-9a-f]+-\d+-of-\d+)?\.safetensors")
_SKELETON = "hpcmass"


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        step: Optimiser steps done by then.
    """

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Mark:
    """Where a run is, as its checkpoint's commit file tells it.

    Attributes:
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        position: Samples of that epoch done.
        ranks: How many ranks train (for the reader; any number may go on).
        step_s: Seconds that a slow step takes.
        best: The evaluation whose checkpoint stays, where one is to stay.
    """

    step: int
    epoch: int
    position: int
    ranks: int
    step_s: float = 0.0
    best: Best | None = None


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint.

    Attributes:
        json_path: The file that commits it.
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        position: Samples of that epoch done.
        parts: Its files; the first one has the skeleton.
        best: The best evaluation by then, where its checkpoint is kept.
    """

    json_path: Path
    step: int
    epoch: int
    position: int
    parts: tuple[Part, ...]
    best: Best | None = None

    @property
    def path(self) -> Path:
        """The first safetensors file."""
        return self.parts[0].path


def file_names(step: int, parts: int) -> list[str]:
    """Names for the files of a checkpoint.

    Those of several parts are new ones every time: a rank that was held up (a suspended node) and has been
    taken over cannot spoil what its successor writes for the same step.
    """
    if parts == 1:
        return [f"step-{step:09d}.safetensors"]
    token = secrets.token_hex(4)
    return [f"step-{step:09d}.{token}-{number:05d}-of-{parts:05d}.safetensors" for number in range(parts)]


def commit_file(folder: Path, step: int) -> Path:
    """The file that commits the checkpoint of a step."""
    return folder / f"step-{step:09d}.json"


def metadata(skeleton: Any) -> dict[str, str]:
    """Of the first part: what `encode` made of the state."""
    return {_SKELETON: json.dumps(skeleton)}


def write_part(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write one file, durable and complete under its name, which means nothing until it is committed.

    Returns:
        What the commit file says of it: `file`, `bytes`, `sha256`.

    Raises:
        StorageError: The file system refused; nothing half-written stays.
    """
    with storage_errors(path, "replace the file"):
        path.unlink(missing_ok=True)  # of an attempt that ended before it could commit
    with publishing(path) as temporary:
        nbytes, digest = write_pieces(temporary, pieces)
    return {"file": path.name, "bytes": nbytes, "sha256": digest}


def commit(
    folder: Path, mark: Mark, parts: Sequence[Mapping[str, Any]], *, keep: int, pace: Mapping[str, Any]
) -> None:
    """Commit files that are durable, and remove all checkpoints but the newest `keep` and the best one.

    Args:
        folder: The run's `checkpoints`.
        mark: Where the run is.
        parts: What `write_part` said, the one with the skeleton first.
        keep: Newest checkpoints that stay.
        pace: Seconds, for whoever wants to know them: see ARCHITECTURE.

    Raises:
        StorageError: The file system refused; the checkpoint does not exist then.
    """
    where = {"step": mark.step, "epoch": mark.epoch, "position": mark.position, "ranks": mark.ranks}
    best = {} if mark.best is None else {"best": asdict(mark.best)}
    record = {"format": FORMAT, "files": list(parts), **where, **pace, "step_s": round(mark.step_s, 4), **best}
    publish_json(commit_file(folder, mark.step), record)
    with contextlib.suppress(HpcmassError):  # the checkpoint is there, whatever becomes of old ones
        _tidy(folder, keep, mark.best)


def _tidy(folder: Path, keep: int, best: Best | None) -> None:
    found = commits(folder)
    stays = {one.step for one in found[-keep:]} | ({best.step} if best else set())
    for old in found:
        for file in () if old.step in stays else (old.json_path, *(part.path for part in old.parts)):
            with contextlib.suppress(OSError):
                file.unlink()


def commits(folder: Path) -> list[Commit]:
    """Committed checkpoints, oldest first; their files are not looked at.

    A damaged commit file is left out where a newer one is whole: nothing is gone on from there.

    Raises:
        CorruptError: The newest commit file is damaged; the hint names the newest whole checkpoint before it.
        StorageError: The folder cannot be read.
    """
    with storage_errors(folder, "list the checkpoints"):
        names = sorted(n for n in os.listdir(folder) if _NAME.fullmatch(n)) if folder.is_dir() else []
    found = []
    for name in names:
        try:
            found.append(read_commit(folder / name))
        except HpcmassError as error:
            if name != names[-1]:
                continue
            if not isinstance(error, CorruptError):
                raise
            hint = _way_back(found, folder / name)
            raise CorruptError(error.message, where=error.where, hint=hint) from error
    return found


def read_commit(path: Path) -> Commit:
    """What a commit file says.

    Raises:
        CorruptError: It is none.
        TrainError: A newer hpcmass wrote it.
    """
    try:
        raw = read_json(path)
        if int(raw["format"]) > FORMAT:
            raise TrainError(f"was written by a newer hpcmass (format {raw['format']})", where=path)
        files = [raw] if int(raw["format"]) == 1 else raw["files"]  # format 1 had one file and no list
        parts = tuple(
            Part(path.with_name(os.path.basename(one["file"])), int(one["bytes"]), str(one["sha256"]))
            for one in files
        )
        if not parts:
            raise ValueError("no files")
        numbers = {name: int(raw[name]) for name in ("step", "epoch", "position")}
        best = Best(**raw["best"]) if raw.get("best") else None
        return Commit(path, parts=parts, best=best, **numbers)
    except (CorruptError, KeyError, TypeError, ValueError) as error:
        raise CorruptError("is not a checkpoint's commit file", where=path) from error


def _way_back(before: list[Commit], bad: Path) -> str:
    """What to do about a damaged checkpoint, given its commit file and the checkpoints before it."""
    good = next((commit for commit in reversed(before) if _is_whole(commit)), None)
    files = f"{bad.name} and {bad.stem}.*safetensors"
    if good is None:
        return f"there is no whole checkpoint before it: remove {files}, or begin again with --fresh"
    return f"remove {files} to go on from step {good.step} ({good.path})"


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, or None when there is none.

    Raises:
        CorruptError: The newest commit file is damaged.
    """
    found = commits(folder)
    return found[-1].step if found else None


def load_latest(
    folder: Path, step: int | None = None, *, check: bool = True
) -> tuple[Commit, dict[str, Any]] | None:
    """The newest checkpoint and its state (tensors on the CPU), or None when there is none.

    Args:
        folder: The run's `checkpoints`.
        step: The step that it has to be of, where another rank has looked: on a shared file system this
            node's view of the folder may be an older one, and ranks that begin at different steps would
            train different models, or wait for each other for ever.
        check: Whether to verify the SHA-256, which reads the files once more.

    Raises:
        CorruptError: Its bytes do not fit the commit; the hint names the newest one before it that is whole.
        TrainError: The checkpoint of `step` cannot be seen here.
    """
    found = commits(folder)
    if step is not None:
        found = [commit for commit in found if commit.step <= step]
        if not found or found[-1].step != step:
            raise TrainError(
                f"rank 0 sees a checkpoint of step {step}, and node {socket.gethostname()} does not",
                where=folder,
                hint="the file system shows it late: start again",
                transient=True,
            )
    if not found:
        return None
    try:
        return found[-1], load(found[-1], check=check)
    except CorruptError as error:
        hint = _way_back(found[:-1], found[-1].json_path)
        raise CorruptError(error.message, where=error.where, hint=hint) from error


def load(commit: Commit, *, check: bool = True) -> dict[str, Any]:
    """The state of a checkpoint, the sizes and, where `check`, the SHA-256 of its files verified.

    Raises:
        CorruptError: They do not fit, or a file is not safetensors.
    """
    _verify(commit, check=check)
    tensors: dict[str, Tensor] = {}
    where = commit.path
    try:
        with storage_errors(where, "read the checkpoint"):
            with open(where, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                skeleton = json.loads(json.loads(file.read(length))["__metadata__"][_SKELETON])
            for part in commit.parts:
                where = part.path
                tensors.update(load_file(part.path))
        state: dict[str, Any] = decode(skeleton, tensors)
        return state
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the checkpoint cannot be read ({error})", where=where) from error


def _verify(commit: Commit, *, check: bool = True) -> None:
    for part in commit.parts:
        with storage_errors(part.path, "read the checkpoint"):
            try:
                size = part.path.stat().st_size
            except FileNotFoundError:
                raise CorruptError("the checkpoint's file is gone", where=part.path) from None
        if size != part.bytes:
            raise CorruptError(f"the checkpoint has {size} bytes, not {part.bytes}", where=part.path)
    for part in commit.parts if check else ():
        if sha256_file(part.path) != part.sha256:
            raise CorruptError("the checkpoint does not fit its SHA-256", where=part.path)


def _is_whole(commit: Commit) -> bool:
    try:
        _verify(commit)
    except HpcmassError:
        return False
    return True


def load_model(model: torch.nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's tensors into a model.

    Raises:
        TrainError: Names or shapes do not fit; the message names the first tensor that does not.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise _misfit(f"the model's tensor {name!r} is not in the checkpoint", where)
        if isinstance(tensor, Tensor) and tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)} in the model, {tuple(state[name].shape)} in the checkpoint"
            raise _misfit(f"tensor {name!r} has shape {shapes}", where)
    for name in state:
        if name not in own:
            raise _misfit(f"the checkpoint's tensor {name!r} is not in the model", where)
    model.load_state_dict(state)


def _misfit(message: str, where: Path) -> TrainError:
    return TrainError(
        message, where=where, hint="the recipe builds another model than the one that was trained: "
        "undo the change, or begin again with --fresh",
    )  # fmt: skip


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed attempt left: temporaries, and files that no commit names.

    The caller holds the run's lease. Where a commit file is damaged, the files of its step stay: they may be
    of use to whoever looks into it.
    """
    with storage_errors(folder, "clean the checkpoints"):
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        for name in names:
            found = _FILE.fullmatch(name)
            if (name.startswith(".") and name.endswith(".tmp")) or (
                found and not _named(folder, found[1], name)
            ):
                (folder / name).unlink(missing_ok=True)


def _named(folder: Path, step: str, name: str) -> bool:
    """Whether a file belongs to the commit of its step, or may."""
    path = folder / f"{step}.json"
    if not path.exists():
        return False
    try:
        return name in {part.path.name for part in read_commit(path).parts}
    except HpcmassError:
        return True
