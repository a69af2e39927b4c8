"""Journals, and the index that a reader makes from them."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue import journal as journal_module
from hpcmass.catalogue.index_rows import LAYOUT
from hpcmass.catalogue.journal import Pointer, Position, append, journal_path, parse_line, read_new


@pytest.fixture(params=["live", "copied"])
def catalogue(tmp_path, monkeypatch, request):
    monkeypatch.setattr("hpcmass.catalogue.index_file.is_local", lambda folder: request.param == "live")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 100)
    return Catalogue(tmp_path / "catalogue")


def register(catalogue, count=1, name="m", **metrics):
    folder = catalogue.path.parent / "model"
    return catalogue.register_many([Registration(name, folder, {"i": i, **metrics}) for i in range(count)])


def indexed(catalogue):
    """What an index says: references and aliases."""
    connection = catalogue.index.fresh()
    refs = [f"{n}@{v}" for n, v in connection.execute("SELECT name, version FROM versions ORDER BY 1, 2")]
    aliases = connection.execute("SELECT name, alias, version FROM aliases ORDER BY 1, 2").fetchall()
    return refs, aliases


def walks(catalogue, monkeypatch):
    """Where the tree is walked from now on."""
    seen, real = [], catalogue.index.tree

    def tree():
        seen.append(1)
        return real()

    monkeypatch.setattr(catalogue.index, "tree", tree)
    return seen


def test_what_is_new_is_learnt_without_a_walk(catalogue, monkeypatch):
    assert indexed(catalogue) == ([], [])
    register(catalogue, 3)
    catalogue.alias("m", "best", 2, why="")
    reader = Catalogue(catalogue.path)
    seen = walks(reader, monkeypatch)
    assert indexed(reader) == (["m@1", "m@2", "m@3"], [("m", "best", 2)])
    before = os.stat(reader.index.path).st_ino
    assert indexed(reader) == (["m@1", "m@2", "m@3"], [("m", "best", 2)])
    assert os.stat(reader.index.path).st_ino == before  # nothing new, nothing written
    catalogue.register("other", catalogue.path.parent / "model", metrics={}, lineage={})
    catalogue.alias("m", "best", 3, why="")
    assert indexed(reader) == (["m@1", "m@2", "m@3", "other@1"], [("m", "best", 3)])
    # The first look of all knew the catalogue before it had an id.
    assert len(seen) == 1
    assert indexed(Catalogue(catalogue.path)) == indexed(reader)


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "page", "older", "other root", "directory"])
def test_an_index_that_is_none_is_made_anew(catalogue, damage, tmp_path):
    register(catalogue, 50)
    catalogue.alias("m", "best", 2, why="")
    right = indexed(catalogue)
    path = catalogue.index.path
    catalogue.index.close()
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(20000))
    elif damage == "page":
        data = bytearray(path.read_bytes())
        data[4096:] = os.urandom(len(data) - 4096)
        path.write_bytes(data)
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        key, value = {"older": ("layout", "0"), "other root": ("root", "/")}[damage]
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE facts SET value = ? WHERE key = ?", (value, key))
        connection.close()
    again = Catalogue(catalogue.path)
    assert indexed(again) == right
    if again.index.path.is_file():
        facts = dict(sqlite3.connect(again.index.path).execute("SELECT key, value FROM facts"))
        assert (facts["layout"], facts["root"]) == (str(LAYOUT), os.path.realpath(catalogue.path))
    else:
        assert damage == "directory"
    assert indexed(again) == right


def test_without_a_cache_the_index_is_in_memory(catalogue, tmp_path, monkeypatch):
    register(catalogue, 2)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert indexed(Catalogue(catalogue.path))[0] == ["m@1", "m@2"]


def test_another_catalogue_at_the_same_place(catalogue, tmp_path):
    register(catalogue, 5)
    assert len(indexed(catalogue)[0]) == 5
    os.rename(catalogue.path, tmp_path / "away")
    assert indexed(Catalogue(catalogue.path)) == ([], [])
    os.rename(tmp_path / "away", tmp_path / "again")
    other = Catalogue(catalogue.path)
    for _ in range(6):
        register(other, 1, "n")
    assert indexed(other)[0] == [f"n@{i}" for i in range(1, 7)]
    assert indexed(catalogue) == indexed(other)


def test_a_claim_that_is_announced_and_not_there_is_waited_for(catalogue):
    register(catalogue)
    assert indexed(catalogue)[0] == ["m@1"]
    append(catalogue.path / "journals", [Pointer("m", 2), Pointer("m", 1, "best"), Pointer("new", 1)])
    assert indexed(catalogue)[0] == ["m@1"]
    before = os.stat(catalogue.index.path).st_ino
    assert indexed(catalogue)[0] == ["m@1"]
    assert os.stat(catalogue.index.path).st_ino == before
    # Others take the numbers, and their own lines are lost.
    real, catalogue._announce = catalogue._announce, lambda name, number: None
    register(catalogue, 3)
    assert indexed(catalogue)[0] == ["m@1", "m@2", "m@3", "m@4"]
    catalogue._announce = real
    catalogue.alias("m", "best", 3, why="")
    assert indexed(catalogue)[1] == [("m", "best", 3)]
    left = catalogue.index.fresh().execute("SELECT model, number FROM pending").fetchall()
    assert left == [("new", 1)]


def test_what_no_journal_names_is_found_by_verify_and_reindex(catalogue):
    register(catalogue)
    assert indexed(catalogue)[0] == ["m@1"]
    assert catalogue.verify().unlisted == []
    catalogue._announce = lambda name, number: None
    register(catalogue, 2)
    assert indexed(catalogue)[0] == ["m@1"]
    assert catalogue.get("m").version == 3
    report = catalogue.verify()
    assert report.ok
    assert report.unlisted == ["m@2"]
    assert catalogue.reindex() == ["m@2"]
    assert catalogue.verify().unlisted == []
    assert indexed(catalogue)[0] == ["m@1", "m@2", "m@3"]


def test_a_catalogue_without_journals(catalogue):
    register(catalogue, 2)
    catalogue.alias("m", "best", 1, why="")
    journal_path(catalogue.path / "journals").unlink()
    (catalogue.path / "catalogue.json").unlink()
    assert indexed(catalogue) == (["m@1", "m@2"], [("m", "best", 1)])
    assert catalogue.reindex() == ["m@1", "m@best"]


def test_a_journal_from_a_backup_that_has_grown_is_told_from_the_one_that_was_read(catalogue, tmp_path):
    register(catalogue, 2)
    backup = tmp_path / "backup"
    shutil.copytree(catalogue.path, backup)
    reader = Catalogue(catalogue.path)
    register(catalogue, 1, lost=1)
    assert [one.ref for one in reader.search("lost == 1")] == ["m@3"]
    shutil.rmtree(catalogue.path)
    shutil.copytree(backup, catalogue.path)
    restored = Catalogue(catalogue.path)
    register(restored, 1, kept=1)  # the very same number, and as long a line
    register(restored, 1, kept=2)
    found = {one.ref: one.metrics for one in reader.search()}
    assert [found[f"m@{number}"].get("kept") for number in (3, 4)] == [1, 2]
    assert all("lost" not in metrics for metrics in found.values())


def test_torn_lines(tmp_path, monkeypatch):
    append(tmp_path, [Pointer("a", 1), Pointer("b", 2, "x")])
    path = journal_path(tmp_path)
    first, at = read_new(path, Position())
    assert first == [Pointer("a", 1), Pointer("b", 2, "x")]
    whole = path.read_bytes()
    append(tmp_path, [Pointer("c", 3)])
    line = path.read_bytes()[len(whole) :]
    for cut in range(len(line) + 1):
        path.write_bytes(whole + line[:cut])
        found, after = read_new(path, at)
        assert found == ([Pointer("c", 3)] if cut == len(line) else [])
        append(tmp_path, [Pointer("d", 4)])  # after a writer that was killed there
        found, after = read_new(path, after)
        assert [p for p in found if p.model == "d"] == [Pointer("d", 4)]
        assert read_new(path, after) == ([], after)


def test_a_page_that_comes_late_is_read_then(tmp_path):
    append(tmp_path, [Pointer("a", 1)])
    path = journal_path(tmp_path)
    whole = path.read_bytes()
    append(tmp_path, [Pointer("b", 2), Pointer("c", 3)])
    right = path.read_bytes()
    hole = bytearray(right)
    hole[len(whole) : len(whole) + 12] = bytes(12)
    path.write_bytes(hole)
    found, at = read_new(path, Position())
    assert found == [Pointer("a", 1), Pointer("c", 3)]
    assert len(at.torn) == 1
    path.write_bytes(right)
    found, at = read_new(path, at)
    assert (found, at.torn) == ([Pointer("b", 2)], ())
    path.write_bytes(whole)
    assert read_new(path, at) is None


@pytest.mark.parametrize(
    "text",
    [
        *('{"model": "m"}', "[]", '{"model": 3, "version": 1}', '{"model": "m", "version": "1"}', "{", ""),
        *('{"model": "m", "version": true}', '{"model": "m", "version": 0}'),
        '{"model": "m", "alias": 3, "number": 1}',
    ],
)
def test_lines_that_name_nothing(text):
    import zlib

    assert parse_line(b"%08x " % zlib.crc32(text.encode()) + text.encode()) is None
    assert parse_line(text.encode()) is None


def test_names_in_a_journal_lead_nowhere_else(catalogue, tmp_path):
    register(catalogue)
    evil = tmp_path / "evil" / "versions"
    evil.mkdir(parents=True)
    (evil / "000001.json").write_bytes((catalogue.path / "models/m/versions/000001.json").read_bytes())
    append(catalogue.path / "journals", [Pointer("../../evil", 1), Pointer("m", 1, "../versions")])
    assert indexed(catalogue) == (["m@1"], [])


def test_a_short_write_is_said_again(tmp_path, monkeypatch):
    real, cuts = os.write, iter([5, 40])

    def short(handle, data):
        return real(handle, data[: next(cuts, len(data))])

    monkeypatch.setattr(journal_module.os, "write", short)
    append(tmp_path, [Pointer("a", 1), Pointer("b", 1)])
    assert {*read_new(journal_path(tmp_path), Position())[0]} == {Pointer("a", 1), Pointer("b", 1)}


def test_a_damaged_claim_is_left_out_and_more_keys_than_columns_are_kept(catalogue, monkeypatch):
    monkeypatch.setattr("hpcmass.catalogue.index_rows.COLUMNS", 5)
    register(catalogue, 2, **{f"k{i}": i for i in range(10)})
    register(catalogue, 1, "bad")
    path = catalogue.path / "models/bad/versions/000001.json"
    path.unlink()
    path.write_text("{")
    assert indexed(catalogue)[0] == ["m@1", "m@2"]
    more = catalogue.index.fresh().execute("SELECT id, count(*) FROM more GROUP BY id").fetchall()
    assert more == [(1, 6), (2, 6)]


def test_the_reader_writes_nothing_into_the_catalogue(catalogue):
    register(catalogue, 3)
    before = {path: path.stat().st_mtime_ns for path in Path(catalogue.path).rglob("*")}
    indexed(Catalogue(catalogue.path))
    assert {path: path.stat().st_mtime_ns for path in Path(catalogue.path).rglob("*")} == before
