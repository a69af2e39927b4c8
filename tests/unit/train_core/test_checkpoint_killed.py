"""A process that checkpoints in a loop is killed with -9 at random moments, again and again."""

import subprocess
import sys
from pathlib import Path

import pytest

# Forks from one interpreter, so that torch is imported once; before the first fork no thread of torch's runs.
# The two parts of a checkpoint are written by two threads, as two ranks would, and committed when both are there.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from hpcmass.train import checkpoint
from hpcmass.train.snapshot import Snapshot, Worker
from hpcmass.train.tensorfile import encode, lay_out, share_out

folder, parts, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def state(step):
    return {"model": {f"w{i}": torch.full((20_000 + i,), float(step)) for i in range(6)}, "position": {"step": step}}

def work(first):
    torch.set_num_threads(1)
    snapshots, workers = [Snapshot() for _ in range(parts)], [Worker("part") for _ in range(parts)]
    for step in range(first, first + 100_000):
        tensors = {}
        skeleton = encode(state(step), "", tensors)
        names = checkpoint.file_names(step, parts)
        jobs = []
        for number, mine in enumerate(share_out(tensors, parts)):
            layout = lay_out({name: tensors[name] for name in mine})
            assert snapshots[number].make_room(layout, torch.device("cpu"))
            snapshots[number].copy(tensors)
            header = layout.header(checkpoint.metadata(skeleton) if number == 0 else {})
            def write(job, number=number, header=header):
                pieces = [header, *snapshots[number].pieces(job)]
                return checkpoint.write_part(folder / names[number], pieces)
            jobs.append(workers[number].start(write))
        mark = checkpoint.Mark(step, 0, step, parts)
        checkpoint.commit(folder, mark, [job.result() for job in jobs], keep=2, pace={})

chance, newest, advanced = random.Random(parts), 0, 0
for kill in range(kills):
    leftovers = {p.name for p in folder.iterdir()} if folder.exists() else set()
    checkpoint.remove_leftovers(folder)
    named = {p.name for c in checkpoint.commits(folder) for p in (c.json_path, *(q.path for q in c.parts))}
    assert {p.name for p in folder.iterdir()} == named if folder.exists() else True, (leftovers, named)
    child = os.fork()
    if child == 0:
        try:
            work(newest + 1)
        finally:
            os._exit(1)
    # After a number of checkpoints, however long this machine takes for them, and a part of the next one.
    began, goal, until = time.monotonic(), newest + chance.randint(0, 3), time.monotonic() + 300
    while goal > newest and max((int(p.stem[5:]) for p in folder.glob("step-*.json")), default=0) < goal:
        assert time.monotonic() < until, "it did not get on"
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, max(0.01, (time.monotonic() - began) / max(1, goal - newest))))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    found = checkpoint.load_latest(folder)
    if found is None:
        continue
    commit, got = found
    assert commit.step >= newest, (commit, newest)
    assert len(commit.parts) == parts
    assert got["position"]["step"] == commit.step
    for name, tensor in got["model"].items():
        assert bool((tensor == commit.step).all()), (name, commit)
    advanced += commit.step > newest
    newest = commit.step
print("advanced", advanced, "newest", newest)
"""


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_the_newest_commit_is_whole_whenever_the_process_is_killed(
    parts: int, kills: int, tmp_path: Path
) -> None:
    program = tmp_path / "loop.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "checkpoints"), str(parts), str(kills)],
        capture_output=True, text=True, timeout=7000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > kills // 3, done.stdout  # it was killed at work, not before
