"""Model cards, Hugging Face's layout, and texts of strangers in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from life_lab import Lab

import hpcmass
from hpcmass.catalogue import markup
from hpcmass.errors import AlreadyExists, CorruptError
from hpcmass.runs import RunFolder
from hpcmass.slurm.usage import parse_energy
from hpcmass.workflow.cards import card, card_of, export
from hpcmass.workflow.cost import Cost, cost_of

# As huggingface_hub's ModelCard finds the metadata.
FRONT = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")


def front_of(text: str) -> dict:
    match = FRONT.match(text)
    assert match is not None
    return yaml.safe_load(match[2])


def test_a_card_says_what_is_known_and_what_is_not(lab: Lab) -> None:
    lab.model(knows=2, run="/gone", environment={"python": "3.12.1", "packages": {"torch": "2.13"}})
    lab.call("evaluate", "eyes@1", "test", "--slice", "site", "--record")
    lab.call("catalogue", "promote", "eyes@1", "--to", "staging", "--require", "accuracy >= 0.6 on test")
    lab.call("evaluate", "eyes@1", "test", "--slice", "site", "--record")
    text = card("eyes@staging", lab.root)
    front = front_of(text)
    text = text.replace("\\", "")
    assert front["library_name"] == "hpcmass"
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["task"]["type"] == "classification"
    assert result["dataset"]["name"] == "test"
    assert {one["type"]: one["value"] for one in result["metrics"]}["accuracy"] == pytest.approx(2 / 3)
    assert "| accuracy | 0.6667 | 0.5783 to 0.7447 |" in text  # Wilson, 80 of 120
    assert re.search(r"\| 1 \| 0\.\d+ \[\S+, \S+\] \| 1\.0000 \[0\.91\d\d, 1\.0000\] \| 0\.", text), (
        "a line a class"
    )
    assert "| site == 1 | 40 | 0.0000 [0.0000, 0.0876] |" in text
    assert "| parameters | 51 |" in text
    assert "| train | data/d/train |" in text
    assert "| 120 |" in text
    assert "| energy | UNKNOWN |" in text
    assert "| node-hours | UNKNOWN |" in text
    assert "| staging | accuracy &gt;= 0.6 on test | 0.666" in text
    assert text.count("to be filled in by a person") == 4
    assert "```mermaid\ngraph LR" in text
    assert lab.call("catalogue", "card", "eyes@1", "--out", "card.md").code == 0
    assert front_of((lab.root / "card.md").read_text()) == front


def test_the_layout_of_hugging_face_is_a_model_to_hpcmass_too(lab: Lab) -> None:
    lab.model()
    lab.call("evaluate", "eyes@1", "test", "--record")
    answer = lab.call("catalogue", "export", "eyes@1", "--to", "out/eyes", "--layout", "huggingface")
    assert answer.code == 0, answer.err
    folder = lab.root / "out" / "eyes"
    assert {one.name for one in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.json",
        "model.safetensors",
        "recipe.py",
    }
    assert [one.name for one in folder.parent.iterdir()] == ["eyes"]
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1", "2": "2"}
    assert front_of((folder / "README.md").read_text())["model-index"][0]["name"] == "eyes@1"
    image = np.random.default_rng(3).integers(0, 255, (5, 4, 4)).astype(np.uint8)
    np.testing.assert_array_equal(hpcmass.load(folder)(image), hpcmass.load("eyes@1")(image))
    with pytest.raises(AlreadyExists):
        export("eyes@1", folder, lab.root)
    # Its checksums count still.
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").chmod(0o644)
    (folder / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CorruptError):
        hpcmass.load(folder)
    meta = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**meta, "weights": "../../etc/passwd"}))
    with pytest.raises(CorruptError):
        hpcmass.load(folder)


def test_a_model_json_that_is_none_is_exported_as_it_is(lab: Lab) -> None:
    made = lab.root / "odd"
    made.mkdir()
    (made / "model.json").write_text('{"kind": "torch", "files": [1], "signature": [], "params": 3}')
    (made / "weights.safetensors").write_bytes(b"x")
    lab.catalogue.register("odd", made, metrics={}, lineage={})
    answer = lab.call("catalogue", "export", "odd", "--to", "out/odd")
    assert answer.code == 0, answer.err
    assert (lab.root / "out/odd/model.safetensors").read_bytes() == b"x"


EVIL = "a\n---\nlicense: x\n# head\n```\n<script>alert(1)</script> [l](javascript:x) | ![i](http://e) **b** {{x}} \x1b[2J\u202e"


def test_texts_of_strangers_stay_texts(lab: Lab) -> None:
    version = lab.model(
        environment={"python": EVIL, "packages": {EVIL: EVIL}}, parent=EVIL, run=EVIL, commit=EVIL
    )
    catalogue = lab.catalogue
    catalogue.register(
        "eyes",
        lab.root / "bundle-1",
        metrics={EVIL: 1.0},
        lineage={**version.lineage, "datasets": {EVIL: EVIL}},
        description=EVIL,
    )
    from hpcmass.catalogue import Evaluations

    result = {
        "n": 3, "metrics": {EVIL: {"value": 1.0}}, "per_class": [{"name": EVIL, "recall": {"value": 1}}],
        "slices": [{"field": EVIL, "value": EVIL, "n": 1, "metrics": {}}],
    }  # fmt: skip
    Evaluations(catalogue.path).add(catalogue.get("eyes@2"), result, dataset=EVIL, data=EVIL)
    text = card("eyes@2", lab.root)
    front = front_of(text)
    assert set(front) == {"library_name", "tags", "model-index"}
    # The front matter ends once, and nothing of it begins a line, a table's cell, a tag or a link.
    body = text[FRONT.match(text).end() :]
    assert [line for line in body.splitlines() if line == "---"] == []
    assert not re.search(r"(?m)^# head", body)
    assert not re.search(r"(?<!\\)<\w", body)
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(", body.replace("\\](", ""))
    assert body.count("```") == 4  # Python and Mermaid
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    for line in body.splitlines():
        if line.startswith("| ") and "script" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 6), line


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
        max_leaves=12,
    )
)
def test_yaml_is_read_as_what_was_written(value: object) -> None:
    found = yaml.safe_load(markup.yaml(value))
    want = json.loads(json.dumps(value)) if value not in ([], {}) else value
    assert found == replaced(want)


def replaced(value: object) -> object:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [replaced(one) for one in value]
    return {replaced(key): replaced(one) for key, one in value.items()} if isinstance(value, dict) else value


def test_what_a_run_cost(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.path / "slurm").mkdir(parents=True)
    assert cost_of(run, None) == Cost()
    (run.path / "status.json").write_text(
        '{"format":1,"state":"COMPLETED","started":100.0,"ended":3700.0,"attempt":1}'
    )
    assert cost_of(run, None) == Cost(wall_hours=1.0, source="the run's status")
    (run.path / "ranks").mkdir()
    (run.path / "ranks" / "attempt-1.json").write_text(
        '{"format":1,"ranks":[{"host":"a"},{"host":"b"},{"host":"a"}]}'
    )
    assert cost_of(run, None).node_hours == 2.0
    # Hops say more: each with its own nodes.
    hops = [("begin", 1, 0.0), ("end", 1, 1800.0), ("begin", 2, 5000.0), ("end", 2, 8600.0)]
    lines = [
        json.dumps({"kind": k, "hop": n, "job_id": "7", "nodes": ["x", "y"][:n], "time": t}) for k, n, t in hops
    ]
    (run.path / "slurm" / "hops.jsonl").write_text("\n".join(lines) + "\n")
    assert cost_of(run, None) == Cost(wall_hours=1.5, node_hours=2.5, source="the run's hops")
    (run.path / "slurm" / "hops.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert cost_of(run, None) == Cost(), "a hop without an end is of nobody knows how long"
    assert Cost.from_json({"node_hours": True, "wall_hours": "x", "energy_joules": -1}) is None
    assert Cost.from_json(Cost(wall_hours=1.5).to_json()) == Cost(wall_hours=1.5)


def test_energy_as_sacct_tells_it() -> None:
    text = "7|7200\n7.batch|3600\n7.0|3600\n8|0\n8.0|0\n9|\n9.0|50\n9.1|25\n10|4294967294\n11|18446744073709551614\nnoise\n"
    assert parse_energy(text) == {"7": 7200.0, "9": 75.0}


def test_the_cost_that_was_registered_outlives_the_run(lab: Lab) -> None:
    lab.model(run="/gone", cost=Cost(node_hours=2.0, source="the run's hops").to_json())
    assert card_of("eyes@1", lab.root).cost["node_hours"] == 2.0
    assert "| node-hours | 2 h |" in card("eyes@1", lab.root)
