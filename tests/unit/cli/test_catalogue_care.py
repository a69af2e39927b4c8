"""`hpcmass catalogue doctor`, `fsck` and `gc`, as a user calls them."""

import json
import os
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue
from hpcmass.cli.root import run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A project with five versions of a model, of which the second is in production."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    catalogue = Catalogue(tmp_path / "catalogue")
    for number in range(5):
        (tmp_path / "model" / "w").write_text(f"{number}" * 100)
        catalogue.register("m", tmp_path / "model", metrics={"accuracy": number, "loss": number}, lineage={})
    catalogue.alias("m", "production", 2, why="")
    return catalogue


def test_doctor(lab: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalogue", "doctor"]) == 0
    told = capsys.readouterr().out
    assert "ok   link: a name appears with its content, and once" in told
    assert told.endswith("nothing is wrong\n")
    lab.path.chmod(0o777)
    assert run(["catalogue", "doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["probes"] if one["state"] == "bad"] == ["sharing"]
    assert run(["catalogue", "doctor", "--node", "a", "--ssh", "b"]) == 2


def test_fsck(lab: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalogue", "fsck"]) == 0
    assert "5 versions, 5 files, 500 B: all fit their checksums" in capsys.readouterr().out
    os.remove(lab.blobs.where(lab.get("m@1").files["w"]))
    assert run(["catalogue", "fsck", "--quick"]) == 1
    told = capsys.readouterr().out
    assert ("missing: there is no such blob (hits m@1)" in told, "--repair" in told) == (True, True)
    assert run(["catalogue", "fsck", "--repair", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([one["kind"] for one in found["findings"]], found["left"], found["ok"]) == (["content"], [], True)
    assert run(["catalogue", "show", "m@1"]) == 2
    assert "fsck" in capsys.readouterr().err
    os.remove(lab.blobs.where(lab.get("m@2").files["w"]))
    assert run(["catalogue", "fsck", "--repair"]) == 1  # it is in production
    assert "STILL" in capsys.readouterr().out


def test_gc(lab: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--keep-last", "1", "--keep-best", "-loss:1"]
    assert run(["catalogue", "gc", *rules, "--dry-run"]) == 0
    rows = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert rows["m@1"][0] == rows["m@2"][0] == rows["m@5"][0] == "stays"
    assert rows["m@3"] == ["goes", "100", "B", "no", "rule", "keeps", "it"]
    assert "loss: best 1 of 5" in " ".join(rows["m@1"])
    assert len(lab.list()) == 5
    assert run(["catalogue", "gc", *rules, "--grace", "0", "--why", "room", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["version"] for one in found["versions"] if one["goes"]] == ["m@3", "m@4"]
    assert (found["purged"], found["refused"]) == (4, {})
    assert run(["catalogue", "show", "m@3"]) == 2
    assert "room" in capsys.readouterr().err
    assert run(["catalogue", "gc"]) == 0
    assert "0 of 3 versions removed" in capsys.readouterr().out
    assert run(["catalogue", "gc", "--max-bytes", "1k", "--max-files", "6", "--newer-than", "0d"]) == 0
    assert len(lab.list()) == 3  # 3 claims and 3 blobs are 6 files: within the quota


@pytest.mark.parametrize(
    "words", [["--keep-best", "accuracy"], ["--keep-best", ":3"], ["--max-bytes", "much"], ["--grace", "soon"]]
)
def test_bad_rules(lab: Catalogue, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(["catalogue", "gc", *words]) == 2
    assert "say" in capsys.readouterr().err
    assert len(lab.list()) == 5
