"""A deployment whose replicas and gateway are jobs of a real Slurm: time limits pass, and nothing is lost."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.slurm.client import Slurm

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.serve.deploy_tools import Deployed, make_project, no_loss

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(900)
def test_replicas_and_gateway_outlive_their_time_limits(
    cluster: Cluster, slurm_env: dict[str, str], tmp_path: Path
) -> None:
    root = make_project(tmp_path / "p")
    made = Deployed(root, "toy")
    site = str(cluster.site_file)
    try:
        made.deploy(
            "toy@1", "--site", site, "--target", "cpu", "--replicas", "2", "--time", "2m",
            "--gateway-target", "cpu", "--gateway-time", "2m", "--anybody", "--wait", "150",
        )  # fmt: skip
        made.until(lambda: len(made.ready()) == 2, 120)
        first = {one["id"] for one in made.ready()}
        assert {one["target"] for one in made.ready()} == {"cpu"}
        with made.load(rate=30, threads=4) as account:
            # Until no job of the beginning is left: two replicas and a gateway have been followed.
            made.until(lambda: not first & {one.rid for one in made.folder.replicas()}, 300)
            made.until(lambda: (made.folder.endpoint() or {})["generation"] >= 2, 120)
            made.until(lambda: len(made.ready()) == 2, 60)
        no_loss(account)
        slurm = Slurm(env={**os.environ, **cluster.env})
        made.hpcmass("undeploy", "toy")
        until = time.monotonic() + 60
        while slurm.run(["squeue", "-h", "-t", "R,PD", "-o", "%A %j"]).strip():
            assert time.monotonic() < until, slurm.run(["squeue"])
            time.sleep(0.5)
    finally:
        for one in made.folder.replicas():
            if one.job:
                cluster.run("scancel", str(one.job["id"]))


@pytest.mark.timeout(600)
def test_cpu_and_gpu_nodes_side_by_side_and_a_node_that_is_drained(
    cluster: Cluster, slurm_env: dict[str, str], tmp_path: Path
) -> None:
    made = Deployed(make_project(tmp_path / "p"), "toy")
    node = ""
    try:
        made.deploy(
            "toy@1", "--site", str(cluster.site_file), "--target", "cpu", "--target", "gpu", "--replicas", "2"
        )
        made.until(lambda: len(made.ready()) == 2, 120)
        assert {one["target"] for one in made.ready()} == {"cpu", "gpu"}
        assert {one["node"][:2] for one in made.ready()} == {"cn", "gn"}
        with made.load(rate=30, threads=4) as account:
            first = next(one for one in made.ready() if one["target"] == "cpu")
            node = first["node"]
            cluster.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
            made.until(lambda: first["id"] not in {one.rid for one in made.folder.replicas()}, 120)
            made.until(lambda: len(made.ready()) == 2, 60)
            killed = made.replicas()[0]  # and what scancel ends is replaced as well
            assert killed.job is not None
            cluster.run("scancel", str(killed.job["id"]))
            made.until(lambda: killed.rid not in {one.rid for one in made.folder.replicas()}, 120)
            made.until(lambda: len(made.ready()) == 2, 120)
        no_loss(account)
        assert node not in {one["node"] for one in made.ready()}
        made.hpcmass("undeploy", "toy")
        assert made.folder.replicas() == []
    finally:
        if node:
            cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
        for one in made.folder.replicas():
            if one.job:
                cluster.run("scancel", str(one.job["id"]))
