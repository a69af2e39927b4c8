"""Weights that a run begins with (`train.init_from`): a plain state_dict, safetensors, a model or a checkpoint.

Only tensors are read: torch's files with `weights_only=True`, which builds nothing but tensors and plain
containers. Names and shapes are held against the model before anything is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project
from hpcmass.errors import ConfigError, CorruptError, HpcmassError, NotFound, TrainError
from hpcmass.files import publish_json, read_json, sha256_file, storage_errors
from hpcmass.runs import RunFolder
from hpcmass.train import checkpoint
from hpcmass.train.bundle import WEIGHTS
from hpcmass.train.tensorfile import spoilt

FORMAT = 1
# Where files of whole trainings have the weights, and what wrappers put before their names.
_INNER = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        told: What it turned out to be: a file, or `NAME@3`.
    """

    file: Path
    told: str


def begin_with(model: torch.nn.Module, source: str, project: Project, *, strict: bool) -> dict[str, Any]:
    """Put the weights that a job names into a model.

    Args:
        model: Has its shapes.
        source: `NAME@VERSION` of the catalogue; or a path, relative to the project folder: a file of torch or
            safetensors, a checkpoint's `.json`, a model's folder, or a run's.
        project: The project.
        strict: Every tensor of the model has to be there, in its shape, and no other.

    Returns:
        What was taken, as `record` keeps it.

    Raises:
        NotFound: There is no such thing.
        CorruptError: It cannot be read as tensors.
        TrainError: It does not fit; the message names the tensors.
    """
    found = _resolve(source, project)
    given = _read(found.file)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    shapes = [name for name in own if name in given and own[name].shape != given[name].shape]
    taken = {name: given[name] for name in own if name in given and name not in shapes}
    if (strict and (missing or unexpected or shapes)) or not taken:
        said = [_list("not in the file", missing), _list("not in the model", unexpected)]
        pairs = [f"{name} {tuple(own[name].shape)} here, {tuple(given[name].shape)} there" for name in shapes]
        said.append(_list("of another shape", pairs))
        hint = "train.init_strict = false takes those that fit" if taken else "is it the same kind of model?"
        text = "; ".join(part for part in said if part)
        fits = f"{len(taken)} of the model's {len(own)} tensors fit"
        raise TrainError(f"the weights do not fit the model: {text}; {fits}", where=found.told, hint=hint)
    bad = spoilt([(name, value) for name, value in taken.items() if value.is_floating_point()])
    if bad is not None:
        raise TrainError(f"the weights {bad!r} are NaN or infinite", where=found.told)
    model.load_state_dict(taken, strict=False)
    return {
        "format": FORMAT, "from": source, "what": found.told, "sha256": sha256_file(found.file),
        "tensors": len(taken), "of": len(own), "missing": missing, "unexpected": unexpected, "shapes": shapes,
    }  # fmt: skip


def record(run: RunFolder, said: dict[str, Any]) -> str:
    """Write down, once, what a run began with; it begins with the same when it has to begin again.

    Returns:
        A line for the user.

    Raises:
        TrainError: It began with other weights of the same name.
    """
    path = run.path / "init.json"
    try:
        before = read_json(path)
        if before.get("sha256") != said["sha256"]:
            raise TrainError(
                f"{said['what']} is not what it was when the run was begun",
                where=path,
                hint="put the old file back, or begin again with --fresh",
            )
    except NotFound:
        publish_json(path, said)
    left = [
        _list("not in the file", said["missing"]), _list("not taken", said["unexpected"]),
        _list("of another shape", said["shapes"]),
    ]  # fmt: skip
    text = "; ".join(part for part in left if part)
    return f"begins with {said['what']}: {said['tensors']} of {said['of']} tensors" + (
        f" ({text})" if text else ""
    )


def refuse_for_estimator() -> ConfigError:
    """Estimators of scikit-learn have no tensors to begin with."""
    return ConfigError("is for torch models; the recipe builds an estimator", where="train.init_from")


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"


def _resolve(source: str, project: Project) -> Source:
    if "@" in source and "/" not in source:
        catalogue = Catalogue(project.catalogue)
        version = catalogue.get(source)
        if WEIGHTS not in version.files:
            raise TrainError("is no torch model: it has no weights to begin with", where=version.ref)
        return Source(catalogue.open_files(version)[WEIGHTS], version.ref)
    path = project.data_path(source)
    if path.is_dir():
        names = (WEIGHTS, f"model/{WEIGHTS}", "model.safetensors")  # the last: of an exported model
        inside = next((path / name for name in names if (path / name).is_file()), None)
        if inside is None:
            raise NotFound(f"there is no {WEIGHTS} in it, nor in its model/", where=path)
        path = inside
    if not path.is_file():
        hint = "train.init_from takes a path (from the project folder), or NAME@VERSION of the catalogue"
        raise NotFound("there is no such file", where=path, hint=hint)
    return Source(path, str(path))


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU."""
    with storage_errors(path, "read the weights"), open(path, "rb") as file:
        head = file.read(9)
    try:
        if path.suffix == ".json":
            raw: Any = checkpoint.load(checkpoint.read_commit(path))["model"]
        elif head[8:] == b"{":  # 8 bytes length, then JSON
            raw = _read_safetensors(path)
        else:
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except HpcmassError:
        raise
    except Exception as error:  # torch raises what its unpickler meets with, of many types
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CorruptError(
            f"is not a file of tensors alone ({first[0][:200]})",
            where=path,
            hint="save the model's state_dict() with torch.save, or as safetensors; nothing else is unpickled",
        ) from error
    return _plain(raw, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            ours = "hpcmass" in (file.metadata() or {})
            names = [name for name in file.keys() if not ours or name.startswith("model/")]  # noqa: SIM118
            return {name.removeprefix("model/") if ours else name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CorruptError(f"is not a whole safetensors file ({error})", where=path) from error


def _plain(raw: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a file holds, without the prefix of a wrapper."""
    if isinstance(raw, Mapping) and not any(isinstance(value, Tensor) for value in raw.values()):
        raw = next((raw[key] for key in _INNER if isinstance(raw.get(key), Mapping)), raw)
    tensors = {k: v for k, v in raw.items() if isinstance(v, Tensor)} if isinstance(raw, Mapping) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        what = (
            f"keys: {', '.join(map(str, list(raw)[:_SHOWN]))}"
            if isinstance(raw, Mapping)
            else type(raw).__name__
        )
        raise CorruptError(f"holds no state_dict ({what})", where=path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
