"""Networks and gradient-boosted trees in one study; the winner is tested and becomes a version.

    python workflows/flights/trees_and_nets.py [FOLDER] [--quick]

On the shards of run.py, which are cut where they are missing. Killed and run again, it goes on with the study.
"""

from __future__ import annotations

import sys
import time

from run import HERE, arguments_of, compare, predict, shard_flights

import hpcmass
from hpcmass.cli import console
from hpcmass.cli.progress import SweepProgress
from hpcmass.config import Project, load_job
from hpcmass.errors import HpcmassError
from hpcmass.runs import RunFolder
from hpcmass.sweep import StudyResult, study_table
from hpcmass.workflow import api

NAME = "trees-and-nets"
QUICK = [
    "sweep.trials=4", "sweep.sampler='random'", "train.epochs=4", "train.global_batch=256",
    "sweep.space.learning_rate.low=0.1", "sweep.space.rounds.low=50", "sweep.space.rounds.high=80",
]  # fmt: skip


def search(project: Project, quick: bool) -> StudyResult:
    """Trials of both families, two at once under Parsl."""
    job = load_job(HERE / "sweep.toml", QUICK if quick else ())
    assert job.sweep is not None
    with SweepProgress(job.sweep.metric, job.sweep.direction, job.sweep.trials) as progress:
        result = hpcmass.run_sweep(job, project=project, on_event=progress.event)
    if result.signal:
        sys.exit("interrupted; run it again to go on")
    if not result.ran:
        print(f"resumed: all {sum(result.counts.values())} trials were done")
    return result


def best_of_each(result: StudyResult) -> dict[str, RunFolder]:
    """The completed trial with the smallest error of each family."""
    rows = [row for row in study_table(result.folder) if row.state == "complete" and row.value is not None]
    rows.sort(key=lambda row: float(row.value or 0))
    best = {}
    for row in rows:
        best.setdefault(row.params["family"], row)
    shown = []
    for family, row in best.items():
        others = {key: value for key, value in row.params.items() if key != "family"}
        shown.append((family, row.number, f"{row.value:.2f}", console.text(others)))
    console.table(shown, ["best of each", "trial", "valid mae, min", "parameters"])
    return {family: RunFolder(row.path) for family, row in best.items()}


def main() -> None:
    began, arguments = time.monotonic(), arguments_of(__doc__, "flights")
    project = api.make_project(arguments.folder)
    print("[1/4] the table into HDF5 shards")
    shard_flights(project, arguments.quick)
    print("\n[2/4] networks and boosted trees in one study", flush=True)
    best = best_of_each(search(project, arguments.quick))
    print("\n[3/4] the untouched test days")
    test = project.data / "flights" / "test"
    measured = {family: api.evaluate_model(run.path, test, project) for family, run in best.items()}
    compare(project, measured)
    winner = next(iter(best))
    version = api.keep_run(
        best[winner], project, name=NAME, evaluation=measured[winner], why="the best of the study"
    )
    print(f"\n[4/4] the winner on the validation days, {winner}: {version.ref}, {version.name}@production")
    predict(project, version.name)
    print(f"\ndone in {time.monotonic() - began:.0f} s; everything lies in {console.relative(project.root)}/")


if __name__ == "__main__":
    try:
        main()
    except HpcmassError as error:
        sys.exit(f"error: {error}")
