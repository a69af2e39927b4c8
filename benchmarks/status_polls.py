"""How many Slurm commands it takes to follow many jobs, and how long a poll is, on a cluster of its own.

    python benchmarks/status_polls.py [--quick]

500 jobs (half of them one by one, half an array; some held, some cancelled) are followed by `Slurm.jobs`: one
squeue and one sacct a poll, whatever the number. Where no Slurm is installed it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from hpcmass.devcluster import Cluster, missing_packages
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState

GOAL = 2


def submit(slurm: Slurm, folder: Path, count: int) -> list[str]:
    """Held jobs: half of them one by one, half an array; every tenth is cancelled."""
    script = folder / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --hold --time=5 --output=/dev/null\ntrue\n")
    ids = [slurm.run(["sbatch", "--parsable", str(script)]).strip() for _ in range(count // 2)]
    rest = count - len(ids)
    array = slurm.run(["sbatch", "--parsable", f"--array=0-{rest - 1}", str(script)]).strip()
    ids += [f"{array}_{index}" for index in range(rest)]
    slurm.cancel(ids[::10])
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 polls instead of 30")
    polls = 5 if parser.parse_args().quick else 30
    if missing := missing_packages():
        print(f"no Slurm here: apt-get install {' '.join(missing)}")
        print(json.dumps({"name": "status_polls", "value": None, "unit": "calls", "goal": GOAL, "met": None}))
        return
    folder = Path(tempfile.mkdtemp(prefix="hpcmass-bench-"))
    cluster = Cluster.up(folder / "cluster")
    try:
        slurm = Slurm(cluster.env)
        ids = submit(slurm, folder, 500)
        calls, times = [], []
        for _ in range(polls):
            before, started = slurm.calls, time.perf_counter()
            infos = slurm.jobs(ids)
            times.append(time.perf_counter() - started)
            calls.append(slurm.calls - before)
        states = {state.value: sum(info.state is state for info in infos.values()) for state in JobState}
        cluster.run("scancel", "--user", str(os.getuid()))
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(ids)} jobs: {', '.join(f'{count} {name}' for name, count in states.items() if count)}")
    print(f"{polls} polls: median {statistics.median(times) * 1e3:.0f} ms, slowest {max(times) * 1e3:.0f} ms")
    met = max(calls) <= GOAL and states["PENDING"] == 450 and states["CANCELLED"] == 50
    figure = {"name": "status_polls", "value": max(calls), "unit": "calls", "goal": GOAL, "met": met}
    print(json.dumps({**figure, "jobs": len(ids), "poll_s": round(statistics.median(times), 3)}))


if __name__ == "__main__":
    main()
