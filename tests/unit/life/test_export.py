"""Exported models as versions: made from their parent, measured against it, used like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from life_lab import Lab

import hpcmass
from hpcmass.catalogue import Evaluations
from hpcmass.cli.export import FORMS
from hpcmass.data import open_dataset
from hpcmass.errors import AlreadyExists, ConfigError, NotFound
from hpcmass.export import FORMATS
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.recipe import load_recipe
from hpcmass.workflow.export import export_model


@pytest.mark.parametrize("form", ["onnx", "torch-export", "int8", "int8-dynamic"])
def test_an_exported_version_is_measured_and_used_as_any_other(lab: Lab, form: str) -> None:
    parent = lab.model(knows=2)
    report = export_model(parent.ref, form, lab.root, register=True)
    version = report.version
    assert version is not None
    assert (version.name, version.version, version.tags) == (f"eyes-{form}", 1, {"export": form})
    assert version.lineage["parent"] == "eyes@1"
    assert lab.catalogue.get("eyes").ref == "eyes@1", "the newest version of the parent stays what it was"

    test = open_dataset(lab.project.data / "d" / "test")
    (record,) = Evaluations(lab.catalogue.path).of(version)
    (before,) = Evaluations(lab.catalogue.path).of(parent)
    assert record.dataset == before.dataset == test.id
    assert before.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert record.metrics["accuracy"].value == pytest.approx(2 / 3, abs=0.05)
    change = record.metrics["accuracy"].value - before.metrics["accuracy"].value
    assert version.metrics["accuracy_change"] == pytest.approx(change)
    assert version.metrics["accuracy"] == pytest.approx(record.metrics["accuracy"].value)
    assert version.metrics["latency_ms_1"] > 0
    assert version.metrics["speedup_1"] > 0
    export = version.lineage["export"]
    assert export["agreement"]["samples"] == 120
    assert export["latency"]["1"]["parent_ms"] > 0
    assert ("calibration" in export) == (form == "int8")
    if form == "int8":
        train = open_dataset(lab.project.data / "d" / "train")
        assert export["calibration"] == {"data": "train", "dataset": train.id, "samples": 120}

    model = hpcmass.load(version.ref)
    images = test.batch(np.arange(9))["image"]
    np.testing.assert_allclose(model(images), hpcmass.load(parent.ref)(images), atol=0.05)
    assert lab.call("evaluate", version.ref, "test", "--record").code == 0
    answer = lab.call("predict", version.ref, "data/d/test", "--out", "said.npz")
    assert answer.code == 0, answer.err
    assert np.load("said.npz")["probabilities"].shape == (120, 3)
    promoted = lab.call(
        "catalogue", "promote", version.ref, "--to", "production", "--require", "accuracy >= 0.6 on test"
    )
    assert promoted.code == 0, promoted.err
    assert "eyes@1" in lab.call("catalogue", "lineage", version.ref).out
    found = lab.call("catalogue", "search", f"tags.export == '{form}' and accuracy_change > -0.1")
    assert version.ref in found.out
    assert lab.call("catalogue", "verify").code == 0
    assert lab.call("catalogue", "card", version.ref).code == 0


def test_a_folder_for_others_and_what_is_said(lab: Lab) -> None:
    lab.model()
    answer = lab.call("export", "eyes@1", "--format", "onnx", "--to", "out/eyes", "--json")
    assert answer.code == 0, answer.err
    said = json.loads(answer.out)
    assert said["folder"] == str(lab.root / "out" / "eyes")
    assert said["version"] is None
    assert said["architectures"] == ["x86_64", "aarch64"]
    assert [one.name for one in (lab.root / "out").iterdir()] == ["eyes"], "nothing else is left"
    assert lab.catalogue.models() == ["eyes"]
    signature = json.loads((lab.root / "out" / "eyes" / "signature.json").read_text())
    assert signature["made_from"] == "eyes@1"
    test = open_dataset(lab.project.data / "d" / "test").batch(np.arange(4))
    np.save("four.npy", test["image"])
    code = (
        "import sys; sys.modules['torch'] = sys.modules['hpcmass'] = None\n"
        "import numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession('out/eyes/model.onnx', providers=['CPUExecutionProvider'])\n"
        "print(session.run(None, {'image': np.load('four.npy')})[0].argmax(axis=1).tolist())\n"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(alone.stdout) == test["label"].tolist()
    again = lab.call("export", "eyes@1", "--to", "out/eyes")
    assert again.code == 2
    assert "not an empty folder" in again.err
    layout = lab.call("catalogue", "export", "eyes@1", "--to", "other", "--layout", "onnx")
    assert layout.code == 0, layout.err
    assert "accuracy" in layout.out
    assert "x86-64 and arm64" in layout.out
    assert hpcmass.load("./other").kind == "onnx"


def test_what_is_wrong_is_said_before_anything_is_computed(lab: Lab) -> None:
    lab.model()
    with pytest.raises(ConfigError, match="nothing is to be kept"):
        export_model("eyes@1", "onnx", lab.root)
    with pytest.raises(ConfigError, match="no format"):
        export_model("eyes@1", "tensorrt", lab.root, register=True)
    with pytest.raises(ConfigError, match="no version of the catalogue"):
        export_model("./bundle-1", "onnx", lab.root, register=True)
    with pytest.raises(NotFound):
        export_model("eyes@9", "onnx", lab.root, register=True)
    with pytest.raises(NotFound, match="no data set 'gone'"):
        export_model("eyes@1", "onnx", lab.root, register=True, on="gone")
    with pytest.raises(NotFound, match="not known which data"):
        export_model("./bundle-1", "onnx", lab.root, to=Path("out"))
    Path("full").mkdir()
    Path("full/x").touch()
    with pytest.raises(AlreadyExists):
        export_model("eyes@1", "onnx", lab.root, to=Path("full"))
    assert lab.catalogue.models() == ["eyes"]


def test_a_bundle_that_is_no_version_with_data_that_are_named(lab: Lab) -> None:
    lab.model()
    export_model("./bundle-1", "int8", lab.root, to=Path("out"), on="data/d/test", calibrate="data/d/train")
    assert hpcmass.load("./out").kind == "onnx"


def test_an_onnx_version_goes_on_to_int8_and_not_to_torch(lab: Lab) -> None:
    parent = lab.model()
    export_model(parent.ref, "onnx", lab.root, register=True)
    report = export_model("eyes-onnx@1", "int8", lab.root, register=True, name="small")
    assert report.version is not None
    assert (report.version.ref, report.version.lineage["parent"]) == ("small@1", "eyes-onnx@1")
    answer = lab.call("export", "eyes-onnx@1", "--format", "torch-export", "--register")
    assert answer.code == 2
    assert "has no form in torch-export" in answer.err


def test_a_model_of_no_known_task_is_held_against_its_outputs_alone(lab: Lab) -> None:
    recipe = load_recipe(lab.root / "recipe.py")
    train = open_dataset(lab.project.data / "d" / "train")
    write_torch_bundle(
        lab.root / "odd", recipe.build_model({}), recipe, {}, train, torch.zeros(2, 3), targets=[]
    )
    lineage = {"job": {"data": {"train": "data/d/train"}}}
    lab.catalogue.register("odd", lab.root / "odd", metrics={}, lineage=lineage)
    answer = lab.call("export", "odd@1", "--register")
    assert answer.code == 0, answer.err
    assert "odd-onnx@1, made from odd@1" in answer.out
    assert "outputs differ by up to" in answer.out
    assert "accuracy" not in lab.catalogue.get("odd-onnx").metrics
    refused = lab.call("evaluate", "odd-onnx@1", "data/d/test")
    assert refused.code == 2
    assert "evaluate the version that it was made from" in refused.err


def test_the_command_knows_the_formats_that_there_are() -> None:
    assert FORMS == FORMATS
