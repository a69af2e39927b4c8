"""Ranks that reduce in other ways end with the same weights, and skip the same steps."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]

# On rank 1 alone gradients overflow fp16 for the first steps.
SPOILT_ON_ONE = """
def loss(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs * (3000.0 if RANK == "1" else 1.0), targets)
"""


def horovod(backend: str) -> None:
    if backend == "horovod" and not importlib.util.find_spec("horovod"):
        pytest.skip("no Horovod")


def ended_alike(root: Path, ranks: int) -> str:
    found = {(root / "tell" / f"weights-{ranks}-{rank}").read_text() for rank in range(ranks)}
    assert len(found) == 1, "the ranks ended with different weights"
    return found.pop()


@pytest.mark.parametrize(
    ("backend", "compression"),
    [
        ("mpi", "none"),
        ("mpi", "bf16"),
        ("torch", "fp16"),
        pytest.param("horovod", "bf16", marks=pytest.mark.horovod),
    ],
)
def test_fp16_skips_on_all_ranks_what_overflows_on_one(backend: str, compression: str, tmp_path: Path) -> None:
    horovod(backend)
    root = tools.make_project(tmp_path / "p")
    with open(root / "recipe.py", "a") as file:
        file.write(SPOILT_ON_ONE)
    sets = [f"train.backend={backend}", "train.precision=fp16", f"train.compression={compression}"]
    done = tools.run(tools.mpiexec(2, tools.words(root, "r", *sets)), tools.environment(root))
    assert done.returncode == 0, done.stdout
    ended_alike(root, 2)
    skipped = [record["skipped_steps"] for record in tools.records(root, "r", "train")]
    assert skipped[0] == 1, "the first step must overflow, or this test shows nothing"
    assert 0 in skipped
    (start,) = tools.records(root, "r", "start")
    assert (start["training"]["compression"], start["training"]["precision"]) == (compression, "fp16")


def test_the_node_s_memory_is_given_back_even_by_a_killed_rank(tmp_path: Path) -> None:
    """Open MPI's own files of a killed run are not counted: they are there without a window too."""
    root = tools.make_project(tmp_path / "p")
    sets = ["train.backend=mpi", "train.checkpoint_every_steps=1", "train.epochs=10000"]
    argv = tools.mpiexec(2, tools.words(root, "r", *sets))
    process = subprocess.Popen(
        argv, env=tools.environment(root, SLOW="0.1"), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        tools.wait_for(lambda: len(tools.seen(root).get(1, [])) >= 3, process)
        pid = tools.seen(root)[1][0]["pid"]
        mapped = Path(f"/proc/{pid}/maps").read_text()
        windows = [line for line in mapped.splitlines() if "/dev/shm/" in line and "sm_segment" not in line]
        assert windows, "no window is mapped"
        assert all(line.endswith("(deleted)") for line in windows), "a name is left to whoever dies"
        names = {re.sub(r" \(deleted\)$", "", line.split(maxsplit=5)[5]) for line in windows}
        os.kill(pid, signal.SIGKILL)
        output = process.communicate(timeout=300)[0]
    finally:
        tools.end_group(process)
    assert process.returncode != 0, output
    assert not any(Path(name).exists() for name in names)
    assert "rank 1 died" in tools.status(root, "r")["reason"]
