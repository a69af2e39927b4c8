"""`hpcmass.report` from a script's point of view."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hpcmass
from hpcmass.errors import ConfigError
from hpcmass.files import read_records
from hpcmass.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    folder = RunFolder(tmp_path / "r")
    folder.create('name = "r"\n', "")
    monkeypatch.setenv("HPCMASS_RUN_DIR", str(folder.path))
    for name in ("RANK", "HPCMASS_RANK", "HPCMASS_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_recorded_by_rank_0(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hpcmass.runs.report"], "_STATUS_EVERY_S", 3600.0)
    hpcmass.report(step=3, loss=0.5, note="warm", good=True)
    hpcmass.report(step=np.int64(4), loss=np.float32(0.25))
    records = [{k: v for k, v in record.items() if k != "time"} for record in run.records("report")]
    assert records == [
        {"kind": "report", "step": 3, "loss": 0.5, "note": "warm", "good": True},
        {"kind": "report", "step": 4, "loss": 0.25},
    ]
    assert run.status().step == 3  # the second came too soon after it
    assert run.status().metrics == {"loss": 0.5}


def test_a_tensor_without_importing_its_library_here(run: RunFolder) -> None:
    torch = pytest.importorskip("torch")
    hpcmass.report(step=1, loss=torch.tensor([[0.5]], requires_grad=True))
    assert next(run.records())["loss"] == 0.5


def test_importing_and_reporting_imports_no_torch_and_no_numpy(run: RunFolder) -> None:
    code = """
import sys, hpcmass
hpcmass.report(step=1, loss=0.5)
assert not {"torch", "numpy", "pydantic", "parsl"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [record["loss"] for record in run.records()] == [0.5]


def test_nan_is_recorded(run: RunFolder) -> None:
    hpcmass.report(step=1, loss=float("nan"))
    assert next(run.records())["loss"] == "NaN"


@pytest.mark.parametrize("value", [np.zeros(2), [1, 2], object(), np.zeros(1, dtype=complex)])
def test_what_is_no_single_number_is_refused(run: RunFolder, value: object) -> None:
    with pytest.raises(ConfigError, match="loss"):
        hpcmass.report(step=1, loss=value)
    assert list(run.records()) == []


@pytest.mark.parametrize("step", [1.5, "three", True, None, math.nan, -math.inf, np.float32("nan")])
def test_a_step_is_a_whole_number(run: RunFolder, step: object) -> None:
    with pytest.raises(ConfigError, match="step"):
        hpcmass.report(step=step, loss=1.0)  # type: ignore[arg-type]
    assert list(run.records()) == []


@pytest.mark.parametrize("name", ["time", "kind", "rank"])
def test_a_metric_is_not_called_as_an_entry_of_the_record(run: RunFolder, name: str) -> None:
    with pytest.raises(ConfigError, match="every record has for itself") as caught:
        hpcmass.report(step=1, loss=1.0, **{name: 3.0})
    assert name in str(caught.value.where)
    assert list(run.records()) == []


def test_other_ranks_write_beside(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    hpcmass.report(step=1, loss=9.0)
    assert list(run.records()) == []
    assert run.status().metrics == {}
    beside = list(read_records(run.path / "metrics-rank-2.jsonl"))
    assert [(record["rank"], record["loss"]) for record in beside] == [(2, 9.0)]


def test_a_further_attempt_takes_back_what_it_does_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20, 30):
        hpcmass.report(step=step, value=step)
    monkeypatch.setenv("HPCMASS_ATTEMPT", "2")
    code = "import hpcmass\nfor step in (20, 30): hpcmass.report(step=step, value=-step)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [record["value"] for record in run.records("report")] == [10, -20, -30]


def test_outside_nothing_happens_and_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith("HPCMASS")}
    code = """
import logging
logging.basicConfig(level=logging.DEBUG)
import hpcmass
hpcmass.report(step=1, loss=1.0)
hpcmass.report(step="nonsense")
print(hpcmass.should_stop())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert done.stdout == "False\n"
    assert done.stderr.count("does nothing") == 1
    assert list(tmp_path.iterdir()) == []


def test_should_stop(run: RunFolder) -> None:
    assert hpcmass.should_stop() is False
    run.ask_to_stop("pruned")
    assert hpcmass.should_stop() is True


def test_the_status_is_json_after_a_report(run: RunFolder) -> None:
    hpcmass.report(step=1, loss=float("inf"))
    json.loads((run.path / "status.json").read_text(), parse_constant=lambda name: pytest.fail(name))
