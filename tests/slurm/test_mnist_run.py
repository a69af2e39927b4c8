"""workflows/mnist/run.py on a real Slurm, held against what is seen from outside; killed, and as a job."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import blocks, check_given, check_overlap, tagged_processes, until

from hpcmass.config import Project
from hpcmass.files import read_json, read_records
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.records import read_trials
from hpcmass.workflow.registry import open_catalogue

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


# Behind the recipe: trials begin when there are some on both kinds of node, however late a block comes.
MEET = """

_build_at_once, _BOARD = build_model, {board!r}


def build_model(params: dict[str, Any]) -> Any:
    import os, time
    os.makedirs(_BOARD, exist_ok=True)
    open(os.path.join(_BOARD, os.uname().nodename[:2]), "w").close()
    while len(os.listdir(_BOARD)) < 2:
        time.sleep(0.05)
    return _build_at_once(params)
"""


def start(cluster, project, log, *words, script="workflows/mnist/run.py"):
    """The command of its README, in a shell that knows of the cluster by its folder alone."""
    env = {name: value for name, value in cluster.env.items() if name != "SLURM_CONF"}
    env |= {"HPCMASS_DEVCLUSTER": str(cluster.folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(script), "--site", "site-configs/devcluster.toml"]
    with open(log, "w") as out:
        return subprocess.Popen(
            [*command, "--quick", "--project", str(project), *words],
            env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


def ended(process, log, seconds=1500):
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it did not end:\n{log.read_text()}") from None
    assert code == 0, log.read_text()
    return log.read_text()


def check_done(root, cluster, *, killed=False):
    """Every step has left what it should, on the nodes that it should."""
    project, study = Project(root), root / "studies" / "mnist"
    states = [outcome.state for _, outcome in read_trials(study)]
    assert len(states) == 8
    assert set(states) <= {"complete", "pruned"}
    final = RunFolder(project.run_path("mnist-final"))
    assert (final.status().state, final.status().ranks) == (State.COMPLETED, 2)
    ranks = read_json(final.path / "ranks" / f"attempt-{final.status().attempt}.json")["ranks"]
    nodes = {rank["host"] for rank in ranks}
    assert len(nodes) == 2
    assert nodes <= {"cn1", "cn2", "cn3"}
    catalogue = open_catalogue(project)
    assert len(catalogue.list("mnist")) == 1
    version = catalogue.get("mnist@production")
    assert version.lineage["run"] == str(final.path)
    assert version.metrics["accuracy"] > 0.8, version.metrics
    assert (root / "mnist.png").stat().st_size > 1000
    if not killed:  # Of a slot whose driver was killed nobody wrote down when it was given back.
        check_given(study, cluster)
    # The driver's own job is among them, and ends some moments after its last record.
    until(lambda: blocks(cluster) == [], 240, lambda: cluster.run("squeue").stdout)


@pytest.mark.timeout(1600)
def test_the_main_job_on_cpu_and_gpu_targets_at_once(cluster, tmp_path):
    root, log = tmp_path / "mnist", tmp_path / "log"
    work = shutil.copytree(ROOT / "workflows" / "mnist", tmp_path / "work")
    if cluster.has_network:  # Else a node cannot be told by its name.
        with open(work / "recipe.py", "a") as recipe:
            recipe.write(MEET.format(board=str(tmp_path / "board")))
    output = ended(start(cluster, root, log, script=work / "run.py"), log)
    check_done(root, cluster)
    check_overlap(root / "studies" / "mnist", cluster)
    assert len(re.findall(r"^(?:predicted|true)(?: +\d){10}$", output, re.M)) == 2, output


@pytest.mark.soak
@pytest.mark.timeout(4000)
def test_killed_at_every_step_and_started_again_it_loses_nothing(cluster, tmp_path):
    root, study = tmp_path / "mnist", tmp_path / "mnist" / "studies" / "mnist"
    running = {"CREATED", "RUNNING"}

    def training():
        run = RunFolder(root / "runs" / "mnist-final")
        return run.exists() and run.status().state.value in running

    moments = {
        "sharding": lambda: blocks(cluster),
        "sweep": lambda: study.exists() and any(outcome for _, outcome in read_trials(study)),
        "training": training,
    }
    counted = {}
    for number, (name, moment) in enumerate(moments.items()):
        log = tmp_path / f"log-{number}"
        process = start(cluster, root, log)
        end = time.monotonic() + 900
        while not moment():
            assert time.monotonic() < end, (name, log.read_text())
            assert process.poll() is None, (name, log.read_text())
            time.sleep(0.05)
        counted |= {spec.number: outcome for spec, outcome in read_trials(study) if outcome}
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: blocks(cluster) == [], 180, f"killed while {name}, it left blocks")
        until(lambda: tagged_processes(root) == [], 180, f"killed while {name}, it left processes")
    log = tmp_path / "last"
    env = {**cluster.env, "PYTHONPATH": str(ROOT)}
    with open(log, "w") as out:  # By its folder alone, wherever the driver ran.
        words = [sys.executable, "-m", "hpcmass", "workflow", "resume", str(root)]
        again = subprocess.Popen(words, env=env, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    ended(again, log)
    check_done(root, cluster, killed=True)
    after = {spec.number: outcome for spec, outcome in read_trials(study)}
    assert {number: after[number] for number in counted} == counted  # Nothing that was counted is run again.


@pytest.mark.soak
@pytest.mark.timeout(4000)
def test_the_driver_as_a_job_is_killed_with_its_node_and_resumed(cluster, tmp_path):
    root, study = tmp_path / "mnist", tmp_path / "mnist" / "studies" / "mnist"
    log = tmp_path / "log"
    output = ended(start(cluster, root, log, "--driver", "job", "--driver-target", "fpga"), log, 300)
    (job,) = re.findall(r"the driver is job (\d+)", output)

    def told():
        return "\n".join(file.read_text() for file in (root / "driver").glob("out-*.log"))

    until(lambda: study.exists() and any(outcome for _, outcome in read_trials(study)), 900, told)
    assert cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip() == "fn1"
    cluster.run("scancel", "--signal=KILL", "--full", job)
    until(lambda: blocks(cluster) == [], 180, "the killed driver left blocks")
    assert not (root / "catalogue" / "models" / "mnist").exists()
    words = [sys.executable, "-m", "hpcmass", "workflow", "resume", str(root), "--driver", "job"]
    env = {**cluster.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    again = re.findall(r"job (\d+)", done.stdout)[0]

    def over():
        ends = [r for r in read_records(root / "driver" / "hops.jsonl") if r["kind"] == "end"]
        # On a busy machine it may come to its time limit first, and goes on in the next hop.
        return [record for record in ends if record["job_id"] == again and record["next"] == "none"]

    until(over, 2500, told)
    assert over()[-1]["exit_code"] == 0, told()
    check_done(root, cluster, killed=True)
