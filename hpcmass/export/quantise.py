"""ONNX models with products in 8-bit integers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import DataError, RecipeError
from hpcmass.export.torch_graph import cleaned, need_onnx, quiet
from hpcmass.train.exported import onnxruntime
from hpcmass.train.onnx_wire import read_onnx

Arrays = dict[str, np.ndarray[Any, Any]]

# What costs time and loses little, and what lies between two of them.
_STATIC = ["Conv", "ConvTranspose", "MatMul", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool"]
_DYNAMIC = ["MatMul", "Gemm"]


def quantised(model: Any, batches: Iterable[Arrays] | None) -> Any:
    """An ONNX model with weights in int8, and activations too.

    Weights have a scale for each output channel. With calibration each activation has a fixed scale, from its
    least and largest value in the batches; without, one found anew for each batch (matrix products alone).

    Args:
        model: A `ModelProto`.
        batches: Inputs to calibrate with; None: dynamic.

    Raises:
        RecipeError: There is nothing in it to be quantised.
        DataError: There is nothing to calibrate with.
        MissingDependency: onnx or ONNX Runtime is not installed.
    """
    need_onnx()
    onnxruntime()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _something_in(model, _DYNAMIC if batches is None else _STATIC)
    with tempfile.TemporaryDirectory(prefix="hpcmass-int8-") as folder, quiet():
        plain, ready, out = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, plain)
        try:
            quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
            if batches is None:
                quantize_dynamic(
                    ready, out, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=_DYNAMIC
                )
            else:
                quantize_static(
                    ready,
                    out,
                    _reader(batches),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=_STATIC,
                )
        except DataError:
            raise
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise RecipeError(f"the model cannot be quantised ({text})") from error
        made = onnx.load(out)
    names = {name for _, name in read_onnx(made.SerializeToString()).operators}
    if not names & {"QuantizeLinear", "MatMulInteger"}:  # a product of two activations, say
        raise _nothing()
    return cleaned(made)


def _something_in(model: Any, operators: list[str]) -> None:
    names = {name for _, name in read_onnx(model.SerializeToString()).operators}
    if not names & set(operators):
        raise _nothing()


def _nothing() -> RecipeError:
    return RecipeError(
        "there is nothing in the model to be quantised: no convolution, no product of matrices",
        hint="export it as onnx",
    )


def _reader(batches: Iterable[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the batches, of which there has to be one."""

        def __init__(self) -> None:
            self._left: Iterator[Arrays] = iter(batches)
            self._any = False

        def get_next(self) -> Arrays | None:
            found = next(self._left, None)
            if found is None and not self._any:
                raise DataError("there are no samples to calibrate with")
            self._any = True
            return found

    return Reader()
