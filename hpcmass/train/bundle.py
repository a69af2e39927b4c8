"""The model bundle: a folder with `model.json` and its files; what it holds, and reading it.

Nothing in it is pickled: weights are safetensors, estimators are skops files held against a list of types
(`skops_files`). `model.json` carries the size and SHA-256 of every other file of the folder. Bundles are
written by `bundle_writer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from hpcmass.data.shaping import Shape
from hpcmass.errors import CorruptError, HpcmassError, NotFound, RecipeError
from hpcmass.files import check_name, read_json, sha256_file
from hpcmass.train.signature import Signature

FORMAT = 1
EXPORTED_FORMAT = 2  # an hpcmass that does not know exported models asks to be updated
KINDS = ("torch", "estimator", "ensemble", "onnx", "torch-export")
EXPORTED = {"onnx": "model.onnx", "torch-export": "model.pt2"}
ONE, TUPLE, DICT = "one", "tuple", "dict"
COMBINED = ("vote", "stack")
WEIGHTS = "weights.safetensors"
ESTIMATOR = "estimator.skops"
STACK = "stack.safetensors"
RECIPE = "recipe.py"


@dataclass(frozen=True)
class Bundle:
    """The content of a bundle's `model.json`, checked.

    Attributes:
        folder: Where it lies.
        members: The member bundles of an ensemble.
        framework: Versions of the packages that wrote it.
        data: The facts about the training data that `build_model` was given, where the recipe takes them.
        ragged: What became of the ragged fields of its training data in batches.
        weights: The file with the weights of a torch model; one laid out for others has another name.
        gives: The form of an exported model's outputs: `one`, `tuple`, or `dict` and the keys.
    """

    folder: Path
    kind: str
    signature: Signature
    params: dict[str, Any] = field(default_factory=dict)
    members: tuple[Path, ...] = ()
    combine: str | None = None
    framework: dict[str, str] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] | None = None
    ragged: dict[str, Shape] = field(default_factory=dict)
    weights: str = WEIGHTS
    gives: tuple[str, ...] = (ONE,)

    @property
    def recipe_file(self) -> Path:
        """The recipe's source, run when the model is loaded."""
        return self.folder / RECIPE

    @property
    def weights_file(self) -> Path:
        """Weights of a torch model."""
        return self.folder / self.weights

    @property
    def estimator_file(self) -> Path:
        """The skops file of an estimator."""
        return self.folder / ESTIMATOR

    @property
    def program_file(self) -> Path:
        """The file of an exported model."""
        return self.folder / EXPORTED[self.kind]

    @property
    def stack_file(self) -> Path:
        """`weight` (outputs, members x outputs) and `bias` (outputs) of a stacked ensemble."""
        return self.folder / STACK


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
    }.get(bundle.kind) or ([bundle.program_file] if bundle.kind in EXPORTED else [])
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
    known = EXPORTED_FORMAT if raw.get("kind") in EXPORTED else FORMAT
    if raw["format"] > known:
        raise CorruptError(
            f"has format {raw['format']}; this hpcmass reads up to {known}",
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
        data={str(one["name"]): _without_name(one) for one in raw["data"]} if "data" in raw else None,
        ragged={str(name): Shape(**said) for name, said in raw.get("ragged", {}).items()},
        weights=check_name(raw.get("weights", WEIGHTS), "file"),
        gives=_form(raw.get("gives", [ONE])),
    )


def _form(raw: Any) -> tuple[str, ...]:
    form = tuple(str(one) for one in raw)
    if not form or form[0] not in (ONE, TUPLE, DICT) or (len(form) > 1) != (form[0] == DICT):
        raise ValueError(f"outputs of the form {raw!r}")
    return form


def _without_name(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "name"}


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
        if first.targets and other.signature.targets and first.targets != other.signature.targets:
            raise RecipeError(
                f"the models differ in their targets: {first.targets} and {other.signature.targets}",
                where=other.folder,
            )
    if len(first.outputs) != 1:
        raise RecipeError("only models with one output can be combined", where=bundles[0].folder)
