"""What Slurm has accounted for, what the run folders say, and what the ranks saw themselves: all of it agrees."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcmass.config import Project
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.records import read_submissions
from hpcmass.workflow.submit import submit

sys.path.append(str(Path(__file__).parent))
from outliving_tools import ended, read_hops, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
# A rank's own log: nothing in it was told by hpcmass, but which rank it is.
SCRIPT = """
import json, os, sys, time
names = ["RANK", "CUDA_VISIBLE_DEVICES", "SLURMD_NODENAME"]
seen = {name: os.environ.get(name) for name in names}
visible = (seen["CUDA_VISIBLE_DEVICES"] or "").split(",")
seen["gpu"] = visible[int(os.environ["LOCAL_RANK"]) % len(visible)]  # as scripts made for torchrun pick theirs
begun = time.time()
# A job is there until it was looked at, however rarely that is done.
while not os.path.exists(os.path.join("looked", os.environ["HPCMASS_SLURM_JOB"])):
    time.sleep(0.05)
time.sleep(1)
with open(os.path.join(os.environ["HPCMASS_RUN_DIR"], f"own-{os.environ['RANK']}.json"), "w") as file:
    json.dump({**seen, "host": os.uname().nodename, "begun": begun, "ended": time.time()}, file)
"""
SITE = """
[targets.gpu-step]
kind = "slurm"
partition = "gpu"
cores = 8
gpus = 2
launcher = "spawn"

[targets.cpu-step]
kind = "slurm"
partition = "cpu"
cores = 4
launcher = "spawn"
"""
# Over two nodes ranks are started by srun, in a step of their own; on one node in the batch step.
KINDS = {
    "gpu": {"target": "gpu-step", "ranks": 1, "gpus_per_rank": 1, "threads_per_rank": 2},
    "gpus": {"target": "gpu-step", "ranks": 2, "gpus_per_rank": 1, "threads_per_rank": 1},
    "gpu-nodes": {"target": "gpu-step", "ranks": 2, "nodes": 2, "gpus_per_rank": 1, "threads_per_rank": 1},
    "cpu": {"target": "cpu-step", "ranks": 2, "threads_per_rank": 1},
    "cpu-nodes": {"target": "cpu-step", "ranks": 4, "nodes": 2, "threads_per_rank": 1},
}
_DETAIL = re.compile(r"Nodes=(\S+) CPU_IDs=(\S+) Mem=\d+(?: GRES=(\S*))?")
_INDICES = re.compile(r"\(IDX:([\d,-]+)\)")


def numbers(text: str) -> set[int]:
    """`0-2,5` as numbers."""
    parts = [part.partition("-") for part in text.split(",") if part]
    return {one for low, _, high in parts for one in range(int(low), int(high or low) + 1)}


@dataclass
class Seen:
    """What Slurm gave the jobs, as `scontrol show job --details` said while they ran."""

    cpus: dict[tuple[str, str], set[int]] = field(default_factory=dict)  # (job, node) -> ids
    gpus: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def look(self, cluster: Cluster, looked: Path) -> None:
        """Look once: no CPU and no GPU of a node may be two jobs' at the same time; jobs seen get a file."""
        found_now: set[str] = set()
        taken: list[tuple[str, str, int]] = []
        for block in cluster.run("scontrol", "show", "job", "--details").stdout.split("\n\n"):
            found = re.match(r"JobId=(\d+)", block)
            if found is None or "JobState=RUNNING" not in block:
                continue
            for nodes, cpus, gres in _DETAIL.findall(block):
                for node in cluster.run("scontrol", "show", "hostnames", nodes).stdout.split():
                    ids, held = numbers(cpus), numbers(",".join(_INDICES.findall(gres)))
                    self.cpus[found[1], node], self.gpus[found[1], node] = ids, held
                    found_now.add(found[1])
                    taken += [("cpu", node, one) for one in ids] + [("gpu", node, one) for one in held]
        assert len(taken) == len(set(taken)), sorted(taken)
        for job in found_now:
            (looked / job).touch()


def submit_all(cluster: Cluster, project: Path, each: int) -> list[RunFolder]:
    (project / "script.py").write_text(SCRIPT)
    site = project / "site.toml"
    site.write_text(cluster.site_file.read_text() + SITE)
    proj, runs = Project(project), []
    for number, (kind, resources) in itertools.product(range(each), KINDS.items()):
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in resources.items())
        job = project / f"{kind}.toml"
        job.write_text(f'name = "{kind}"\ncommand = ["python", "script.py"]\n[resources]\n{lines}')
        done = submit(job, proj, site_file=site, run_name=f"{kind}-{number}", slurm=Slurm(patience_s=240))
        runs.append(RunFolder(done.runs[0]))
    return runs


def accounted(cluster: Cluster, ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Jobs and steps by id, once accounting has all ends; it lags behind."""
    names = ("JobID", "State", "Start", "End", "NodeList", "AllocTRES", "NTasks", "ExitCode")
    words = ["sacct", "--jobs", ",".join(ids), "--format", ",".join(names), "--parsable2", "--noheader"]

    def ask() -> dict[str, dict[str, str]] | None:
        done = cluster.run("env", "SLURM_TIME_FORMAT=%s", *words)
        rows = [dict(zip(names, line.split("|"), strict=True)) for line in done.stdout.splitlines()]
        known = {row["JobID"]: row for row in rows}
        return known if set(ids) <= set(known) and all(row["End"].isdigit() for row in rows) else None

    found: dict[str, dict[str, str]] = wait_until(ask, "accounting knows all ends")
    return found


def hosts(cluster: Cluster, nodes: str) -> set[str]:
    return set(cluster.run("scontrol", "show", "hostnames", nodes).stdout.split())


def check_run(cluster: Cluster, run: RunFolder, sacct: dict[str, dict[str, str]], seen: Seen) -> list[Any]:
    """One run's three witnesses; what each of its ranks used, and when."""
    (submission,) = read_submissions(run.path)
    job = submission.job_id
    layout = submission.layout
    own = [json.loads(file.read_text()) for file in run.path.glob("own-*.json")]
    noted = {
        rank: json.loads(run.rank_file(1, rank).read_text()) for rank in range(layout["ranks"])
    }  # fmt: skip
    assert sorted(int(each["RANK"]) for each in own) == sorted(noted) == list(range(layout["ranks"]))

    step = sacct[f"{job}.0" if layout["nodes"] > 1 else f"{job}.batch"]
    assert {each["State"] for id_, each in sacct.items() if id_.split(".")[0] == job} == {"COMPLETED"}
    nodes = hosts(cluster, step["NodeList"])
    assert nodes == hosts(cluster, sacct[job]["NodeList"]) == set(read_hops(run.path)[0].nodes)
    assert len(nodes) == layout["nodes"]
    if layout["nodes"] > 1:
        assert int(step["NTasks"]) == layout["ranks"]
        assert f"{job}.1" not in sacct
    tres = dict(part.split("=") for part in sacct[job]["AllocTRES"].split(","))
    assert int(tres["node"]) == layout["nodes"]
    assert int(tres["cpu"]) == layout["ranks"] * layout["threads_per_rank"]
    assert int(tres["cpu"]) == sum(len(ids) for (id_, _), ids in seen.cpus.items() if id_ == job)

    used = []
    for each in own:
        note, node = noted[int(each["RANK"])], each["SLURMD_NODENAME"] or each["host"]
        assert note["slurm_job_id"] == job
        assert note["slurm_step"] == ("0" if layout["nodes"] > 1 else "batch")
        assert note["node"] == node
        assert node in nodes
        assert each["host"] == node or not cluster.has_network
        assert note["cuda_visible_devices"] == each["CUDA_VISIBLE_DEVICES"]
        assert int(step["Start"]) - 2 <= each["begun"] <= each["ended"] <= int(step["End"]) + 2
        gpus = numbers(each["gpu"])
        assert numbers(each["CUDA_VISIBLE_DEVICES"] or "") <= seen.gpus[job, node]
        used += [(node, gpu, each["begun"], each["ended"], job, each["RANK"]) for gpu in gpus]
    # Every GPU that Slurm gave was one rank's, and no other was used.
    given = {(node, gpu) for (id_, node), ids in seen.gpus.items() if id_ == job for gpu in ids}
    assert sorted(given) == sorted((node, gpu) for node, gpu, *_ in used)
    return used


@pytest.mark.parametrize("each", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_accounting_folders_and_ranks_agree_and_no_slot_is_given_twice(
    cluster: Cluster, project: Path, slurm_env: dict[str, str], each: int
) -> None:
    if not cluster.has_accounting:
        pytest.skip("needs accounting (slurmdbd and MariaDB)")
    looked = project / "looked"
    looked.mkdir()
    runs, seen = submit_all(cluster, project, each), Seen()
    until = time.monotonic() + 900
    while not all(ended(run) for run in runs):
        seen.look(cluster, looked)
        assert time.monotonic() < until, [run.path.name for run in runs if not ended(run)]
        time.sleep(0.2)
    assert {run.status().state for run in runs} == {State.COMPLETED}
    sacct = accounted(cluster, [read_submissions(run.path)[0].job_id for run in runs])
    used = [each for run in runs for each in check_run(cluster, run, sacct, seen)]
    assert used
    for one, other in itertools.combinations(used, 2):
        same = one[:2] == other[:2]
        assert not same or one[3] <= other[2] or other[3] <= one[2], (one, other)
