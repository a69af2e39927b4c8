"""Nothing from a catalogue is unpickled, whatever lies in it and whichever way it is read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from life_lab import Lab

import hpcmass
from hpcmass.errors import CorruptError, HpcmassError, MissingDependency
from hpcmass.files import sha256_file
from hpcmass.train import skops_files


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def resigned(folder: Path, **meta: object) -> None:
    raw = {**json.loads((folder / "model.json").read_text()), **meta}
    names = [one.name for one in folder.iterdir() if one.name != "model.json"]
    raw["files"] = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)} for n in names}
    (folder / "model.json").write_text(json.dumps(raw))


def skops_with_joblib_inside(path: Path, evil: Path) -> None:
    """A zip that is a skops file by its schema, whose array is a pickle."""
    schema = {
        "__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode", "type": "numpy",
        "file": "a.npy", "protocol": 0, "_skops_version": "0.16",
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("schema.json", json.dumps(schema))
        file.writestr("a.npy", pickle.dumps(Evil(evil)))


def skops_that_calls(path: Path, evil: Path) -> None:
    """CVE-2025-54412: a node of `operator.call` under an innocent name (skops before 0.12 constructs it)."""
    schema = {
        "__class__": "call", "__module__": "builtins", "__loader__": "OperatorFuncNode", "protocol": 0,
        "_skops_version": "0.16",
        "attrs": {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": [
            {"__class__": "mkdir", "__module__": "os", "__loader__": "TypeNode", "__id__": 1},
            {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": json.dumps(str(evil)), "is_json": True, "__id__": 2},
        ], "__id__": 3},
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("schema.json", json.dumps(schema))


WRITERS = {
    "pickle": lambda path, evil: path.write_bytes(pickle.dumps(Evil(evil))),
    "joblib": lambda path, evil: joblib.dump(Evil(evil), path),
    "joblib-zlib": lambda path, evil: joblib.dump(Evil(evil), path, compress=("zlib", 3)),
    "torch": lambda path, evil: torch.save(Evil(evil), path),
    "skops-array": skops_with_joblib_inside,
    "skops-operator": skops_that_calls,
}


def test_the_files_do_what_they_are_for(tmp_path: Path) -> None:
    """Unpickled, each of the first four would have made its folder: else the test below proves nothing."""
    for name in ("pickle", "joblib", "joblib-zlib", "torch"):
        file, evil = tmp_path / name, tmp_path / f"by-{name}"
        WRITERS[name](file, evil)
        loads = {"pickle": "pickle.load(open(p, 'rb'))", "torch": "torch.load(p, weights_only=False)"}
        code = f"import sys, pickle, joblib, torch; p = sys.argv[1]; {loads.get(name, 'joblib.load(p)')}"
        subprocess.run([sys.executable, "-c", code, str(file)], check=True)
        assert evil.is_dir()


@pytest.mark.parametrize("kind", list(WRITERS))
@pytest.mark.parametrize("as_kind", ["estimator", "torch"])
def test_no_way_of_reading_unpickles(lab: Lab, kind: str, as_kind: str) -> None:
    version = lab.model()
    folder, evil = lab.root / "bundle-1", lab.root / "made-by-the-file"
    name = {"estimator": "estimator.skops", "torch": "weights.safetensors"}[as_kind]
    if as_kind == "estimator":
        (folder / "weights.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    WRITERS[kind](folder / name, evil)
    resigned(folder, kind=as_kind)
    bad = lab.catalogue.register("eyes", folder, metrics={}, lineage={**version.lineage, "parent": "eyes@1"})
    with pytest.raises(CorruptError):
        hpcmass.load(bad.ref)
    refused = [
        ("evaluate", bad.ref, "test"), ("evaluate", bad.ref, "test", "--record"), ("predict", bad.ref, "data/d/test"),
        ("catalogue", "load", bad.ref), ("catalogue", "promote", bad.ref, "--to", "production", "--require", "accuracy > 0 on test"),
    ]  # fmt: skip
    for words in refused:
        assert lab.call(*words).code == 2, words
    reads = [
        ("show", bad.ref), ("verify",), ("verify", bad.ref), ("card", bad.ref), ("lineage", bad.ref), ("list",),
        ("compare", bad.ref, "eyes@1"), ("export", bad.ref, "--to", "out"), ("search", "version == 2"), ("reindex",),
    ]  # fmt: skip
    for words in reads:
        answer = lab.call("catalogue", *words)
        assert answer.code == 0, (words, answer.err)
    with pytest.raises(HpcmassError):
        hpcmass.load(lab.root / "out")
    assert not evil.exists()
    assert lab.catalogue.aliases("eyes") == {}


def test_an_old_skops_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before 0.12 a forged file could run functions behind the back of the list of types."""
    import skops

    monkeypatch.setattr(skops, "__version__", "0.11.0")
    with pytest.raises(MissingDependency, match=r"0\.12"):
        skops_files.load_estimator(tmp_path / "x")
