"""A dataset out of what a deployment was asked: kept samples that labels have met."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data import Dataset, Field, ShardWriter, read_manifest
from hpcmass.data.arrays import read_arrays, write_arrays
from hpcmass.errors import DataError, NotFound
from hpcmass.files import make_dir
from hpcmass.monitor.answers import Label, class_number, read_labels
from hpcmass.monitor.facts import read_facts
from hpcmass.monitor.kept import read_kept

TEST_SHARE = 0.3
LEAST = 20


def gather(folder: Path, version: str, like: Dataset, into: Path, since: float = 0.0) -> int:
    """Write kept samples with their labels into one file: what a later restart finds, whatever came meanwhile.

    Args:
        folder: The monitor's.
        version: Of the model, by which labels that are names become numbers.
        like: The training data, whose fields the samples have.
        into: The file.
        since: Samples kept before are left out (seconds since the epoch).

    Returns:
        How many samples there are.

    Raises:
        DataError: There are too few, or the data have not one target.
    """
    if into.exists():
        return len(read_arrays(into)["_id"])
    target = target_of(like)
    facts = read_facts(folder, version)
    names = facts.names if facts is not None else ()
    labels = read_labels(folder)
    found: dict[tuple[bytes, int], dict[str, Any]] = {}
    kept = 0
    for arrays in read_kept(folder, since):
        for at, (identity, row) in enumerate(zip(arrays["id"], arrays["row"], strict=True)):
            kept += 1
            label = labels.get(bytes(identity).decode("utf-8", "replace"))
            value = None if label is None else _value(label, int(row), target, names)
            if value is not None:
                sample = {name: arrays[f"in:{name}"][at] for name in like.inputs if f"in:{name}" in arrays}
                found[bytes(identity), int(row)] = {**sample, target.name: value}
    if len(found) < LEAST:
        raise DataError(
            f"{len(found)} of {kept} kept samples have a label, and {LEAST} are the least to train with",
            where=folder,
            hint="serve with --keep-samples N, post labels (hpcmass labels), or name a dataset with --data",
        )
    keys = sorted(found)
    arrays = {name: np.array([found[key][name] for key in keys]) for name in (*like.inputs, target.name)}
    arrays["_id"] = np.array([identity for identity, _ in keys])
    write_arrays(into, arrays)
    return len(keys)


def target_of(like: Dataset) -> Field:
    """The one target of a dataset.

    Raises:
        DataError: There are none, or several.
    """
    if len(like.targets) != 1:
        raise DataError(f"the training data have {len(like.targets)} targets, and a label is for one")
    return like.stored[like.targets[0]]


def _value(label: Label, row: int, target: Field, names: tuple[str, ...]) -> Any:
    several = isinstance(label, list)
    one = label[row] if isinstance(label, list) and target.shape == () and row < len(label) else label
    if several and one is label and target.shape == ():
        return None
    if names:
        return class_number(one, names)
    with contextlib.suppress(ValueError, TypeError):
        value = np.asarray(one, target.numpy_dtype).reshape(target.shape)
        return value if np.isfinite(value).all() else None
    return None


def write_live(source: Path, out: Path, like: Dataset) -> dict[str, Path]:
    """Make gathered samples two datasets, `train` and `test`: by a digest of the request's id.

    A request is always on the same side, in later trainings too: no sample is ever trained on and tested with.

    Returns:
        Their folders; one without samples is left out.
    """
    arrays = read_arrays(source)
    sides = np.array([hashlib.sha256(bytes(one)).digest()[0] < 256 * TEST_SHARE for one in arrays["_id"]])
    made: dict[str, Path] = {}
    for split, chosen in (("train", ~sides), ("test", sides)):
        if not chosen.any():
            continue
        made[split] = folder = out / split
        with contextlib.suppress(NotFound):
            read_manifest(folder)
            continue
        make_dir(out)
        names = [*like.inputs, *like.targets]
        fields = {name: (like.stored[name].dtype, tuple(like.stored[name].shape)) for name in names}
        classes = {name: like.classes(name) for name in like.targets if like.classes(name)}
        with ShardWriter(
            folder, fields, inputs=like.inputs, targets=like.targets,
            classes={name: one for name, one in classes.items() if one is not None},
            source={"kind": "live", "samples": int(chosen.sum())},
        ) as writer:  # fmt: skip
            batch = {name: arrays[name][chosen] for name in names}
            rest = {name: value[writer.resumed_samples :] for name, value in batch.items()}
            if len(rest[names[0]]):
                writer.write_batch(rest)
    return made
