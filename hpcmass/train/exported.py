"""Exported models, read back: ONNX files by ONNX Runtime, programs of torch.export by torch.

An ONNX file computes and does nothing else. A program of torch.export is read only where nothing in its archive
would be unpickled; what it calls it names by Python's names, so it is trusted as a recipe is.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.errors import CorruptError, MissingDependency, RecipeError
from hpcmass.files import storage_errors
from hpcmass.train.bundle import DICT, ONE, Bundle
from hpcmass.train.onnx_wire import read_onnx

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], Any]

# Everything that an archive of torch.export without pickles has, below its one folder.
_IN_ARCHIVE = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|\.data/version|byteorder"
    r"|\.data/serialization_id"
)
_TENSOR = re.compile(r"weight_\d+|tensor_\d+")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")


def onnxruntime() -> Any:
    """The module of ONNX Runtime.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise MissingDependency(
            "ONNX models need ONNX Runtime", hint="pip install 'hpcmass[onnx]', or onnxruntime alone"
        ) from error
    return module


def onnx_session(data: bytes, *, optimise: bool = True, threads: int | None = None) -> Any:
    """A session on CPUs.

    Args:
        data: The ONNX file's bytes. No path: an external tensor of a forged file would be another file's bytes.
        optimise: Whether operators may be exchanged for quicker ones of this machine.
        threads: Of one computation; default: the cores that this process may use.

    Raises:
        MissingDependency: ONNX Runtime is not installed.
        ValueError: It is no ONNX file, or has data in other files.
        Exception: Whatever ONNX Runtime says of a model that it cannot run.
    """
    runtime = onnxruntime()
    if read_onnx(data).external:
        raise ValueError("it has tensors in other files")
    options = runtime.SessionOptions()
    cores = min(len(os.sched_getaffinity(0)), torch.get_num_threads())
    options.intra_op_num_threads = max(1, cores if threads is None else threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def open_onnx(bundle: Bundle, threads: int | None = None) -> tuple[Any, Run]:
    """The session of an ONNX bundle, and what computes with it.

    Args:
        bundle: Of kind `onnx`.
        threads: As for `onnx_session`.

    Raises:
        CorruptError: The file is not what the bundle says.
        MissingDependency: ONNX Runtime is not installed.
    """
    path = bundle.program_file
    with storage_errors(path, "read the model"):
        data = path.read_bytes()
    try:
        session = onnx_session(data, threads=threads)
    except MissingDependency:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common root but this
        raise CorruptError(f"cannot be opened by ONNX Runtime ({_line(error)})", where=path) from error
    takes = [one.name for one in session.get_inputs()]
    names = [spec.name for spec in bundle.signature.inputs]
    if takes != names:
        raise CorruptError(f"takes {', '.join(takes)}, and should take {', '.join(names)}", where=path)

    def run(arrays: dict[str, Array]) -> Any:
        try:
            found = session.run(None, arrays)
        except Exception as error:
            raise RecipeError(f"the model cannot compute: {_line(error)}", where=path) from error
        return gather(found, bundle.gives)

    return session, run


def open_program(bundle: Bundle) -> tuple[Any, Run]:
    """The module of a bundle with a program of torch.export, and what computes with it.

    Raises:
        CorruptError: The archive holds a pickle, or cannot be read.
    """
    path = bundle.program_file
    archive = checked_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(archive).module()
    except Exception as error:
        raise CorruptError(f"cannot be opened by torch.export ({_line(error)})", where=path) from error
    names = [spec.name for spec in bundle.signature.inputs]

    def run(arrays: dict[str, Array]) -> Any:
        with torch.inference_mode():
            try:
                found = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in names))
            except Exception as error:
                raise RecipeError(f"the model cannot compute: {_line(error)}", where=path) from error
        flat = found if isinstance(found, (tuple, list)) else [found]
        return gather([one.cpu().numpy() for one in flat], bundle.gives)

    return module, run


def gather(found: Sequence[Array], gives: Sequence[str]) -> Any:
    """Outputs in the form in which the model itself gave them.

    Args:
        found: The outputs in order.
        gives: The form: one array, a tuple, or `dict` and its keys.
    """
    if gives[0] == ONE:
        return found[0]
    return dict(zip(gives[1:], found, strict=True)) if gives[0] == DICT else tuple(found)


def checked_archive(path: Path) -> io.BytesIO:
    """An archive of torch.export with nothing in it that would be unpickled, or run as native code.

    It is packed anew from what was looked at: two readers of one forged archive may see two contents.

    Raises:
        CorruptError: It has such a thing, or is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            inner = [one.filename.partition("/")[2] for one in entries]
            if len(set(inner)) != len(inner) or len({one.filename.split("/")[0] for one in entries}) != 1:
                raise ValueError("names that occur twice, or several folders")
            for name in inner:
                if not _IN_ARCHIVE.fullmatch(name):
                    raise ValueError(f"it holds {name}")
            if any(one.compress_type != zipfile.ZIP_STORED for one in entries):
                raise ValueError("it is compressed")
            contents = {name: archive.read(one) for name, one in zip(inner, entries, strict=True)}
        if contents.get("data/sample_inputs/model.pt"):
            raise ValueError("its sample inputs are a pickle")
        for name in _CONFIGS:
            for what, meta in json.loads(contents[name])["config"].items():
                if meta["use_pickle"] is not False or not _TENSOR.fullmatch(meta["path_name"]):
                    raise ValueError(f"{what} is a pickle")
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise CorruptError(
            f"is not a program of torch.export without pickles ({_line(error)})",
            where=path,
            hint="export the model again with torch 2.9 or newer",
        ) from error
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"model/{name}", content)
    packed.seek(0)
    return packed


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
