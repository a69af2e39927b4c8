"""Many models in one call: packs, claims of several versions, and those who read them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.errors import CatalogueError, CorruptError, HpcmassError, NameNotAllowed, NotFound

READER = Path(__file__).parents[3] / "docs" / "read_catalogue.py"


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Catalogue(tmp_path / "catalogue")


def some_models(folder, count, name="m", size=10_000):
    """Small models: one file is always the same, one always new."""
    found = []
    for number in range(count):
        model = folder / f"{name}-{number}"
        (model / "sub").mkdir(parents=True)
        (model / "recipe.py").write_text("# the same in all\n" * 20)
        (model / "sub" / "weights").write_bytes(os.urandom(size))
        found.append(Registration(name, model, {"i": number}, {"run": str(model)}, f"model {number}"))
    return found


def files_of(catalogue, pattern="*"):
    return sorted(path for path in catalogue.path.rglob(pattern) if path.is_file())


def read(catalogue):
    command = [sys.executable, "-I", str(READER), str(catalogue.path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def same_files(version, model, folder):
    assert {name: (folder / name).read_bytes() for name in version.files} == {
        name: (model.folder / name).read_bytes() for name in ("recipe.py", "sub/weights")
    }


def test_many_come_back_as_they_went_in(catalogue, tmp_path):
    models = some_models(tmp_path, 7)
    models[3:3] = some_models(tmp_path, 2, "other", size=300_000)
    made = catalogue.register_many(models)
    assert [version.ref for version in made] == [
        *("m@1", "m@2", "m@3", "other@1", "other@2", "m@4", "m@5", "m@6", "m@7")
    ]
    again = Catalogue(catalogue.path)
    for version, model in zip(made, models, strict=True):
        assert again.get(version.ref) == version
        assert version.metrics == model.metrics
        same_files(version, model, again.materialise(version, tmp_path / f"out-{version.ref}"))
        assert {n: p.read_bytes() for n, p in again.open_files(version).items()} == {
            name: (model.folder / name).read_bytes() for name in version.files
        }
    large = made[3].files
    assert large["sub/weights"].pack is None
    assert large["recipe.py"].pack == made[0].files["recipe.py"].pack is not None
    assert large["recipe.py"] == made[0].files["recipe.py"]  # the same content once
    assert again.get("m").ref == "m@7"
    assert again.list() == sorted(made, key=lambda version: version.ref)
    again.alias("m", "best", 5, why="")
    assert again.get("m@best") == made[6]
    report = again.verify()
    assert report.ok
    assert (report.versions, report.blobs) == (9, 10)
    for path in files_of(catalogue, "cas/**/*"):
        assert path.stat().st_mode & 0o222 == 0
    with pytest.raises(NotFound, match="newest is 7"):
        again.get("m@8")
    assert catalogue.register("m", models[0].folder, metrics={}, lineage={}).version == 8
    assert catalogue.register_many([]) == []
    done = read(catalogue)
    assert done.returncode == 0, done.stdout
    assert done.stdout.split("\n")[:2] == ["m@1..7", "m@8"]


def test_a_thousand_models_cost_few_files(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    models = some_models(tmp_path, 1001, size=1000)
    made = catalogue.register_many(models)
    assert len(files_of(catalogue, "versions/*")) == 2
    assert len(files_of(catalogue, "cas/**/*")) == 1
    assert [v.version for v in catalogue.list()] == [v.version for v in made] == list(range(1, 1002))
    assert catalogue.get("m@1000") == made[999]
    assert catalogue.get("m@1001") == made[1000]


def test_nothing_is_written_where_one_is_refused(catalogue, tmp_path):
    models = some_models(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    for bad, refused in (
        (Registration("m", tmp_path / "empty"), CatalogueError),
        (Registration("m", tmp_path / "nowhere"), NotFound),
        (Registration("../m", models[0].folder), NameNotAllowed),
        (Registration("m", models[0].folder, {"x": object()}), CatalogueError),
    ):
        with pytest.raises(refused):
            catalogue.register_many([*models, bad])
    assert not catalogue.path.exists()


def test_damage_in_a_pack_is_found_and_not_handed_out(catalogue, tmp_path):
    one, two = catalogue.register_many(some_models(tmp_path, 2))
    entry = two.files["sub/weights"]
    pack = catalogue.blobs.pack_path(entry.pack)
    data = bytearray(pack.read_bytes())
    os.chmod(pack, 0o644)
    data[entry.offset + 10] ^= 1
    pack.write_bytes(data)
    problem = catalogue.verify().problems[0]
    assert (problem.where, problem.refs) == (str(pack), ("m@2",))
    assert read(catalogue).returncode == 1
    catalogue.open_files(one)
    for use in (catalogue.open_files, lambda v: catalogue.materialise(v, tmp_path / "out")):
        with pytest.raises(CorruptError, match="does not fit its digest"):
            use(two)
    pack.write_bytes(data[: entry.offset + 5])
    with pytest.raises(CorruptError, match="ends before byte"):
        catalogue.open_files(two)
    pack.unlink()
    with pytest.raises(NotFound):
        catalogue.open_files(two)
    assert len(catalogue.verify().problems) == 3


def test_a_cut_copy_in_the_cache_is_made_again(catalogue, tmp_path):
    (version,) = catalogue.register_many(some_models(tmp_path, 1))
    path = catalogue.open_files(version)["sub/weights"]
    assert path.is_relative_to(tmp_path / "cache")
    os.chmod(path, 0o644)
    path.write_bytes(b"short")
    assert catalogue.open_files(version)["sub/weights"].stat().st_size == 10_000


@pytest.mark.parametrize(
    "change",
    [
        {"count": 3},
        {"count": "2"},
        {"versions": []},
        {"versions": {}},
        {"name": "other"},
        {"version": 2},
        {"format": 4},
    ],
)
def test_a_forged_claim_of_several_is_refused(catalogue, tmp_path, change):
    catalogue.register_many(some_models(tmp_path, 2))
    path = catalogue.path / "models/m/versions/000001.json"
    raw = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**raw, **change}))
    again = Catalogue(catalogue.path)
    for ref in ("m", "m@1", "m@2"):
        with pytest.raises(HpcmassError):
            again.get(ref)
    with pytest.warns(UserWarning, match="left out"):
        assert again.list() == []
    assert not again.verify().ok


@pytest.mark.parametrize("entry", [{"pack": "../../x"}, {"offset": -1}, {"pack": 3}, {"offset": True}])
def test_a_forged_place_in_a_pack_is_refused(catalogue, tmp_path, entry):
    catalogue.register_many(some_models(tmp_path, 1))
    path = catalogue.path / "models/m/versions/000001.json"
    raw = json.loads(path.read_text())
    raw["files"]["recipe.py"].update(entry)
    path.unlink()
    path.write_text(json.dumps(raw))
    with pytest.raises(CorruptError, match=r"place of 'recipe\.py'"):
        Catalogue(catalogue.path).get("m")


def test_after_a_damaged_claim_numbers_go_on_behind_all_that_it_could_hold(catalogue, tmp_path):
    models = some_models(tmp_path, 2)
    catalogue.register_many(models)
    path = catalogue.path / "models/m/versions/000001.json"
    path.unlink()
    path.write_text("{")
    assert Catalogue(catalogue.path).register_many(models)[0].version == 1001
    path.unlink()
    path.write_text(json.dumps({"format": 2, "name": "m", "version": 1, "count": 2, "versions": "no"}))
    assert Catalogue(catalogue.path).register_many(models)[0].version == 1003


def test_a_claim_within_another_is_named(catalogue, tmp_path):
    models = some_models(tmp_path, 3)
    catalogue.register_many(models)
    raw = catalogue.get("m@2").to_json()
    (catalogue.path / "models/m/versions/000002.json").write_text(json.dumps(raw))
    assert [p.message for p in catalogue.verify().problems] == ["corrupt: lies within the claim before it"]


def test_without_hard_links_each_version_is_claimed_alone(catalogue, tmp_path, monkeypatch):
    def refused(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    made = catalogue.register_many(some_models(tmp_path, 3))
    assert [version.version for version in made] == [1, 2, 3]
    assert len(files_of(catalogue, "versions/*")) == 3
    assert len(files_of(catalogue, "cas/**/*")) == 1
    assert catalogue.verify().ok


def test_what_was_registered_before_the_disk_was_full_is_said(catalogue, tmp_path):
    models = [*some_models(tmp_path, 2), *some_models(tmp_path, 1, "other")]
    (catalogue.path / "models").mkdir(parents=True)
    (catalogue.path / "models" / "other").write_text("in the way")
    with pytest.raises(HpcmassError) as caught:
        catalogue.register_many(models)
    assert caught.value.data["registered"] == ["m@1", "m@2"]
    assert [version.ref for version in catalogue.list("m")] == ["m@1", "m@2"]
