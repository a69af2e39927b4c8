"""How much of its workers' time a sweep wastes: trials of uneven length on two targets of a real Slurm.

    python benchmarks/sweep_idle.py [--quick] [--trials N]

Trials sleep for 2 to 20 s (`--quick`: 1 to 8 s), drawn at random, on two slots of each of three nodes of `cpu` and
three of each of two nodes of `gpu`; as many are under way as there are slots. A worker is idle between the end of a
trial and the beginning of its next one, as the workers themselves wrote down, from its own first trial on, as long as
there is a trial that nobody has begun. What is told beside it: how long the first workers were waited for.
Starts a development cluster of its own, and ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])
sys.path.insert(0, str(Path(__file__).parent))

from _slurm import cluster, project

from hpcmass.config import Project, Site, load_job, load_site
from hpcmass.files import read_records
from hpcmass.sweep.records import read_trials
from hpcmass.workflow.sweeps import sweep

GOAL = 0.03
TARGETS = {"cpu": (3, 2), "gpu": (2, 3)}  # nodes, slots a node
SLOTS = sum(nodes * slots for nodes, slots in TARGETS.values())


def job_file(made: Project, trials: int, low: float, high: float) -> Path:
    file = made.root / "sweep.toml"
    file.write_text(f"""
name = "uneven"
command = ["sleep", "{{seconds}}"]

[resources]
gpus_per_rank = 0

[sweep]
sampler = "random"
trials = {trials}
parallel = {SLOTS}
metric = "train_s"
targets = {json.dumps(list(TARGETS))}

[sweep.space]
seconds = {{ type = "float", low = {low}, high = {high} }}
""")
    return file


def site_of(file: Path) -> Site:
    site = load_site(file)
    targets = {
        name: site.targets[name].model_copy(update={"cores": slots, "max_blocks": nodes})
        for name, (nodes, slots) in TARGETS.items()
    }
    return site.model_copy(update={"targets": targets})


def held(study: Path) -> dict[tuple[str, str, int], list[tuple[float, float]]]:
    """By worker, when it had a trial: beginning and end, epoch seconds."""
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for spec, _ in read_trials(study):
        began: dict[int, tuple[tuple[str, str, int], float]] = {}
        for record in read_records(spec.path / "slots.jsonl"):
            if record["kind"] == "begin":
                worker = (record["job_id"], record["node"], record["slot"])
                began[record["attempt"]] = (worker, record["time"])
            else:
                worker, begin = began.pop(record["attempt"])
                found.setdefault(worker, []).append((begin, record["time"]))
    return {worker: sorted(spans) for worker, spans in found.items()}


def idle_share(spans: dict[tuple[str, str, int], list[tuple[float, float]]]) -> tuple[float, list[float]]:
    """Which part of the workers' time, while trials remained, they had none; and every gap, in seconds."""
    last = max(begin for mine in spans.values() for begin, _ in mine)
    idle, there, gaps = 0.0, 0.0, []
    for mine in spans.values():
        there += max(0.0, last - mine[0][0])
        ends = [min(end, last) for _, end in mine]
        begins = [*(begin for begin, _ in mine[1:]), last]
        for end, begin in zip(ends, begins, strict=True):
            idle += max(0.0, begin - end)
            if begin > end and begin < last:
                gaps.append(begin - end)
    return idle / there, sorted(gaps)


def main() -> int:
    parser = argparse.ArgumentParser(description="Idle workers of a sweep.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int)
    options = parser.parse_args()
    trials = options.trials or (60 if options.quick else 200)
    low, high = (1.0, 8.0) if options.quick else (2.0, 20.0)
    with cluster() as started, project() as made:
        job = load_job(job_file(made, trials, low, high))
        began = time.time()
        result = sweep(job, made, site_of(Path(started.site_file)))
        wall_s = time.time() - began
        assert result.counts["complete"] == trials, result.counts
        spans = held(result.folder)
        share, gaps = idle_share(spans)
        targets = {
            record["target"]
            for record in read_records(result.folder / "attempts.jsonl")
            if record.get("target")
        }
        first_s = min(begin for mine in spans.values() for begin, _ in mine) - began
    print(f"{trials} trials on {len(spans)} workers of {', '.join(sorted(targets))}: {wall_s:.0f} s")
    print(
        f"the first trial began after {first_s:.1f} s; a gap between two: median {1e3 * gaps[len(gaps) // 2]:.0f} ms,"
    )
    print(f"95 % {1e3 * gaps[int(0.95 * len(gaps))]:.0f} ms, worst {1e3 * gaps[-1]:.0f} ms")
    print(f"idle {100 * share:.2f} % (goal: at most {100 * GOAL:.0f} %)")
    print(
        json.dumps(
            {
                "figure": "sweep_idle",
                "trials": trials,
                "workers": len(spans),
                "idle": round(share, 5),
                "gap_median_ms": round(1e3 * gaps[len(gaps) // 2], 1),
                "gap_p95_ms": round(1e3 * gaps[int(0.95 * len(gaps))], 1),
                "wall_s": round(wall_s, 1),
                "goal": GOAL,
                "met": share <= GOAL and targets == set(TARGETS),
            }
        )
    )
    return 0 if share <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
