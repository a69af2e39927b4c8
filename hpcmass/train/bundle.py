"""The model bundle: a folder with `model.json` and its files, written whole or not at all.

Nothing in it is pickled: weights are safetensors, estimators are skops files held against a list of types
(`skops_files`). `model.json` carries the size and SHA-256 of every other file of the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcmass.errors import AlreadyExists, CorruptError, HpcmassError, NotFound, RecipeError, StorageError
from hpcmass.files import check_name, fsync_dir, make_dir, read_json, sha256_file, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.train.inputs import DatasetLike
from hpcmass.train.recipe import Recipe
from hpcmass.train.signature import Signature, make_signature
from hpcmass.train.skops_files import dump_estimator, skops_version

FORMAT = 1
KINDS = ("torch", "estimator", "ensemble")
COMBINED = ("vote", "stack")
_WEIGHTS, _ESTIMATOR, _STACK, _RECIPE = (
    "weights.safetensors",
    "estimator.skops",
    "stack.safetensors",
    "recipe.py",
)


@dataclass(frozen=True)
class Bundle:
    """The content of a bundle's `model.json`, checked.

    Attributes:
        folder: Where it lies.
        members: The member bundles of an ensemble.
        framework: Versions of the packages that wrote it.
    """

    folder: Path
    kind: str
    signature: Signature
    params: dict[str, Any] = field(default_factory=dict)
    members: tuple[Path, ...] = ()
    combine: str | None = None
    framework: dict[str, str] = field(default_factory=dict)

    @property
    def recipe_file(self) -> Path:
        """The recipe's source, run when the model is loaded."""
        return self.folder / _RECIPE

    @property
    def weights_file(self) -> Path:
        """Weights of a torch model."""
        return self.folder / _WEIGHTS

    @property
    def estimator_file(self) -> Path:
        """The skops file of an estimator."""
        return self.folder / _ESTIMATOR

    @property
    def stack_file(self) -> Path:
        """`weight` (outputs, members x outputs) and `bias` (outputs) of a stacked ensemble."""
        return self.folder / _STACK


# -- writing ----------------------------------------------------------------------------------------------
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
    return write_weights(folder, model_state(model), recipe.source, params, signature)


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
    folder: Path, state: dict[str, Tensor], recipe_source: str, params: Mapping[str, Any], signature: Signature
) -> Path:
    """Write a torch bundle from its parts; as `write_torch_bundle`."""

    def fill(temporary: Path) -> None:
        save_file(state, str(temporary / _WEIGHTS))
        (temporary / _RECIPE).write_text(recipe_source, encoding="utf-8", newline="")

    meta = {"kind": "torch", "recipe": _RECIPE, "params": dict(params), "weights": _WEIGHTS}
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
        dump_estimator(estimator, temporary / _ESTIMATOR)
        (temporary / _RECIPE).write_text(recipe_source, encoding="utf-8", newline="")

    meta = {"kind": "estimator", "recipe": _RECIPE, "params": dict(params), "estimator": _ESTIMATOR}
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
            save_arrays(arrays, str(temporary / _STACK))

    meta: dict[str, Any] = {"kind": "ensemble", "members": names, "combine": combine}
    if stack is not None:
        meta["stack"] = _STACK
    framework: dict[str, str] = {}
    for bundle in bundles:
        framework |= bundle.framework
    return _write(folder, meta, bundles[0].signature, framework, fill)


def same_signature(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles that cannot be combined.

    Raises:
        RecipeError: There are none, or they differ in inputs, outputs, classes or task.
    """
    if not bundles:
        raise RecipeError("there are no models to combine")
    first = bundles[0].signature
    for other in bundles[1:]:
        for part in ("inputs", "task", "classes"):
            if getattr(first, part) != getattr(other.signature, part):
                raise RecipeError(
                    f"the models differ in their {part}: {getattr(first, part)} and "
                    f"{getattr(other.signature, part)}",
                    where=other.folder,
                )
        if [f.shape for f in first.outputs] != [f.shape for f in other.signature.outputs]:
            raise RecipeError("the models differ in the shape of their outputs", where=other.folder)
    if len(first.outputs) != 1:
        raise RecipeError("only models with one output can be combined", where=bundles[0].folder)


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


# -- reading ----------------------------------------------------------------------------------------------
def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle's `model.json`; nothing of the model is loaded or run.

    Args:
        folder: The bundle.
        verify: Also hold its files against their sizes and checksums.

    Raises:
        NotFound: There is no bundle.
        CorruptError: `model.json` is not one, or a file is missing or does not fit its checksum.
    """
    folder = Path(folder)
    file = folder / "model.json"
    if not file.is_file():
        raise NotFound("there is no model here (no model.json)", where=folder)
    raw = read_json(file)
    try:
        bundle = _parse(folder, raw)
        digests = {_inside(folder, name): dict(value) for name, value in raw["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, HpcmassError) as error:
        if isinstance(error, CorruptError):
            raise
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptError(f"is not a model's description ({text})", where=file) from error
    needed = {
        "torch": [bundle.recipe_file, bundle.weights_file],
        "estimator": [bundle.recipe_file, bundle.estimator_file],
        "ensemble": [bundle.stack_file] if bundle.combine == "stack" else [],
    }[bundle.kind]
    for path in {*needed, *digests}:
        if not path.is_file() or path not in digests:
            raise CorruptError("is missing from the model" if path in digests else "is not listed", where=path)
    if verify:
        for path, digest in digests.items():
            if path.stat().st_size != digest.get("bytes") or sha256_file(path) != digest.get("sha256"):
                raise CorruptError(
                    "does not fit its checksum", where=path, hint="fetch or train the model again"
                )
    return bundle


def _parse(folder: Path, raw: Any) -> Bundle:
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise ValueError("no format number")
    if raw["format"] > FORMAT:
        raise CorruptError(
            f"has format {raw['format']}; this hpcmass reads up to {FORMAT}",
            where=folder / "model.json",
            hint="use a newer hpcmass",
        )
    kind, combine = raw["kind"], raw.get("combine")
    members = tuple(_inside(folder, name) for name in raw.get("members", ()))
    if kind not in KINDS or (kind == "ensemble" and (combine not in COMBINED or not members)):
        raise ValueError(f"kind {kind!r}, combine {combine!r}, {len(members)} members")
    return Bundle(
        folder=folder,
        kind=kind,
        signature=Signature.from_json(raw["signature"]),
        params=dict(raw.get("params", {})),
        members=members,
        combine=combine,
        framework={str(key): str(value) for key, value in raw["framework"].items()},
    )


def _inside(folder: Path, name: str) -> Path:
    """A path of the bundle's own files: plain names only, so that none leads out of the folder."""
    for part in name.split("/"):
        check_name(part, "file")
    return folder / name


def read_weights(bundle: Bundle) -> dict[str, Tensor]:
    """The tensors of a torch bundle, on the CPU.

    Raises:
        CorruptError: The file is not a whole safetensors file.
    """
    try:
        return load_file(str(bundle.weights_file))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptError(f"is not a whole safetensors file ({error})", where=bundle.weights_file) from error


def read_stack(bundle: Bundle) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays `weight` and `bias` of a stacked ensemble.

    Raises:
        CorruptError: The file is not what it should be.
    """
    path = bundle.stack_file
    try:
        arrays: dict[str, np.ndarray[Any, Any]] = load_arrays(str(path))
        weight, bias = arrays["weight"], arrays["bias"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptError(f"is not a whole safetensors file ({error})", where=path) from error
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != len(bias) * len(bundle.members):
        raise CorruptError(f"has shapes {weight.shape} and {bias.shape}", where=path)
    return arrays
