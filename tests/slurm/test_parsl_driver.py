"""A driver that is a job: what Slurm does to its job, and that it goes on all the same, on a real Slurm."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import until

from hpcmass.config import load_site
from hpcmass.files import read_records
from hpcmass.slurm.client import Slurm
from hpcmass.workflow.drive import submit_driver

pytestmark = pytest.mark.slurm
# Begins, waits until it is told to end, and has done all when it is started again.
COMMAND = """
echo $SLURM_JOB_ID >> begins
[ $(wc -l < begins) -ge 2 ] && exit 0
trap 'exit 9' TERM
touch ready
while :; do sleep 0.2; done
"""


@pytest.fixture
def patient(cluster_factory, monkeypatch):
    """A cluster of the test's own."""
    cluster = cluster_factory(accounting=False)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    return cluster


def begin(cluster, folder, target, **keys):
    site = load_site(cluster.site_file)
    targets = {**site.targets, target: site.targets[target].model_copy(update=keys)}
    site = site.model_copy(update={"targets": targets})
    job_id = submit_driver(folder, ["bash", "-c", COMMAND], site=site, target=target, cwd=folder, slurm=Slurm())
    until((folder / "ready").exists, 240, lambda: told(folder))
    return job_id


def told(folder):
    return "".join(file.read_text() for file in (folder / "driver").glob("out-*.log"))


def hops(folder, kind):
    return [one for one in read_records(folder / "driver" / "hops.jsonl") if one["kind"] == kind]


def completed(folder):
    return [one for one in hops(folder, "end") if one["cause"] == "completed"]


def test_where_slurm_refuses_the_requeue_a_successor_goes_on(patient, tmp_path):
    job_id = begin(patient, tmp_path, "cpu", requeue=True)
    patient.run("scontrol", "update", f"jobid={job_id}", "requeue=0")
    patient.run("scancel", "--batch", "--signal=USR1", job_id)  # As before its time limit.
    until(lambda: completed(tmp_path), 400, lambda: told(tmp_path))
    first, second, last = hops(tmp_path, "end")
    assert (first["next"], first["cause"], first["exit_code"]) == ("requeue", "time-limit", 9)
    assert second["next"] == "successor"
    assert "requeue" in second["reason"]
    follower = hops(tmp_path, "submitted")[-1]["job_id"]
    assert (last["job_id"], last["next"], last["hop"]) == (follower, "none", 2)
    assert (tmp_path / "begins").read_text().split() == [job_id, follower]


def test_a_preempted_driver_that_may_not_be_requeued_goes_on_as_a_successor(patient, tmp_path):
    job_id = begin(patient, tmp_path, "preempt", requeue=False)
    node = patient.run("squeue", "-h", "-j", job_id, "-o", "%N").stdout.strip()
    partition = "gpu" if node.startswith("gn") else "cpu"
    words = ("-p", partition, "-w", node, "--exclusive", "-t", "5", "-o", "/dev/null", "--wrap", "sleep 5")
    patient.run("sbatch", *words)
    until(lambda: completed(tmp_path), 400, lambda: told(tmp_path))
    ends = hops(tmp_path, "end")
    assert (ends[0]["cause"], ends[0]["next"]) == ("preempted", "successor"), ends
    assert len(hops(tmp_path, "submitted")) == 2  # It was handed over once.
    assert completed(tmp_path)[0]["job_id"] == hops(tmp_path, "submitted")[-1]["job_id"]


def test_a_cancelled_driver_does_not_go_on(patient, tmp_path):
    job_id = begin(patient, tmp_path, "cpu", requeue=True)
    patient.run("scancel", job_id)
    until(lambda: hops(tmp_path, "end"), 240, lambda: told(tmp_path))
    (end,) = hops(tmp_path, "end")
    assert (end["cause"], end["next"]) == ("cancelled", "none")
    until(lambda: Slurm(patience_s=120).jobs([job_id])[job_id].state.ended, 240, "the job is still there")
    assert len(hops(tmp_path, "submitted")) == 1
    assert (tmp_path / "begins").read_text().split() == [job_id]


def test_a_driver_that_slurm_requeues_itself_is_begun_once_more(patient, tmp_path):
    job_id = begin(patient, tmp_path, "cpu", requeue=True)
    patient.run("scontrol", "requeue", job_id)
    until(lambda: completed(tmp_path), 400, lambda: told(tmp_path))
    assert (tmp_path / "begins").read_text().split() == [job_id, job_id]
    assert len(hops(tmp_path, "submitted")) == 1
    assert all(end["next"] != "successor" for end in hops(tmp_path, "end"))
