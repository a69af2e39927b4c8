"""The loop closed, for real: a deployment drifts, its labels come, it is trained on and promoted by the gate."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpcmass.catalogue import Catalogue
from hpcmass.cli.root import run as hpcmass
from hpcmass.config import Project
from hpcmass.data import open_dataset, shard
from hpcmass.monitor.kept import read_kept

RECIPE = """
import torch


def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
"""
JOB = """
name = "shop"
recipe = "recipe.py"
[data]
train = "data/d/train"
valid = "data/d/test"
[train]
epochs = 12
global_batch = 32
lr = 0.02
backend = "single"
"""
SHIFT = 3.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """A project with `shop@1` in production."""
    project = Project.create(tmp_path_factory.mktemp("lab") / "p")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4)).astype(np.float32)
    np.savez(project.root / "raw.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    shard(
        project.root / "raw.npz", project.data / "d", strategy="stratified", by="y", workers=1,
        splits={"train": 0.7, "test": 0.3}, shards=2,
    )  # fmt: skip
    (project.root / "recipe.py").write_text(RECIPE)
    (project.root / "job.toml").write_text(JOB)
    words = ["--project", str(project.root)]
    assert hpcmass(["train", str(project.root / "job.toml"), *words]) == 0
    assert hpcmass(["catalogue", "register", "shop", *words]) == 0
    assert hpcmass(["catalogue", "alias", "shop@1", "production", *words]) == 0
    return project


@pytest.fixture(scope="module")
def drifted(project: Project) -> Path:
    """The deployment's folder after customers have changed: what the first feature means has moved."""
    home = project.root / "deployments" / "shop"
    endpoint = home / "replicas" / "r-0001" / "endpoint.json"
    endpoint.parent.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcmass", "serve", "shop@production", "--port", "0", "--endpoint", str(endpoint),
         "--monitor", str(home / "monitor"), "--window", "0.5", "--keep-samples", "500", "--notice", "0"],
        cwd=project.root,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not endpoint.exists() or json.loads(endpoint.read_text())["state"] != "ready":
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        client = http.client.HTTPConnection("127.0.0.1", json.loads(endpoint.read_text())["port"], timeout=30)
        rng = np.random.default_rng(1)
        for number in range(400):
            x = rng.normal(size=4)
            x[0] += SHIFT
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": x.tolist()}
            client.request(
                "POST", "/v2/models/shop/infer", json.dumps({"id": f"q{number}", "inputs": [tensor]})
            )
            assert client.getresponse().read().startswith(b'{"model_name"')
            client.request(
                "POST",
                "/v2/models/shop/labels",
                json.dumps({"id": f"q{number}", "label": str(int(x[0] > SHIFT))}),
            )
            assert client.getresponse().read() == b'{"labels":1}'
            time.sleep(0.005)
        client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    return home


def words(project: Project, *more: str) -> list[str]:
    return [*more, "--project", str(project.root)]


def test_drift_labels_training_and_the_gate(
    project: Project, drifted: Path, capfd: pytest.CaptureFixture
) -> None:
    assert (drifted / "monitor" / "windows-r-0001.jsonl").exists()
    assert sum(len(one["id"]) for one in read_kept(drifted / "monitor")) > 300
    assert hpcmass(words(project, "retrain", "shop")) == 2  # nobody has looked yet
    assert "no drift was found" in capfd.readouterr().err
    assert hpcmass(words(project, "drift", "shop", "--since", "10m", "--json")) == 1
    found = json.loads(capfd.readouterr().out)["findings"]
    assert {one["feature"] for one in found if one["drift"]} >= {"in:x[0]", "out:class"}
    assert not {"in:x[1]", "in:x[2]", "in:x[3]"} & {one["feature"] for one in found if one["drift"]}
    assert hpcmass(words(project, "labels", "shop", "--json")) == 0
    (live,) = json.loads(capfd.readouterr().out)
    assert live["n"] == 400
    assert live["high"] < 0.7

    # Killed while it trains, the same command goes on, and there is one run and one version.
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcmass", *words(project, "retrain", "shop", "--set", "train.epochs=40")],
        env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "training shop-retrain-shop-000001 from shop@1" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert len(Catalogue(project.catalogue).list("shop")) == 1
    assert hpcmass(words(project, "retrain", "shop")) == 0
    out = capfd.readouterr().out
    assert "going on with" in out
    assert "production → shop@2" in out

    made = Catalogue(project.catalogue).get("shop@production")
    assert made.version == 2
    assert made.lineage["parent"] == "shop@1"
    assert made.lineage["began_with"]["what"] == "shop@1"
    assert made.lineage["job"]["train"]["epochs"] == 40
    (gate,) = Catalogue(project.catalogue).history("shop", "production")[-1].gates
    assert gate["held"]
    assert gate["found"]["value"] > 0.8 > gate["bound"]
    train, test = (open_dataset(project.data / "live-shop-000001" / split) for split in ("train", "test"))
    assert 300 < len(train) + len(test) <= 400
    assert test.id == gate["dataset"]
    rows = np.concatenate([one.batch(np.arange(len(one)))["x"] for one in (train, test)])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_gate_that_does_not_hold_leaves_production_alone(
    project: Project, drifted: Path, capfd: pytest.CaptureFixture
) -> None:
    before = Catalogue(project.catalogue).aliases("shop")["production"]
    asked = ["retrain", "shop", "--set", "train.epochs=1", "--require", "accuracy > 1 on test"]
    assert hpcmass(words(project, "drift", "shop", "--since", "1h")) == 1
    assert hpcmass(words(project, *asked)) == 2
    assert "version 1 has drifted, and production is version 2 already" in capfd.readouterr().err
    assert hpcmass(words(project, *asked, "--anyway")) == 1
    assert "is not promoted" in capfd.readouterr().out
    assert Catalogue(project.catalogue).aliases("shop")["production"] == before
    done = json.loads(sorted((drifted / "monitor" / "retrain").glob("*/done.json"))[-1].read_text())
    assert (done["promoted"], done["gates"][0]["held"]) == (False, False)


def test_too_few_labels_are_told(project: Project, drifted: Path, capfd: pytest.CaptureFixture) -> None:
    for file in (drifted / "monitor").glob("labels-*"):
        file.unlink()
    assert hpcmass(words(project, "retrain", "shop", "--anyway")) != 0
    assert "kept samples have a label" in capfd.readouterr().err
