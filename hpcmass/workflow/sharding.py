"""Sharding and checking as people ask for it: by files and folders, for one dataset or for all its splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Project, load_job, nearest
from hpcmass.data import Manifest, open_dataset, read_manifest, split_folders, verify_dataset
from hpcmass.data import shard as cut_and_write
from hpcmass.data.reading.explain import explain, sentences
from hpcmass.errors import ConfigError, CorruptError, NotFound
from hpcmass.launch import detect_ranks, start_id

TABLES = {".csv", ".parquet", ".pq"}


def shard(
    inputs: Sequence[str],
    out: Path,
    *,
    progress: Callable[[float, float], None] | None = None,
    note: Callable[[str], None] | None = None,
    input_fields: Sequence[str] | None = None,
    target_fields: Sequence[str] | None = None,
    meta_fields: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    **options: Any,
) -> list[tuple[Path, Manifest]]:
    """Cut files into shards; under mpiexec, srun, torchrun or `hpcmass run` all ranks together.

    Args:
        inputs: A `.npz`, `.npy`, HDF5, CSV or Parquet file, a folder of images, or `FIELD=FILE.npy` words.
        out: The dataset's folder; not there yet.
        progress: Called as progress(done samples, all samples); by rank 0.
        note: Called with what there is to say; by rank 0.
        input_fields: Fields that are inputs. Several columns of a table are stacked to one vector field `x`.
        target_fields: Fields that are targets.
        meta_fields: Fields that only go along.
        categories: Inputs that may hold words, which become class numbers; never part of `x`.
        options: `strategy`, `shards`, `splits`, `by`, `seed`, `workers`, `resize`, `compression`,
            `chunk_samples`; and `rank` and `ranks` where no launcher's environment says them. See
            `hpcmass.data.shard`.

    Returns:
        Folder and manifest of each split, on every rank.

    Raises:
        DataError: A file or an argument is wrong.
        AlreadyExists: `out` holds something.
        LeaseHeld: Others are cutting something into `out`.
        RankFailed: Another rank has ended.
        LaunchError: The launcher's variables contradict each other.
    """
    if "ranks" not in options:
        place = detect_ranks(os.environ)
        options |= {"rank": place.rank, "ranks": place.size, "start": start_id(os.environ)}
    table = len(inputs) == 1 and Path(inputs[0]).suffix.lower() in TABLES
    stacked = table and input_fields is not None and len(input_fields) > 1

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None and stage == "shard" and not options.get("rank"):
            progress(done, total)

    manifests = cut_and_write(
        inputs[0] if len(inputs) == 1 and "=" not in inputs[0] else list(inputs),
        out,
        inputs=None if stacked else input_fields,
        stack=tuple(input_fields or ()) if stacked else (),
        targets=target_fields,
        meta=meta_fields,
        categories=categories,
        progress=tell,
        note=note,
        **options,
    )
    return [(out / m.split if m.split else out, m) for m in manifests]


def speaks_here() -> bool:
    """Whether this process tells what all ranks did: rank 0, or one that nothing started as a rank."""
    return detect_ranks(os.environ).rank == 0


def datasets_below(path: str | Path) -> list[tuple[Path, Manifest]]:
    """The dataset in a folder, or those of its splits, with their newest manifests.

    Raises:
        NotFound: There is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise NotFound("there is no such dataset", where=folder)
    found = split_folders(folder) or [folder]
    return [(one, read_manifest(one)) for one in found]


def explained(
    path: str | Path, batch_size: int, order: str, read: str
) -> Iterator[tuple[Path, dict[str, str], dict[str, Any]]]:
    """How the dataset in a folder, or each of its splits, is read from here: path, sentences, values.

    Raises:
        NotFound: There is none.
        CorruptError: A shard is missing, truncated or changed; the message names it.
    """
    for folder, _ in datasets_below(path):
        dataset = open_dataset(folder)
        found = explain(dataset, batch_size=batch_size, order=order, read=read)
        yield folder, sentences(found, dataset, batch_size), asdict(found)


def verify_or_raise(path: Path) -> tuple[int, int]:
    """Check a dataset; gives the number of shards and of bytes that were read.

    Raises:
        CorruptError: A shard does not fit; the message names every one.
    """
    report = verify_dataset(path)
    if report.ok:
        return report.shards, sum(one.bytes for one in read_manifest(path).shards)
    lines = [f"{problem.file}: {problem.message}" for problem in report.problems]
    raise CorruptError(
        "\n".join(lines), hint="cut the dataset again, or bring the files back from a copy", files=len(lines)
    )


def check_job(job_file: str | Path, sets: Sequence[str], project: Project | None) -> tuple[Job, list[str]]:
    """Validate a job file, load its recipe, and open the datasets it names.

    Returns:
        The job, and a line about each thing that was looked at.

    Raises:
        HpcmassError: Something is wrong; the message says what and where.
    """
    job = load_job(job_file, sets)
    notes = []
    if job.recipe is not None:
        _check_recipe(job, project)
        notes.append(f"recipe: {job.recipe}")
    for split in ("train", "valid", "test"):
        named = getattr(job.data, split)
        for path in [named] if isinstance(named, str) else named or []:
            if project is None:
                notes.append(f"data.{split}: {path} (not looked at: no project here)")
                continue
            notes.append(_check_dataset(job, split, path, project, job_file))
    if project is not None and job.recipe is not None and job.data.train is not None:
        from hpcmass.train.datasets import open_all
        from hpcmass.train.orders import open_order

        order = open_order(job, project, open_all(project, job.data.train))
        notes.append(f"order: {order.describe()}")
    return job, notes


def _check_recipe(job: Job, project: Project | None) -> None:
    """Load the recipe, try the optimizer, build the model where neither a sweep nor data are missing for it."""
    from hpcmass.train.datasets import open_all
    from hpcmass.train.facts import facts_of
    from hpcmass.train.optim import check_optimizer
    from hpcmass.train.recipe import load_recipe

    assert job.recipe is not None
    recipe = load_recipe(Path(job.recipe))
    check_optimizer(recipe, job)
    if job.sweep is not None:
        return
    if not recipe.takes_data:
        recipe.build_model(dict(job.params))
    elif project is not None and job.data.train is not None and _all_there(job.data.train, project):
        train = open_all(project, job.data.train)
        recipe.build_model(dict(job.params), facts_of(train, job.data.inputs, job.data.targets))


def _all_there(named: str | list[str], project: Project) -> bool:
    return all(project.data_path(one).is_dir() for one in ([named] if isinstance(named, str) else named))


def _check_dataset(job: Job, split: str, path: str, project: Project, job_file: str | Path) -> str:
    folder = project.data_path(path)
    if not folder.is_dir():
        raise NotFound(
            f"'data.{split}' names '{path}', and there is no such folder",
            where=job_file,
            hint=f"looked in {folder}",
        )
    dataset = open_dataset(folder)
    for field in [*(job.data.inputs or ()), *(job.data.targets or ())]:
        if field not in dataset.fields:
            like = nearest(field, list(dataset.fields))
            raise ConfigError(
                f"'{field}' is no field of '{path}'",
                where=job_file,
                hint=f"did you mean '{like}'?" if like else f"it has: {', '.join(dataset.fields)}",
            )
    return f"data.{split}: {path}, {len(dataset)} samples"
