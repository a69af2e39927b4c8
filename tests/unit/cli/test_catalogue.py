"""`hpcmass catalogue list`, `search`, `reindex`, as a user calls them."""

import csv
import io
import json
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.cli.root import run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with 150 versions of two models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_text("w")
    monkeypatch.chdir(tmp_path)
    catalogue = Catalogue(tmp_path / "catalogue")
    for name, count in (("mnist", 130), ("other", 20)):
        catalogue.register_many(
            Registration(
                name,
                tmp_path / "model",
                {"accuracy": i / count, "ci": [0, 1]},
                {"job": {"recipe": f"{name}.py", "params": {"lr": i / 10}}},
                'said, "so"',
            )
            for i in range(count)
        )
    catalogue.alias("mnist", "production", 100, why="")
    return tmp_path


EXPRESSION = "recipe == 'mnist' and accuracy > 0.75 and params.lr < 10.1"


def test_search(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["catalogue", "search", EXPRESSION, "--sort", "-accuracy", "--limit", "3"]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["version", "aliases", "recipe", "accuracy", "params.lr", "size", "created"]
    assert [line.split()[0] for line in lines[3:6]] == ["mnist@101", "mnist@100", "mnist@99"]
    assert "production" in lines[4]
    assert run([*words, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["version"] for one in found] == [101, 100, 99]
    assert found[1]["aliases"] == ["production"]
    assert found[1]["metrics.ci"] == [0, 1]
    assert run([*words, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["job.params.lr"] for row in rows] == ["10.0", "9.9", "9.8"]
    assert rows[0]["description"] == 'said, "so"'
    assert run(["catalogue", "search", "--limit", "0", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 150


def test_a_wrong_expression_is_shown(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalogue", "search", "acuracy > 0.9"]) == 2
    told = capsys.readouterr().err
    assert "  acuracy > 0.9\n  ^^^^^^^\n" in told
    assert "did you mean accuracy" in told
    assert run(["catalogue", "search", "--sort", "-acuracy"]) == 2
    assert "did you mean accuracy" in capsys.readouterr().err


def test_list_shows_the_newest_of_many(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalogue", "list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "the newest 100 of 150; --limit 0 shows all"
    assert "other@20" in out
    assert run(["catalogue", "list", "other"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:23]] == [f"other@{i}" for i in range(1, 21)]
    assert "newest" not in out
    assert run(["catalogue", "list", "mnist", "--limit", "0"]) == 0
    assert "mnist@1 " in capsys.readouterr().out
    assert run(["catalogue", "list", "mnits"]) == 2
    assert "did you mean mnist" in capsys.readouterr().err


def test_list_for_programs(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalogue", "list", "--limit", "3", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["version"]) for one in found] == [("other", 18), ("other", 19), ("other", 20)]
    assert run(["catalogue", "list", "--limit", "0", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 150
    assert [row["version"] for row in rows if row["aliases"] != "[]"] == ["100"]
    assert run(["catalogue", "list", "other@3"]) == 2


def test_tags(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Catalogue(lab / "catalogue").register(
        "tagged",
        lab / "model",
        metrics={},
        lineage={"parent": "mnist@2"},
        tags={"team": "vision", "demo": True},
    )
    for text in (
        *("'demo' in tags", "tags.team == 'vision'", "team == 'vision' and tag != 'x'", "tags.demo == 1"),
        *(
            "'mnist@2' in ancestors",
            "created > 'yesterday' and tags != None",
            "created > '1 hour ago' and tag != None",
        ),
    ):
        assert run(["catalogue", "search", text, "--format", "json"]) == 0
        assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["tagged"], text
    assert run(["catalogue", "show", "tagged"]) == 0
    assert "demo=yes, team=vision" in capsys.readouterr().out
    assert run(["catalogue", "search", "tag.team == 'x'"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_what_no_journal_names(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (lab / "catalogue" / "journals").iterdir():
        path.unlink()
    assert run(["catalogue", "verify"]) == 0
    assert "3 that no journal names (mnist@1, mnist@production, other@1)" in capsys.readouterr().out
    assert run(["catalogue", "reindex"]) == 0
    assert "3 were in no journal" in capsys.readouterr().out
    assert run(["catalogue", "verify"]) == 0
    assert "no journal" not in capsys.readouterr().out


def test_nothing_that_others_wrote_commands_a_terminal(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07\x9b2J\u202eend"
    catalogue = Catalogue(lab / "catalogue")
    lineage = {"commit": evil, "parent": evil, "environment": {evil: evil}, "run": evil}
    catalogue.register("evil", lab / "model", metrics={evil: 1.0}, lineage=lineage, description=evil)
    catalogue.register("evil", lab / "model", metrics={}, lineage={})
    catalogue.alias("evil", "production", 1, why=evil)
    capfd.readouterr()
    for words in (
        "show evil@1", "history evil", "list evil", "search name=='evil'", "compare evil@1 evil@2", "lineage evil@1",
        "alias evil@2 production --expect 2", "card evil@1",
    ):  # fmt: skip
        run(["catalogue", *words.split(" ")])
        told = capfd.readouterr()
        assert not set(told.out + told.err) & set(evil) - set("0;title2Jend]"), words
