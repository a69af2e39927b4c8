"""What a trial costs beside its own work: no-op trials a minute with two workers, three ways.

    python benchmarks/sweep_overhead.py [--quick] [--trials N]

    by hand     Optuna ask and tell in memory, no-ops through the same Parsl pool, nothing on disk
    by hand+    the same, and by hand the three files a trial needs to survive a kill (drawn, run, outcome)
    hpcmass     the driver: the trial's record, a whole run folder, its outcome, each written durably

Goal: at least 600 trials a minute (a trial of a minute then pays 0.2 %), and at least half of `by hand+`,
which keeps as little as can be kept. Three interleaved rounds, medians; trust the ratios.
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

import optuna

from hpcmass.config import Job, Target, job_from_values, job_to_toml, job_with
from hpcmass.files import publish_json
from hpcmass.sweep.driver import run_study
from hpcmass.sweep.records import TrialSpec
from hpcmass.workflow.pool import Pool, open_pool

GOAL = 0.5
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


def by_hand(pool: Pool, trials: int, keep: Path | None) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    running: dict[Future[Any], optuna.Trial] = {}
    for _ in range(trials):
        if len(running) == WORKERS:
            settle(study, running, keep)
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        if keep is not None:
            publish_json(keep / f"{trial.number}" / "trial.json", trial.params)
            publish_json(keep / f"{trial.number}" / "job.json", trial.params)
        running[pool.run(noop)] = trial
    while running:
        settle(study, running, keep)


def settle(study: optuna.Study, running: dict[Future[Any], optuna.Trial], keep: Path | None) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        trial = running.pop(future)
        future.result()
        study.tell(trial, 1.0)
        if keep is not None:
            publish_json(keep / f"{trial.number}" / "outcome.json", {"value": 1.0})


def by_driver(pool: Pool, trials: int, folder: Path) -> None:
    job: Job = job_from_values(
        {
            "name": "noop",
            "command": ["true"],
            "sweep": {
                "sampler": "random",
                "trials": trials,
                "parallel": WORKERS,
                "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
            },
        }
    )

    class Submit:
        def submit(self, trial: TrialSpec) -> Future[Any]:
            return pool.run(noop_trial, str(trial.path))

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
    trials = arguments.trials or (50 if arguments.quick else 200)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[str, list[float]] = {"by hand": [], "by hand+": [], "hpcmass": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        began = time.monotonic()
        with open_pool(Target(), parallel=WORKERS, folder=root / "pool") as pool:
            pool.run(noop).result()
            first_s = time.monotonic() - began
            pool.run(noop_trial, str(warm(root))).result()
            for round_number in range(ROUNDS):
                ways: dict[str, Callable[[Path], None]] = {
                    "by hand": lambda _: by_hand(pool, trials, None),
                    "by hand+": lambda folder: by_hand(pool, trials, folder),
                    "hpcmass": lambda folder: by_driver(pool, trials, folder),
                }
                for name, way in ways.items():
                    start = time.monotonic()
                    way(root / f"{name}-{round_number}")
                    rates[name].append(60 * trials / (time.monotonic() - start))
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    ratio = round(medians["hpcmass"] / medians["by hand+"], 3)
    print(f"{trials} trials a way and round, first task after {first_s:.1f} s")
    figure = {"name": "sweep_overhead", "ratio": ratio, "unit": "of the same files by hand", "goal": GOAL}
    print(json.dumps({**figure, "met": ratio >= GOAL, "trials_a_minute": medians}))


def warm(root: Path) -> Path:
    from hpcmass.runs import RunFolder

    folder = root / "warm"
    RunFolder(folder).create("", "")
    return folder


if __name__ == "__main__":
    main()
