"""Models exported from the catalogue: measured against their parent, and registered as made from it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.catalogue import Evaluations, Version
from hpcmass.catalogue.origin import environment
from hpcmass.config import Project
from hpcmass.data import Dataset, open_dataset
from hpcmass.errors import AlreadyExists, ConfigError, DataError, NotFound
from hpcmass.evaluate import Evaluation, evaluate
from hpcmass.evaluate.interfaces import for_model, take_inputs
from hpcmass.evaluate.latency_pair import LatencyPair, compare_latency
from hpcmass.evaluate.models import Resolved, resolve_bundle
from hpcmass.export import FORMATS, Exported, export_bundle
from hpcmass.files import fsync_dir, make_dir, storage_errors
from hpcmass.train.model import Model, load_bundle
from hpcmass.workflow.models import dataset_path
from hpcmass.workflow.projects import ProjectRef, maybe_project, project_of
from hpcmass.workflow.promote import meant_by
from hpcmass.workflow.registry import open_catalogue

Arrays = dict[str, np.ndarray[Any, Any]]
_COMPARED = 256  # samples whose outputs are compared, and the larger batch whose latency is measured
_CALIBRATED, _CALIBRATION_BATCH = 512, 64


@dataclass(frozen=True)
class Calibration:
    """What an int8 model's scales were taken from."""

    data: str
    dataset: str
    samples: int


@dataclass(frozen=True, eq=False)
class ExportReport:
    """What was exported and what is known of it.

    Attributes:
        made_from: Such as `mnist@3`.
        form: One of `hpcmass.export.FORMATS`.
        exported: The bundle, held against the model it was made from.
        data: The data set that both were measured on, as it was named.
        evaluations: Of the parent and of the exported model; None where a recipe's own metrics are needed.
        latency: Of both.
        bytes: Of both bundles.
        calibration: Of an int8 model with fixed scales.
        folder: Where it lies, if it was asked for.
        version: The new version, if it was registered.
    """

    made_from: str
    form: str
    exported: Exported
    data: str
    evaluations: tuple[Evaluation, Evaluation] | None
    latency: LatencyPair
    bytes: tuple[int, int]
    calibration: Calibration | None = None
    folder: Path | None = None
    version: Version | None = None
    changes: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """What a version is registered with: its evaluation, and what differs from its parent's."""
        found = {} if self.evaluations is None else self.evaluations[1].flat()
        before, after = self.bytes
        changes = {f"{name}_change": value for name, value in self.changes.items()}
        return {**found, **changes, **self.latency.flat(), "bytes": after, "bytes_ratio": after / before}

    def to_json(self) -> dict[str, Any]:
        """As in the version's lineage."""
        portability = self.exported.portability
        return {
            "form": self.form,
            "agreement": self.exported.agreement.to_json(),
            "latency": self.latency.to_json(),
            "changes": self.changes,
            "measured_on": self.data,
            **({"calibration": vars(self.calibration)} if self.calibration else {}),
            **({} if portability is None else portability.to_json()),
        }


def export_model(
    model: str,
    form: str,
    project: ProjectRef = None,
    *,
    to: Path | None = None,
    register: bool = False,
    name: str | None = None,
    on: str | None = None,
    calibrate: str | None = None,
    calibration_samples: int = _CALIBRATED,
) -> ExportReport:
    """Export a model, hold it against what it was made from, and keep it in a folder, the catalogue, or both.

    Args:
        model: `NAME@VERSION` or any other reference; a run or a folder where it is not to be registered.
        form: One of `hpcmass.export.FORMATS`.
        project: The project.
        to: A folder that does not exist yet, or is empty.
        register: Make it a version whose parent is the model's.
        name: The new version's model [default: the parent's name and the format, such as `mnist-int8`].
        on: What both are measured on: a data set's folder, or `test`, `valid` or `train` of the version's job
            [default: the first of these that there is].
        calibrate: What the scales of `int8` are taken from [default: the version's training data].
        calibration_samples: How many of its samples, drawn at random.

    Raises:
        RecipeError: The model has no such form, or the exported one computes something else.
        NotFound: There is no such model or data set.
        AlreadyExists: The folder has something in it.
        MissingDependency: A package is missing.
    """
    if form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}", where="--format", hint=f"use {', '.join(FORMATS)}")
    if to is None and not register:
        raise ConfigError("nothing is to be kept", hint="say --to FOLDER, --register, or both")
    found = project_of(project) if register else maybe_project(project)
    meant, version = _meant(model, found, register)
    target = None if to is None else _free(to)
    parent = load_bundle(meant.folder)
    data, folder = _data(("test", "valid", "train"), on, version, found, "--on")
    dataset = open_dataset(folder)
    samples = next(_inputs(parent, dataset, _COMPARED))
    batches: Iterator[Arrays] = iter(())
    calibration = None
    if form == "int8":
        named, where = _data(("train",), calibrate, version, found, "--calibrate")
        drawn = open_dataset(where)
        calibration = Calibration(named, drawn.id, min(calibration_samples, len(drawn)))
        batches = _drawn(parent, drawn, calibration.samples)
    with _Workshop(target) as shop:
        made = shop / "model"
        exported = export_bundle(parent, form, made, samples, calibration=batches, made_from=meant.told)
        report = _measured(
            parent, exported, dataset, samples, data=data, made_from=meant.told, calibration=calibration
        )
        if register and version is not None and found is not None:
            report = _registered(report, version, found, name or f"{version.name}-{form}", dataset)
        if target is not None:
            _put(made, target)
            report = _with(report, folder=target)
    return report


def _meant(model: str, project: Project | None, register: bool) -> tuple[Resolved, Version | None]:
    """What is to be exported, and its version where it is one of the catalogue."""
    meant = resolve_bundle(model, project)
    version = None
    if "@" in meant.told and os.sep not in meant.told and project is not None:
        version = open_catalogue(project).get(meant.told)
    if register and version is None:
        raise ConfigError(
            f"{model!r} is no version of the catalogue",
            where="--register",
            hint="register it first: hpcmass catalogue register RUN",
        )
    return meant, version


def _measured(
    parent: Model,
    exported: Exported,
    dataset: Dataset,
    samples: Arrays,
    *,
    data: str,
    made_from: str,
    calibration: Calibration | None,
) -> ExportReport:
    evaluations, changes = None, {}
    if parent.task != "other":  # what a recipe's own metrics say needs the recipe
        before, after = evaluate(parent, dataset), evaluate(exported.model, dataset)
        evaluations = before, after
        changes = {
            key: after.metrics[key].value - metric.value
            for key, metric in before.metrics.items()
            if key in after.metrics
        }
    sizes = (_size(parent.bundle.folder), _size(exported.folder))
    latency = compare_latency(parent, exported.model, samples)
    return ExportReport(
        made_from, exported.format, exported, data, evaluations, latency, sizes, calibration, changes=changes
    )


def _registered(
    report: ExportReport, parent: Version, project: Project, name: str, dataset: Dataset
) -> ExportReport:
    """Make it a version, with its evaluation and its parent's beside them."""
    catalogue = open_catalogue(project)
    known = parent.lineage.get("datasets")
    datasets = dict(known) if isinstance(known, dict) else {}
    datasets["evaluated"] = dataset.id
    if report.calibration is not None:
        datasets["calibrated"] = report.calibration.dataset
    lineage = {
        "parent": parent.ref,
        "job": parent.lineage.get("job"),
        "datasets": datasets,
        "environment": environment(),
        "export": report.to_json(),
    }
    version = catalogue.register(
        name,
        report.exported.folder,
        metrics=report.metrics(),
        lineage={key: value for key, value in lineage.items() if value is not None},
        description=f"{parent.ref} as {report.form}",
        tags={"export": report.form},
    )
    if report.evaluations is not None:
        records = Evaluations(catalogue.path)
        before, after = report.evaluations
        if dataset.id not in records.latest(parent):
            why = f"export to {version.ref}"
            records.add(parent, before.to_json(), dataset=dataset.id, data=report.data, why=why)
        records.add(version, after.to_json(), dataset=dataset.id, data=report.data, why="export")
    return _with(report, version=version)


def _with(report: ExportReport, **changed: Any) -> ExportReport:
    return ExportReport(**{**vars(report), **changed})


# -- data -------------------------------------------------------------------------------------------------
def _data(
    splits: tuple[str, ...], named: str | None, version: Version | None, project: Project | None, option: str
) -> tuple[str, Path]:
    """A data set as it was named, and its folder."""
    if named is not None:
        if version is not None and project is not None:
            return named, meant_by(named, version, project)
        return named, dataset_path(named, project)
    if version is not None and project is not None:
        for split in splits:
            try:
                return split, meant_by(split, version, project)
            except NotFound:
                continue
    raise NotFound(
        f"it is not known which data to use: there is no {' or '.join(splits)} split of the model's job here",
        hint=f"name a data set: {option} DATASET",
    )


def _inputs(model: Model, dataset: Any, batch_size: int, **order: Any) -> Iterator[Arrays]:
    """Batches of what a model takes, by input name."""
    shaped = for_model(model, dataset, even=True)
    for batch in shaped.batches(batch_size, **order):
        try:
            taken = take_inputs(batch, model.signature)
        except KeyError as error:
            raise DataError(f"has no input {error}", hint=f"it has: {', '.join(dataset.fields)}") from error
        only = model.signature.inputs[0].name
        yield taken if isinstance(taken, dict) else {only: np.asarray(taken)}


def _drawn(model: Model, dataset: Dataset, count: int) -> Iterator[Arrays]:
    """So many samples at random, the same in every export."""
    left = count
    for batch in _inputs(model, dataset, _CALIBRATION_BATCH, order="global", seed=0):
        n = min(left, len(next(iter(batch.values()))))
        yield {name: np.ascontiguousarray(array[:n]) for name, array in batch.items()}
        left -= n
        if left <= 0:
            return


# -- folders ----------------------------------------------------------------------------------------------
class _Workshop:
    """A temporary folder on the target's file system, or on this machine's where there is none."""

    def __init__(self, target: Path | None) -> None:
        self._target = target

    def __enter__(self) -> Path:
        if self._target is None:
            self._folder = Path(tempfile.mkdtemp(prefix="hpcmass-export-"))
        else:
            make_dir(self._target.parent)
            ending = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
            self._folder = make_dir(self._target.with_name(f".{self._target.name[:80]}.{ending}"))
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _free(to: Path) -> Path:
    target = Path(to).absolute()
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise AlreadyExists("is there already and not an empty folder", where=target)
    return target


def _put(made: Path, target: Path) -> None:
    with storage_errors(target, "write the folder"):
        try:
            os.rename(made, target)
        except OSError as error:
            if target.is_dir() and any(target.iterdir()):
                raise AlreadyExists("is there already", where=target) from error
            raise
        fsync_dir(target.parent)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
