"""What was measured of versions, as searches know it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmass.catalogue import Catalogue, Evaluations, Registration
from hpcmass.catalogue.evaluations import EvaluationRecord, label_of
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.journal import Pointer, append, journal_path, parse_line
from hpcmass.catalogue.mending import repair
from hpcmass.catalogue.removing import revive
from hpcmass.catalogue.retention import Rules
from hpcmass.errors import CorruptError


@pytest.fixture(params=["live", "copied"])
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Catalogue:
    monkeypatch.setattr("hpcmass.catalogue.index_file.is_local", lambda folder: request.param == "live")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 100)
    made = Catalogue(tmp_path / "catalogue")
    lineage = {"datasets": {"train": "t" * 64, "test": "e" * 64, "evaluated": "e" * 64}}
    made.register_many(Registration("m", tmp_path / "model", {"n": i}, lineage) for i in range(3))
    return made


def measured(accuracy: float, **more: Any) -> dict[str, Any]:
    found = {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
    return {"n": 50, "metrics": {"accuracy": found}, **more}


def evaluate(
    catalogue: Catalogue, number: int, result: dict[str, Any], dataset: str = "e", data: str = "test"
) -> None:
    Evaluations(catalogue.path).add(catalogue.get(f"m@{number}"), result, dataset=dataset * 64, data=data)


def refs(catalogue: Catalogue, *what: Any, **more: Any) -> list[str]:
    return [one.ref for one in catalogue.search(*what, **more)]


def anew(catalogue: Catalogue) -> Catalogue:
    """The same catalogue for a reader whose index is made of the tree."""
    made = Catalogue(catalogue.path)
    made.index.rebuild()
    return made


def both(catalogue: Catalogue) -> Iterator[Catalogue]:
    """It, whose index learns what is new; and then one whose index is made anew."""
    yield catalogue
    yield anew(catalogue)


def test_an_index_learns_what_is_measured_without_a_walk(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Catalogue(catalogue.path)
    assert len(reader.search()) == 3
    monkeypatch.setattr(reader.index, "tree", None)
    evaluate(catalogue, 2, measured(0.8))
    assert refs(reader, "eval.test.accuracy > 0.7") == ["m@2"]
    evaluate(catalogue, 1, measured(0.9), data="data/m/test")
    evaluate(catalogue, 1, measured(0.6), dataset="f", data="data/noisy")
    assert refs(reader, "eval.test.accuracy > 0.7", sort=["-eval.test.accuracy"]) == ["m@1", "m@2"]
    assert refs(reader, None, sort=["eval.test.accuracy"], limit=1) == ["m@2"]
    assert refs(reader, "eval.test.accuracy_low >= 0.75 and eval.test.n == 50") == ["m@1"]
    assert refs(reader, "eval.noisy.accuracy < eval.test.accuracy") == ["m@1"]
    assert refs(reader, "eval.test.accuracy == None") == ["m@3"]
    (one,) = reader.search("version == 1")
    assert one.evaluations["noisy.accuracy"] == 0.6
    assert reader.search().to_pandas()["eval.test.accuracy"].tolist()[:2] == [0.9, 0.8]
    assert catalogue.verify().unlisted == []
    assert not scan(catalogue.path).findings


def test_the_newest_counts_and_nothing_is_left_of_those_before(catalogue: Catalogue) -> None:
    first = measured(
        0.9, slices=[{"field": "site", "value": 3, "n": 9, "metrics": {"accuracy": {"value": 0.2}}}]
    )
    evaluate(catalogue, 1, first)
    assert refs(catalogue, "eval.test.accuracy['site == 3'] < 0.5") == ["m@1"]
    evaluate(catalogue, 1, measured(0.7, per_class=[{"name": "a cat", "recall": {"value": 0.4}}]))
    assert refs(catalogue, "eval.test.accuracy['site == 3'] != None") == []
    for reader in both(catalogue):
        assert refs(reader, "eval.test.accuracy < 0.8") == ["m@1"]
        assert refs(reader, "eval.test.recall['a cat'] == 0.4") == ["m@1"]
    (one,) = catalogue.search("version == 1")
    assert set(one.evaluations) == {
        "test.n",
        "test.accuracy",
        "test.accuracy_low",
        "test.accuracy_high",
        "test.recall.a cat",
    }


def test_a_data_set_whose_name_begins_another_ones(catalogue: Catalogue) -> None:
    evaluate(catalogue, 1, measured(0.9), dataset="a", data="data/mnist")
    evaluate(catalogue, 1, measured(0.8), dataset="b", data="data/mnist.v2")
    assert refs(catalogue, "eval.mnist.accuracy > eval.mnist.v2.accuracy") == ["m@1"]
    evaluate(catalogue, 1, {"n": 7, "metrics": {}}, dataset="a", data="data/mnist")
    for reader in both(catalogue):
        (one,) = reader.search("version == 1")
        assert one.evaluations == {
            "mnist.n": 7,
            "mnist.v2.n": 50,
            "mnist.v2.accuracy": 0.8,
            "mnist.v2.accuracy_low": pytest.approx(0.7),
            "mnist.v2.accuracy_high": pytest.approx(0.9),
        }


def test_what_does_not_fit_the_columns_is_found(catalogue: Catalogue) -> None:
    evaluate(catalogue, 1, {"n": 1, "metrics": {f"m{i}": {"value": i} for i in range(1100)}})
    assert refs(catalogue, "eval.test.m1098 == 1098 and eval.test.m2 == 2") == ["m@1"]
    evaluate(catalogue, 1, {"n": 1, "metrics": {"m1099": {"value": -1}, "m1": {"value": 5}}})
    assert refs(catalogue, "eval.test.m1098 != None or eval.test.m2 != None") == []
    (one,) = catalogue.search("version == 1")
    assert one.evaluations == {"test.n": 1, "test.m1099": -1, "test.m1": 5}
    for reader in both(catalogue):
        assert refs(reader, "eval.test.m1099 == -1 and eval.test.m1 == 5") == ["m@1"]


def test_what_is_announced_and_not_there_is_waited_for(catalogue: Catalogue) -> None:
    record = Evaluations(catalogue.path)
    version = catalogue.get("m@2")
    append(catalogue.path / "journals", [Pointer("m", 2, None, 1)])
    assert len(catalogue.search()) == 3
    evaluate(catalogue, 1, measured(0.5))
    path = record.path(catalogue.get("m@1"), 1)
    raw = json.loads(path.read_text()) | {"version": 2}
    record.path(version, 1).parent.mkdir()
    record.path(version, 1).write_text(json.dumps(raw))
    assert refs(catalogue, "eval.test.accuracy == 0.5") == ["m@1", "m@2"]
    assert catalogue.index.fresh().execute("SELECT count(*) FROM pending").fetchone() == (0,)


def test_what_no_journal_names_is_in_an_index_made_anew_and_listed_by_fsck(catalogue: Catalogue) -> None:
    assert len(catalogue.search()) == 3
    journal = journal_path(catalogue.path / "journals")
    before = journal.read_bytes()
    evaluate(catalogue, 2, measured(0.8))
    journal.write_bytes(before)
    assert catalogue.verify().unlisted == ["m@2/1"]
    assert [(one.kind, one.refs) for one in scan(catalogue.path).findings] == [("unlisted", ("m@2/1",))]
    assert refs(anew(catalogue), "eval.test.accuracy > 0.7") == ["m@2"]
    assert repair(catalogue.path).ok
    assert catalogue.verify().unlisted == []


def test_what_goes_with_its_version_comes_back_with_it(catalogue: Catalogue) -> None:
    evaluate(catalogue, 1, measured(0.8))
    evaluate(catalogue, 3, measured(0.9))
    assert refs(catalogue, "eval.test.accuracy > 0") == ["m@1", "m@3"]
    collect(catalogue.path, Rules(keep_last=1))
    assert refs(catalogue, "eval.test.accuracy > 0") == ["m@3"]
    assert revive(catalogue.path, "m", 1)
    assert refs(catalogue, "eval.test.accuracy > 0") == ["m@1", "m@3"]


def test_the_best_by_evaluations_are_kept(catalogue: Catalogue) -> None:
    for number, accuracy in ((1, 0.5), (1, 0.9), (2, 0.8)):
        evaluate(catalogue, number, measured(accuracy))
    rules = Rules(keep_best=(("eval.test.accuracy", 1, False),))
    report = collect(catalogue.path, rules, dry_run=True)
    assert {one.version.ref: one.why for one in report.decisions} == {
        "m@1": ("eval.test.accuracy: best 1 of 2",),
        "m@2": ("no rule keeps it",),
        "m@3": ("newest of its model",),
    }
    damage(catalogue, 2)
    with pytest.raises(CorruptError):  # what is the best is not known
        collect(catalogue.path, rules)
    assert len(catalogue.list()) == 3


def damage(catalogue: Catalogue, number: int) -> None:
    path = Evaluations(catalogue.path).path(catalogue.get(f"m@{number}"), 1)
    os.chmod(path, 0o644)
    path.write_text("{")


def test_one_that_is_damaged_is_found_no_more(catalogue: Catalogue) -> None:
    for number, accuracy in ((1, 0.8), (2, 0.9), (3, 0.7)):
        evaluate(catalogue, number, measured(accuracy))
    assert refs(catalogue, "eval.test.accuracy > 0") == ["m@1", "m@2", "m@3"]
    damage(catalogue, 1)
    assert repair(catalogue.path).ok
    assert refs(catalogue, "eval.test.accuracy > 0") == ["m@2", "m@3"]
    damage(catalogue, 2)
    assert refs(anew(catalogue), "eval.test.accuracy > 0") == ["m@3"]


@pytest.mark.parametrize(
    ("dataset", "data", "label"),
    [
        ("e" * 64, "data/anything", "test"),
        ("t" * 64, "test", "train"),  # what it is, not what it was called
        ("x" * 64, "data/noisy/", "noisy"),
        ("x" * 64, "data/old/test", "test-xxxxxxxx"),  # not the version's own
        ("x" * 64, "/", "data"),
    ],
)
def test_what_a_data_set_is_called(dataset: str, data: str, label: str) -> None:
    record = EvaluationRecord("m", 1, 1, 0.0, "me", dataset, data, "")
    assert label_of(record, {"evaluated": "e" * 64, "train": "t" * 64, "test": "e" * 64}) == label


@pytest.mark.parametrize(
    "line", [{"evaluation": 0}, {"evaluation": True}, {"evaluation": 1, "alias": "a", "number": 1}]
)
def test_lines_that_name_no_evaluation(tmp_path: Path, line: dict[str, Any]) -> None:
    append(tmp_path, [Pointer("m", 2, None, 3)])
    text = journal_path(tmp_path).read_bytes().strip()
    assert parse_line(text) == Pointer("m", 2, None, 3)
    import zlib

    wrong = json.dumps({"model": "m", "version": 2, **line}).encode()
    assert parse_line(b"%08x " % zlib.crc32(wrong) + wrong) is None
