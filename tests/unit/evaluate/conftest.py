"""Small models and datasets that need no file: plain numpy callables with a signature."""

from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass
class Spec:
    name: str
    dtype: str
    shape: tuple


@dataclass
class Signature:
    inputs: tuple
    classes: tuple | None = None
    task: str = "classification"
    outputs: tuple = ()
    targets: tuple = ()


@dataclass
class FunctionModel:
    """`function(inputs)` with a signature; remembers how many samples it saw at once."""

    function: object
    signature: Signature
    seen: list = field(default_factory=list)

    def __call__(self, inputs):
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        self.seen.append(len(first))
        return self.function(inputs)


@dataclass
class ArrayDataset:
    """Arrays in memory with the interface of a dataset."""

    arrays: dict
    targets: list
    names: dict = field(default_factory=dict)
    id: str = "d" * 64

    @property
    def fields(self):
        return {name: Spec(name, str(a.dtype), a.shape[1:]) for name, a in self.arrays.items()}

    @property
    def inputs(self):
        return [name for name in self.arrays if name not in self.targets]

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def classes(self, field):
        return self.names.get(field)

    def batch(self, ids):
        return {name: a[ids] for name, a in self.arrays.items()}

    def batches(self, batch_size):
        for start in range(0, len(self), batch_size):
            yield {name: a[start : start + batch_size] for name, a in self.arrays.items()}


@pytest.fixture
def make():
    """Namespace of the three: `make.model(function, inputs, …)`, `make.dataset(arrays, targets, …)`."""

    class Make:
        spec = Spec

        @staticmethod
        def signature(*inputs, classes=None, task="classification"):
            return Signature(tuple(Spec(*i) for i in inputs), classes, task)

        @staticmethod
        def model(function, *inputs, classes=None, task="classification"):
            return FunctionModel(function, Make.signature(*inputs, classes=classes, task=task))

        dataset = ArrayDataset

    return Make


@pytest.fixture
def table():
    """600 samples of 4 features in 3 classes, some of them hard."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    x[:, :3] += 1.5 * np.eye(3, dtype=np.float32)[label]
    return {"x": x, "label": label}


def softmax(x):
    e = np.exp(x[:, :3] - x[:, :3].max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def linear(make):
    return make.model(softmax, ("x", "float32", (4,)), classes=("a", "b", "c"))
