"""A study of 100,000 finished trials: how long it takes to open, and to ask and tell one more.

    python benchmarks/study_scale.py [--quick] [--trials N]

    open          the driver's own way: log and snapshot read, trials' folders listed, sampler ready to be asked
    ask + tell    one trial, five dimensions; random, and TPE over its bounded history, medians of 300
    optuna        the same study as `optuna.load_study` has it, all trials in memory, for comparison

Goals: open < 1 s, random < 1 ms, TPE < 50 ms; the value is the worst share of a goal, of medians of 5.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmass.config import Job, job_from_values
from hpcmass.files import LogReader, LogWriter, make_dir
from hpcmass.sweep.log import header_of, log_folder
from hpcmass.sweep.trials import Trials

OPENED = 5
ASKED = 300
GOALS_S = {"open": 1.0, "random": 1e-3, "tpe": 50e-3}
_SPACE = {f"x{place}": {"type": "float", "low": 0.0, "high": 1.0} for place in range(5)}


def job_of(sampler: str, trials: int) -> Job:
    table = {"sampler": sampler, "trials": 2 * trials, "space": _SPACE}
    return job_from_values({"name": "big", "command": ["true"], "sweep": table})


def lay_down(root: Path, trials: int) -> None:
    """The study's log as a driver leaves it, and the trials' folders, which are all but empty: the log is believed."""
    job, draw = job_of("random", trials), random.Random(0)
    assert job.sweep is not None
    header = header_of(job.name, job.sweep)

    def records() -> Iterator[list[Any]]:
        yield ["study", header]
        for number in range(trials):
            folder = root / "trials" / f"{number:06d}"
            os.mkdir(folder)
            if number >= trials - 1000:  # the newest are looked up
                (folder / "outcome.json").touch()
            params = {name: draw.random() for name in _SPACE}
            loss = sum((value - 0.3) ** 2 for value in params.values())
            curve = [[step, loss + 1 / step] for step in (1, 2, 3)]
            at = 1_790_000_000.123 + number
            trial = {"number": number, "params": params, "told": max(0, number - 2), "at": at}
            ended = {"state": "complete", "value": curve[-1][1], "values": json.dumps(curve), "attempts": 1,
                     "order": number, "seconds": 12.345, "measured": {"loss": curve[-1][1]}, "at": at}  # fmt: skip
            yield ["trial", trial, ended]

    make_dir(root / "trials")
    told = Trials(root)
    told.apply(records())
    LogWriter(LogReader(log_folder(root)), durable=False).snapshot(told.records())


def measure(root: Path, sampler: str, trials: int) -> tuple[float, float]:
    """Seconds to open, and of one ask and tell."""
    from hpcmass.sweep.history import TrialHistory
    from hpcmass.sweep.log import StudyLog
    from hpcmass.sweep.study import Study
    from hpcmass.sweep.trials import no_collection

    if sampler == "tpe":
        import hpcmass.sweep.window  # noqa: F401  # importing Optuna is no part of it
    table = job_of(sampler, trials).sweep
    assert table is not None
    began = time.perf_counter()
    log = StudyLog(root, "big", table)
    with no_collection():
        study = Study(table, TrialHistory(table, log.trials))
    opened_s, each = time.perf_counter() - began, []
    assert len(log.trials) == trials
    for number in range(trials, trials + ASKED):
        began = time.perf_counter()
        params = study.ask(number)
        assert params is not None
        study.tell(number, "complete", sum((value - 0.3) ** 2 for value in params.values()))
        each.append(time.perf_counter() - began)
    log.close()
    return opened_s, statistics.median(each)


def by_optuna(root: Path) -> float:
    import optuna

    from hpcmass.sweep.storage import StudyStorage

    began = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.load_study(study_name=None, storage=StudyStorage(root)).get_trials(deepcopy=False)
    return time.perf_counter() - began


def in_process(*words: str) -> Any:
    """A measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--only", *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        root, what, trials = arguments.only
        found = by_optuna(Path(root)) if what == "optuna" else measure(Path(root), what, int(trials))
        print(json.dumps(found))
        return
    trials = arguments.trials or (10_000 if arguments.quick else 100_000)
    took: dict[str, list[float]] = {"open": [], "random": [], "tpe": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "big"
        lay_down(root, trials)
        for _ in range(1 if arguments.quick else OPENED):
            for sampler in ("random", "tpe"):
                opened_s, each_s = in_process(str(root), sampler, str(trials))
                took["open"].append(opened_s)
                took[sampler].append(each_s)
        optuna_s = in_process(str(root), "optuna", str(trials))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, seconds in medians.items():
        print(f"{name:8} {1e3 * seconds:9.3f} ms, goal {1e3 * GOALS_S[name]:g} ms")
    print(f"{'optuna':8} {1e3 * optuna_s:9.1f} ms to have all trials by optuna.load_study")
    worst = max(seconds / GOALS_S[name] for name, seconds in medians.items())
    figure = {
        "name": "study_scale",
        "value": round(worst, 3),
        "unit": "of the goal, the worst of three",
        "goal": 1.0,
    }
    print(json.dumps({**figure, "met": worst <= 1, "seconds": medians, "trials": trials}))


if __name__ == "__main__":
    main()
