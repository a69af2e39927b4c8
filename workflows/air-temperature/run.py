"""An autoencoder on scientific HDF5, from the NetCDF-4 files to a version in the catalogue.

    python workflows/air-temperature/run.py [FOLDER] [--quick]

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
from prepare import source_file

import hpcmass
from hpcmass.cli import console
from hpcmass.config import Project
from hpcmass.errors import HpcmassError
from hpcmass.workflow import api

HERE = Path(__file__).resolve().parent
FIELD = "air_temperature"
# Until 1999 both scenarios are the same run: only the years from 2000 on of the second one are new.
CUTS = {
    "a1b": ("A1B", {"splits": {"train": 0.85, "valid": 0.15}, "shards": 2}),
    "e1": ("E1", {"splits": {"past": 140 / 240, "future": 100 / 240}, "strategy": "contiguous", "shards": 1}),
}
QUICK = ["params.width=8", "train.epochs=30"]


def shard_maps(project: Project) -> None:
    """The NetCDF-4 files → HDF5 shards, straight."""
    for name, (scenario, cut) in CUTS.items():
        if (project.data / name).exists():
            print(f"resumed: data/{name} is there already")
            continue
        source = str(source_file(scenario))
        for where, manifest in api.shard([source], project.data / name, input_fields=[FIELD], **cut):
            print(f"{console.relative(where)}: {manifest.samples} maps of {manifest.fields[0].shape}")


def maps(project: Project, split: str) -> Any:
    """All maps of a split, (n, height, width)."""
    dataset = hpcmass.open_dataset(project.data / split)
    return dataset.batch(np.arange(len(dataset)))[FIELD]


def pca(train: Any, test: Any, size: int) -> Any:
    """The test maps, reconstructed from `size` principal components of the training maps."""
    mean = train.mean(axis=0)
    _, _, axes = np.linalg.svd((train - mean).reshape(len(train), -1), full_matrices=False)
    flat = (test - mean).reshape(len(test), -1)
    return mean + (flat @ axes[:size].T @ axes[:size]).reshape(test.shape)


def picture(out: Path, rows: list[tuple[str, Any, Any]]) -> None:
    """Input, reconstruction and their difference of some years, as a PNG; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: pip install matplotlib")
        return
    figure = Figure(figsize=(11, 3 * len(rows)), layout="constrained")
    for line, (year, before, after) in zip(figure.subplots(len(rows), 3), rows, strict=True):
        for axes, title, image, spread in (
            (line[0], f"{year}, K", before, {"cmap": "viridis", "vmin": 255, "vmax": 305}),
            (line[1], "reconstructed, K", after, {"cmap": "viridis", "vmin": 255, "vmax": 305}),
            (line[2], "difference, K", after - before, {"cmap": "RdBu_r", "vmin": -2, "vmax": 2}),
        ):
            figure.colorbar(axes.imshow(image, origin="lower", **spread), ax=axes, shrink=0.8)
            axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(out, dpi=80)


def root_mean_square(difference: Any) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("air-temperature"),
                        help="the project [%(default)s]")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a smaller model, and fewer epochs")
    arguments, began = parser.parse_args(), time.monotonic()
    project = api.make_project(arguments.folder)
    print("[1/4] two NetCDF-4 files into HDF5 shards")
    shard_maps(project)
    print("\n[2/4] the autoencoder, on scenario A1B", flush=True)
    run, status = hpcmass.train_job(HERE / "job.toml", project=project,
                                    sets=QUICK if arguments.quick else ())  # fmt: skip
    if status.state.value != "COMPLETED":
        sys.exit(f"the run ended as {status.state.value}: {status.reason}\n  see: hpcmass why {run.path}")
    print("\n[3/4] the years 2000 to 2099 of scenario E1, which it never saw")
    evaluation = api.evaluate_model(run.path, project.data / "e1" / "future", project)
    version = api.keep_run(run, project, evaluation=evaluation, why="workflows/air-temperature/run.py")
    model = hpcmass.load(f"{version.name}@production", project=project)
    train, test = maps(project, "a1b/train"), maps(project, "e1/future")
    size, again = int(model.bundle.params["latent"]), model(test)
    off = {
        "the mean map": test - train.mean(axis=0),
        f"PCA, {size} numbers a map": test - pca(train, test, size),
        f"the autoencoder, {size} numbers a map": test - again,
    }
    console.table(
        [(name, f"{root_mean_square(one):.3f}", f"{np.abs(one).mean():.3f}") for name, one in off.items()],
        ["reconstruction of E1, 2000-2099", "root mean square, K", "mean error, K"],
    )
    print(evaluation.headline("test"))
    out = project.root / "air-temperature.png"
    picture(out, [(str(2000 + year), test[year], again[year]) for year in (0, 49, 99)])
    print(f"\n[4/4] {version.ref} is {version.name}@production; the picture is {console.relative(out)}")
    print(f"done in {time.monotonic() - began:.0f} s; everything lies in {console.relative(project.root)}/")


if __name__ == "__main__":
    try:
        main()
    except HpcmassError as error:
        sys.exit(f"error: {error}")
