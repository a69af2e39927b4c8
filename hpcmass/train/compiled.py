"""`train.compile`: the model's forward pass by torch.compile, with the model itself as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from hpcmass.errors import ConfigError

_COMPILERS = ("g++", "clang++", "c++")


def compiled(model: torch.nn.Module, device: torch.device) -> Callable[..., Any]:
    """A compiled call of `model`; parameters and their names, checkpoints and bundles stay the model's own.

    Raises:
        ConfigError: What torch.compile needs on this device is not there.
    """
    missing = _missing(device)
    if missing is not None:
        raise ConfigError(
            f"torch.compile needs {missing}, and there is none here",
            where="train.compile",
            hint="load a compiler's module (or set CXX), on compute nodes too; or train.compile = false",
        )
    made: Callable[..., Any] = torch.compile(model)
    return made


def _missing(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if find_spec("triton") is not None else "the package triton"
    words = os.environ.get("CXX", "").split()
    names = words[:1] or _COMPILERS
    return None if any(shutil.which(name) for name in names) else f"a C++ compiler ({' or '.join(names)})"
