"""Killed with -9 fifty times in a row, a run ends with the very bits of one that nobody disturbed (`make soak`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcmass.train import checkpoint

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_kill_tools", TOOLS)
assert spec is not None
assert spec.loader is not None
tools = importlib.util.module_from_spec(spec)
sys.modules["train_kill_tools"] = tools
spec.loader.exec_module(tools)

KILLS = 50
EPOCHS, SAMPLES = 30, 400
STEPS = EPOCHS * SAMPLES // 10
SETS = [f"train.epochs={EPOCHS}", "train.checkpoint_every_steps=3", "train.evaluate_every_epochs=5"]

# Starts the ranks as forks of an interpreter that has imported everything, so that fifty starts are affordable.
# They find each other by torch.distributed (gloo), as under torchrun, and never know of the one before them.
PROGRAM = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import train_tools as tools
import torch, torch.distributed
from hpcmass.config import Project, load_job
from hpcmass.runs import RunFolder
from hpcmass.train import checkpoint
from hpcmass.train.rank import train_rank

root, kills, sets = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]

def start(name, attempt, slow):
    port, pids = tools.free_port(), []
    for rank in range(2):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            log = os.open(root / f"log-{name}-{attempt}-{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1), os.dup2(log, 2)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", SLOW=slow, TRY=f"{name}{attempt}")
            job = load_job(root / "job.toml", ["train.backend=torch", *sets])
            train_rank(job, RunFolder(root / "runs" / name), Project(root), console=False)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pids

def end(pids):
    return [os.waitpid(pid, 0)[1] for pid in pids]

def steps_done(folder):
    return [int(name[5:14]) for name in os.listdir(folder) if name.endswith(".json")] if folder.exists() else []

assert end(start("whole", 1, "0")) == [0, 0], "the undisturbed run failed"
folder, chance, begun = root / "runs" / "killed" / "checkpoints", random.Random(0), []
for attempt in range(1, kills + 1):
    pids = start("killed", attempt, "0.01")
    until = time.monotonic() + 600
    goal = max(steps_done(folder), default=0) + chance.randint(0, 12)
    while len(tools.seen(root, f"killed{attempt}")) < 2 or max(steps_done(folder), default=0) < goal:
        assert time.monotonic() < until, "it did not get on"
        assert not any(os.waitpid(pid, os.WNOHANG)[0] for pid in pids), f"attempt {attempt} ended by itself"
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.3))
    for pid in chance.choice([pids[:1], pids[1:], pids]):
        os.kill(pid, signal.SIGKILL)
    end(pids)
    found = checkpoint.load_latest(folder)  # whatever the moment was, the newest one is whole
    begun.append(found[0].step if found else 0)
assert end(start("killed", kills + 1, "0")) == [0, 0], "the last attempt failed"
print(json.dumps(begun))
"""


@pytest.mark.soak
@pytest.mark.mpi
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("parts", [2, 1])
def test_fifty_kills_and_the_same_bits(parts: int, tmp_path: Path) -> None:
    """Two ranks; whom the kill hits and when is left to chance: rank 0, rank 1, or both at once."""
    root = tools.make_project(tmp_path / "p", samples=SAMPLES)
    program = tmp_path / "killer.py"
    program.write_text(PROGRAM)
    argv = [
        sys.executable,
        str(program),
        str(TOOLS.parent),
        str(root),
        os.environ.get("KILLS", str(KILLS)),
        *SETS,
    ]
    argv.append(f"train.checkpoint_shard_mib={1024 if parts == 1 else 0}")
    done = subprocess.run(
        argv, env=tools.environment(root), text=True, capture_output=True, timeout=7000, check=False
    )
    logs = "".join(
        path.read_text() for path in sorted(root.glob("log-*"), key=lambda p: p.stat().st_mtime)[-2:]
    )
    assert done.returncode == 0, done.stderr + logs

    begun = json.loads(done.stdout.splitlines()[-1])
    assert begun == sorted(begun)
    assert 0 < begun[-1] < STEPS
    assert [record["from_step"] for record in tools.records(root, "killed", "resume")] == begun
    ended = {name: checkpoint.load_latest(root / "runs" / name / "checkpoints") for name in ("whole", "killed")}
    assert {(commit.step, len(commit.parts)) for commit, _ in ended.values()} == {(STEPS, parts)}
    (_, whole), (_, killed) = ended.values()
    assert _bits(whole) == _bits(killed), f"other bits; begun at {begun}"
    assert len({tools.digest(root / "runs" / name / "model" / "weights.safetensors") for name in ended}) == 1
    folder = root / "runs" / "killed" / "checkpoints"
    kept = {p.name for c in checkpoint.commits(folder) for p in (c.json_path, *(part.path for part in c.parts))}
    assert {path.name for path in folder.iterdir()} == kept, "leftovers"


def _bits(state: object) -> object:
    """A state whose tensors can be compared."""
    if isinstance(state, torch.Tensor):
        flat = state.contiguous().reshape(-1)
        return (str(state.dtype), tuple(state.shape), flat.view(torch.uint8).tolist())
    if isinstance(state, dict):
        return {key: _bits(value) for key, value in state.items()}
    return [_bits(value) for value in state] if isinstance(state, (list, tuple)) else state
