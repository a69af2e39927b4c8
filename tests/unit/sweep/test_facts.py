import numpy as np
import pytest
from safetensors.numpy import save_file

from hpcmass.files import append_record
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.facts import FACTS


def test_facts_of_a_run_that_was_stopped_and_went_on(tmp_path):
    run = RunFolder(tmp_path)
    run.update(state=State.RUNNING, attempt=2, started=100.0)
    assert [FACTS[name](run) for name in ("params", "bytes", "model_mb")] == [None] * 3
    for kind, time in (("train", 110), ("valid", 120), ("resume", 500), ("train", 505), ("valid", 507)):
        append_record(run.metrics_file, {"kind": kind, "time": time})
    run.update(state=State.COMPLETED, ended=508.0)
    run.model.mkdir()
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5)}, run.model / "weights.safetensors")
    (run.model / "recipe.py").write_text("#")
    size = (run.model / "weights.safetensors").stat().st_size + 1
    (tmp_path / "ranks").mkdir()
    for rank in range(4):
        (tmp_path / f"ranks/attempt-2-rank-{rank}.json").write_text(f'{{"host": "n{rank // 2}"}}')
    facts = {name: fact(run) for name, fact in FACTS.items()}
    assert facts == {"params": 17, "bytes": size, "model_mb": size / 1e6, "train_s": 28, "node_s": 56}


def test_what_is_damaged_is_not_known(tmp_path):
    run = RunFolder(tmp_path)
    run.model.mkdir()
    for content in (b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]"):
        (run.model / "weights.safetensors").write_bytes(content)
        assert FACTS["params"](run) is None
    assert FACTS["node_s"](run) is None or pytest.fail("nothing ran")
