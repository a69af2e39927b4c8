"""Versions side by side, in a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest
from life_lab import Lab

from hpcmass.errors import CatalogueError
from hpcmass.runs import RunFolder
from hpcmass.workflow.compare import compare, drawn


def test_metrics_parameters_data_and_curves(lab: Lab) -> None:
    run = RunFolder(lab.root / "runs" / "a")
    run.path.mkdir(parents=True)
    for step, loss in enumerate((2.0, 1.0, 0.5, 0.75)):
        run.append({"kind": "valid", "step": step, "epoch": 0, "loss": loss, "accuracy": 1 - loss / 2})
    (run.path / "job.toml").write_text('name = "a"\n')
    (run.path / "status.json").write_text('{"format": 1, "state": "COMPLETED", "started": 1.0}')
    lab.model(knows=2, run=str(run.path))
    lab.model(run="/gone", parent="eyes@1")
    assert lab.call("evaluate", "eyes@1", "test", "--record").code == 0
    assert lab.call("evaluate", "eyes@2", "data/d/test", "--record").code == 0
    found = compare(["eyes@1", "eyes@2"], lab.root)
    one, two = found.metrics["accuracy on test"]
    assert (one.value, two.value) == (pytest.approx(2 / 3), 1.0)
    assert 0.95 < two.low < 1.0 == two.high
    assert found.metrics["accuracy"][0].value == 0.5
    assert found.params == {"params.made": [1, 2]}
    assert compare(["eyes@1", "eyes@2"], lab.root, everything=True).params["data.train"] == ["data/d/train"] * 2
    assert found.data["train"][0].startswith("data/d/train (")
    assert found.facts["parent"] == [None, "eyes@1"]
    assert found.curves[0]["valid loss"] == [(0, 2.0), (1, 1.0), (2, 0.5), (3, 0.75)]
    assert found.curves[1] is None
    assert found.notes == ["eyes@2: its run is gone, or out of reach (/gone)"]

    answer = lab.call("catalogue", "compare", "eyes@1", "eyes@2")
    assert answer.code == 0, answer.err
    assert "0.5 (2)" in answer.out
    assert "█▃▁▂ 0.75" in answer.out
    assert "out of reach (/gone)" in answer.out
    rows = list(
        csv.DictReader(io.StringIO(lab.call("catalogue", "compare", "eyes@1", "eyes@2", "--format", "csv").out))
    )
    by_key = {(row["part"], row["key"]): row for row in rows}
    assert float(by_key["metrics", "accuracy on test low"]["eyes@2"]) == pytest.approx(two.low)
    assert by_key["curve valid loss", "2"]["eyes@1"] == "0.5"
    assert by_key["curve valid loss", "2"]["eyes@2"] == ""
    raw = json.loads(lab.call("catalogue", "compare", "eyes@1", "eyes@2", "--format", "json").out)
    assert raw["versions"] == ["eyes@1", "eyes@2"]
    assert raw["curves"][0]["valid loss"][2] == [2, 0.5]


def test_another_run_in_the_same_folder_is_not_its_own(lab: Lab) -> None:
    run = RunFolder(lab.root / "runs" / "a")
    run.path.mkdir(parents=True)
    lab.model(run=str(run.path))
    lab.model()
    run.append({"kind": "valid", "step": 1, "loss": 1.0})
    (run.path / "status.json").write_text(
        json.dumps({"format": 1, "state": "COMPLETED", "started": lab.catalogue.get("eyes@1").created + 10})
    )
    found = compare(["eyes@1", "eyes@2"], lab.root)
    assert found.curves == [None, None]
    assert "begun anew" in found.notes[0]


def test_one_version_is_no_comparison(lab: Lab) -> None:
    lab.model()
    with pytest.raises(CatalogueError, match="two versions"):
        compare(["eyes", "eyes@1"], lab.root)


def test_a_curve_in_a_few_signs() -> None:
    assert drawn([(0, 1.0)], 1.0, 1.0) == "▁ 1"
    long = drawn([(i, float(i)) for i in range(1000)], 0.0, 999.0)
    assert long.startswith("▁")
    assert long.endswith("█ 999")
    assert len(long.split()[0]) == 24
