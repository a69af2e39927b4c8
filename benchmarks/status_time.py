"""How long `hpcmass status` takes with 10 runs, Python's start and Slurm's answers included.

    python benchmarks/status_time.py [--quick]

On a development cluster of its own: 10 runs, of which three run, three wait, two have ended in Slurm and two
are complete. Each round runs `hpcmass status`, and beside it `squeue` and `sacct` alone. Goal: under 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import _slurm

from hpcmass.config import Project
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.records import SubmissionRecord, publish_submission

GOAL_S = 0.5
KINDS = {"running": ("sleep 600", []), "waiting": ("true", ["--begin=now+1hour"]), "ended": ("exit 1", [])}


def lay_down(project: Project, cluster: Cluster) -> list[str]:
    """Ten runs, eight of them with a job; their names."""
    names = [
        f"{kind}-{number}"
        for kind, count in (("running", 3), ("waiting", 3), ("ended", 2))
        for number in range(count)
    ]
    for name in names:
        body, options = KINDS[name.partition("-")[0]]
        run = RunFolder(project.runs / name)
        run.create(f'name = "{name}"\n', "")
        words = ["sbatch", "--parsable", "--output=/dev/null", "--mem=100", *options, "--wrap", body]
        done = cluster.run(*words)
        publish_submission(run.path, SubmissionRecord(1, done.stdout.strip(), submitted=time.time()))
        for step in range(1000):
            run.append(
                {"kind": "train", "step": step, "epoch": 0, "loss": 1.0, "lr": 0.1, "samples_per_s": 1.0}
            )
    for number in range(2):
        run = RunFolder(project.runs / f"done-{number}")
        run.create(f'name = "done-{number}"\n', "")
        run.update(state=State.COMPLETED, step=10)
    return [*names, "done-0", "done-1"]


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, env=dict(os.environ))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 20")
    rounds = 5 if parser.parse_args().quick else 20
    installed = Path(sys.executable).parent / "hpcmass"
    call = [str(installed)] if installed.exists() else [sys.executable, "-m", "hpcmass"]
    with _slurm.cluster() as cluster, _slurm.project() as project:
        names = lay_down(project, cluster)
        status = [*call, "status", "--project", str(project.root)]
        until = time.monotonic() + 60
        while True:
            shown = json.loads(subprocess.run([*status, "--json"], capture_output=True, check=True).stdout)
            states = [run["state"] for run in shown["runs"]]
            if states.count("FAILED") == 2 and states.count("RUNNING") == 3:
                break
            if time.monotonic() > until:
                raise SystemExit(f"the jobs do not get there: {states}")
            time.sleep(0.5)
        ids = ",".join(run["job"]["id"] for run in shown["runs"] if run["job"])
        measured = {
            "hpcmass status": status,
            "squeue": ["squeue", "--jobs", ids],
            "sacct": ["sacct", "--jobs", ids],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        times: dict[str, list[float]] = {label: [] for label in measured}
        for _ in range(rounds):
            for label, words in measured.items():
                times[label].append(seconds(words))
    print(f"{len(names)} runs, {rounds} rounds; wall clock in ms")
    for label, values in times.items():
        print(f"{label:<18}{statistics.median(values) * 1e3:>8.1f}   fastest {min(values) * 1e3:.1f}")
    value = statistics.median(times["hpcmass status"])
    print(
        json.dumps(
            {
                "name": "status_time",
                "value": round(value, 3),
                "unit": "s",
                "goal": GOAL_S,
                "met": value < GOAL_S,
            }
        )
    )


if __name__ == "__main__":
    main()
