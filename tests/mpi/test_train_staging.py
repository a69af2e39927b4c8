"""Staging by three ranks on two nodes: read once, sent only where several lack it, told by all ranks alike."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmass.data import open_dataset, shard

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


@pytest.mark.parametrize("backend", ["mpi", "torch"])
def test_three_ranks_on_two_nodes(tmp_path: Path, backend: str) -> None:
    x = np.random.default_rng(0).normal(size=(500, 11)).astype("float32")
    np.savez(tmp_path / "raw.npz", x=x, y=np.arange(500))
    shard(tmp_path / "raw.npz", tmp_path / "d", inputs=["x"], targets=["y"], shards=5, workers=1)
    shards = open_dataset(tmp_path / "d").manifest.shards
    worker = str(Path(__file__).with_name("staging_worker.py"))
    env = tools.environment(tmp_path)
    done = tools.run(tools.mpiexec(3, [sys.executable, worker, backend, str(tmp_path)]), env)
    assert done.returncode == 0, done.stdout

    def said(case: str) -> list[dict[str, Any]]:
        return [json.loads((tmp_path / f"said-{case}-{rank}.json").read_text()) for rank in range(3)]

    first = said("first")
    assert [one["error"] for one in first] == [None] * 3
    read = [name for one in first for name, times in one["opens"].items() for _ in range(times)]
    assert sorted(read) == [one.file for one in shards], "each is read once, by one rank"
    assert all(first[rank]["opens"] for rank in (0, 2)), "in turn"
    for rank, node in enumerate("aab"):
        assert all(f"/disk-{node}/" in folder for folder in first[rank]["folders"])
    assert {one["sent"] for one in first} == {sum(-(-one.bytes // 1000) for one in shards)}

    alone = said("one_lacks")
    assert [one["opens"] for one in alone] == [{}, {}, {"shard-00001.h5": 1}]
    assert [one["sent"] for one in alone] == [0, 0, 0]
    assert all("/disk-b/" in folder for folder in alone[2]["folders"])

    refused = said("b_cannot")
    assert [one["sent"] for one in refused] == [0, 0, 0], "a alone wants them"
    assert refused[2]["folders"] == [str(tmp_path / "d")] * 5
    assert all("/disk-a/" in folder for folder in refused[1]["folders"])
    assert [len(one["notes"]) for one in refused] == [1, 1, 1]
    assert [one["unchecked"] for one in refused] == [[], [], []], "node a has checked what b reads"

    for case, what in (("flipped", "does not fit its checksum"), ("short", "ends at byte 1500")):
        for one in said(case):
            assert "shard-00003.h5" in one["error"]
            assert what in one["error"]
    assert not list(tmp_path.glob("disk-*/**/.part-*"))
