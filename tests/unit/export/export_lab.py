"""Models of every kind, from arrays in memory, and a process without torch and hpcmass to run them in."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.train.bundle_writer import write_estimator_bundle, write_torch_bundle
from hpcmass.train.model import Model, load_bundle
from hpcmass.train.recipe import load_recipe

ALONE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "hpcmass", "sklearn", "skops", "onnx", "onnxscript", "skl2onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
for name in ("torch", "hpcmass"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} could be imported")

import numpy as np
import onnxruntime

folder, given, out = sys.argv[1:]
signature = json.load(open(f"{folder}/signature.json"))
session = onnxruntime.InferenceSession(f"{folder}/{signature['file']}", providers=["CPUExecutionProvider"])
arrays = np.load(given)
inputs = {}
for one in signature["inputs"]:
    array = arrays[one["name"]]
    assert array.dtype == one["dtype"] and list(array.shape[1:]) == one["shape"][1:], (array.dtype, array.shape)
    inputs[one["name"]] = array
names = [one["name"] for one in signature["outputs"]]
found = session.run(names, inputs)
for one, array in zip(signature["outputs"], found):
    assert str(array.dtype) == one["dtype"], (array.dtype, one)
assert not {"torch", "hpcmass"} & set(sys.modules)
np.savez(out, **dict(zip(names, found)))
"""


@dataclass(frozen=True)
class Field:
    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    classes: list[str] | None = None
    ragged: bool = False


class Memory:
    """A dataset in memory, with what a bundle's writer asks of it."""

    def __init__(
        self,
        inputs: dict[str, np.ndarray],
        targets: dict[str, np.ndarray],
        classes: list[str] | None,
        ragged: tuple[str, ...] = (),
    ):
        self.arrays = {**inputs, **targets}
        self.fields = {
            name: Field(
                name, array.dtype.name, array.shape[1 + (name in ragged) :],
                "input" if name in inputs else "target", classes if name in targets else None, name in ragged,
            )
            for name, array in self.arrays.items()
        }  # fmt: skip
        self.inputs, self.targets = list(inputs), list(targets)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def classes(self, field: str) -> list[str] | None:
        return self.fields[field].classes


def torch_model(
    folder: Path,
    recipe: str,
    inputs: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    sample_output: Any,
    classes: list[str] | None = None,
    ragged: tuple[str, ...] = (),
) -> Model:
    """A model with the weights that it was born with."""
    path = folder / "recipe_of_the_lab.py"
    path.write_text(textwrap.dedent(recipe))
    loaded = load_recipe(path)
    bundle = folder / "parent"
    data = Memory(inputs, targets, classes, ragged)
    write_torch_bundle(bundle, loaded.build_model({}), loaded, {}, data, sample_output)
    return load_bundle(bundle)


def estimator_model(
    folder: Path,
    estimator: Any,
    x: np.ndarray,
    targets: np.ndarray,
    sample_output: Any,
    recipe: str = "",
    task: str | None = None,
    classes: list[str] | None = None,
) -> Model:
    """A fitted estimator."""
    path = folder / "recipe_of_the_lab.py"
    path.write_text(textwrap.dedent(recipe) or "def build_model(params):\n    raise NotImplementedError\n")
    bundle = folder / "parent"
    data = Memory({"x": x}, {"y": targets}, classes)
    write_estimator_bundle(
        bundle, estimator, load_recipe(path), {}, data, sample_output=sample_output, task=task
    )
    return load_bundle(bundle)


def run_alone(folder: Path, inputs: dict[str, np.ndarray], scratch: Path) -> dict[str, np.ndarray]:
    """What the exported model gives in a process where neither torch nor hpcmass can be imported."""
    given, out = scratch / "given.npz", scratch / "out.npz"
    np.savez(given, **inputs)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), str(given), str(out)],
        capture_output=True, text=True, timeout=300, cwd=scratch,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return dict(found)


def signature_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "signature.json").read_text())
