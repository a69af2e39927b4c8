"""No-op trials a minute with two local workers, against other drivers of hyperparameter searches.

    python benchmarks/sweep_peers.py [--quick] [--trials N] [--peer-python PYTHON]

    hpcmass     the driver over its Parsl workers, with its run folders, TPE
    optuna      two processes on one journal file, TPE, no-op objectives in the processes themselves
    ray         Ray Tune, random, two trials at once          (of --peer-python, where it is installed)
    deephyper   CBO with its process evaluator, two workers   (likewise)

Start-up is left out for all. Interleaved rounds, medians; trust the ratio: hpcmass to the quickest of the others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from sweep_cpu import WORKERS, by_driver

from hpcmass.config import Target
from hpcmass.workflow.pool import open_pool

ROUNDS = 3
RAY = """
import sys, time, ray
from ray import tune
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
def noop(config):
    return {"loss": config["x"]}
def search(count):
    tuner = tune.Tuner(noop, param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=2, metric="loss", mode="min"),
        run_config=tune.RunConfig(verbose=0))
    assert len(tuner.fit()) == count
search(4)
began = time.monotonic()
search(int(sys.argv[1]))
print(time.monotonic() - began)
"""
DEEPHYPER = """
import sys, tempfile, time
from deephyper.hpo import CBO, HpProblem
from deephyper.evaluator import Evaluator
def noop(job):
    return job.parameters["x"]
if __name__ == "__main__":
    problem = HpProblem()
    problem.add_hyperparameter((0.0, 1.0), "x")
    def search(count):
        evaluator = Evaluator.create(noop, method="process", method_kwargs={"num_workers": 2})
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = CBO(problem, evaluator, log_dir=folder).search(max_evals=count)
            except TypeError:
                found = CBO(problem, log_dir=folder).search(evaluator, max_evals=count)
        assert len(found) >= count
    search(4)
    began = time.monotonic()
    search(int(sys.argv[1]))
    print(time.monotonic() - began)
"""


def noop_trial(path: str) -> str:
    """As `sweep_cpu.noop_trial`; workers get a function of the main program only without its module."""
    from hpcmass.runs import RunFolder, State

    run = RunFolder(path)
    run.append({"kind": "report", "step": 1, "loss": 1.0})
    run.update(state=State.COMPLETED, attempt=1, step=1)
    return path


def _optuna_worker(file: str, trials: int, gate: Any) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(file)))
    gate.wait()
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=trials)


def by_optuna(trials: int, folder: Path) -> float:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = str(folder / "journal.log")
    optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(file)))
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(WORKERS + 1)
    workers = [
        context.Process(target=_optuna_worker, args=(file, trials // WORKERS, gate)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    gate.wait()
    began = time.monotonic()
    for worker in workers:
        worker.join()
    return time.monotonic() - began


def by_peer(python: str, program: str, trials: int, folder: Path) -> float | None:
    """Seconds that a peer's program says, or None where it cannot be run."""
    file = folder / "peer.py"
    file.write_text(program, encoding="utf-8")
    done = subprocess.run([python, str(file), str(trials)], capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        print(done.stderr.strip().splitlines()[-1:])
        return None
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--peer-python", help="a Python with ray[tune] and deephyper")
    arguments = parser.parse_args()
    trials = arguments.trials or (100 if arguments.quick else 500)
    peers = {"ray": RAY, "deephyper": DEEPHYPER} if arguments.peer_python else {}
    rates: dict[str, list[float]] = {name: [] for name in ("hpcmass", "optuna", *peers)}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        with open_pool(Target(), parallel=WORKERS, folder=root / "pool") as pool:
            by_driver(pool, 10, root / "warm", "tpe", noop_trial)
            for number in range(1 if arguments.quick else ROUNDS):
                folder = root / f"round-{number}"
                folder.mkdir()
                began = time.monotonic()
                by_driver(pool, trials, folder / "study", "tpe", noop_trial)
                rates["hpcmass"].append(60 * trials / (time.monotonic() - began))
                rates["optuna"].append(60 * trials / by_optuna(trials, folder))
                for name, program in peers.items():
                    few = min(trials, 60)
                    if (seconds := by_peer(arguments.peer_python, program, few, folder)) is not None:
                        rates[name].append(60 * few / seconds)
    medians = {name: round(statistics.median(values)) for name, values in rates.items() if values}
    ratio = round(medians["hpcmass"] / max(rate for name, rate in medians.items() if name != "hpcmass"), 3)
    figure = {
        "name": "sweep_peers",
        "ratio": ratio,
        "unit": "of the quickest other's trials a minute",
        "goal": 1.0,
    }
    print(json.dumps({**figure, "met": ratio >= 1, "trials_a_minute": medians, "trials": trials}))


if __name__ == "__main__":
    main()
