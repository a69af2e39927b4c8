"""Models from bundles as runners, and warming one up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmass.errors import HpcmassError
from hpcmass.serve.interfaces import ANY, Array, Field, Interface, Limits, Runner
from hpcmass.serve.pace import Pace

if TYPE_CHECKING:
    from hpcmass.train.model import Model

_ANY_LENGTH = 16


class BundleRunner:
    """A bundle of any kind that hpcmass trains, computed by what trained it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        said = model.signature
        inputs, outputs = (
            tuple(Field(one.name, one.dtype, one.shape) for one in side) for side in (said.inputs, said.outputs)
        )
        self._interface = Interface(inputs, outputs, said.classes)
        self._names = [one.name for one in outputs]

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


def load_runner(folder: Path) -> Runner:
    """The runner of a bundle; its files are held against their checksums.

    Raises:
        HpcmassError: It cannot be loaded; see `train.model.load_bundle`.
    """
    from hpcmass.train.model import load_bundle

    return BundleRunner(load_bundle(folder, verify=True))


def warm_up(runner: Runner, limits: Limits, threads: int) -> Pace:
    """Compute batches of zeros until all is loaded, compiled and allocated, and measure how long they take.

    Raises:
        HpcmassError: The model fails at them.
    """
    runner.enter(threads)
    fields = runner.interface.inputs

    def run(rows: int) -> float:
        inputs = {
            one.name: np.zeros((rows, *(_ANY_LENGTH if n == ANY else n for n in one.shape)), one.dtype)
            for one in fields
        }
        begun = perf_counter()
        runner.run(inputs)
        return perf_counter() - begun

    pace = Pace(limits.latency_s / 2, limits.batch_rows)
    try:
        pace.measure(run)
    except HpcmassError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise HpcmassError(f"the model fails at zeros ({text})", hint="try it: hpcmass predict") from error
    return pace
