"""Ranks in a real Apptainer image: on this machine, and over the nodes of a real Slurm with the host's MPI.

Marked `container` only: where Apptainer cannot be had these tests skip and say why, in CI too, for what they
need comes from Debian's unstable distribution and may change any day.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.cli.root import run as run_cli
from hpcmass.config import Project, load_site
from hpcmass.devcluster import Cluster
from hpcmass.errors import LaunchError
from hpcmass.runs import RunFolder, State
from hpcmass.workflow import containers
from hpcmass.workflow.submit import submit
from hpcmass.workflow.training import train

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
CANNOT_BE_HAD = 3
RECIPE = """
import json, os, sys, time
from pathlib import Path
import torch

NAMES = ("RANK", "WORLD_SIZE", "SLURMD_NODENAME", "APPTAINER_CONTAINER", "HPCMASS_SOURCE")

def build_model(params):
    told = {name: os.environ.get(name) for name in NAMES}
    told |= {"host": os.uname().nodename, "prefix": sys.prefix, "pid": os.getpid()}
    Path(TELL, f"{os.uname().nodename}-{os.getpid()}").write_text(json.dumps(told))
    return torch.nn.Linear(6, 2)

def transform(batch, train):
    time.sleep(2.0 if Path(TELL).with_name("slow").exists() else 0.0)
    return batch
"""


@pytest.fixture(scope="session")
def image() -> Path:
    """The CPU image of this hpcmass, built unless it is kept."""
    done = subprocess.run(
        [ROOT / "containers" / "build.sh", "cpu"], capture_output=True, text=True, timeout=1400, check=False
    )
    if done.returncode == CANNOT_BE_HAD:
        pytest.skip(f"no Apptainer here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).resolve()


@pytest.fixture
def apptainer(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apptainer on PATH, told to keep no privileges where this root lacks some itself."""
    found = subprocess.run(
        [sys.executable, ROOT / "containers" / "get_apptainer.py", "--look"], capture_output=True, text=True
    ).stdout.strip()
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(found).parent), os.environ["PATH"]]))
    if os.geteuid() == 0:
        monkeypatch.setenv("APPTAINER_NO_PRIVS", "1")


def prepare(project: Path, *, slow: bool = False) -> Path:
    """A recipe that tells where its ranks run; the folder in which it does. A file makes its steps slow."""
    told = project / "told"
    told.mkdir()
    (project / "recipe.py").write_text(f"TELL = {str(told)!r}\n{RECIPE}")
    if slow:
        (project / "slow").touch()
    return told


def ranks(told: Path) -> list[dict[str, str]]:
    return sorted((json.loads(path.read_text()) for path in told.iterdir()), key=lambda each: each["RANK"])


def site(folder: Path, image: Path, kind: str = "local") -> Path:
    file = folder / "site.toml"
    slurm = 'partition = "cpu"\ncores = 4\nmax_nodes = 3\ndefault_time = "10m"\nlauncher = "mpiexec"\n'
    text = f'name = "boxed"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "{kind}"\ncontainer = "{image}"\n'
    file.write_text(text + (slurm if kind == "slurm" else ""))
    return file


def until(true: Callable[[], object], what: str, patience_s: float = 600.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.1)


def start(project: Path, site_file: Path, *words: str) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "hpcmass",
        "train",
        str(project / "job.toml"),
        "--site",
        str(site_file),
        *words,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        argv, cwd=project, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_ranks_run_in_the_image_whatever_the_project_is_called(
    apptainer: None, image: Path, project: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a b,c:d'\"$(x);ä"
    project.rename(odd)
    told = prepare(odd)
    run, status = train(odd / "job.toml", Project(odd), ranks=2, site_file=str(site(odd, image)), console=False)
    assert (status.state, status.ranks) == (State.COMPLETED, 2)
    assert run.model.is_dir()
    found = ranks(told)
    assert [(each["RANK"], each["WORLD_SIZE"]) for each in found] == [("0", "2"), ("1", "2")]
    assert {each["APPTAINER_CONTAINER"] for each in found} == {str(image)}
    assert {each["prefix"] for each in found} == {"/opt/hpcmass"}


def test_one_rank_and_a_script_run_in_the_image_too(apptainer: None, image: Path, project: Path) -> None:
    told = prepare(project)
    site_file = site(project, image)
    _, status = train(project / "job.toml", Project(project), site_file=str(site_file), console=False)
    assert status.state is State.COMPLETED
    assert [each["APPTAINER_CONTAINER"] for each in ranks(told)] == [str(image)]
    (project / "own.py").write_text("import sys; print('prefix', sys.prefix)")
    words = [sys.executable, "-m", "hpcmass", "run", "--container", str(image), "--", "python", "own.py"]
    done = subprocess.run(
        words, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "prefix /opt/hpcmass" in (project / "runs" / "own" / "logs" / "attempt-1-rank-0.log").read_text()


def test_another_version_of_hpcmass_in_the_image_is_refused_before_anything_is_made(
    apptainer: None, image: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "__version__", "9.9.9")
    with pytest.raises(LaunchError, match=r"in the container and 9\.9\.9 outside"):
        train(
            project / "job.toml", Project(project), ranks=2, site_file=str(site(project, image)), console=False
        )
    assert list((project / "runs").iterdir()) == []


@pytest.mark.soak  # a killed rank has the shorter way
def test_a_stop_reaches_the_ranks_inside_and_the_run_goes_on(
    apptainer: None, image: Path, project: Path
) -> None:
    told = prepare(project, slow=True)
    process = start(project, site(project, image), "--ranks", "2")
    run = RunFolder(project / "runs" / "job")
    until(lambda: run.exists() and list(run.records("train")), "the first step")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    status = run.status()
    assert status.state is State.STOPPED, status
    assert 0 < status.step < 20
    assert list(run.checkpoints.glob("*.json"))
    until(
        lambda: not [each for each in ranks(told) if Path(f"/proc/{each['pid']}").exists()],
        "all ranks are gone",
    )
    (project / "slow").unlink()
    _, again = train(
        project / "job.toml", Project(project), ranks=2, site_file=str(site(project, image)), console=False
    )
    assert again.state is State.COMPLETED
    assert [each["from_step"] for each in run.records("resume")] == [status.step]


def test_a_rank_killed_inside_is_named_and_takes_the_others_along(
    apptainer: None, image: Path, project: Path
) -> None:
    told = prepare(project, slow=True)
    process = start(project, site(project, image), "--ranks", "2")
    run = RunFolder(project / "runs" / "job")
    until(lambda: run.exists() and list(run.records("train")), "the first step")
    pids = {each["RANK"]: int(each["pid"]) for each in ranks(told)}
    os.kill(pids["1"], signal.SIGKILL)
    process.communicate(timeout=600)
    status = run.status()
    assert status.state is State.FAILED
    assert status.reason is not None
    assert "rank 1" in status.reason
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), "all ranks are gone")


def test_by_hand_over_two_nodes_with_the_hosts_mpi(
    cluster: Cluster, apptainer: None, image: Path, project: Path
) -> None:
    told = prepare(project)
    script = ROOT / "slurm" / "container.sbatch"
    env = {**cluster.env, "PATH": os.environ["PATH"] + os.pathsep + cluster.env["PATH"]}
    env |= {name: value for name, value in os.environ.items() if name.startswith("APPTAINER_")}
    argv = ["sbatch", "--parsable", f"--chdir={project}", str(script), "job.toml", str(image)]
    job = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.strip()
    ended = ("squeue", "-h", "--states=all", "-j", job, "-o", "%T")
    until(lambda: cluster.run(*ended).stdout.strip() in ("COMPLETED", "FAILED", "TIMEOUT"), "the job ends")
    log = (project / f"container-{job}.log").read_text()
    assert cluster.run(*ended).stdout.strip() == "COMPLETED", log
    found = ranks(told)
    assert [each["RANK"] for each in found] == ["0", "1", "2", "3"]
    assert {each["WORLD_SIZE"] for each in found} == {"4"}
    assert len({each["host"] for each in found}) == 2
    assert {each["APPTAINER_CONTAINER"] for each in found} == {str(image)}
    status = RunFolder(project / "runs" / "job").status()
    assert (status.state, status.ranks) == (State.COMPLETED, 4)
    assert status.backend in ("horovod", "mpi"), log


def test_a_submitted_run_of_a_site_with_a_container(
    cluster: Cluster,
    slurm_env: dict[str, str],
    apptainer: None,
    image: Path,
    project: Path,
) -> None:
    told = prepare(project)
    job_file = project / "job.toml"
    job_file.write_text(job_file.read_text() + "\n[resources]\nranks = 4\nnodes = 2\n")
    done = submit(job_file, Project(project), site_file=str(site(project, image, "slurm")))
    run = RunFolder(done.runs[0])
    until(lambda: run.status().state in (State.COMPLETED, State.FAILED), "the run ends")
    logs = "\n".join(path.read_text() for path in (run.path / "slurm").glob("out-*.log"))
    assert run.status().state is State.COMPLETED, logs
    found = ranks(told)
    assert len({each["host"] for each in found}) == 2
    assert {each["APPTAINER_CONTAINER"] for each in found} == {str(image)}


@pytest.mark.soak
def test_a_probe_of_a_target_with_a_container_looks_into_the_container(
    cluster: Cluster,
    slurm_env: dict[str, str],
    apptainer: None,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = site(tmp_path, image, "slurm")
    words = ["site", "probe", str(file), "--ranks-per-node", "1", "--out", str(tmp_path / "probes")]
    code = run_cli([*words, "--write", "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    (report,) = [each["report"] for each in json.loads(out)]
    assert report["container"] == str(image)
    right = [each for each in report["starts"] if each["right"]]
    assert {each["verdict"] for each in right} == {"2 ranks of size 2"}
    # The MPI that was loaded is the image's, not this Python's.
    assert {path.startswith("/opt/hpcmass/") for each in right for path in each["libmpi"]} == {True}, right
    assert report["torch"]["works"], report["torch"]
    target = load_site(file).targets["cpu"]
    assert (target.launcher, target.pmi) == (report["chosen"]["launcher"], report["chosen"]["pmi"])


def test_a_probe_writes_nothing_for_an_image_that_is_not_there(
    cluster: Cluster,
    slurm_env: dict[str, str],
    apptainer: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = site(tmp_path, tmp_path / "none.sif", "slurm")
    before = file.read_text()
    assert run_cli(["site", "probe", str(file), "--out", str(tmp_path / "probes"), "--write", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert "the container image does not exist" in found["why"]
    assert file.read_text() == before
