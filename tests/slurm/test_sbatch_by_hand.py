"""The scripts of slurm/, submitted as a user would, unchanged, with a real training each."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.config import read_run_job
from hpcmass.devcluster import Cluster

pytestmark = pytest.mark.slurm

SCRIPTS = Path(__file__).parents[2] / "slurm"
HERE = {"one-node", "cpu-nodes", "gpu-nodes", "heterogeneous", "array", "sweep"}
ELSEWHERE = {"container"}  # with its image, in the tests of containers

# Every rank tells, by Slurm's variables and not by hpcmass's word, where it ran and what it saw.
RECIPE = """
import json, os
from pathlib import Path
import torch

def build_model(params):
    names = ("SLURMD_NODENAME", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    told = {name: os.environ.get(name) for name in names} | {"host": os.uname().nodename, "pid": os.getpid()}
    with open(Path(TELL) / f"{os.uname().nodename}-{os.getpid()}", "w") as file:
        json.dump(told, file)
    return torch.nn.Linear(6, 2)
"""
SWEEP = """
[sweep]
trials = 2
parallel = 1
metric = "loss"
direction = "minimize"

[sweep.space]
"train.lr" = { type = "float", low = 0.01, high = 0.1 }
"""


def until(true: Callable[[], object], what: str, patience_s: float = 600.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.1)


@pytest.fixture
def lab(project: Path) -> Path:
    """The project, with a recipe that tells into `told/`."""
    told = project / "told"
    told.mkdir()
    (project / "recipe.py").write_text(f"TELL = {str(told)!r}\n{RECIPE}")
    return project


def submit(cluster: Cluster, lab: Path, script: str, *words: str) -> str:
    """Submit a script in the project's folder; the job's number. (`sbatch --wait` looks every half minute.)"""
    argv = ["sbatch", "--parsable", f"--chdir={lab}", str(SCRIPTS / f"{script}.sbatch"), *words]
    done = cluster.run(*argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait(cluster: Cluster, job: str) -> set[str]:
    """Wait until all parts of a job have ended; their states."""
    states = ("squeue", "-h", "--states=all", "-r", "-j", job, "-o", "%T")

    def ended() -> bool:
        said = set(cluster.run(*states).stdout.split())
        return bool(said) and not said & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}

    until(ended, f"job {job} ends")
    return set(cluster.run(*states).stdout.split())


def go(cluster: Cluster, lab: Path, script: str) -> None:
    """Submit a script with the project's job file; it has to end well."""
    ended = wait(cluster, submit(cluster, lab, script, "job.toml"))
    logs = "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(lab.glob(f"{script}-*.log")))
    assert ended == {"COMPLETED"}, logs


def ranks(lab: Path) -> list[dict[str, str]]:
    told = [json.loads(path.read_text()) for path in (lab / "told").iterdir()]
    return sorted(told, key=lambda each: int(each["RANK"] or 0))


def state(lab: Path, run: str) -> str:
    return str(json.loads((lab / "runs" / run / "status.json").read_text())["state"]).lower()


def test_every_script_is_submitted_by_a_test() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.sbatch")} == HERE | ELSEWHERE


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.stem)
def test_a_script_is_short_tells_its_use_and_is_in_the_readme(path: Path) -> None:
    text = path.read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(commands) <= 4, commands
    assert f"sbatch {path.name} job.toml" in text
    assert f"[{path.name}]({path.name})" in (SCRIPTS / "README.md").read_text()


def test_one_node(cluster: Cluster, lab: Path) -> None:
    go(cluster, lab, "one-node")
    assert state(lab, "job") == "completed"
    told = ranks(lab)
    assert [(each["RANK"], each["WORLD_SIZE"]) for each in told] == [("0", "2"), ("1", "2")]
    assert len({each["host"] for each in told}) == 1


def test_several_cpu_nodes(cluster: Cluster, lab: Path) -> None:
    go(cluster, lab, "cpu-nodes")
    assert state(lab, "job") == "completed"
    told = ranks(lab)
    assert [(each["RANK"], each["WORLD_SIZE"]) for each in told] == [(str(rank), "4") for rank in range(4)]
    if cluster.has_network:
        assert Counter(each["host"] for each in told) == {"cn1": 2, "cn2": 2}


@pytest.mark.parametrize("with_site", [False, True])
def test_several_gpu_nodes(cluster: Cluster, lab: Path, with_site: bool) -> None:
    if with_site:  # Its default target is another one, of smaller nodes without GPUs.
        with open(lab / "hpcmass.toml", "a") as file:
            file.write(f"site = {str(cluster.site_file)!r}\n")
    job = lab / "job.toml"
    job.write_text(job.read_text() + 'backend = "torch"\n')  # what `auto` takes where there are GPUs
    go(cluster, lab, "gpu-nodes")
    assert state(lab, "job") == "completed"
    told = ranks(lab)
    assert [each["WORLD_SIZE"] for each in told] == ["4"] * 4
    assert all(re.fullmatch("0,1|0|1", each["CUDA_VISIBLE_DEVICES"]) for each in told)
    if cluster.has_network:
        assert Counter(each["host"] for each in told) == {"gn1": 2, "gn2": 2}


def test_two_kinds_of_node(cluster: Cluster, lab: Path) -> None:
    go(cluster, lab, "heterogeneous")
    assert state(lab, "job") == "completed"
    told = ranks(lab)
    assert [each["WORLD_SIZE"] for each in told] == ["3"] * 3
    if cluster.has_network:
        assert Counter(each["host"][:2] for each in told) == {"gn": 1, "cn": 2}


def test_a_job_array(cluster: Cluster, lab: Path) -> None:
    go(cluster, lab, "array")
    assert [state(lab, f"seed-{number}") for number in range(4)] == ["completed"] * 4
    jobs = [read_run_job(lab / "runs" / f"seed-{number}" / "job.toml") for number in range(4)]
    assert [job.train.seed for job in jobs] == [0, 1, 2, 3]


def test_the_driver_of_a_sweep(cluster: Cluster, lab: Path) -> None:
    (lab / "job.toml").write_text((lab / "job.toml").read_text() + SWEEP)
    go(cluster, lab, "sweep")
    outcomes = sorted((lab / "studies" / "job" / "trials").glob("*/outcome.json"))
    assert [json.loads(path.read_text())["state"] for path in outcomes] == ["complete", "complete"]


def test_without_a_job_file_the_script_says_what_is_missing(cluster: Cluster, lab: Path) -> None:
    assert wait(cluster, submit(cluster, lab, "one-node")) == {"FAILED"}
    log = next(lab.glob("one-node-*.log")).read_text()
    assert "sbatch one-node.sbatch JOB.toml" in log


def test_the_signal_before_the_time_limit_leaves_a_checkpoint(cluster: Cluster, lab: Path) -> None:
    """The signal is sent as Slurm sends that of `--signal=B:USR1@120`: to the batch script's process alone."""
    text = (lab / "job.toml").read_text()
    (lab / "job.toml").write_text(text.replace("epochs = 2", "epochs = 100000"))
    job = submit(cluster, lab, "one-node", "job.toml")
    metrics = lab / "runs" / "job" / "metrics.jsonl"
    until(lambda: metrics.exists() and b'"train"' in metrics.read_bytes(), "the run makes steps")
    assert cluster.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    wait(cluster, job)
    said = next(lab.glob("one-node-*.log")).read_text()
    assert "stopped at step" in said
    status = json.loads((lab / "runs" / "job" / "status.json").read_text())
    assert status["state"].lower() == "stopped"
    assert status["step"] > 0
    assert list((lab / "runs" / "job" / "checkpoints").iterdir())
