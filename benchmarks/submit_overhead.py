"""What `hpcmass submit` takes beyond `sbatch` of the same script, on a development cluster of its own.

    python benchmarks/submit_overhead.py [--quick]

Each round submits a new run with the command line, as a user would, and then the script that it wrote with
sbatch alone. The jobs are held, so that none of them runs meanwhile. Medians; aim: at most 0.4 s more. Where no
Slurm is installed it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpcmass.config import load_site, site_to_toml
from hpcmass.devcluster import Cluster, missing_packages

AIM_S = 0.4
JOB = 'name = "own"\ncommand = ["true"]\n'


def seconds(command: list[str], env: dict[str, str], cwd: Path) -> float:
    """Wall clock of one command."""
    started = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, cwd=cwd, check=True)
    return time.perf_counter() - started


def measure(cluster: Cluster, project: Path, rounds: int) -> dict[str, list[float]]:
    """Wall clock of each way, by round; the first is not counted (it compiles, and fills the page cache)."""
    env = {name: value for name, value in cluster.env.items() if name != "PYTHONDONTWRITEBYTECODE"}
    site = load_site(cluster.site_file)
    held = site.targets["cpu"].model_copy(update={"sbatch": {"hold": ""}})
    (project / "site.toml").write_text(site_to_toml(site.model_copy(update={"targets": {"cpu": held}})))
    (project / "hpcmass.toml").write_text('name = "bench"\nsite = "site.toml"\n')
    (project / "job.toml").write_text(JOB)
    installed = Path(sys.executable).parent / "hpcmass"
    call = [str(installed)] if installed.exists() else [sys.executable, "-m", "hpcmass"]
    times: dict[str, list[float]] = {"sbatch": [], "hpcmass submit": [], "python -c pass": []}
    for number in range(rounds + 1):
        name = f"run-{number}"
        ours = seconds([*call, "submit", "job.toml", "--run", name], env, project)
        script = project / "runs" / name / "slurm" / "job-0001.sbatch"
        theirs = seconds(["sbatch", str(script)], env, project)
        bare = seconds([sys.executable, "-c", "pass"], env, project)
        if number:
            times["hpcmass submit"].append(ours)
            times["sbatch"].append(theirs)
            times["python -c pass"].append(bare)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 rounds instead of 40")
    rounds = 8 if parser.parse_args().quick else 40
    if missing := missing_packages():
        print(f"no Slurm here: apt-get install {' '.join(missing)}")
        print(json.dumps({"name": "submit_overhead", "value": None, "unit": "s", "goal": AIM_S, "met": None}))
        return
    folder = Path(tempfile.mkdtemp(prefix="hpcmass-bench-"))
    project = folder / "project"
    project.mkdir()
    cluster = Cluster.up(folder / "cluster", accounting=False)
    try:
        times = measure(cluster, project, rounds)
        cluster.run("scancel", "--user", str(os.getuid()))
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{rounds} rounds; wall clock in ms")
    for label, values in times.items():
        print(f"{label:<18}median {statistics.median(values) * 1e3:7.1f}  fastest {min(values) * 1e3:7.1f}")
    pairs = zip(times["hpcmass submit"], times["sbatch"], strict=True)
    more = statistics.median(ours - theirs for ours, theirs in pairs)
    figure = {
        "name": "submit_overhead",
        "value": round(more, 3),
        "unit": "s",
        "goal": AIM_S,
        "met": more <= AIM_S,
    }
    fastest = min(times["hpcmass submit"]) - min(times["sbatch"])
    print(json.dumps({**figure, "fastest_s": round(fastest, 3)}))


if __name__ == "__main__":
    main()
