"""`catalogue doctor --node`: the second process on another node of a real Slurm."""

import json
import sys
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster

pytestmark = pytest.mark.slurm


def test_the_second_process_is_on_another_node(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "catalogue").mkdir()
    doctor = [
        sys.executable,
        "-m",
        "hpcmass",
        "catalogue",
        "doctor",
        "--json",
        "--project",
        str(tmp_path),
        "--node",
    ]
    node = cluster.nodes[1]
    done = cluster.run(*doctor, node)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["probes"]}
    assert (found["claims"]["state"], node in found["claims"]["found"]) == ("good", True)
    assert (found["name cache"]["state"], node in found["name cache"]["found"]) == ("good", True)
    assert "appending" not in found  # each machine has a journal of its own
    done = cluster.run(*doctor, "no-such-node")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)["probes"]}
    assert "Invalid node name" in found["second process"]["found"]
