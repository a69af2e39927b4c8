"""Ragged fields in a run: what the job says of their batches, held against the data and the rest of the job."""

from __future__ import annotations

from collections.abc import Sequence

from hpcmass.config import Job
from hpcmass.data import Dataset
from hpcmass.data.shaping import Shape
from hpcmass.errors import ConfigError, DataError


def shapes_of(job: Job) -> dict[str, Shape]:
    """`[data.ragged]` of a job, by field."""
    return {
        name: Shape(table.kind, table.fill, table.length, table.to_multiple, table.longer)
        for name, table in (job.data.ragged or {}).items()
    }


def shape(job: Job, dataset: Dataset, *, alone: bool = False) -> Dataset:
    """A dataset with the batches that a job wants of its ragged fields.

    Args:
        job: The job.
        dataset: Training or validation data.
        alone: A row a sample where samples are packed, as in validation.

    Raises:
        ConfigError: A name is of no ragged field, settings contradict each other, or there are longer samples
            than the job allows.
    """
    asked = shapes_of(job)
    try:
        shaped = dataset.shaped(asked, alone=alone)
    except DataError as error:
        raise ConfigError(error.message, where=error.where, hint=error.hint) from error
    for name, one in shaped.shapes.items():
        longest = shaped.ragged[name].stats.get("lengths", {}).get("max")
        if one.length is not None and one.longer == "refuse" and longest is not None and longest > one.length:
            raise ConfigError(
                f"a sample has {longest} values of {name}, more than the length of {one.length}",
                where=f"data.ragged.{name}.length",
                hint='take a larger length, or longer = "cut"',
            )
    return shaped


def is_packed(dataset: object) -> bool:
    """Whether batches have several samples in a row."""
    shapes = getattr(dataset, "shapes", {})
    return any(one.kind == "pack" and not one.alone for one in shapes.values())


def check_packed(job: Job, dataset: Dataset, fields: tuple[Sequence[str], Sequence[str]]) -> None:
    """Refuse what cannot go with packing.

    Raises:
        ConfigError: An input or target has one value a sample, or the job pads its last batch.
    """
    if not is_packed(dataset):
        return
    for key, names in zip(("data.inputs", "data.targets"), fields, strict=True):
        for name in names:
            if not dataset.fields[name].ragged:
                raise ConfigError(
                    f"{name!r} has one value a sample, and packed rows hold several samples",
                    where=key,
                    hint='leave it out, or use as = "pad"',
                )
    if job.train.last == "pad":
        raise ConfigError(
            '"pad" repeats samples to fill the last batch, and packed samples cannot be taken out again',
            where="train.last_batch",
            hint='use "keep" or "drop"',
        )


def has_ragged(dataset: object, names: Sequence[str]) -> list[str]:
    """Those of the names that are ragged fields."""
    ragged = getattr(dataset, "ragged", {})
    return [name for name in names if name in ragged]
