"""What the tests of whole training runs share: a project, a recipe that tells, and mpiexec."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hpcmass.config import Project
from hpcmass.data import shard

WORKER = Path(__file__).with_name("train_worker.py")
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
SAMPLES = 60

# Tells, into files of its own, what each rank saw and the weights it ended with. The rank comes from the
# launcher's variables, so nothing of this is hpcmass's own word.
RECIPE = """
import atexit, hashlib, json, os, time
from pathlib import Path
import torch

OUT = Path(os.environ["TELL"])
ENV = os.environ
RANK = ENV.get("OMPI_COMM_WORLD_RANK", ENV.get("RANK", "0"))
WORLD = ENV.get("OMPI_COMM_WORLD_SIZE", ENV.get("WORLD_SIZE", "1"))
CALLS = 0

class Lame(torch.nn.Module):
    def forward(self, x):
        if self.training and RANK == ENV.get("LAME_RANK"):
            time.sleep(float(ENV.get("LAME_S", "0")) + float(ENV.get("LAME_SAMPLE_S", "0")) * len(x))
        return x

def build_model(params):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2), Lame())
    def tell():
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
        (OUT / f"weights-{WORLD}-{RANK}").write_text(digest)
    atexit.register(tell)
    return model

def transform(batch, train):
    global CALLS
    if train:
        CALLS += 1
        with open(OUT / f"seen-{ENV.get('TRY', '1')}-{RANK}.jsonl", "a") as file:
            line = {"world": int(WORLD), "call": CALLS, "pid": os.getpid(), "ids": batch["sample_id"].tolist()}
            file.write(json.dumps(line) + "\\n")
        time.sleep(float(ENV.get("SLOW", "0")))
        if ENV.get("WAIT_AT") == str(CALLS) and RANK == ENV.get("WAIT_RANK", RANK):
            time.sleep(float(ENV["WAIT_S"]))
        # Held until there is a file `go`, however long a test takes to do what it does meanwhile.
        held = ENV.get("HOLD_AT") == str(CALLS) and RANK == ENV.get("HOLD_RANK", RANK)
        while held and not (OUT / "go").exists():
            time.sleep(0.02)
        if ENV.get("NAN_AT") == str(CALLS) and RANK == ENV.get("NAN_RANK", RANK):
            batch["x"] = batch["x"] * float("nan")
        if ENV.get("RAISE_AT") == str(CALLS) and RANK == ENV.get("RAISE_RANK", RANK):
            raise RuntimeError("the recipe is at its end")
    elif RANK == ENV.get("CHECK_RANK"):  # of a validation every batch
        time.sleep(float(ENV["CHECK_S"]))
    return batch
"""
JOB = """
name = "job"
recipe = "recipe.py"
[data]
train = "data/d"
valid = "data/d"
[train]
epochs = 2
global_batch = 10
accumulation = 1
log_every_steps = 1
lr = 0.05
"""


def make_project(root: Path, samples: int = SAMPLES) -> Path:
    project = Project.create(root, "tests")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 6)).astype("float32")
    np.savez(root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    shard(root / "raw.npz", project.data / "d", inputs=["x"], targets=["y"], shards=3, workers=1)
    (root / "recipe.py").write_text(RECIPE)
    (root / "job.toml").write_text(JOB)
    (root / "tell").mkdir()
    return root


def environment(root: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "HPCMASS_", "MASTER_"))}
    kept["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    )
    return {
        **kept, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "TELL": str(root / "tell"), **more,
    }  # fmt: skip


def words(root: Path, run: str, *sets: str) -> list[str]:
    return [sys.executable, str(WORKER), str(root / "runs" / run), str(root), str(root / "job.toml"), *sets]


def mpiexec(ranks: int, argv: list[str]) -> list[str]:
    return [str(MPIEXEC), "-n", str(ranks), "--oversubscribe", "--bind-to", "none", *argv]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(argv: list[str], env: dict[str, str], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
    )


def records(root: Path, name: str, kind: str) -> list[dict]:
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def status(root: Path, name: str) -> dict:
    return json.loads((root / "runs" / name / "status.json").read_text())


def errors(root: Path, name: str) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted((root / "runs" / name / "errors").glob("attempt-*.json"))]


def seen(root: Path, attempt: str = "1") -> dict[int, list[dict]]:
    found = {}
    for file in sorted((root / "tell").glob(f"seen-{attempt}-*.jsonl")):
        whole = [line for line in file.read_text().splitlines(True) if line.endswith("\n")]  # it may be growing
        found[int(file.stem.rpartition("-")[2])] = [json.loads(line) for line in whole]
    return found


def wait_for(condition, process: subprocess.Popen, timeout: float = 300) -> None:
    """Until `condition` holds; a process that ends before fails the test."""
    until = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def end_group(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
