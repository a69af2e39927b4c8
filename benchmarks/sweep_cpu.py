"""What a trial costs the driver's own process: CPU a trial of a no-op objective, against bare Parsl.

    python benchmarks/sweep_cpu.py [--quick] [--trials N]

    parsl       no-op apps through Parsl's own data-flow kernel, two in flight, on the very same executor
    hpcmass     the driver: draws, lays down the run folder, submits, judges, counts, all of it durably

CPU is the driver process's own, user and system; workers and Parsl's interchange are other processes.
Interleaved rounds, medians; trust the ratio. Goal: at most 1.3 times bare Parsl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from parsl import python_app

from hpcmass.config import Job, Target, job_from_values, job_to_toml, job_with
from hpcmass.sweep.driver import run_study
from hpcmass.sweep.records import TrialSpec
from hpcmass.workflow.pool import Pool, open_pool

GOAL = 1.3
ROUNDS = 3
WORKERS = 2


def noop() -> int:
    return 0


def noop_trial(path: str) -> str:
    """The least that makes a run: a value, and the word that it is completed."""
    from hpcmass.runs import RunFolder, State  # Workers get this function without its module.

    run = RunFolder(path)
    run.append({"kind": "report", "step": 1, "loss": 1.0})
    run.update(state=State.COMPLETED, attempt=1, step=1)
    return path


def by_parsl(app: Callable[[], Future[Any]], trials: int) -> None:
    running: set[Future[Any]] = set()
    for _ in range(trials):
        if len(running) == WORKERS:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        running.add(app())
    for future in running:
        future.result()


def by_driver(
    pool: Pool,
    trials: int,
    folder: Path,
    sampler: str = "random",
    function: Callable[[str], str] = noop_trial,
) -> None:
    job: Job = job_from_values(
        {
            "name": "noop",
            "command": ["true"],
            "sweep": {
                "sampler": sampler,
                "trials": trials,
                "parallel": WORKERS,
                "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
            },
        }
    )

    class Submit:
        def submit(self, trial: TrialSpec) -> Future[Any]:
            return pool.run(function, str(trial.path))

    @contextlib.contextmanager
    def workers() -> Iterator[Submit]:
        yield Submit()

    def prepare(trial: TrialSpec) -> None:
        made = job_with(job, trial.overrides).model_copy(update={"sweep": None})
        trial.run.create(job_to_toml(made), "")

    result = run_study(job, folder, workers=workers, prepare=prepare)
    assert result.counts["complete"] == trials


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int)
    arguments = parser.parse_args()
    trials = arguments.trials or (200 if arguments.quick else 2000)
    used: dict[str, list[float]] = {"parsl": [], "hpcmass": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        with open_pool(Target(), parallel=WORKERS, folder=root / "pool") as pool:
            app = python_app(noop, data_flow_kernel=pool._kernel)
            ways: dict[str, Callable[[int, Path], None]] = {
                "parsl": lambda count, _: by_parsl(app, count),
                "hpcmass": lambda count, folder: by_driver(pool, count, folder),
            }
            for name, way in ways.items():
                way(20, root / f"warm-{name}")
            for number in range(ROUNDS):
                for name, way in ways.items():
                    began, start = time.process_time(), time.monotonic()
                    way(trials, root / f"{name}-{number}")
                    used[name].append(1e6 * (time.process_time() - began) / trials)
                    rate = 60 * trials / (time.monotonic() - start)
                    print(
                        f"{name:8} {used[name][-1]:6.0f} us of CPU a trial, {rate:6.0f} trials a minute",
                        flush=True,
                    )
    medians = {name: round(statistics.median(values)) for name, values in used.items()}
    ratio = round(medians["hpcmass"] / medians["parsl"], 3)
    figure = {"name": "sweep_cpu", "ratio": ratio, "unit": "of bare Parsl's CPU a task", "goal": GOAL}
    print(json.dumps({**figure, "met": ratio <= GOAL, "us_a_trial": medians, "trials": trials}))


if __name__ == "__main__":
    main()
