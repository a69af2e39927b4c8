"""Batch prediction as people ask for it: a model by name, a dataset's folder, a folder for what comes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpcmass.errors import DataError
from hpcmass.evaluate.batch import Place, Progress, predict_dataset, workers_for
from hpcmass.evaluate.batch_plan import BatchPlan
from hpcmass.evaluate.models import resolve_bundle
from hpcmass.launch import detect_ranks
from hpcmass.workflow.models import dataset_path
from hpcmass.workflow.projects import ProjectRef, maybe_project


def predict_into(
    model: str,
    dataset: str | Path,
    out: Path,
    project: ProjectRef = None,
    *,
    kind: str = "hdf5",
    keep: Sequence[str] | None = None,
    part_samples: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[BatchPlan, bool]:
    """Predict for every sample of a dataset; under mpiexec, srun or torchrun all ranks together.

    Args:
        model: `NAME`, `NAME@3` or `NAME@production` of the catalogue, a run's name, or a folder.
        dataset: The dataset's folder, from the working folder or from the project folder.
        out: The folder of the predictions; the same call goes on with what is there.
        project: The project to look in.
        kind: `hdf5` or `parquet`.
        keep: Fields that go along; default: those of role `meta`.
        part_samples: Samples a part; default: by their size.
        workers: Processes of each rank; default: its share of the cores.
        progress: Called as progress(samples done, all samples).

    Returns:
        What was made, and whether it is complete; rank 0 returns when it is.

    Raises:
        NotFound: There is no such model or dataset.
        DataError: What was begun in `out` is something else.
    """
    found = maybe_project(project)
    meant, path = resolve_bundle(model, found), dataset_path(dataset, found)
    if path.is_file():
        raise DataError(
            "is a file, and a folder of predictions is made of a dataset's folder",
            where=path,
            hint="for a file: --out with .json, .csv or .npz; or make it a dataset with hpcmass shard",
        )
    place = detect_ranks(os.environ)
    return predict_dataset(
        meant.folder,
        path,
        out,
        name=meant.told if "@" in meant.told and os.sep not in meant.told else "",
        kind=kind,
        keep=keep,
        part_samples=part_samples,
        place=Place(place.rank, place.size, workers_for(place.local_size, workers)),
        progress=progress,
    )
