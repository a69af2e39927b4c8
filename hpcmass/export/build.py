"""From a loaded model to the bundle of an exported one, checked against it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import RecipeError
from hpcmass.export.agree import Agreement, compare_outputs, flat
from hpcmass.export.estimator_graph import with_estimator
from hpcmass.export.portable import Portability, check_portable
from hpcmass.export.quantise import quantised
from hpcmass.export.raw import form_of, raw_module
from hpcmass.export.torch_graph import need_onnx, program_of, to_onnx, write_program
from hpcmass.train.bundle import EXPORTED
from hpcmass.train.bundle_writer import write_exported
from hpcmass.train.exported import onnx_session
from hpcmass.train.model import Model, load_bundle
from hpcmass.train.signature import ANY, Signature

FORMATS = ("onnx", "torch-export", "int8", "int8-dynamic")
SIGNATURE = "signature.json"
SIGNATURE_FORMAT = 1
_CLOSE = {"torch": 1.0, "ensemble": 1.0, "estimator": 0.99}  # a split of a tree may fall on the other side
_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "skl2onnx", "scikit-learn")

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Exported:
    """An exported model's bundle, and what is known of it.

    Attributes:
        folder: The bundle.
        format: One of `FORMATS`.
        model: Loaded from there.
        agreement: With the model that it was made from.
        portability: What an ONNX file needs; None of torch.export.
    """

    folder: Path
    format: str
    model: Model
    agreement: Agreement
    portability: Portability | None


def export_bundle(
    model: Model,
    form: str,
    folder: Path,
    samples: Arrays,
    *,
    calibration: Iterable[Arrays] = (),
    made_from: str = "",
) -> Exported:
    """Write a model as a program that takes the arrays as they are stored, and hold it against the model.

    Args:
        model: Loaded.
        form: One of `FORMATS`; `int8` calibrates, `int8-dynamic` does not.
        folder: Where the new bundle will lie; must not exist. Where the two do not agree it is there as well.
        samples: Some samples by input name, (n, *shape); at least one.
        calibration: Batches of inputs for `int8`.
        made_from: What the model is called, for `signature.json`.

    Raises:
        RecipeError: The model has no such form, or the exported one computes something else.
        MissingDependency: A package is missing.
    """
    _check_form(model, form)
    n = len(next(iter(samples.values())))
    outputs = model({name: array[: min(n, 2)] for name, array in samples.items()})
    gives = form_of(outputs)
    inputs = [spec.name for spec in model.signature.inputs]
    names = _output_names(model.signature, gives, len(flat(outputs)))
    kind = "torch-export" if form == "torch-export" else "onnx"
    beside = _signature(model, names, kind, form, made_from)
    portability = None
    if kind == "torch-export":
        program = _program(model, samples)
        write = lambda path: write_program(program, path)  # noqa: E731
    else:
        need_onnx()
        made = _onnx(model, samples, inputs, names)
        if form != "onnx":
            made = quantised(made, calibration if form == "int8" else None)
        data = made.SerializeToString()
        portability = check_portable(data)
        session = onnx_session(data, optimise=False)  # with the very operators that are in the file
        session.run(None, {name: samples[name][:1] for name in inputs})
        beside |= portability.to_json()
        write = lambda path: path.write_bytes(data)  # noqa: E731
    text = json.dumps(beside, indent=1) + "\n"
    write_exported(
        folder,
        kind,
        write,
        model.signature,
        gives=gives,
        beside={SIGNATURE: text},
        ragged=model.ragged,
        framework=_versions(),
    )
    opened = load_bundle(folder)
    agreement = compare_outputs(model, opened, samples)
    if form in ("onnx", "torch-export") and agreement.close < _CLOSE.get(model.kind, 1.0):
        raise RecipeError(
            f"the exported model computes something else: {1 - agreement.close:.1%} of {n} samples differ,"
            f" by up to {agreement.largest:.3g}",
            hint="does the model or its transform draw random numbers, or look at the whole batch?",
        )
    return Exported(folder, form, opened, agreement, portability)


def _check_form(model: Model, form: str) -> None:
    """Refuse what has no form in a format, before anything is computed."""
    hint = None
    if model.kind == "torch-export" or (model.kind == "onnx" and form in ("onnx", "torch-export")):
        hint = "export the version that it was made from"
    elif model.kind == "estimator" and form != "onnx":
        hint = "export it as onnx"
    if hint is not None:
        raise RecipeError(
            f"a model of kind {model.kind!r} has no form in {form}", where=model.bundle.folder, hint=hint
        )


def _program(model: Model, samples: Arrays) -> Any:
    return program_of(raw_module(model), model.signature.inputs, samples)


def _onnx(model: Model, samples: Arrays, inputs: list[str], names: list[str]) -> Any:
    if model.kind == "onnx":
        import onnx

        return onnx.load_model_from_string(model.bundle.program_file.read_bytes())
    program = program_of(raw_module(model), model.signature.inputs, samples)
    if model.kind != "estimator":
        return to_onnx(program, inputs, names)
    features = int(sum(np.prod(spec.shape, dtype=np.int64) for spec in model.signature.inputs))
    features = int(getattr(model.core, "n_features_in_", features))  # the transform may change their number
    return with_estimator(
        to_onnx(program, inputs, ["features"]), model.core, features, model.signature, names[0]
    )


def _output_names(signature: Signature, gives: tuple[str, ...], count: int) -> list[str]:
    named = [spec.name for spec in signature.outputs]
    names = (
        named
        if len(named) == count
        else [*gives[1:]]
        if len(gives) > 1
        else [f"output{i}" for i in range(count)]
    )
    taken = {spec.name for spec in signature.inputs} | {"features"}
    return [f"{name}_output" if name in taken else name for name in names]  # an autoencoder's, say


def _signature(model: Model, names: list[str], kind: str, form: str, made_from: str) -> dict[str, Any]:
    """What a program without hpcmass has to know."""
    signature = model.signature
    same = len(signature.outputs) == len(names)

    def described(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        # A ragged input's length is any, and an output's may follow it.
        return {"name": name, "dtype": dtype, "shape": ["n", *("any" if one == ANY else one for one in shape)]}

    return {
        "format": SIGNATURE_FORMAT,
        "made_from": made_from,
        "file": EXPORTED[kind],
        "form": form,
        "task": signature.task,
        "classes": None if signature.classes is None else list(signature.classes),
        "inputs": [described(one.name, one.dtype, one.shape) for one in signature.inputs],
        "outputs": [
            described(name, *((one.dtype, one.shape) if same else ("float32", (ANY,))))
            for name, one in zip(
                names, signature.outputs if same else [signature.outputs[0]] * len(names), strict=True
            )
        ],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
