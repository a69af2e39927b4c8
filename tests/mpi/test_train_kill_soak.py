"""Killed with -9 fifty times in a row, a run ends with the very bits of one that nobody disturbed (`make soak`)."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
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

pytestmark = [pytest.mark.soak, pytest.mark.mpi]

KILLS = int(os.environ.get("KILLS", "50"))
SETS = [
    "train.backend=mpi",
    "train.epochs=50",
    "train.checkpoint_every_steps=3",
    "train.evaluate_every_epochs=10",
]
SAMPLES = 400
STEPS = 50 * SAMPLES // 10


@pytest.mark.parametrize("parts", [1, 2])
def test_fifty_kills_and_the_same_bits(parts: int, tmp_path: Path) -> None:
    """Two ranks; whom the kill hits and when is left to chance: rank 0, rank 1, or all at once with mpiexec."""
    chance = random.Random(parts)
    root = tools.make_project(tmp_path / "p", samples=SAMPLES)
    sets = [*SETS, f"train.checkpoint_shard_mib={1024 if parts == 1 else 0}"]

    def start(name: str, attempt: int, slow: str) -> subprocess.Popen[str]:
        argv = tools.mpiexec(2, tools.words(root, name, *sets))
        env = tools.environment(root, SLOW=slow, TRY=f"{name}{attempt}")
        return subprocess.Popen(
            argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def finish(process: subprocess.Popen[str]) -> None:
        try:
            output = process.communicate(timeout=900)[0]
        finally:
            tools.end_group(process)
        assert process.returncode == 0, output

    finish(start("whole", 1, "0"))
    folder = root / "runs" / "killed" / "checkpoints"
    begun = []
    for attempt in range(1, KILLS + 1):
        process = start("killed", attempt, "0.02")
        try:
            tools.wait_for(
                lambda attempt=attempt: len(tools.seen(root, f"killed{attempt}")) == 2, process, timeout=300
            )
            time.sleep(chance.uniform(0.0, 0.6))
            pids = [lines[0]["pid"] for lines in tools.seen(root, f"killed{attempt}").values()]
            victims = chance.choice([pids[:1], pids[1:], [process.pid, *pids]])
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=300)
        finally:
            tools.end_group(process)
        assert process.returncode != 0
        found = checkpoint.load_latest(folder)  # whatever the moment was, the newest one is whole
        begun.append(found[0].step if found else 0)
        assert found is None or len(found[0].parts) == parts
    assert begun == sorted(begun)
    assert 0 < begun[-1] < STEPS, "the kills came too late, or nothing was kept"
    finish(start("killed", KILLS + 1, "0"))

    resumed = [record["from_step"] for record in tools.records(root, "killed", "resume")]
    assert resumed == begun
    ended = {name: checkpoint.load_latest(root / "runs" / name / "checkpoints") for name in ("whole", "killed")}
    assert {commit.step for commit, _ in ended.values()} == {STEPS}
    (_, whole), (_, killed) = ended.values()
    assert _bits(whole) == _bits(killed), f"other bits; begun at {begun}"
    names = {"whole", "killed"}
    assert len({tools.digest(root / "runs" / name / "model" / "weights.safetensors") for name in names}) == 1
    kept = {p.name for c in checkpoint.commits(folder) for p in (c.json_path, *(part.path for part in c.parts))}
    assert {path.name for path in folder.iterdir()} == kept, "leftovers"


def _bits(state: object) -> object:
    """A state whose tensors can be compared."""
    if isinstance(state, torch.Tensor):
        return (str(state.dtype), tuple(state.shape), state.contiguous().view(-1).view(torch.uint8).tolist())
    if isinstance(state, dict):
        return {key: _bits(value) for key, value in state.items()}
    return [_bits(value) for value in state] if isinstance(state, (list, tuple)) else state
