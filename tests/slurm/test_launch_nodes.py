"""Ranks on several nodes: their words, their GPUs, their ends, and the signals that Slurm sends them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.files import read_records
from hpcmass.runs import RunFolder, State
from hpcmass.train.checkpoint import latest_step

TOOLS = Path(__file__).with_name("launch_tools.py")
spec = importlib.util.spec_from_file_location("launch_tools", TOOLS)
assert spec is not None
assert spec.loader is not None
tools = importlib.util.module_from_spec(spec)
sys.modules["launch_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = pytest.mark.slurm
TWO = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")
SHOW = """
import json, os, sys
from pathlib import Path
said = {"argv": sys.argv[2:], "env": {k: v for k, v in os.environ.items() if k.startswith("ODD_")}}
said["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "SLURMD_NODENAME"]
said["place"] = [os.environ.get(name) for name in names]
said["threads"] = os.environ.get("OMP_NUM_THREADS")
said["slurm"] = sorted(name for name in os.environ if name.startswith("SLURM_"))
Path(sys.argv[1], "said-" + os.environ["RANK"] + ".json").write_text(json.dumps(said))
"""
# Draws at random, and has gradients of sizes so unequal that another order of their sums shows.
REPRODUCIBLE = """
import torch
from torch import nn

def build_model(params):
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 2))

def transform(batch, train):
    if train:
        batch["x"] = batch["x"] * 10.0 ** torch.randint(-3, 2, (len(batch["x"]), 1))
    return batch
"""
# As `hpcmass train` does it, with nothing of torch: the program's own GPUs are seen.
DRIVER = """
import os, sys
from pathlib import Path
from hpcmass.config import Layout, Target
from hpcmass.launch import find_mpiexec, plan_ranks, read_allocation, supervise
here, launcher, per_node, gpus = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
allocation = read_allocation(os.environ)
nodes = len(allocation.nodes)
layout = Layout(nodes, nodes * per_node, per_node, 1, gpus, None, 600)
plan = plan_ranks([sys.executable, "show.py", str(here)], layout.ranks, Target(), threads_per_rank=1, cores=1,
                  launcher=launcher, mpiexec=find_mpiexec(), env=os.environ, layout=layout, allocation=allocation)
outcome = supervise(plan, log_file=lambda rank: here / f"{rank}.log", shared=here)
print(plan.launcher, outcome.ok, outcome.launcher_tail)
sys.exit(0 if outcome.ok else 1)
"""


def said(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("said-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("keys", [{"launcher": "spawn"}, {"pmi": "pmi2"}, {"launcher": "mpiexec"}], ids=str)
def test_words_and_variables_reach_the_program_unharmed(
    cluster: Cluster, project: Path, keys: dict[str, str]
) -> None:
    (project / "show.py").write_text(SHOW)
    site = tools.site(project, **keys)
    line = tools.hpcmass(
        sys.executable, "run", "--site", site, "--quiet", "--", "python", "show.py", str(project), *tools.WORDS
    )
    exports = "\n".join(
        f"export ODD_{number}={tools.shlex.quote(word)}" for number, word in enumerate(tools.WORDS) if word
    )
    # What sbatch was asked for must not reach srun: it would empty the environment, or be fatal.
    spoil = "export SLURM_EXPORT_ENV=NONE SLURM_MEM_PER_CPU=1 SLURM_MEM_PER_NODE=1 SLURM_NTASKS_PER_NODE=1"
    text = tools.batch(cluster, project, f"{exports}\n{spoil}\n{line}", *TWO)
    assert "rc 0" in text, text
    found = said(project)
    assert len(found) == 4
    for each in found:
        assert each["argv"] == tools.WORDS
        assert each["env"] == {f"ODD_{number}": word for number, word in enumerate(tools.WORDS) if word}
    assert not (project / "x").exists()


@pytest.mark.parametrize("launcher", ["spawn", "mpiexec"])
def test_gpus_of_a_rank(cluster: Cluster, project: Path, launcher: str) -> None:
    """Under srun each rank sees its own; under mpiexec those of the node, and the local rank picks."""
    (project / "show.py").write_text(SHOW)
    (project / "driver.py").write_text(DRIVER)
    words = [sys.executable, "driver.py", str(project), launcher, "2", "2"]
    line = f"PYTHONPATH={tools.ROOT} {tools.shlex.join(words)}"
    text = tools.batch(cluster, project, line, "--partition=gpu", "--gres=gpu:2", *TWO)
    assert "rc 0" in text, text
    gpus = [each["gpus"] for each in said(project)]
    assert gpus == (["0", "1", "0", "1"] if launcher == "spawn" else ["0,1"] * 4)


@pytest.mark.parametrize("keys", [{"launcher": "spawn"}, {"launcher": "mpiexec"}, {}], ids=str)
def test_unequal_nodes_and_cores_a_task(cluster: Cluster, project: Path, keys: dict[str, str]) -> None:
    """`--ntasks=3 --cpus-per-task=2` on two nodes: Slurm gives one 4 CPUs and the other 2. {}: no site file."""
    (project / "show.py").write_text(SHOW)
    site = ["--site", tools.site(project, **keys)] if keys else []
    line = tools.hpcmass(sys.executable, "run", *site, "--quiet", "--", "python", "show.py", str(project))
    options = ["--nodes=2", "--ntasks=3", "--cpus-per-task=2", "--partition=cpu"]
    text = tools.batch(cluster, project, f"unset OMP_NUM_THREADS\n{line}", *options)
    assert "rc 0" in text, text
    found = said(project)
    assert [each["place"][:5] for each in found] == [
        ["0", "3", "0", "2", "0"], ["1", "3", "1", "2", "0"], ["2", "3", "0", "1", "1"],
    ]  # fmt: skip
    assert [each["threads"] for each in found] == ["2"] * 3


def test_a_heterogeneous_job_is_one_world(cluster: Cluster, project: Path) -> None:
    (project / "show.py").write_text(SHOW)
    (project / "driver.py").write_text(DRIVER)
    words = [sys.executable, "driver.py", str(project), "spawn", "2", "0"]
    line = f"PYTHONPATH={tools.ROOT} {tools.shlex.join(words)}"
    first = ["--nodes=1", "--ntasks=2", "--partition=cpu"]
    job = tools.submit(
        cluster,
        project,
        f"#SBATCH {' '.join(first)}\n#SBATCH hetjob\n#SBATCH --nodes=1 --ntasks=2 --partition=gpu\n{line}\necho rc $?",
        head_last=True,
    )
    text = tools.ended(project, job)
    assert "rc 0" in text, text
    places = [each["place"] for each in said(project)]
    assert [place[:5] for place in places] == [
        ["0", "4", "0", "2", "0"], ["1", "4", "1", "2", "0"], ["2", "4", "0", "2", "1"], ["3", "4", "1", "2", "1"],
    ]  # fmt: skip
    assert places[0][5].startswith("cn")
    assert places[3][5].startswith("gn")


def test_an_allocation_that_is_too_small_is_refused(cluster: Cluster, project: Path) -> None:
    site = tools.site(project, pmi="pmix")
    line = tools.hpcmass(sys.executable, "train", "job.toml", "--site", site, "--ranks", "5")
    text = tools.batch(cluster, project, line, *TWO)
    assert "rc 2" in text, text
    assert "(2 nodes of 2 CPUs) cannot hold the run" in text
    assert "srun" not in text
    assert list((project / "runs").iterdir()) == []


DIE = f"""
import os, sys, time
from pathlib import Path
{tools.ME}
rank = int(os.environ["RANK"])
Path(sys.argv[1], f"up-{{rank}}").write_text(me)
while len(list(Path(sys.argv[1]).glob("up-*"))) < 4: time.sleep(0.05)
if rank == 3:
    os.kill(os.getpid(), 9)
time.sleep(600)
"""
LAUNCHERS = [{"launcher": "spawn"}, {"pmi": "pmix"}, {"launcher": "mpiexec"}]


@pytest.mark.parametrize("keys", LAUNCHERS, ids=str)
def test_a_rank_killed_on_another_node_ends_all_and_is_named(
    cluster: Cluster, project: Path, keys: dict[str, str]
) -> None:
    (project / "die.py").write_text(DIE)
    site = tools.site(project, **keys)
    words = ["run", "--site", site, "--name", "die", "--", "python", "die.py", str(project)]
    text = tools.batch(cluster, project, tools.hpcmass(sys.executable, *words), *TWO)
    run = RunFolder(project / "runs" / "die")
    where = " on cn2" if cluster.has_network else ""
    assert "rc 2" in text, text
    assert run.status().reason == f"rank 3{where} was killed by signal 9 (SIGKILL)"
    (error,) = run.errors()
    assert error.rank == 3
    assert error.host == "cn2" or not cluster.has_network
    for file in project.glob("up-*"):
        me = file.read_text()
        tools.wait_for(lambda me=me: not tools.lives(me), f"{file.name} outlived the run")


STAY = """
import os, signal, sys, time
from pathlib import Path
here, rank = Path(sys.argv[1]), int(os.environ["RANK"])
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(time.monotonic()))
Path(here, f"up-{rank}").write_text("")
# Two seconds of work after the first SIGTERM on any rank, as a step and a checkpoint take; then all stop.
while not list(here.glob("asked-*")):
    if got:
        Path(here, f"asked-{rank}").write_text("")
    time.sleep(0.05)
end = time.monotonic() + 2
while time.monotonic() < end: time.sleep(0.05)
Path(here, f"checkpoint-{rank}").write_text("")
"""


@pytest.mark.parametrize("keys", LAUNCHERS, ids=str)
def test_slurms_sigterm_leaves_ranks_the_time_for_a_checkpoint(
    cluster: Cluster, project: Path, keys: dict[str, str]
) -> None:
    """`scancel --signal=TERM` signals every step: Open MPI's daemons would kill their ranks in half a second."""
    (project / "stay.py").write_text(STAY)
    site = tools.site(project, **keys)
    line = tools.hpcmass(
        sys.executable, "run", "--site", site, "--name", "stay", "--", "python", "stay.py", str(project)
    )
    job = tools.submit(cluster, project, f"{line}\necho rc $?", *TWO)
    tools.wait_in(project, job, lambda: len(list(project.glob("up-*"))) == 4)
    assert cluster.run("scancel", "--signal=TERM", job).returncode == 0
    text = tools.ended(project, job)
    assert len(list(project.glob("checkpoint-*"))) == 4, text
    assert "rc 0" in text, text


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({"launcher": "mpiexec"}, "mpi"),
        ({"launcher": "spawn"}, "torch"),
        pytest.param({"pmi": "pmix"}, "mpi", marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_all_nodes_stop_at_one_step_with_a_checkpoint(
    cluster: Cluster, project: Path, keys: dict[str, str], backend: str
) -> None:
    """SIGTERM to every process of the job: launcher, daemons, keepers, ranks; as preemption does, but no SIGKILL."""
    job_file = project / "job.toml"
    job_file.write_text(
        job_file.read_text().replace("epochs = 2", "epochs = 100000\ncheckpoint_every_steps = 100000000")
    )
    site = tools.site(project, **keys)
    line = tools.hpcmass(sys.executable, "train", "job.toml", "--site", site, "--backend", backend)
    job = tools.submit(
        cluster, project, f"trap : TERM\n{line} &\nwait $!\nwait $!\necho rc $?",
        "--nodes=2", "--ntasks=2", "--ntasks-per-node=1",
    )  # fmt: skip
    run = RunFolder(project / "runs" / "job")
    tools.wait_in(project, job, lambda: run.exists() and run.status().step > 2)
    for whose in ([], ["--full"]):  # the steps, the batch script with its children
        assert cluster.run("scancel", "--signal=TERM", *whose, job).returncode == 0
    text = tools.ended(project, job)
    status = run.status()
    assert status.state is State.STOPPED, (status, text)
    assert "stopped by SIGTERM, after a checkpoint" in str(status.reason)
    assert latest_step(run.checkpoints) == status.step
    assert "rc 130" in text
    assert run.errors() == []
    nodes = {
        json.loads(file.read_text())["node"] for file in (run.path / "ranks").glob("attempt-1-rank-*.json")
    }
    assert nodes == {"cn1", "cn2"}


def test_reproducible_weights_are_the_same_on_one_node_and_on_two(cluster: Cluster, project: Path) -> None:
    """Three ranks, two on one node and one on the other, against one rank: within a node and between two."""
    job_file = project / "job.toml"
    settings = "reproducible = true\nmicro_batches = 6\nclip_norm = 0.5"
    job_file.write_text(job_file.read_text().replace("epochs = 2", f"epochs = 2\n{settings}"))
    (project / "recipe.py").write_text(REPRODUCIBLE)
    site = tools.site(project, launcher="mpiexec")
    words = ["train", "job.toml", "--site", site, "--run"]
    alone = tools.hpcmass(sys.executable, *words, "alone", "--backend", "single")
    nodes = tools.hpcmass(sys.executable, *words, "nodes", "--backend", "mpi")
    text = tools.batch(cluster, project, alone, "--nodes=1", "--ntasks=1")
    assert "rc 0" in text, text
    options = ["--nodes=2", "--ntasks=3", "--cpus-per-task=2", "--partition=cpu"]
    text = tools.batch(cluster, project, nodes, *options)
    assert "rc 0" in text, text
    runs = [RunFolder(project / "runs" / name) for name in ("alone", "nodes")]
    places = [json.loads(file.read_text()) for file in (runs[1].path / "ranks").glob("attempt-1-rank-*.json")]
    assert sorted(place["node"] for place in places) == ["cn1", "cn1", "cn2"]
    weights = [(run.path / "model" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    losses = [
        [one["loss"] for one in read_records(run.path / "metrics.jsonl") if one["kind"] == "train"]
        for run in runs
    ]
    assert len(losses[0]) == 20
    assert losses[0] == losses[1]


WAIT = f"""
import os, sys, time
from pathlib import Path
{tools.ME}
Path(sys.argv[1], "up-" + os.environ["RANK"]).write_text(me)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({"launcher": "mpiexec"}, "mpi"),
        ({"pmi": "pmix"}, ""),
        pytest.param({"launcher": "spawn"}, "torch", marks=pytest.mark.soak),
        pytest.param({"pmi": "pmix"}, "mpi", marks=pytest.mark.soak),
        pytest.param({"launcher": "mpiexec"}, "", marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_a_node_that_is_lost_ends_the_run_and_is_named(
    cluster: Cluster, project: Path, keys: dict[str, str], backend: str
) -> None:
    """Without a backend: a script whose ranks do not speak to each other, so that nobody else could notice."""
    if not cluster.has_network:
        pytest.skip("without namespaces a node's processes are not its own: only slurmd could be killed")
    site = tools.site(project, **keys)
    if backend:
        job_file = project / "job.toml"
        job_file.write_text(job_file.read_text().replace("epochs = 2", "epochs = 100000"))
        line = tools.hpcmass(sys.executable, "train", "job.toml", "--site", site, "--backend", backend)
    else:
        (project / "wait.py").write_text(WAIT)
        words = ["run", "--site", site, "--name", "job", "--", "python", "wait.py", str(project)]
        line = tools.hpcmass(sys.executable, *words)
    job = tools.submit(
        cluster,
        project,
        f"{line}\necho rc $?",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--no-requeue",
    )
    run = RunFolder(project / "runs" / "job")
    tools.wait_in(
        project, job, lambda: (run.exists() and run.status().step > 2) or len(list(project.glob("up-*"))) == 2
    )
    gone = cluster.run("scontrol", "show", "hostnames", nodes_of(cluster, job)).stdout.split()[1]
    cluster.kill_node(gone)
    text = tools.ended(project, job)
    reason = f"node {gone} was lost with rank 1: it failed, or all of its processes were killed"
    # Said by the run itself: Slurm, which would have ended the job with the node, had not noticed.
    assert "rc 2" in text, text
    assert f"failed after step {run.status().step}: {reason}" in text
    assert (run.status().state, run.status().reason) == (State.FAILED, reason)
    first = min(run.errors(), key=lambda error: error.time)
    assert (first.rank, first.host, first.error) == (1, gone, "NodeLost")
    for file in project.glob("up-*"):
        me = file.read_text()
        tools.wait_for(lambda me=me: not tools.lives(me), f"{file.name} outlived the run")
    assert "NODE_FAIL" not in text
    cluster.start_node(gone)
    tools.wait_for(
        lambda: "idle" in cluster.run("sinfo", "-h", "-n", gone, "-o", "%t").stdout, "the node is lost"
    )


def nodes_of(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
