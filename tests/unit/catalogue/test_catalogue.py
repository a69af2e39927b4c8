"""Registering, references, aliases, materialising, verifying."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.catalogue import Catalogue
from hpcmass.errors import (
    AlreadyExists,
    CatalogueError,
    CorruptError,
    HpcmassError,
    NameNotAllowed,
    NotFound,
)

READER = Path(__file__).parents[3] / "docs" / "read_catalogue.py"


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "members" / "00").mkdir(parents=True)
    (folder / "model.json").write_text('{"format": 1}')
    (folder / "weights.safetensors").write_bytes(os.urandom(5000))
    (folder / "members" / "00" / "w").write_bytes(b"")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "recipe.pyc").write_bytes(b"x")
    return folder


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(tmp_path / "catalogue")


def register(catalogue, bundle, name="mnist", **facts):
    return catalogue.register(name, bundle, **{"metrics": {}, "lineage": {}, **facts})


def blob_of(catalogue, version, name):
    path = catalogue.open_files(version)[name]
    os.chmod(path, 0o644)
    return path


def test_a_version_comes_back_as_it_went_in(catalogue, bundle, tmp_path):
    made = register(
        catalogue,
        bundle,
        metrics={"accuracy": np.float64(0.5), "ci": np.array([0.25, 0.75]), "bad": float("nan")},
        lineage={"datasets": {"train": "abc"}},
        description="first",
    )
    got = Catalogue(catalogue.path).get("mnist")
    assert got == made
    assert got.metrics == {"accuracy": 0.5, "ci": [0.25, 0.75], "bad": "NaN"}
    assert set(got.files) == {"model.json", "weights.safetensors", "members/00/w"}
    folder = catalogue.materialise(got, tmp_path / "out")
    for name in got.files:
        assert (folder / name).read_bytes() == (bundle / name).read_bytes()
    assert not (folder / "__pycache__").exists()
    assert catalogue.verify().ok


def test_same_content_is_one_blob_and_read_only(catalogue, bundle):
    first, second = register(catalogue, bundle), register(catalogue, bundle)
    assert (first.version, second.version) == (1, 2)
    assert first.content_id == second.content_id
    blobs = [p for p in (catalogue.path / "cas").rglob("*") if p.is_file()]
    assert len(blobs) == 3
    for path in [*blobs, *(catalogue.path / "models").rglob("*.json")]:
        assert path.stat().st_mode & 0o222 == 0
        assert path.stat().st_nlink == 1
    assert catalogue.verify().blobs == 3


def test_references(catalogue, bundle):
    for _ in range(3):
        register(catalogue, bundle)
    catalogue.alias("mnist", "production", 2, why="best")
    assert [catalogue.get(r).version for r in ("mnist", "mnist@latest", "mnist@1", "mnist@production")] == [
        3,
        3,
        1,
        2,
    ]
    assert [v.ref for v in catalogue.list()] == ["mnist@1", "mnist@2", "mnist@3"]
    with pytest.raises(NotFound, match="did you mean mnist"):
        catalogue.get("mnits")
    with pytest.raises(NotFound, match="did you mean production"):
        catalogue.get("mnist@prodction")
    with pytest.raises(NotFound, match="newest is 3"):
        catalogue.get("mnist@4")
    for ref in ("mnist@" + "9" * 5000, "mnist@0", "mnist@", "other@1"):
        with pytest.raises(NotFound):
            catalogue.get(ref)
    for ref in ("../mnist", "mnist@../../x", "$(id)", "", "mnist@a b"):
        with pytest.raises(NameNotAllowed):
            catalogue.get(ref)
    with pytest.raises(NotFound):
        catalogue.list("nothing")


def test_aliases_compare_and_set_and_keep_their_history(catalogue, bundle):
    register(catalogue, bundle), register(catalogue, bundle)
    catalogue.alias("mnist", "production", 1, why="first", expect=None)
    with pytest.raises(CatalogueError, match=r"has version 1, not no version: .*@.* moved it there on .*first"):
        catalogue.alias("mnist", "production", 2, why="again", expect=None)
    with pytest.raises(CatalogueError, match="has version 1, not version 2"):
        catalogue.alias("mnist", "production", 2, why="again", expect=2)
    catalogue.alias("mnist", "production", 2, why="better", expect=1)
    catalogue.alias("mnist", "production", 1, why="roll back")
    moves = catalogue.history("mnist", "production")
    assert [(m.version, m.previous, m.why) for m in moves] == [
        (1, None, "first"),
        (2, 1, "better"),
        (1, 2, "roll back"),
    ]
    assert all(m.by and m.created > 1.7e9 for m in moves)
    assert catalogue.aliases("mnist") == {"production": 1}
    with pytest.raises(CatalogueError, match="has no version, not version 1"):
        catalogue.alias("mnist", "staging", 1, why="", expect=1)
    assert catalogue.aliases("mnist") == {"production": 1}
    with pytest.raises(NotFound):
        catalogue.alias("mnist", "production", 9, why="")
    for alias in ("3", "latest"):
        with pytest.raises(CatalogueError):
            catalogue.alias("mnist", alias, 1, why="")
    with pytest.raises(NameNotAllowed):
        catalogue.alias("mnist", "../x", 1, why="")
    with pytest.raises(NotFound, match="did you mean production"):
        catalogue.history("mnist", "productoin")


def test_odd_folders_are_refused_and_leave_no_version(catalogue, bundle, tmp_path):
    def refused(match, make, undo):
        make()
        with pytest.raises(CatalogueError, match=match):
            register(catalogue, bundle)
        undo()

    link, pipe, hidden = bundle / "link", bundle / "members" / "pipe", bundle / ".hidden"
    refused("symbolic link", lambda: link.symlink_to("/etc/passwd"), link.unlink)
    refused("symbolic link", lambda: link.symlink_to(bundle / "members"), link.unlink)
    refused("not a regular file", lambda: os.mkfifo(pipe), pipe.unlink)
    refused("not allowed", lambda: hidden.write_text("x"), hidden.unlink)
    refused("not allowed", lambda: (bundle / "a\nb").write_text("x"), (bundle / "a\nb").unlink)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogueError, match="no files"):
        register(catalogue, tmp_path / "empty")
    with pytest.raises(NotFound):
        register(catalogue, tmp_path / "nowhere")
    with pytest.raises(CatalogueError, match=r"lineage\.x\[1\]"):
        register(catalogue, bundle, lineage={"x": [1, object()]})
    for name in ("../evil", "$(touch x)", "a/b", "", ".hid"):
        with pytest.raises(NameNotAllowed):
            register(catalogue, bundle, name)
    assert catalogue.list() == []


def test_damage_is_found_named_and_not_handed_out(catalogue, bundle, tmp_path):
    one = register(catalogue, bundle)
    (bundle / "extra").write_text("only in two")
    two = register(catalogue, bundle)
    flipped = blob_of(catalogue, one, "weights.safetensors")
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(data)
    catalogue.open_files(two)["extra"].unlink()
    problems = {p.where: p for p in catalogue.verify().problems}
    assert set(problems) == {str(flipped), str(catalogue.blobs.path(two.files["extra"].sha256))}
    assert problems[str(flipped)].message.startswith("corrupt")
    assert problems[str(flipped)].refs == ("mnist@1", "mnist@2")
    missing = next(p for p in problems.values() if p.message.startswith("missing"))
    assert missing.refs == ("mnist@2",)
    assert len(catalogue.verify("mnist@1").problems) == 1
    with pytest.raises(CorruptError):
        catalogue.materialise(one, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*out*"))
    with pytest.raises(NotFound):
        catalogue.open_files(two)
    flipped.write_bytes(data[:-1])
    assert any("4999 bytes" in p.message for p in catalogue.verify().problems)
    with pytest.raises(CorruptError, match="remove this damaged blob"):
        register(catalogue, bundle)
    flipped.unlink()
    register(catalogue, bundle)
    assert catalogue.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": 2},
        {"format": "1"},
        {"files": {}},
        {"files": {"/etc/x": {"sha256": "a" * 64, "bytes": 1}}},
        {"files": {"a/../../x": {"sha256": "a" * 64, "bytes": 1}}},
        {"files": {"x": {"sha256": "../../../etc/passwd", "bytes": 1}}},
        {"files": {"x": {"sha256": "a" * 64, "bytes": -1}}},
        {"metrics": 3},
    ],
)
def test_a_forged_version_is_refused(catalogue, bundle, change):
    register(catalogue, bundle), register(catalogue, bundle)
    path = catalogue.path / "models/mnist/versions/000001.json"
    raw = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**raw, **change}))
    with pytest.raises(CorruptError):
        catalogue.get("mnist@1")
    with pytest.warns(UserWarning, match="000001"):
        assert [v.version for v in catalogue.list()] == [2]
    assert catalogue.verify().problems[0].refs == ("mnist@1",)


def test_newer_formats_and_garbage(catalogue, bundle):
    register(catalogue, bundle)
    path = catalogue.path / "models/mnist/versions/000001.json"
    raw = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**raw, "format": 4}))
    with pytest.raises(CatalogueError, match="update hpcmass"):
        catalogue.get("mnist")
    path.write_text("{")
    with pytest.raises(CorruptError):
        catalogue.get("mnist")


def test_materialise_takes_new_or_empty_folders_only(catalogue, bundle, tmp_path):
    version = register(catalogue, bundle)
    target = tmp_path / "out"
    target.mkdir()
    catalogue.materialise(version, target)
    with pytest.raises(AlreadyExists):
        catalogue.materialise(version, target)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(AlreadyExists):
        catalogue.materialise(version, tmp_path / "link")


def test_a_claim_without_content_is_no_version(catalogue, bundle):
    """What a writer leaves that dies between reserving and renaming on a file system without hard links."""
    register(catalogue, bundle)
    (catalogue.path / "models/mnist/versions/000002.json").touch()
    assert catalogue.get("mnist").version == 1
    assert [v.version for v in catalogue.list()] == [1]
    assert register(catalogue, bundle).version == 3


def test_refused_by_the_file_system(bundle, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(HpcmassError):
        register(Catalogue(tmp_path / "file"), bundle)


def test_the_format_can_be_read_without_hpcmass(catalogue, bundle):
    version = register(catalogue, bundle)
    catalogue.alias("mnist", "production", 1, why="good")

    def read():
        command = [sys.executable, "-I", str(READER), str(catalogue.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "hpcmass" not in [
        line.split()[1] for line in READER.read_text().splitlines() if line.startswith("import")
    ]
    done = read()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "mnist@1"
    assert "mnist@production -> 1" in done.stdout
    blob_of(catalogue, version, "weights.safetensors").write_bytes(b"x" * 5000)
    assert read().returncode == 1
