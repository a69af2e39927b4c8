"""A regression on a scientific table, from the raw table to a version in the catalogue.

    python workflows/flights/run.py [FOLDER] [--ranks 2] [--quick]

Run again, it resumes what is there; README.md beside this file shows the same as commands.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

import numpy as np
from prepare import CATEGORIES, package_folder, write_table

import hpcmass
from hpcmass.cli import console
from hpcmass.config import Project
from hpcmass.errors import HpcmassError
from hpcmass.workflow import api

HERE = Path(__file__).resolve().parent
# All flights of a day go into one split: a bad day's flights are late together.
CUT = {"strategy": "grouped", "by": "day", "splits": {"train": 0.8, "valid": 0.1, "test": 0.1}, "shards": 4,
       "target_fields": ["arr_delay"], "meta_fields": ["day"], "categories": CATEGORIES}  # fmt: skip
QUICK_ROWS, QUICK = 40_000, ["train.epochs=4", "train.global_batch=256"]


def arguments_of(about: str | None, folder: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(folder), help="the project [%(default)s]")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the training [%(default)s]")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} flights instead of 325,724")
    return parser.parse_args()


def shard_flights(project: Project, quick: bool) -> None:
    """The raw table → HDF5 shards, a field a column."""
    if (project.data / "flights").exists():
        print("resumed: data/flights is there already")
        return
    package_folder()
    raw = project.data / "flights.csv"
    if not raw.exists():
        write_table(raw, QUICK_ROWS if quick else None)
    print(f"{console.relative(raw)}, {console.size(raw.stat().st_size)}")
    for where, manifest in api.shard([str(raw)], project.data / "flights", **CUT):
        print(f"{console.relative(where)}: {manifest.samples} flights in {len(manifest.shards)} shards")


def trained(project: Project, job: Any, sets: list[str], ranks: int) -> Any:
    run, status = hpcmass.train_job(job, project=project, sets=sets, ranks=ranks)
    if status.state.value != "COMPLETED":
        sys.exit(f"the run ended as {status.state.value}: {status.reason}\n  see: hpcmass why {run.path}")
    return run


def errors_of(guess: Any, truth: Any) -> tuple[float, float]:
    """Mean absolute error (minutes) and R²."""
    off = guess - truth
    return float(np.abs(off).mean()), float(1 - (off**2).sum() / ((truth - truth.mean()) ** 2).sum())


def baselines(project: Project) -> dict[str, tuple[float, float]]:
    """What is to be beaten on the test split: a constant, no thought at all, and a linear model."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    train, test = (hpcmass.open_dataset(project.data / "flights" / split) for split in ("train", "test"))
    known, asked = (dataset.batch(np.arange(len(dataset))) for dataset in (train, test))
    words = [number for number, name in enumerate(train.inputs) if train.classes(name)]
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), words), remainder=StandardScaler()
    )
    ridge = make_pipeline(columns, Ridge())
    ridge.fit(np.column_stack([known[name] for name in train.inputs]), known["arr_delay"])
    linear = ridge.predict(np.column_stack([asked[name] for name in train.inputs]))
    truth = asked["arr_delay"]
    return {
        "always the mean delay": errors_of(np.full(len(test), known["arr_delay"].mean()), truth),
        "arrives as late as it left": errors_of(asked["dep_delay"], truth),
        "ridge regression": errors_of(linear, truth),
    }


def compare(project: Project, measured: dict[str, Any]) -> None:
    """A table of the baselines and of evaluations by name."""
    rows = {**baselines(project), **{name: (e.metrics["mae"].value, e.metrics["r2"].value)
                                     for name, e in measured.items()}}  # fmt: skip
    console.table([(name, f"{mae:.2f}", f"{r2:.3f}") for name, (mae, r2) in rows.items()],
                  ["delay on arrival, test days", "mean error, min", "R²"])  # fmt: skip


def predict(project: Project, name: str) -> None:
    """Ten flights through the model as anybody would load it."""
    model = hpcmass.load(f"{name}@production", project=project)
    test = hpcmass.open_dataset(project.data / "flights" / "test")
    batch = test.batch(np.random.default_rng(0).choice(len(test), 10, replace=False))
    late = model({field: batch[field] for field in test.inputs})
    names = {field: test.classes(field) for field in ("carrier", "origin", "dest")}
    console.table(
        [
            (*(names[field][batch[field][i]] for field in names), f"{batch['dep_delay'][i]:.0f}",
             f"{late[i]:.0f}", f"{batch['arr_delay'][i]:.0f}")
            for i in range(10)
        ],
        ["carrier", "from", "to", "left late, min", "predicted", "arrived late"],
    )  # fmt: skip


def main() -> None:
    began, arguments = time.monotonic(), arguments_of(__doc__, "flights")
    project = api.make_project(arguments.folder)
    print("[1/4] the table into HDF5 shards: no day is in two of train, valid, test")
    shard_flights(project, arguments.quick)
    print("\n[2/4] a network on numbers and categories", flush=True)
    run = trained(project, HERE / "job.toml", QUICK if arguments.quick else [], arguments.ranks)
    print("\n[3/4] the untouched test days, beside what costs nothing")
    evaluation = api.evaluate_model(run.path, project.data / "flights" / "test", project)
    compare(project, {"the network": evaluation})
    print(evaluation.headline("test"))
    version = api.keep_run(run, project, evaluation=evaluation, why="workflows/flights/run.py")
    print(f"\n[4/4] {version.ref} is {version.name}@production; ten flights with it")
    predict(project, version.name)
    print(f"\ndone in {time.monotonic() - began:.0f} s; everything lies in {console.relative(project.root)}/")


if __name__ == "__main__":
    try:
        main()
    except HpcmassError as error:
        sys.exit(f"error: {error}")
