"""A version's lineage, up and down, in text, JSON, DOT and Mermaid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from life_lab import Lab

from hpcmass.catalogue import Catalogue, lineage, lineage_graph
from hpcmass.catalogue.graph_text import to_dot, to_mermaid, to_text
from hpcmass.errors import NotFound
from hpcmass.files import publish_json


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """m@1 → m@2 → m@3, m@4; n@1 from m@2 and from an unknown version; m@2 is in production."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    catalogue = Catalogue(tmp_path / "catalogue")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "w").write_text("w")

    def register(name: str, **record: object) -> None:
        catalogue.register(name, tmp_path / "f", metrics={}, lineage=record)

    data = {
        "job": {"data": {"train": ["data/a", "data/b"], "test": "data/t"}},
        "datasets": {"train": "aa11+bb22", "test": "cc33"},
    }
    register("m", run=str(tmp_path / "f"), **data)
    register("m", parent="m@1", run="/gone/run", began_with={"what": "/old/weights.pt", "sha256": "0"})
    register("m", parent="m@2")
    register("m", parent="m@2")
    register("n", parent="m@2", began_with={"what": "other@7", "sha256": "0"})
    register("n", parent="n@production")
    catalogue.alias("m", "production", 2, why="")
    catalogue.alias("n", "best", 1, why="")
    return catalogue


def edges(graph) -> set[tuple[str, str, str]]:
    names = {key: node.label for key, node in graph.nodes.items()}
    return {(names[e.source], names[e.target], e.label) for e in graph.edges}


def test_ancestors_and_descendants(family: Catalogue, tmp_path: Path) -> None:
    graph = lineage_graph(family, "m@production", deployments={"web": "m@production", "old": "m@9"})
    run = str(tmp_path / "f")
    assert edges(graph) == {
        ("data/a (aa11)", run, "train"), ("data/b (bb22)", run, "train"), ("data/t (cc33)", run, "test"),
        (run, "m@1", "trained"), ("m@1", "m@2", "parent"), ("/gone/run", "m@2", "trained"),
        ("/old/weights.pt", "m@2", "weights"), ("m@2", "m@3", "parent"), ("m@2", "m@4", "parent"),
        ("m@2", "n@1", "parent"), ("m@2", "m@production", "named"), ("n@1", "n@best", "named"),
        ("m@production", "web", "served by"),
    }  # fmt: skip
    notes = {node.label: node.note for node in graph.nodes.values() if node.note}
    assert notes == {
        "/gone/run": "its folder is gone, or out of reach",
        "/old/weights.pt": "unknown: no version of the catalogue",
    }
    unknown = lineage_graph(family, "n@1")
    assert "unknown" in next(node.note for node in unknown.nodes.values() if node.label == "other@7")
    alias = lineage_graph(family, "n@2")
    assert "may have moved" in next(node.note for node in alias.nodes.values() if node.label == "n@production")
    text = to_text(graph).splitlines()
    assert text[0] == "m@2"
    assert "│  └─ trained: run " + run in text[2:4] or any("trained: run " + run in line for line in text)
    assert text[-1].startswith("└─ named: alias m@production") or "served by: deployment web" in text[-1]
    with pytest.raises(NotFound):
        lineage_graph(family, "m@77")


def test_circles_end_and_much_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    catalogue = Catalogue(tmp_path / "catalogue")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "w").write_text("w")
    for parent in ("m@2", "m@1", "m@2", "m@3", "m@4", "m@5"):
        catalogue.register("m", tmp_path / "f", metrics={}, lineage={"parent": parent})
    graph = lineage_graph(catalogue, "m@1")
    assert ("m@1", "m@2", "parent") in edges(graph)
    assert ("m@2", "m@1", "parent") in edges(graph)
    assert len(graph.nodes) == 6
    assert "(above)" in to_text(graph)
    cut = lineage_graph(catalogue, "m@1", most=3)
    assert not cut.complete
    assert to_text(cut).endswith("… and more versions")


EVIL = 'x"]; evil -> me; /*\n```\n</script><b>&\\" end `|} ]] \x1b[31m \u202e'


def test_labels_of_strangers_stay_labels(family: Catalogue, tmp_path: Path) -> None:
    family.register(
        "m", tmp_path / "f", metrics={}, lineage={"parent": EVIL, "run": EVIL, "datasets": {EVIL: EVIL}}
    )
    graph = lineage_graph(family, "m")
    dot, mermaid, text = to_dot(graph), to_mermaid(graph), to_text(graph)
    for written in (dot, mermaid, text):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", written)
    # Outside of quotes nothing is left of it, in either language.
    assert "evil" not in re.sub(r'"(?:\\.|[^"\\])*"', "", dot)
    assert "evil" not in re.sub(r'"[^"]*"', "", mermaid)
    assert not re.search(r"[`<>]", re.sub(r"-->", "", mermaid))
    assert all(line.count('"') in (0, 2) for line in mermaid.splitlines())
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tplain"], input=dot, capture_output=True, text=True, check=True)
        nodes = [line for line in done.stdout.splitlines() if line.startswith("node ")]
        assert len(nodes) == len(graph.nodes)


def test_the_weights_that_a_run_began_with_are_its_parent(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('name = "j"\n')
    assert lineage(tmp_path)["parent"] is None
    publish_json(tmp_path / "init.json", {"format": 1, "from": "m@production", "what": "m@3", "sha256": "ab"})
    found = lineage(tmp_path)
    assert found["parent"] == "m@3"
    assert found["began_with"] == {"what": "m@3", "sha256": "ab"}
    assert lineage(tmp_path, parent="m@1")["parent"] == "m@1"
    (tmp_path / "init.json").unlink()
    publish_json(tmp_path / "init.json", {"format": 1, "what": "/x/w.pt", "sha256": "ab"})
    assert lineage(tmp_path)["parent"] is None


def test_on_the_command_line(lab: Lab) -> None:
    lab.model()
    lab.model(parent="eyes@1")
    lab.call("evaluate", "eyes@2", "test", "--record")
    answer = lab.call("catalogue", "lineage", "eyes@2")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[:2] == ["eyes@2", "from:"]
    assert "evaluated on: data set test" in answer.out
    assert "└─ nothing that is known" in answer.out
    raw = json.loads(lab.call("catalogue", "lineage", "eyes@1", "--format", "json").out)
    assert {"from": "version:eyes@1", "to": "version:eyes@2", "as": "parent"} in raw["edges"]
    assert lab.call("catalogue", "lineage", "eyes@1", "--format", "dot").out.startswith("digraph lineage {")
    assert lab.call("catalogue", "lineage", "eyes@1", "--format", "mermaid").out.startswith("graph LR")
    lab.catalogue.alias("eyes", "production", 2, why="")
    served = lab.call("catalogue", "lineage", "eyes@2", "--deployment", "web=eyes@production")
    assert "served by: deployment web" in served.out
    wrong = lab.call("catalogue", "lineage", "eyes@2", "--deployment", "web")
    assert wrong.code == 2
    assert "'web' is no deployment" in wrong.err
