"""Damage of every kind: found, restored from wherever the same bytes are, or set aside; nothing is deleted."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.mending import repair
from hpcmass.catalogue.retention import Rules
from hpcmass.errors import CatalogueError, NotFound


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """m@1 … m@6 in one claim and a pack, n@1 … n@4 as blobs, each with its run; aliases of n."""
    catalogue = Catalogue(tmp_path / "c")
    catalogue.register_many(one(tmp_path, "m", number) for number in range(1, 7))
    for number in range(1, 5):
        given = one(tmp_path, "n", number)
        catalogue.register("n", given.folder, metrics={}, lineage=given.lineage)
    for version in (1, 3):
        catalogue.alias("n", "best", version, why="")
    return catalogue


def one(tmp_path: Path, name: str, number: int) -> Registration:
    run = tmp_path / f"run-{name}-{number}"
    (run / "model").mkdir(parents=True)
    (run / "model" / "w").write_bytes(random.Random(f"{name} {number}").randbytes(3000))
    return Registration(name, run / "model", {}, {"run": str(run)})


def lose_run(tmp_path: Path, name: str, number: int) -> None:
    shutil.rmtree(tmp_path / f"run-{name}-{number}")


def damage(path: Path, at: int | None = None) -> None:
    """Flip a bit, or cut the file short."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    if at is None:
        data = data[: len(data) // 2]
    else:
        data[at] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def blob(catalogue: Catalogue, ref: str) -> tuple[Path, int]:
    entry = catalogue.get(ref).files["w"]
    return catalogue.blobs.where(entry), entry.offset + 10


def kinds(catalogue: Catalogue) -> list[tuple[str, tuple[str, ...]]]:
    return [(found.kind, found.refs) for found in scan(catalogue.path).findings]


def everything(root: Path) -> list[bytes]:
    """All content there is, set aside or not."""
    return sorted(path.read_bytes() for path in root.rglob("*") if path.is_file() and "care" not in path.parts)


def flipped(catalogue: Catalogue, ref: str) -> None:
    damage(*blob(catalogue, ref))


def cut(catalogue: Catalogue, ref: str) -> None:
    damage(blob(catalogue, ref)[0])


def gone(catalogue: Catalogue, ref: str) -> None:
    blob(catalogue, ref)[0].unlink()


def test_nothing_is_wrong_and_nothing_is_changed(catalogue: Catalogue) -> None:
    before = {path: path.read_bytes() for path in catalogue.path.rglob("*") if path.is_file()}
    report = scan(catalogue.path)
    assert (report.findings, report.versions, report.contents, report.bytes) == ([], 10, 10, 30_000)
    assert {path: path.read_bytes() for path in catalogue.path.rglob("*") if path.is_file()} == before
    assert repair(catalogue.path).ok
    assert not (catalogue.path / "quarantine").exists()


@pytest.mark.parametrize("harm", [flipped, cut, gone])
@pytest.mark.parametrize("ref", ["n@2", "m@4"])
def test_content_comes_back_from_the_run_that_made_it(
    catalogue: Catalogue, tmp_path: Path, ref: str, harm: Callable[[Catalogue, str], None]
) -> None:
    before = catalogue.get(ref)
    harm(catalogue, ref)
    found = {hit for kind, refs in kinds(catalogue) for hit in refs if kind == "content"}
    assert ref in found
    held = everything(catalogue.path)
    report = repair(catalogue.path)
    assert report.ok
    assert not report.left
    again = Catalogue(catalogue.path)
    assert again.get(ref) == before
    name, number = ref.split("@")
    copy = again.materialise(again.get(ref), tmp_path / "copy") / "w"
    assert copy.read_bytes() == (tmp_path / f"run-{name}-{number}" / "model" / "w").read_bytes()
    assert again.verify().ok
    assert set(held) <= set(everything(catalogue.path))  # what was damaged lies in quarantine
    assert repair(catalogue.path).done == []


def test_content_comes_back_from_a_pack_the_cache_and_the_trash(catalogue: Catalogue, tmp_path: Path) -> None:
    packed = catalogue.register_many([Registration("again", tmp_path / "run-n-1" / "model")])
    catalogue.open_files(catalogue.get("m@2"))  # now the user's cache has it
    for name, number in (("n", 1), ("m", 2), ("n", 2)):
        lose_run(tmp_path, name, number)
    flipped(catalogue, "n@1")
    flipped(catalogue, "m@2")
    trash = catalogue.path / "trash" / "1700000000-00000000"
    trash.mkdir(parents=True)
    path = blob(catalogue, "n@2")[0]
    os.rename(path, trash / f"cas={path.parent.name}={path.name}")
    assert ("content", ("n@2",)) not in kinds(catalogue)  # readers find it there
    report = repair(catalogue.path)
    assert report.ok, report.left
    assert packed[0].files["w"].pack is not None
    assert Catalogue(catalogue.path).verify().ok


def test_a_version_whose_content_is_lost_is_set_aside_and_comes_back_with_it(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    for ref in ("n@2", "n@4", "m@4"):  # 4 is the newest, whose number must not be given again
        name, number = ref.split("@")
        shutil.copytree(tmp_path / f"run-{name}-{number}" / "model", kept / ref)
        lose_run(tmp_path, name, int(number))
        gone(catalogue, ref) if name == "n" else flipped(catalogue, ref)
    before = {ref: catalogue.get(ref) for ref in ("n@2", "n@4", "m@4")}
    report = repair(catalogue.path)
    assert report.ok
    again = Catalogue(catalogue.path)
    assert [v.ref for v in again.list()] == ["m@1", "m@2", "m@3", "m@5", "m@6", "n@1", "n@3"]
    assert [v.ref for v in again.search()] == [v.ref for v in again.list()]
    with pytest.raises(NotFound, match="fsck"):
        again.get("n@4")
    assert again.get("n").version == 3
    # The same files are registered again: the content is there, and with it the old versions.
    made = [again.register("n", kept / ref, metrics={}, lineage={}) for ref in ("n@2", "n@4", "m@4")]
    assert [version.ref for version in made] == ["n@5", "n@6", "n@7"]
    assert repair(catalogue.path).ok
    again = Catalogue(catalogue.path)
    assert {ref: again.get(ref) for ref in before} == before
    assert len(again.search()) == 13
    assert again.verify().ok


def test_what_is_in_production_is_not_changed_for_the_user(catalogue: Catalogue, tmp_path: Path) -> None:
    lose_run(tmp_path, "n", 3)
    gone(catalogue, "n@3")
    report = repair(catalogue.path)
    assert not report.ok
    assert [(found.kind, found.refs) for found in report.left] == [("content", ("n@3",))]
    assert Catalogue(catalogue.path).get("n@best").version == 3
    catalogue.alias("n", "best", 1, why="3 is lost")
    assert repair(catalogue.path).ok


@pytest.mark.parametrize("newest", [False, True])
def test_a_damaged_claim_is_set_aside_and_its_number_is_not_given_again(
    catalogue: Catalogue, newest: bool
) -> None:
    path = catalogue.path / f"models/n/versions/00000{4 if newest else 2}.json"
    damage(path)
    assert [kind for kind, _ in kinds(catalogue)] == ["claim"]
    with pytest.raises(CatalogueError, match="fsck"):
        collect(catalogue.path, Rules(keep_last=1))
    report = repair(catalogue.path)
    assert report.ok
    assert len(list(report.aside.glob("models=n=*"))) == 1
    again = Catalogue(catalogue.path)
    assert len(again.list("n")) == 3
    made = again.register("n", next((catalogue.path.parent).glob("run-m-1")) / "model", metrics={}, lineage={})
    assert made.version == (1004 if newest else 5)
    assert collect(catalogue.path, Rules(keep_last=6), grace_s=0).gone == []


def test_damaged_moves_of_an_alias(catalogue: Catalogue) -> None:
    folder = catalogue.path / "models/n/aliases/best"
    damage(folder / "000002.json")
    assert kinds(catalogue) == [("move", ("n@best",))]
    assert repair(catalogue.path).ok
    again = Catalogue(catalogue.path)
    assert again.get("n@best").version == 1  # where it was before; the history says so
    assert "damaged" in again.history("n", "best")[-1].why
    assert again.alias("n", "best", 4, why="", expect=1).number == 4
    damage(folder / "000001.json")
    assert repair(catalogue.path).ok
    assert [move.version for move in again.history("n", "best")] == [1, 4]
    assert again.search("'best' in aliases")[0].ref == "n@4"


def test_an_alias_that_points_nowhere_is_told(catalogue: Catalogue) -> None:
    (catalogue.path / "models/n/versions/000003.json").unlink()
    report = repair(catalogue.path)
    assert [(found.kind, found.refs) for found in report.left] == [("nowhere", ("n@best",))]
    assert not report.ok


def test_what_killed_writers_leave(catalogue: Catalogue) -> None:
    root = catalogue.path
    left = root / "cas" / "ab" / ".blob.elsewhere-1-00000000.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_text("half")
    live = root / "cas" / "ab" / f".blob.elsewhere-{os.getpid()}-00000001.tmp"
    live.write_text("being written")
    os.utime(left, (1, 1))
    (
        root / "models/n/versions/000005.json"
    ).touch()  # a number taken without hard links, and followed by no other
    (root / "models/n/aliases/best/000003.json").touch()
    catalogue.alias("n", "best", 2, why="")
    journal = next((root / "journals").iterdir())
    with open(journal, "ab") as file:
        file.write(b'\nabcdef01 {"model":"n","ver')
    catalogue.alias("n", "other", 2, why="")
    os.rename(root / "journals", root / "gone")  # what is listed nowhere
    (root / "journals").mkdir()
    found = kinds(catalogue)
    assert sorted({kind for kind, _ in found}) == ["empty", "temporary", "unlisted"]
    os.rename(root / "gone" / journal.name, root / "journals" / journal.name)
    assert sorted(kind for kind, _ in kinds(catalogue)) == ["empty", "empty", "temporary", "torn"]
    assert scan(root).ok  # nothing of it hurts anybody
    repair(root)
    assert sorted(kind for kind, _ in kinds(catalogue)) == ["empty", "torn"]  # the newest number stays taken
    assert (live.exists(), left.exists()) == (True, False)
    assert catalogue.register("n", root.parent / "run-n-1" / "model", metrics={}, lineage={}).version == 6


def test_versions_in_no_journal_are_listed(catalogue: Catalogue) -> None:
    shutil.rmtree(catalogue.path / "journals")
    assert {kind for kind, _ in kinds(catalogue)} == {"unlisted"}
    assert repair(catalogue.path).left == []
    assert Catalogue(catalogue.path).verify().unlisted == []


def test_quick_sees_sizes_only(catalogue: Catalogue) -> None:
    flipped(catalogue, "n@1")
    cut(catalogue, "n@2")
    assert sorted(kinds(catalogue)) == [("content", ("n@1",)), ("content", ("n@2",))]
    assert [found.refs for found in scan(catalogue.path, quick=True).findings] == [("n@2",)]


def test_newer_formats_and_no_permission_are_no_damage_to_repair(catalogue: Catalogue) -> None:
    path = catalogue.path / "models/n/versions/000002.json"
    raw = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**raw, "format": 9}))
    assert [kind for kind, _ in kinds(catalogue)] == ["unreadable"]
    assert [found.kind for found in repair(catalogue.path).left] == ["unreadable"]
    assert json.loads(path.read_text())["format"] == 9
    with pytest.raises(CatalogueError, match="no catalogue"):
        scan(catalogue.path.parent)


def test_beside_writers_nothing_is_found_that_is_not_there(catalogue: Catalogue, tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from hpcmass.catalogue import Catalogue, Registration
root, folder, until = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
catalogue = Catalogue(root)
while time.time() < until:
    (folder / "w").write_text(str(time.time()))
    catalogue.register("n", folder, metrics={}, lineage={})
    catalogue.register_many([Registration("m", folder)] * 3)
    catalogue.alias("m", "newest", catalogue.get("m").version, why="")
"""
    (tmp_path / "live").mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", code, str(catalogue.path), str(tmp_path / "live"), str(time.time() + 3)]
    writer = subprocess.Popen(words, env=env)
    looks = 0
    while writer.poll() is None:
        assert scan(catalogue.path).findings == []
        assert repair(catalogue.path).done == []
        looks += 1
    assert writer.returncode == 0
    assert looks > 2
    assert scan(catalogue.path).findings == []
