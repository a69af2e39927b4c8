"""A small real model in a bundle, and a real replica of it: `hpcmass serve` in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

RECIPE = '''
import time

import torch
from torch import nn


class Net(nn.Module):
    """Two inputs: (n, 4) float32 and (n,) int64; fails at 13, sleeps at 7."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, k):
        if (k == 13).any():
            raise RuntimeError("unlucky")
        if (k == 7).any():
            time.sleep(0.3)
        return self.linear(x) + k[:, None]


def build_model(params):
    return Net()
'''


def write_bundle(folder: Path) -> Path:
    """The bundle of `RECIPE`, a regression."""
    from hpcmass.train.bundle_writer import model_state, write_weights
    from hpcmass.train.recipe import load_recipe
    from hpcmass.train.signature import FieldSpec, Signature

    source = folder.parent / "recipe.py"
    source.write_text(RECIPE)
    recipe = load_recipe(source)
    torch.manual_seed(0)
    signature = Signature(
        (FieldSpec("x", "float32", (4,)), FieldSpec("k", "int64", ())),
        (FieldSpec("y", "float32", (3,)),),
        None,
        "regression",
        ("y",),
    )
    return write_weights(folder, model_state(recipe.build_model({}, None)), recipe.source, {}, signature)


class Replica:
    """A running `hpcmass serve`."""

    def __init__(self, folder: Path, bundle: str, *words: str, start: list[str] | None = None) -> None:
        self.endpoint = folder / "endpoint.json"
        self.log = folder / "log.txt"
        command = [sys.executable, *(start or ["-m", "hpcmass"]), "serve", bundle, "--port", "0"]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--endpoint", str(self.endpoint), *words],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def state(self) -> dict:
        try:
            return json.loads(self.endpoint.read_text())
        except FileNotFoundError:
            return {"state": "starting"}

    def until(self, state: str) -> dict:
        end = time.monotonic() + 120
        while (found := self.state())["state"] != state:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        self.port = found["port"]
        return found

    def ask(
        self, method: str, path: str, body: object = None, headers: dict | None = None
    ) -> tuple[int, dict, bytes]:
        """One request over a connection of its own: status, headers in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, found

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Forms in ONNX are kept in the user's cache; replicas inherit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory, bundle: Path):
    made = Replica(tmp_path_factory.mktemp("replica"), str(bundle), "--notice", "0.2", "--runtime", "torch")
    try:
        made.until("ready")
        yield made
        assert made.process.poll() is None, made.log.read_text()
    finally:
        made.stop()


def request(x: list, k: list) -> dict:
    """The JSON of a request to the toy model."""
    return {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [len(x), 4], "data": x},
            {"name": "k", "datatype": "INT64", "shape": [len(k)], "data": k},
        ]
    }
