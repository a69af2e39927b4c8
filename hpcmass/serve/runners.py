"""Models from bundles as runners: by what trained them, or by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmass.errors import HpcmassError
from hpcmass.serve.interfaces import Array, Field, Interface, Runner

if TYPE_CHECKING:
    from hpcmass.train.bundle import Bundle
    from hpcmass.train.model import Model
    from hpcmass.train.signature import Signature


class BundleRunner:
    """A bundle of any kind that hpcmass trains, computed by what trained it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._interface = _interface(model.signature)
        self._names = [one.name for one in self._interface.outputs]

    @property
    def platform(self) -> str:
        """`hpcmass_torch`, `hpcmass_estimator` or `hpcmass_ensemble`."""
        return f"hpcmass_{self._model.kind}"

    @property
    def interface(self) -> Interface:
        """What it takes and gives."""
        return self._interface

    def enter(self, threads: int) -> None:
        """OpenMP counts threads by the thread that asks."""
        import torch

        torch.set_num_threads(threads)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs by name; as `Runner.run`."""
        found: Any = self._model(dict(inputs), batch_size=len(next(iter(inputs.values()))))
        if isinstance(found, Mapping):
            return found
        parts = found if isinstance(found, tuple) else (found,)
        return dict(zip(self._names, map(np.asarray, parts), strict=False))


class OnnxRunner:
    """A bundle with an ONNX file, computed by ONNX Runtime.

    Args:
        bundle: Of kind `onnx`.
        threads: Cores of one computation; a session has its own threads, and with one it needs none.

    Raises:
        CorruptError: The file is not what the bundle says.
        MissingDependency: ONNX Runtime is not installed.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        from hpcmass.train.exported import open_onnx

        self._session, _ = open_onnx(bundle, threads)
        self._interface = _interface(bundle.signature)
        named = [one.name for one in self._interface.outputs]
        self._names = list(bundle.gives[1:]) if len(bundle.gives) > 1 else named

    @property
    def platform(self) -> str:
        """As Triton calls it."""
        return "onnxruntime_onnx"

    @property
    def interface(self) -> Interface:
        """What it takes and gives."""
        return self._interface

    def enter(self, threads: int) -> None:
        """Nothing belongs to a thread here."""

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs by name; as `Runner.run`."""
        # A tensor within a request's body may lie at any address, which its operators do not expect.
        given = {name: one if one.flags.aligned else one.copy() for name, one in inputs.items()}
        try:
            found = self._session.run(None, given)
        except Exception as error:  # ONNX Runtime's errors have no common root but this
            text = " ".join(str(error).split())[:300]
            raise HpcmassError(f"the model cannot compute: {type(error).__name__}: {text}") from error
        return dict(zip(self._names, found, strict=False))


def load_runner(folder: Path, threads: int = 1) -> Runner:
    """The runner of a bundle by what its kind asks for; its files are held against their checksums.

    Args:
        folder: The bundle.
        threads: Cores of one computation.

    Raises:
        HpcmassError: It cannot be loaded; see `train.model.load_bundle`.
    """
    from hpcmass.train.bundle import read_bundle
    from hpcmass.train.model import load_bundle

    bundle = read_bundle(folder, verify=True)
    return OnnxRunner(bundle, threads) if bundle.kind == "onnx" else BundleRunner(load_bundle(folder))


def _interface(said: Signature) -> Interface:
    inputs, outputs = (
        tuple(Field(one.name, one.dtype, one.shape) for one in side) for side in (said.inputs, said.outputs)
    )
    return Interface(inputs, outputs, said.classes)
