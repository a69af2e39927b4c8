"""Models by name: load, evaluate, predict, register."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcmass.catalogue import Version, lineage
from hpcmass.config import Job, Project, read_run_job
from hpcmass.data import Dataset, open_dataset
from hpcmass.errors import CatalogueError
from hpcmass.evaluate import Asked, Evaluation, Predictions, evaluate_whole, predict_file
from hpcmass.evaluate.models import Resolved, resolve_bundle
from hpcmass.evaluate.picture import curves_of, training_picture
from hpcmass.evaluate.scores import Ranks, on_all
from hpcmass.files import replace_json
from hpcmass.runs import RunFolder, State
from hpcmass.train.model import Model, load_bundle
from hpcmass.train.pins import read_pins
from hpcmass.workflow.cost import cost_of
from hpcmass.workflow.projects import ProjectRef, find_run, maybe_project, project_of
from hpcmass.workflow.registry import open_catalogue


def load(model: str | Path, *, project: ProjectRef = None) -> Model:
    """Load a model as a callable with its signature.

    Args:
        model: `NAME`, `NAME@3` or `NAME@production` of the catalogue, a run's name, or a folder.
        project: The project to look in; default: found from the working folder.

    Raises:
        NotFound: There is no such model; the hint has the nearest names.
        CorruptError: Its files do not fit their checksums.
    """
    return load_bundle(resolve_bundle(str(model), maybe_project(project)).folder)


def evaluate_model(
    model: str | Path,
    dataset: str | Path,
    project: ProjectRef = None,
    *,
    picture: Path | None = None,
    slices: Sequence[str] = (),
    asked: Asked | None = None,
    against: str | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a model on a dataset; for a run the result is kept in its folder too.

    Args:
        model: As for `load`.
        dataset: The dataset's folder, from the working folder or from the project folder.
        project: The project to look in.
        picture: Where to write the learning curves and the confusion matrix, as a PNG.
        slices: Fields of the dataset; the metrics of the samples with each of their values are added.
        asked: What more is to be measured (in place of `slices`).
        against: Another model, to be compared on the same samples.
        ranks: All ranks, where several evaluate together; rank 0 writes.
    """
    found = maybe_project(project)
    meant, loaded, data, other = on_all(lambda: _opened(model, dataset, against, found), ranks)
    run = RunFolder(meant.run) if meant.run is not None else None
    evaluation = evaluate_whole(loaded, data, asked or Asked(slices), against=other, ranks=ranks)
    if ranks is not None and ranks.rank:
        return evaluation
    if run is not None:
        replace_json(run.path / "evaluations" / f"{evaluation.dataset[:16]}.json", evaluation.to_json())
    if picture is not None:
        title = f"{model} on {dataset}"
        training_picture(
            picture, curves=curves_of(run.records() if run else ()), evaluation=evaluation, title=title
        )
    return evaluation


def _opened(
    model: str | Path, dataset: str | Path, against: str | None, project: Project | None
) -> tuple[Resolved, Model, Dataset, tuple[str, Model] | None]:
    """What the model is, itself, the dataset, and the other model with its name."""
    meant = resolve_bundle(str(model), project)
    data = open_dataset(dataset_path(dataset, project))
    other = None
    if against is not None:
        named = resolve_bundle(against, project)
        other = (named.told, load_bundle(named.folder))
    return meant, load_bundle(meant.folder), data, other


def dataset_path(dataset: str | Path, project: Project | None) -> Path:
    """A dataset's folder as written: from the working folder, else from the project folder."""
    path = Path(dataset)
    if not path.exists() and project is not None and (project.root / path).exists():
        return project.root / path
    return path


def predict(model: str | Path, inputs: str | Path, project: ProjectRef = None) -> Predictions:
    """Predict for the samples of a file, or of a dataset's folder."""
    found = maybe_project(project)
    return predict_file(load(model, project=found), dataset_path(inputs, found))


def picture_of(
    run: RunFolder, evaluation: Evaluation, out: Path, *, title: str, validated_by: Path | None = None
) -> None:
    """Draw a run's learning curves beside an evaluation.

    Args:
        run: Its training loss is shown.
        evaluation: The confusion matrix.
        out: The PNG file.
        title: The line above all.
        validated_by: A run whose validation curves are shown instead, where `run` had no validation split.
    """
    curves = curves_of(run.records())
    if validated_by is not None:
        others = curves_of(RunFolder(validated_by).records("valid"))
        curves = {**curves, **{f"{name} (best trial)": curve for name, curve in others.items()}}
    training_picture(out, curves=curves, evaluation=evaluation, title=title)


def register_run(
    run: str | RunFolder,
    project: ProjectRef = None,
    *,
    name: str | None = None,
    description: str = "",
    evaluate_on: str | Path | None = None,
    evaluation: Evaluation | None = None,
    parent: str | None = None,
    tags: Mapping[str, str | int | float] | None = None,
) -> Version:
    """Make the model of a completed run a version in the catalogue.

    Args:
        run: The run, or its name.
        project: The project.
        name: The model's name; default: the job's, of a study's trial the study's job's.
        description: One line for the people who find it.
        evaluate_on: Evaluate on this dataset and keep the metrics.
        evaluation: Metrics measured before, to be kept.
        parent: The version that it was made from, if any.
        tags: Words to find it by, and what they say.

    Raises:
        CatalogueError: The run has not completed.
    """
    found = project_of(project)
    folder = find_run(run, found) if isinstance(run, str) else run
    status = folder.status()
    if status.state is not State.COMPLETED or not (folder.model / "model.json").is_file():
        raise CatalogueError(
            f"the run is {status.state.value}, only a completed run has a model to register",
            where=folder.path,
            hint=f"see: hpcmass why {folder.path}",
        )
    job = read_run_job(folder.job_file)
    if evaluate_on is not None:
        evaluation = evaluate_model(folder.path.absolute(), evaluate_on, found)
    splits = ("train_", "valid_", "test_")  # a per-shard run's metrics say themselves what they are of
    metrics = {
        key if key.startswith(splits) else f"valid_{key}": value for key, value in status.metrics.items()
    }
    ids = dataset_ids(job, found, read_pins(folder.path))
    if evaluation is not None:
        metrics |= evaluation.flat()
        ids.setdefault("evaluated", evaluation.dataset)
    record = lineage(folder.path, datasets=ids, job_folder=_folder_of(job), parent=parent)
    if (trial := _trial_of(folder)) is not None:
        record["sweep"] = {"study": trial[0].name, "trial": trial[1]}
    record["cost"] = cost_of(folder, None).to_json()  # the run's folder may be gone when somebody asks
    return open_catalogue(found).register(
        name or _called(folder, job),
        folder.model,
        metrics=metrics,
        lineage=record,
        description=description,
        tags=tags or {},
    )


def keep_run(
    run: RunFolder,
    project: ProjectRef = None,
    *,
    name: str | None = None,
    evaluation: Evaluation | None = None,
    alias: str = "production",
    why: str = "",
) -> Version:
    """Make a run's model a version, unless it is the newest one already, and move an alias to it.

    What a script calls that may be run again. Arguments and errors are those of `register_run`.
    """
    found = project_of(project)
    catalogue = open_catalogue(found)
    called = name or _called(run, read_run_job(run.job_file))
    version = catalogue.get(called) if called in catalogue.models() else None
    if version is None or version.lineage.get("run") != str(run.path):
        version = register_run(run, found, name=called, evaluation=evaluation)
    if catalogue.aliases(called).get(alias) != version.version:
        catalogue.alias(called, alias, version.version, why=why)
    return version


def _trial_of(run: RunFolder) -> tuple[Path, int] | None:
    """The study's folder and the number of a trial; None for any other run."""
    above = run.path.absolute().parent
    study, number = above.parent, run.path.name.partition("-")[0]
    is_trial = above.name in ("trials", "reruns") and number.isdecimal() and (study / "job.toml").is_file()
    return (study, int(number)) if is_trial else None


def _called(run: RunFolder, job: Job) -> str:
    """What the model of a run is called by itself: of a trial, whose job has its number, as its study's job."""
    trial = _trial_of(run)
    return job.name if trial is None else read_run_job(trial[0] / "job.toml").name


def dataset_ids(job: Job, project: Project, pins: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ids of the datasets a job names, by split; several of one split are joined by `+`.

    Args:
        job: The job.
        project: What its data paths are relative to.
        pins: Ids that a run read by, of datasets that may have grown since.
    """
    found = {}
    for split in ("train", "valid", "test"):
        named = getattr(job.data, split)
        paths = [named] if isinstance(named, str) else named or []
        folders = [project.data_path(path) for path in paths]
        if folders and all(folder.exists() for folder in folders):
            known = pins or {}
            ids = (known.get(name) or open_dataset(at).id for name, at in zip(paths, folders, strict=True))
            found[split] = "+".join(ids)
    return found


def _folder_of(job: Job) -> Path | None:
    folder = Path(job.recipe).parent if job.recipe else None
    return folder if folder is not None and folder.is_dir() else None


__all__ = [
    "dataset_ids",
    "evaluate_model",
    "keep_run",
    "load",
    "picture_of",
    "predict",
    "register_run",
]
