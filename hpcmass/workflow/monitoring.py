"""What a replica that is watched needs from the project: the reference that drift is measured against."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmass.catalogue import Catalogue, Version
from hpcmass.config import Project
from hpcmass.data import Dataset, open_dataset
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import check_name, storage_errors
from hpcmass.monitor.baseline import ROWS, Baseline, from_samples, keep_baseline, read_baseline
from hpcmass.monitor.features import Watched
from hpcmass.workflow.models import dataset_path
from hpcmass.workflow.projects import ProjectRef, maybe_project
from hpcmass.workflow.promote import meant_by

if TYPE_CHECKING:
    from hpcmass.monitor.observer import Monitor
    from hpcmass.serve.interfaces import Runner

OUTPUT_ROWS = 2048
_OUTPUT_S = 10.0
_PIECE = 64
_BYTES = 256 << 20  # of samples that are held at once


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """How a replica is watched; see `monitor.observer.Monitor`.

    Attributes:
        folder: Where windows are written.
        reference: The training data, where the model's lineage does not say; or other data to be held against.
        replica: The replica's name; default: that of its folder, else host and process.
    """

    folder: Path
    window_s: float = 60.0
    keep_samples: int = 0
    keep_answers: int = 1_000_000
    reference: str | None = None
    replica: str | None = None


def watch(
    options: MonitorOptions, version: str, ref: str, project: ProjectRef, say: Callable[[str], None]
) -> tuple[Monitor, Callable[[Runner], Baseline | None]]:
    """A monitor for a replica, and what gives its reference once the model is loaded.

    Args:
        options: How.
        version: The version's number, or `1`.
        ref: `NAME@3` where it is of the catalogue.
        project: Where it is.
        say: Told why there is no reference.

    Raises:
        StorageError: The folder cannot be made.
    """
    from hpcmass.monitor.observer import Monitor

    folder = options.folder
    with storage_errors(folder, "make the monitor's folder"):
        folder.mkdir(parents=True, exist_ok=True)
    replica = check_name(options.replica or f"{socket.gethostname()}-{os.getpid()}", "replica")
    monitor = Monitor(
        folder, replica, version,
        window_s=options.window_s, answers=options.keep_answers, keep=options.keep_samples,
        model=ref.partition("@")[0],
    )  # fmt: skip

    def baseline(runner: Runner) -> Baseline | None:
        try:
            return reference(folder, version, runner, _data(options.reference, ref, project))
        except HpcmassError as error:  # a replica serves without: drift is not measured then
            say(f"no reference to measure drift against: {error.message}")
            return None
        except Exception as error:  # whatever data and model make of each other
            say(f"no reference to measure drift against: {type(error).__name__}: {str(error)[:300]}")
            return None

    return monitor, baseline


def reference(folder: Path, version: str, runner: Runner, data: Mapping[str, list[Path]]) -> Baseline:
    """The reference of a version: the one that another replica made, or a new one.

    Args:
        folder: The monitor's.
        version: The model's.
        runner: The model, loaded.
        data: Folders of `train`, and of `held` samples that it was not trained on.

    Raises:
        HpcmassError: The data cannot be read, or do not fit the model.
    """
    found = read_baseline(folder, version)
    if found is not None:
        return found
    watched = Watched.of(runner.interface)
    sets = [open_dataset(path) for path in data["train"]]
    inputs = samples(sets, watched, ROWS)
    held = [open_dataset(path) for path in data.get("held", [])] or sets
    outputs = _outputs(runner, samples(held, watched, OUTPUT_ROWS))
    manifest = {name: one.stats for name, one in sets[0].fields.items()} if len(sets) == 1 else {}
    made = from_samples(watched, version, inputs, outputs, manifest)
    made.datasets = {"train": sets[0].id, "held": held[0].id}
    return keep_baseline(folder, made)


def samples(sets: list[Dataset], watched: Watched, limit: int) -> list[dict[str, Any]]:
    """Inputs of samples that are spread evenly over datasets, by name.

    Raises:
        NotFound: A dataset has no such field.
    """
    names = [one.name for one in watched.inputs]
    for each in sets:
        for name in names:
            if name not in each.fields:
                raise NotFound(f"the data has no field {name!r}, which the model takes", where=each.id[:12])
    total = sum(map(len, sets))
    found: list[dict[str, Any]] = []
    for each in sets:
        row_bytes = sum(each.mean_bytes(name) for name in names)
        many = min(len(each), max(1, limit * len(each) // max(total, 1)), max(256, _BYTES // max(row_bytes, 1)))
        ids = np.linspace(0, len(each) - 1, many).astype(np.int64)
        if any(name in each.ragged for name in names):
            found += [{name: each.batch([at])[name][0] for name in names} for at in ids]
            continue
        for start in range(0, many, 1024):
            batch = each.batch(ids[start : start + 1024])
            found += [{name: batch[name][i] for name in names} for i in range(len(batch[names[0]]))]
    return found


def _outputs(runner: Runner, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    runner.enter(1)
    found: list[dict[str, Any]] = []
    begun = time.monotonic()
    order = np.random.default_rng(0).permutation(len(inputs))  # should the time not suffice for all
    for start in range(0, len(inputs), _PIECE):
        piece = [inputs[i] for i in order[start : start + _PIECE]]
        shapes = [tuple(value.shape for value in one.values()) for one in piece]
        groups = [piece] if len(set(shapes)) == 1 else [[one] for one in piece]
        for group in groups:
            outputs = runner.run({name: np.stack([one[name] for one in group]) for name in group[0]})
            found += [{name: value[i] for name, value in outputs.items()} for i in range(len(group))]
        if time.monotonic() - begun > _OUTPUT_S and len(found) >= 256:
            break
    return found


def _data(named: str | None, ref: str, project: ProjectRef) -> dict[str, list[Path]]:
    """The folders of training data, and of data not trained on, of a version; or what was named instead."""
    found = maybe_project(project)
    if named is not None:
        return {"train": [dataset_path(named, found)]}
    if found is None or not ref.partition("@")[2].isdigit():
        raise NotFound("the model is not of the catalogue", hint="name its data: --training-data FOLDER")
    return data_of(Catalogue(found.catalogue).get(ref), found)


def data_of(version: Version, project: Project) -> dict[str, list[Path]]:
    """What a version was trained on (`train`), and a split that it was not (`held`).

    Raises:
        NotFound: The training data are not there any more.
    """
    made: dict[str, list[Path]] = {"train": training_paths(version, project)}
    for split in ("valid", "test"):
        try:
            path = meant_by(split, version, project)
        except HpcmassError:
            continue
        if path.is_dir():
            return {**made, "held": [path]}
    return made


def training_paths(version: Version, project: Project) -> list[Path]:
    """The folders that a version's job trained on."""
    job = version.lineage.get("job")
    data = job.get("data") if isinstance(job, dict) else None
    named = data.get("train") if isinstance(data, dict) else None
    names = [named] if isinstance(named, str) else [str(one) for one in named or []]
    paths = [project.data_path(name) for name in names]
    if not paths or not all(path.is_dir() for path in paths):
        raise NotFound(
            f"the training data of {version.ref} are not there",
            where=names[0] if names else None,
            hint="name them: --training-data FOLDER",
        )
    return paths
