"""From `hpcmass submit` to the first training step, by part, on one node and on three.

    python benchmarks/time_to_first_step.py [--quick]

On a development cluster of its own. The parts come from the run itself: the submission's record, Slurm's start
of the job, the begin of the hop, and the `start` record of rank 0. A part ends where the next begins:

    submit      the command, until sbatch has answered
    queue       until Slurm starts the job
    batch       until the hop's process has begun (Slurm's prolog, the batch script, Python)
    launch      until rank 0's process begins (mpiexec or srun, on all nodes)
    imports     Python and torch in rank 0
    rendezvous  the ranks find each other
    data        dataset opened and checked
    model       built
    first step  done
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import _slurm

from hpcmass.config import Project
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.records import read_hops, read_submissions

PARTS = ("submit", "queue", "batch", "launch", "imports", "rendezvous", "data", "model", "first step")
JOB = """\
name = "first-step"
recipe = "recipe.py"

[data]
train = "data/tiny/train"
valid = "data/tiny/valid"

[train]
epochs = 1
global_batch = 120

[resources]
ranks = {nodes}
nodes = {nodes}
threads_per_rank = 1
time = "10m"
"""


def one(project: Project, cluster: Cluster, name: str, nodes: int) -> dict[str, float]:
    """Submit a run, wait for its end, and take its start apart; seconds by part."""
    job = project.root / "job.toml"
    job.write_text(JOB.format(nodes=nodes))
    installed = Path(sys.executable).parent / "hpcmass"
    words = [
        str(installed),
        "submit",
        str(job),
        "--run",
        name,
        "--site",
        str(cluster.site_file),
        "--target",
        "cpu",
    ]
    asked = time.time()
    done = subprocess.run(
        [*words, "--project", str(project.root)], env=dict(os.environ), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    run = RunFolder(project.runs / name)
    (submission,) = read_submissions(run.path)
    until = time.monotonic() + 300
    while run.status().state is not State.COMPLETED:
        if time.monotonic() > until:
            raise SystemExit(f"{run.path}: {run.status()}")
        time.sleep(0.2)
    start = next(run.records("start"))
    info = Slurm().jobs([submission.slurm_id])[submission.slurm_id]
    hop = read_hops(run.path)[0]
    # Slurm's own times are whole seconds: what it rounds down is part of the queue.
    started = max(info.started or 0.0, submission.submitted)
    began = max(hop.began or started, started)
    marks = [asked, submission.submitted, started, began, start["began"]]
    marks += [
        start["began"] + start["parts"][part]
        for part in ("imports", "rendezvous", "data", "model", "first_step")
    ]
    spans = [max(0.0, later - before) for before, later in pairwise(marks)]
    return dict(zip(PARTS, spans, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    rounds = 1 if parser.parse_args().quick else 5
    found: dict[int, dict[str, float]] = {}
    with _slurm.cluster() as cluster, _slurm.project() as project:
        one(project, cluster, "warm-up", 1)
        for nodes in (1, 3):
            runs = [one(project, cluster, f"nodes-{nodes}-{number}", nodes) for number in range(rounds)]
            found[nodes] = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    print(f"{rounds} rounds, medians in seconds; one rank a node")
    print(f"{'part':<12}" + "".join(f"{f'{nodes} nodes':>10}" for nodes in found))
    for part in PARTS:
        print(f"{part:<12}" + "".join(f"{parts[part]:>10.2f}" for parts in found.values()))
    totals = {nodes: sum(parts.values()) for nodes, parts in found.items()}
    print(f"{'all':<12}" + "".join(f"{total:>10.2f}" for total in totals.values()))
    figure = {
        "name": "time_to_first_step",
        "value": round(totals[1], 2),
        "unit": "s",
        "goal": None,
        "met": True,
    }
    parts = {
        str(nodes): {part: round(value, 3) for part, value in values.items()} for nodes, values in found.items()
    }
    print(json.dumps({**figure, "three_nodes": round(totals[3], 2), "parts": parts}))


if __name__ == "__main__":
    main()
