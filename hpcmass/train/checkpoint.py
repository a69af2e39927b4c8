"""Checkpoints: one safetensors file with everything, committed by a small JSON file that is published last.

Nested state (model, optimizer, schedule) becomes tensors plus a JSON skeleton in the file's metadata; nothing
is pickled. A checkpoint exists when its `.json` does and fits the file's size and SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpcmass.errors import CorruptError, HpcmassError, TrainError
from hpcmass.files import publish_json, publishing, read_json, sha256_file, storage_errors

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})\.json")
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint.

    Attributes:
        path: The safetensors file.
        json_path: The file that commits it.
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        position: Samples of that epoch done.
    """

    path: Path
    json_path: Path
    step: int
    epoch: int
    position: int
    bytes: int
    sha256: str


def save(
    folder: Path,
    state: dict[str, Any],
    *,
    step: int,
    epoch: int,
    position: int,
    keep: int,
    ranks: int,
    step_s: float = 0.0,
) -> None:
    """Write a checkpoint, commit it, and remove all but the newest `keep`.

    One that is committed for this step already stays as it is.

    Args:
        folder: The run's `checkpoints`.
        state: Nested dicts, lists and tuples of tensors and of what JSON can say.
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        position: Samples of that epoch done.
        keep: Checkpoints that stay.
        ranks: How many ranks wrote it (for the reader; any number may go on).
        step_s: Seconds that a step takes; written down with the seconds that this checkpoint took, for
            whoever has to know how long before a time limit the run must be asked to stop.

    Raises:
        StorageError: The file system refused; nothing half-written counts.
        TrainError: Something in the state is neither a tensor nor what JSON can say.
    """
    name = f"step-{step:09d}"
    path, json_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    if json_path.exists():
        return
    began = time.perf_counter()
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of an attempt that ended before it could commit
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_encode(state, "", tensors))
    with publishing(path) as temporary:
        nbytes, digest = write_safetensors(temporary, tensors, {"hpcmass": skeleton})
    record = {"format": FORMAT, "file": path.name, "bytes": nbytes, "sha256": digest, "ranks": ranks}
    pace = {"checkpoint_s": round(time.perf_counter() - began, 3), "step_s": round(step_s, 4)}
    publish_json(json_path, {**record, "step": step, "epoch": epoch, "position": position, **pace})
    for old in commits(folder)[:-keep]:
        for file in (old.json_path, old.path):
            with contextlib.suppress(OSError):
                file.unlink()


def commits(folder: Path) -> list[Commit]:
    """Committed checkpoints, oldest first; their files are not looked at.

    A damaged commit file is left out where a newer one is whole: nothing is gone on from there.

    Raises:
        CorruptError: The newest commit file is damaged; the hint names the newest whole checkpoint before it.
    """
    names = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name)) if folder.is_dir() else []
    found = []
    for name in names:
        try:
            found.append(_read_commit(folder / name))
        except HpcmassError as error:
            if name != names[-1]:
                continue
            if not isinstance(error, CorruptError):
                raise
            hint = _way_back(found, folder / name)
            raise CorruptError(error.message, where=error.where, hint=hint) from error
    return found


def _read_commit(path: Path) -> Commit:
    try:
        raw = read_json(path)
        if int(raw["format"]) > FORMAT:
            raise TrainError(f"was written by a newer hpcmass (format {raw['format']})", where=path)
        file = path.with_name(os.path.basename(raw["file"]))
        numbers = {name: int(raw[name]) for name in ("step", "epoch", "position", "bytes")}
        return Commit(file, path, sha256=str(raw["sha256"]), **numbers)
    except (CorruptError, KeyError, TypeError, ValueError) as error:
        raise CorruptError("is not a checkpoint's commit file", where=path) from error


def _way_back(before: list[Commit], bad: Path) -> str:
    """What to do about a damaged checkpoint, given its commit file and the checkpoints before it."""
    good = next((commit for commit in reversed(before) if _is_whole(commit)), None)
    files = f"{bad.name} and {bad.with_suffix('.safetensors').name}"
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


def load_latest(folder: Path, step: int | None = None) -> tuple[Commit, dict[str, Any]] | None:
    """The newest checkpoint and its state (tensors on the CPU), or None when there is none.

    Args:
        folder: The run's `checkpoints`.
        step: The step that it has to be of, where another rank has looked: on a shared file system this
            node's view of the folder may be an older one, and ranks that begin at different steps would
            train different models, or wait for each other for ever.

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
        return found[-1], load(found[-1])
    except CorruptError as error:
        hint = _way_back(found[:-1], found[-1].json_path)
        raise CorruptError(error.message, where=error.where, hint=hint) from error


def load(commit: Commit) -> dict[str, Any]:
    """The state of a checkpoint, its size and SHA-256 verified.

    Raises:
        CorruptError: They do not fit, or the file is not safetensors.
    """
    _verify(commit)
    try:
        with open(commit.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            skeleton = json.loads(json.loads(file.read(length))["__metadata__"]["hpcmass"])
        state: dict[str, Any] = _decode(skeleton, load_file(commit.path))
        return state
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the checkpoint cannot be read ({error})", where=commit.path) from error


def _verify(commit: Commit) -> None:
    try:
        size = commit.path.stat().st_size
    except FileNotFoundError:
        raise CorruptError("the checkpoint's file is gone", where=commit.path) from None
    if size != commit.bytes:
        raise CorruptError(f"the checkpoint has {size} bytes, not {commit.bytes}", where=commit.path)
    if sha256_file(commit.path) != commit.sha256:
        raise CorruptError("the checkpoint does not fit its SHA-256", where=commit.path)


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


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[int, str]:
    """Write a safetensors file tensor by tensor, and return its bytes and SHA-256.

    The library's own writer takes a second copy of everything in memory and hides the system's error codes.
    Format: 8 bytes length of the header, the header as JSON, the tensors' bytes (safetensors, README).

    Raises:
        OSError: The file system refused.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    # The largest elements first keep every tensor aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    total = 0
    with open(path, "xb", buffering=0) as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            total += _put(file, digest, piece)
        for _, tensor in ordered:
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                total += _put(file, digest, flat.view(torch.uint8).numpy().data)
    return total, digest.hexdigest()


def _put(file: Any, digest: Any, data: bytes | memoryview) -> int:
    view = memoryview(data)
    digest.update(view)
    done = 0
    while done < len(view):
        done += file.write(view[done : done + (1 << 26)])
    return done


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested state; tensors are put into `tensors` under their path."""
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES:
            raise TrainError(f"a tensor of type {value.dtype} cannot be kept in a checkpoint", where=path)
        tensors[path] = value
        return {"t": path}
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise TrainError(
                    f"a key of type {type(key).__name__} cannot be kept in a checkpoint", where=path
                )
            items.append([key, _encode(item, f"{path}/{key}" if path else str(key), tensors)])
        return {"d": items}
    if isinstance(value, (list, tuple)):
        kind = "l" if isinstance(value, list) else "u"
        return {kind: [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TrainError(f"a {type(value).__name__} cannot be kept in a checkpoint", where=path)


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "t":
        return tensors[inner]
    if kind == "d":
        return {key: _decode(item, tensors) for key, item in inner}
    if kind in ("l", "u"):
        items = [_decode(item, tensors) for item in inner]
        return items if kind == "l" else tuple(items)
    raise ValueError(f"unknown kind {kind!r}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporaries that a killed attempt left; the caller holds the run's lease."""
    with storage_errors(folder, "clean the checkpoints"):
        for name in os.listdir(folder) if folder.is_dir() else []:
            if name.startswith(".") and name.endswith(".tmp"):
                (folder / name).unlink(missing_ok=True)
