"""Where parts of the catalogue meet: what one of them changes, the others see."""

import random
import sqlite3
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Evaluations, Registration, index_file
from hpcmass.catalogue import evaluations as evaluations_module
from hpcmass.catalogue import gc as gc_module
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.mending import repair
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.catalogue.removing import revive
from hpcmass.catalogue.retention import Rules
from hpcmass.catalogue.survey import Content
from hpcmass.catalogue.version import Version
from hpcmass.errors import CatalogueError, NotFound


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(tmp_path: Path, number: int, size: int = 2000) -> Path:
    made = tmp_path / "models" / f"{number}-{size}"
    if not made.exists():
        made.mkdir(parents=True)
        (made / "w").write_bytes(random.Random(number).randbytes(size))
    return made


def many(catalogue: Catalogue, tmp_path: Path, count: int, size: int = 2000) -> None:
    catalogue.register_many(Registration("m", folder(tmp_path, one, size)) for one in range(count))


def single(catalogue: Catalogue, tmp_path: Path, count: int) -> None:
    for one in range(count):
        catalogue.register("m", folder(tmp_path, one), metrics={"a": one}, lineage={})


def test_what_gc_took_out_of_a_claim_is_gone_for_a_catalogue_that_was_open(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    many(catalogue, tmp_path, 5)
    assert catalogue.get("m@2").version == 2
    collect(catalogue.path, Rules(keep_last=1))
    with pytest.raises(NotFound, match="no version 2"):
        catalogue.get("m@2")
    assert [version.ref for version in catalogue.list()] == ["m@5"]


@pytest.mark.parametrize("size", [2000, 300_000])
def test_an_alias_that_comes_while_gc_takes_content_keeps_that_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = tmp_path / "catalogue"
    many(Catalogue(path), tmp_path, 3, size)
    mover = Catalogue(path)
    version = mover.get("m@2")
    # The mover has looked at the version, and is slow from there on.
    monkeypatch.setattr(mover, "get", lambda ref: version)
    take = gc_module._Run._set_aside

    def late(self: gc_module._Run, content: Content, used: Content) -> None:
        mover.alias("m", "production", 2, why="meanwhile")
        take(self, content, used)

    monkeypatch.setattr(gc_module._Run, "_set_aside", late)
    collect(path, Rules(keep_last=1), grace_s=0)
    assert Catalogue(path).get("m@production").version == 2
    assert not [one for one in scan(path).findings if one.is_damage]
    assert Catalogue(path).verify("m@production").ok


def test_searches_forget_an_alias_whose_only_move_was_damaged(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    single(catalogue, tmp_path, 2)
    catalogue.alias("m", "production", 1, why="")
    assert [one.ref for one in catalogue.search("alias == 'production'")] == ["m@1"]
    path = catalogue.path / "models/m/aliases/production/000001.json"
    path.chmod(0o644)
    path.write_text("{")
    repair(catalogue.path)
    assert not len(catalogue.search("alias == 'production'"))
    # Its moves count from 1 again, so by its number the index would take the next one for a known one.
    catalogue.alias("m", "production", 2, why="")
    assert [one.ref for one in catalogue.search("alias == 'production'")] == ["m@2"]


def test_a_limit_beyond_all_numbers_is_no_limit(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    single(catalogue, tmp_path, 2)
    assert len(catalogue.search(limit=10**30, sort=["-a"])) == 2


def test_what_is_measured_of_a_version_that_was_removed_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    single(catalogue, tmp_path, 3)
    version, evaluations = catalogue.get("m@1"), Evaluations(catalogue.path)
    evaluations.add(version, {"n": 1}, dataset="d", data="test")
    claim = evaluations_module.claim_json

    def slowly(path: Path, value: dict[str, object]) -> bool:
        claimed = claim(path, value)
        collect(catalogue.path, Rules(keep_last=1))
        return claimed

    monkeypatch.setattr(evaluations_module, "claim_json", slowly)
    with pytest.raises(CatalogueError, match="m@1 was removed"):
        evaluations.add(version, {"n": 2}, dataset="d", data="test")
    monkeypatch.undo()
    with pytest.raises(CatalogueError, match="m@1 was removed"):
        evaluations.add(version, {"n": 3}, dataset="d", data="test")
    # What was measured before is there when the version is, and under its own number.
    assert revive(catalogue.path, "m", 1)
    assert evaluations.of(version)[0].n == 1


def test_fsck_names_and_sets_aside_an_evaluation_that_cannot_be_read(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    single(catalogue, tmp_path, 1)
    version, evaluations = catalogue.get("m@1"), Evaluations(catalogue.path)
    for number in (1, 2):
        evaluations.add(version, {"n": number}, dataset="d", data="test")
    assert scan(catalogue.path).ok
    path = evaluations.path(version, 2)
    path.chmod(0o644)
    path.write_text('{"format": 1')
    report = scan(catalogue.path)
    assert not report.ok
    assert [(one.kind, one.refs) for one in report.findings] == [("evaluation", ("m@1/2",))]
    assert repair(catalogue.path).ok
    assert [one.n for one in evaluations.of(version)] == [1]
    # The history of an alias may name it: its number is not given again.
    assert evaluations.add(version, {"n": 3}, dataset="d", data="test").number == 3
    assert not scan(catalogue.path).findings


@pytest.mark.parametrize("local", [True, False])
def test_what_a_search_found_is_read_to_its_end_though_the_index_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(index_file, "is_local", lambda path: local)
    catalogue = Catalogue(tmp_path / "catalogue")
    catalogue.register_many(Registration("m", folder(tmp_path, one % 3)) for one in range(700))
    stream = catalogue.stream("version > 0")
    found = iter(stream)
    assert next(found).version == 1
    collect(catalogue.path, Rules(keep_last=600))
    single(catalogue, tmp_path, 1)
    assert len(catalogue.search("version > 0")) == 601
    assert [one.version for one in found] == list(range(2, 701))
    connection = stream._connection
    del found, stream
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_claim_that_comes_just_after_it_was_looked_for_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    single(catalogue, tmp_path, 1)
    assert len(catalogue.search()) == 1
    single(catalogue, tmp_path, 1)
    claim, late = catalogue.path / "models/m/versions/000002.json", tmp_path / "late"
    claim.rename(late)  # announced, and not there yet
    versions = VersionClaims.versions

    def early(self: VersionClaims, start: int) -> list[Version]:
        found = versions(self, start)
        if not found:
            late.rename(claim)
        return found

    monkeypatch.setattr(VersionClaims, "versions", early)
    catalogue.search()
    monkeypatch.undo()
    assert [one.version for one in catalogue.search()] == [1, 2]
