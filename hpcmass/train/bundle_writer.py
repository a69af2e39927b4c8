"""Model bundles are written whole or not at all; what lies in them is told in `bundle`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from hpcmass.data.shaping import Shape
from hpcmass.errors import AlreadyExists, RecipeError, StorageError
from hpcmass.files import fsync_dir, make_dir, sha256_file, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.train.bundle import (
    COMBINED,
    ESTIMATOR,
    EXPORTED,
    EXPORTED_FORMAT,
    FORMAT,
    RECIPE,
    STACK,
    WEIGHTS,
    read_bundle,
    same_signature,
)
from hpcmass.train.facts import facts_of
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.recipe import Facts, Recipe
from hpcmass.train.signature import Signature, make_signature
from hpcmass.train.skops_files import dump_estimator, skops_version


def write_torch_bundle(
    folder: Path,
    model: torch.nn.Module,
    recipe: Recipe,
    params: Mapping[str, Any],
    dataset: DatasetLike,
    sample_output: Any,
    *,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> Path:
    """Write a torch model (one rank does).

    Args:
        folder: Where the bundle will lie; must not exist.
        model: The bare module, on any device.
        recipe: The recipe that built it.
        params: What `build_model` was given.
        dataset: What it was trained on.
        sample_output: Its outputs for some samples, (n, ...).
        inputs: Input fields, default by role.
        targets: Target fields, default by role.

    Raises:
        AlreadyExists: The folder exists.
        RecipeError: The model keeps state that is not a tensor.
        StorageError: The file system refused; nothing is left behind.
    """
    signature = make_signature(dataset, sample_output, inputs, targets)
    data = facts_of(dataset, inputs, targets) if recipe.takes_data else None
    shapes = getattr(dataset, "shapes", {})
    return write_weights(folder, model_state(model), recipe.source, params, signature, data, shapes)


def model_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of a model's parameters and buffers on the CPU, none sharing memory with another.

    Raises:
        RecipeError: The model keeps state that is not a tensor.
    """
    state = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise RecipeError(
                f"the model keeps state that is not a tensor ({name}: {type(value).__name__})",
                hint="use register_buffer for what belongs to the weights, params for the rest",
            )
        state[name] = value.detach().to("cpu", copy=True).contiguous()
    return state


def write_weights(
    folder: Path,
    state: dict[str, Tensor],
    recipe_source: str,
    params: Mapping[str, Any],
    signature: Signature,
    data: Facts | None = None,
    ragged: Mapping[str, Shape] | None = None,
) -> Path:
    """Write a torch bundle from its parts; as `write_torch_bundle`."""

    def fill(temporary: Path) -> None:
        save_file(state, str(temporary / WEIGHTS))
        (temporary / RECIPE).write_text(recipe_source, encoding="utf-8", newline="")

    meta: dict[str, Any] = {"kind": "torch", "recipe": RECIPE, "params": dict(params), "weights": WEIGHTS}
    if data is not None:
        # A list: the order of the fields counts, and the keys of model.json are sorted.
        meta["data"] = [{"name": name, **facts} for name, facts in data.items()]
    if ragged:
        meta["ragged"] = {name: one.to_json() for name, one in ragged.items()}
    return _write(folder, meta, signature, {"torch": torch.__version__}, fill)


def write_estimator_bundle(
    folder: Path,
    estimator: Any,
    recipe: Recipe,
    params: Mapping[str, Any],
    dataset: DatasetLike,
    *,
    sample_output: Any,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    task: str | None = None,
) -> Path:
    """Write a fitted estimator; as `write_torch_bundle`.

    `sample_output` holds probabilities (n, classes) of all the dataset's classes, or values (n, ...).

    Raises:
        RecipeError: The estimator is, or holds, something whose type is not allowed in a bundle.
        MissingDependency: skops is not installed.
    """
    signature = make_signature(dataset, sample_output, inputs, targets, task=task)
    return write_estimator(folder, estimator, recipe.source, params, signature)


def write_estimator(
    folder: Path, estimator: Any, recipe_source: str, params: Mapping[str, Any], signature: Signature
) -> Path:
    """Write an estimator's bundle from its parts; as `write_estimator_bundle`."""

    def fill(temporary: Path) -> None:
        dump_estimator(estimator, temporary / ESTIMATOR)
        (temporary / RECIPE).write_text(recipe_source, encoding="utf-8", newline="")

    meta = {"kind": "estimator", "recipe": RECIPE, "params": dict(params), "estimator": ESTIMATOR}
    return _write(folder, meta, signature, skops_version(), fill)


def write_ensemble_bundle(
    folder: Path, members: Sequence[Path], combine: str, stack: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> Path:
    """Write an ensemble: copies of its members' bundles and how their outputs are combined.

    Args:
        folder: Where the bundle will lie; must not exist.
        members: Bundles with the same inputs, task and classes.
        combine: `vote` (mean of the outputs) or `stack` (a linear model on the outputs).
        stack: For `stack`: `weight` (outputs, members x outputs) and `bias` (outputs), float.

    Raises:
        RecipeError: The members do not fit each other.
    """
    if combine not in COMBINED or (combine == "stack") != (stack is not None):
        raise ValueError(f"combine={combine!r} with stack={'given' if stack else None}")
    bundles = [read_bundle(member) for member in members]
    same_signature(bundles)
    names = [f"members/{number:02d}" for number in range(len(bundles))]

    def fill(temporary: Path) -> None:
        for bundle, name in zip(bundles, names, strict=True):
            shutil.copytree(bundle.folder, temporary / name, ignore=shutil.ignore_patterns(".*.tmp"))
        if stack is not None:
            arrays = {key: np.ascontiguousarray(value, np.float64) for key, value in stack.items()}
            save_arrays(arrays, str(temporary / STACK))

    meta: dict[str, Any] = {"kind": "ensemble", "members": names, "combine": combine}
    if bundles[0].ragged:
        meta["ragged"] = {name: one.to_json() for name, one in bundles[0].ragged.items()}
    if stack is not None:
        meta["stack"] = STACK
    framework: dict[str, str] = {}
    for bundle in bundles:
        framework |= bundle.framework
    return _write(folder, meta, bundles[0].signature, framework, fill)


def write_exported(
    folder: Path,
    kind: str,
    program: Callable[[Path], None],
    signature: Signature,
    *,
    gives: Sequence[str],
    beside: Mapping[str, str],
    ragged: Mapping[str, Shape],
    framework: Mapping[str, str],
) -> Path:
    """Write an exported model: its program, and what lies beside it for programs without hpcmass.

    Args:
        folder: Where the bundle will lie; must not exist.
        kind: `onnx` or `torch-export`.
        program: Writes the program to a path.
        signature: What it takes and gives.
        gives: The form of its outputs, as in `Bundle`.
        beside: Texts of further files by name.
        ragged: What became of ragged fields in batches.
        framework: Versions of the packages that wrote it.
    """

    def fill(temporary: Path) -> None:
        program(temporary / EXPORTED[kind])
        for name, text in beside.items():
            (temporary / name).write_text(text, encoding="utf-8")

    meta: dict[str, Any] = {
        "format": EXPORTED_FORMAT,
        "kind": kind,
        "program": EXPORTED[kind],
        "gives": list(gives),
    }
    if ragged:
        meta["ragged"] = {name: one.to_json() for name, one in ragged.items()}
    return _write(folder, meta, signature, framework, fill)


def _write(
    folder: Path,
    meta: dict[str, Any],
    signature: Signature,
    framework: Mapping[str, str],
    fill: Callable[[Path], None],
) -> Path:
    """Fill a temporary folder beside the final one, make it durable, rename it into place."""
    folder = Path(folder)
    if folder.exists():
        raise AlreadyExists("is there already and is written only once", where=folder)
    make_dir(folder.parent)
    temporary = temporary_beside(folder)
    try:
        with storage_errors(folder, "write the model"):
            temporary.mkdir()
            fill(temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            digests = {
                path.relative_to(temporary).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": sha256_file(path),
                }
                for path in files
            }
            made = {
                "format": FORMAT,
                **meta,
                "signature": signature.to_json(),
                "framework": dict(framework),
                "files": digests,
            }
            # Written last; default=str for the dates and times that TOML knows and JSON does not.
            text = json.dumps(made, indent=1, sort_keys=True, default=str) + "\n"
            (temporary / "model.json").write_text(text, encoding="utf-8")
            _fsync_tree(temporary)
            _rename_once(temporary, folder)
            fsync_dir(folder.parent)
    except safetensors.SafetensorError as error:
        raise StorageError(
            f"cannot write the weights ({error})", where=folder, hint="is the disk full?", transient=True
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return folder


def _fsync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            fsync_dir(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _rename_once(temporary: Path, folder: Path) -> None:
    try:
        folder.mkdir()  # of several writers one reserves the name; rename replaces an empty folder
    except FileExistsError as error:
        raise AlreadyExists("is there already and is written only once", where=folder) from error
    try:
        os.rename(temporary, folder)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
