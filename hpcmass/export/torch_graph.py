"""A torch module as a program of torch.export, and that as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcmass.errors import MissingDependency, RecipeError
from hpcmass.train.signature import ANY, FieldSpec

OPSET = 18  # ONNX Runtime 1.14 and newer
_MOST_BYTES = (1 << 31) - 1  # of a protocol buffer
_EXAMPLES = 3  # not 0 or 1, which torch.export takes for constants


def program_of(module: nn.Module, specs: Sequence[FieldSpec], samples: dict[str, Any]) -> Any:
    """The program of a module that takes any number of samples.

    Args:
        module: Takes one tensor an input, (n, *shape).
        specs: The inputs.
        samples: Some samples by input name, (n, *shape).

    Raises:
        RecipeError: torch.export cannot follow the model's code.
        MissingDependency: This torch is too old.
    """
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise MissingDependency(f"exporting needs torch 2.6 or newer, not {torch.__version__}")
    dim = torch.export.Dim
    shapes = tuple(
        {0: dim.DYNAMIC, **{at + 1: dim.AUTO for at, size in enumerate(spec.shape) if size == ANY}}
        for spec in specs
    )
    examples = tuple(torch.from_numpy(_rows(samples[spec.name])) for spec in specs)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, examples, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        raise RecipeError(
            f"torch.export cannot follow the model: {_first_line(error)}",
            hint="its code may not look at values (if x.sum() > 0: …) nor at the number of samples; "
            "torch.where and masks can",
        ) from error
    for node in program.graph.nodes:  # lines and paths of whoever exported it
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    program.example_inputs = None  # would be written as a pickle
    return program


def _rows(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    taken = np.resize(array, (_EXAMPLES, *array.shape[1:])) if len(array) < _EXAMPLES else array[:_EXAMPLES]
    return np.array(taken, order="C")


def write_program(program: Any, path: Path) -> None:
    """Write a program of torch.export."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def to_onnx(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The ONNX model (a `ModelProto`) of a program; every first axis is called `n`.

    Args:
        program: Of torch.export.
        inputs: Names of the inputs.
        outputs: Names of the outputs.

    Raises:
        RecipeError: Something in it has no ONNX operator, or it is larger than 2 GB.
        MissingDependency: onnx or onnxscript is not installed.
    """
    need_onnx()
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                external_data=False,
                verbose=False,
            )
            assert made is not None
            model = made.model_proto
    except Exception as error:
        raise RecipeError(f"the model has no form in ONNX: {_first_line(error)}") from error
    if model.ByteSize() > _MOST_BYTES:
        raise RecipeError("the model is larger than 2 GB, the most that one ONNX file holds")
    return cleaned(model)


def cleaned(model: Any) -> Any:
    """An ONNX model without paths and lines of whoever made it, its first axes called `n`."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string, graph.name = "", "model"
    del graph.metadata_props[:]
    del graph.value_info[:]  # found anew by who needs it
    for holder in (graph, *model.functions):
        for node in holder.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "n"
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    return model


def need_onnx() -> None:
    """Refuse early where the packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "exporting to ONNX needs onnx and onnxscript", hint="pip install 'hpcmass[onnx]'"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own remarks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:  # the exporter wraps what happened
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines)[:300]}"
