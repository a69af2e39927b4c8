"""Placement on a real Slurm: measured once, then taken where the queue lets it finish first."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpcmass.cli.root import run as cli
from hpcmass.config import Project, Resources, layout_of, load_job, load_site
from hpcmass.devcluster import Cluster
from hpcmass.errors import ConfigError
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.placement import Candidate, Choice, Goal
from hpcmass.workflow.plan import _queues, choose_target
from hpcmass.workflow.submit import submit

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

SITE = """
name = "lab"
default_target = "cpu"

[targets.cpu]
kind = "slurm"
partition = "cpu"
cores = 4
max_nodes = 3
default_time = "10m"
launcher = "mpiexec"
price_per_node_hour = 1.0

[targets.gpu]
kind = "slurm"
partition = "gpu"
cores = 8
gpus = 2
max_nodes = 2
default_time = "10m"
launcher = "mpiexec"
price_per_node_hour = 4000.0

[targets.tiny]
kind = "slurm"
partition = "cpu"
cores = 1
max_nodes = 1
"""


def fill(cluster: Cluster, partition: str, nodes: int) -> str:
    """A job that has every core of a partition's nodes for half an hour; its id, once it runs."""
    words = ("--parsable", "-p", partition, "-N", str(nodes), "--exclusive", "-t", "30", "-o", "/dev/null")
    job = cluster.run("sbatch", *words, "--wrap", "sleep 1800").stdout.strip()
    until = time.monotonic() + 300
    while cluster.run("squeue", "-h", "-j", job, "-o", "%T").stdout.strip() != "RUNNING":
        assert time.monotonic() < until, "the filling job does not start"
        time.sleep(0.2)
    return job


def free(cluster: Cluster, job: str) -> None:
    cluster.run("scancel", job)
    until = time.monotonic() + 300
    while cluster.run("squeue", "-h", "-j", job, "-o", "%T").stdout.strip():
        assert time.monotonic() < until, "the filling job does not end"
        time.sleep(0.2)


def attempts(project: Path) -> list[str]:
    return sorted(str(path.relative_to(project)) for path in project.glob("calibrations/*/attempt-*"))


@pytest.mark.usefixtures("slurm_env")
def test_the_queue_of_a_target_with_two_partitions_is_that_of_both(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.replace('partition = "gpu"', 'partition = "cpu,gpu"'))
    site = load_site(file)
    candidates = [
        Candidate(name, layout=layout_of(Resources(), site.targets[name], name=name)) for name in ("cpu", "gpu")
    ]
    filling = fill(cluster, "cpu", 3)
    both = ("sbatch", "-p", "cpu,gpu", "-N", "3", "--exclusive", "-t", "30", "-o", "/dev/null", "--parsable")
    waiting = cluster.run(*both, "--wrap", "true").stdout.strip()  # gpu has two nodes
    try:
        until = time.monotonic() + 300
        while cluster.run("squeue", "-h", "-j", waiting, "-o", "%r").stdout.strip() not in (
            "Resources",
            "Priority",
        ):
            assert time.monotonic() < until, "Slurm does not look at the waiting job"
            time.sleep(0.2)
        queues = _queues(candidates, site, Slurm())
    finally:
        free(cluster, waiting)
        free(cluster, filling)
    assert (queues["cpu"].idle_nodes, queues["cpu"].pending_jobs) == (0, 1)
    assert (queues["gpu"].idle_nodes, queues["gpu"].pending_jobs) == (2, 1)


def test_measured_once_then_taken_where_the_queue_is_short(
    cluster: Cluster,
    slurm_env: dict[str, str],
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site_file = tmp_path / "site.toml"
    site_file.write_text(SITE)
    job_file = project / "job.toml"
    job_file.write_text(job_file.read_text() + '\n[resources]\nranks = 2\ntarget = "auto"\n')
    words = ["plan", str(job_file), "--project", str(project), "--site", str(site_file)]

    # Nothing is known: nothing is taken, nothing is submitted.
    assert cli([*words, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["target"] is None
    by_name = {each["target"]: each for each in said["candidates"]}
    assert by_name["cpu"]["run_s"] is None
    assert by_name["cpu"]["start_s"] is not None
    assert "never measured" in " ".join(by_name["cpu"]["notes"])
    assert "2 nodes" in by_name["tiny"]["refusal"]
    opened = Project(project)
    with pytest.raises(ConfigError, match="never measured"):
        submit(job_file, opened, site_file=site_file, dry_run=True)
    assert attempts(project) == []

    # A short run on each target; the second time it is known.
    assert cli([*words, "--calibrate"]) == 0, capsys.readouterr()
    table = capsys.readouterr().out
    assert "take " in table
    first = attempts(project)
    assert [name.split("-")[0] for name in first] == ["calibrations/cpu", "calibrations/gpu"]
    assert cli([*words, "--calibrate"]) == 0
    assert attempts(project) == first

    job, site = load_job(job_file), load_site(site_file)

    def choice(goal: Goal | None = None) -> Choice:
        return choose_target(job, opened, site, Slurm(), goal)

    blocker = fill(cluster, "cpu", 3)
    busy_cpu = choice()
    assert busy_cpu.target == "gpu", busy_cpu
    late = next(each for each in busy_cpu.candidates if each.target == "cpu")
    assert late.start_s is not None
    assert late.start_s > 600
    # With a deadline that leaves time for the wait the cheaper target is taken all the same.
    assert choice(Goal(deadline_s=4 * 3600.0)).target == "cpu"
    assert choice(Goal(deadline_s=300.0)).target == "gpu"
    assert choice(Goal(budget=1e-9)).target is None
    free(cluster, blocker)

    fill(cluster, "gpu", 2)
    assert choice().target == "cpu"
    done = submit(job_file, opened, site_file=site_file, dry_run=True)
    assert done.target == "cpu"
    assert "#SBATCH --partition=cpu" in done.script
    assert any("finishes first" in note for note in done.notes)
    assert attempts(project) == first
