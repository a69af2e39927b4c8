"""Long fault suites (`make soak`): runs killed again and again on changing numbers of ranks."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_soak_tools", TOOLS)
assert spec is not None
assert spec.loader is not None
tools = importlib.util.module_from_spec(spec)
sys.modules["train_soak_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.soak, pytest.mark.mpi]

SAMPLES = 400
KILLS = 10


@pytest.mark.parametrize("backend", ["mpi", "horovod", "torch"])
def test_killed_again_and_again_each_sample_once(backend: str, tmp_path: Path) -> None:
    """After each kill -9 of a random rank the run goes on with 1 to 4 ranks; the recipe logs what it saw."""
    chance = random.Random(backend)
    root = tools.make_project(tmp_path / "p", samples=SAMPLES)
    sets = ["train.checkpoint_every_steps=2", "train.epochs=1"]

    def start(attempt: int, ranks: int) -> subprocess.Popen[str]:
        chosen = backend if ranks > 1 else "single"
        argv = tools.mpiexec(ranks, tools.words(root, "r", f"train.backend={chosen}", *sets))
        env = tools.environment(root, SLOW="0.1", TRY=str(attempt))
        return subprocess.Popen(
            argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    worlds = []
    for attempt in range(1, KILLS + 1):
        ranks = chance.choice([1, 2, 3, 4])
        worlds.append(ranks)
        process = start(attempt, ranks)
        calls = chance.randint(2, 5)
        try:
            tools.wait_for(
                lambda attempt=attempt, ranks=ranks, calls=calls: (
                    len(tools.seen(root, str(attempt))) == ranks
                    and all(len(lines) >= calls for lines in tools.seen(root, str(attempt)).values())
                ),
                process,
            )
            victim = chance.randrange(ranks)
            os.kill(tools.seen(root, str(attempt))[victim][0]["pid"], signal.SIGKILL)
            process.communicate(timeout=90)
        finally:
            tools.end_group(process)
        assert process.returncode != 0
    last = KILLS + 1
    done = start(last, 3)
    output = done.communicate(timeout=250)[0]
    assert done.returncode == 0, output

    begun = [0, *(record["from_step"] for record in tools.records(root, "r", "resume"))]
    assert len(begun) == last
    ids: list[int] = []
    for attempt, first in enumerate(begun, 1):
        until = begun[attempt] if attempt < last else SAMPLES // 10
        for lines in tools.seen(root, str(attempt)).values():  # one call a step on every rank
            ids += [i for line in lines[: until - first] for i in line["ids"]]
    assert sorted(ids) == list(range(SAMPLES)), f"not each sample once, worlds {worlds}, begun at {begun}"
    assert tools.status(root, "r")["state"] == "COMPLETED"
