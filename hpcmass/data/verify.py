"""`verify_dataset`: everything that can be checked about a dataset, and the name of each file that fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcmass.data.compress import check_chunks
from hpcmass.data.manifest import (
    Manifest,
    ShardInfo,
    check_shards,
    newest_manifest,
    read_manifest,
    split_folders,
)
from hpcmass.data.ragged import wrong_offsets
from hpcmass.data.reader import check_sum
from hpcmass.data.shardfile import data_sets
from hpcmass.errors import HpcmassError, NotFound


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file."""

    file: Path
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        path: The folder that was verified.
        datasets: Folders of the datasets in it (the splits, or the folder itself).
        shards: Number of shards that were checked.
        samples: Number of samples that the manifests name.
        problems: Empty if everything fits.
    """

    path: Path
    datasets: tuple[Path, ...]
    shards: int
    samples: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not self.problems


def verify_dataset(path: str | Path, progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Check a dataset, or all splits in a folder: manifest, sizes, checksums, HDF5 structure, counts.

    Args:
        path: Folder with a manifest, or with splits.
        progress: Called as progress("verify", shards done, shards).

    Raises:
        NotFound: There is no dataset. Whatever is wrong with one is in the report instead.
    """
    folder = Path(os.path.abspath(path))
    datasets = (
        [folder]
        if folder.is_dir() and newest_manifest(folder)
        else (split_folders(folder) if folder.is_dir() else [])
    )
    if not datasets:
        raise NotFound("there is no dataset", where=folder)
    problems: list[Problem] = []
    manifests: list[tuple[Path, Manifest]] = []
    for one in datasets:
        try:
            manifests.append((one, read_manifest(one)))
        except HpcmassError as error:
            problems.append(Problem(Path(error.where or one), error.message))
    total = sum(len(manifest.shards) for _, manifest in manifests)
    done = 0
    for one, manifest in manifests:
        wrong_size = dict(check_shards(one, manifest))
        problems += [Problem(one / file, what) for file, what in wrong_size.items()]
        problems += _check_statistics(one, manifest)
        for shard in manifest.shards:
            if shard.file not in wrong_size:
                problems += _check_shard(one, manifest, shard)
            done += 1
            if progress:
                progress("verify", done, total)
    samples = sum(manifest.samples for _, manifest in manifests)
    return VerifyReport(folder, tuple(datasets), total, samples, tuple(problems))


def _check_shard(folder: Path, manifest: Manifest, shard: ShardInfo) -> list[Problem]:
    path = folder / shard.file
    problems = []
    try:
        changed = check_sum(folder, shard)
    except HpcmassError as error:
        return [Problem(path, error.message)]
    if changed:
        problems.append(Problem(path, changed))
    try:
        with h5py.File(path, "r", locking=False) as file:
            for one, rows in data_sets(manifest.fields, shard.samples, shard.values):
                chunks = shard.chunks.get(one.name)
                what = _check_set(file.get(one.name), one.numpy_dtype, (rows, *one.shape), chunks is not None)
                if what is None and chunks is not None:
                    what = check_chunks(file, one, shard)
                elif what is None and rows and file[one.name].id.get_offset() != shard.offsets[one.name]:
                    what = f"begins at byte {file[one.name].id.get_offset()}, not {shard.offsets[one.name]}"
                if what:
                    problems.append(Problem(path, f"data set {one.name}: {what}"))
            for one in manifest.fields:
                if one.ragged and isinstance(offsets := file.get(one.offsets), h5py.Dataset):
                    what = wrong_offsets(np.asarray(offsets[...]).reshape(-1), shard.rows(one))
                    if what:
                        problems.append(Problem(path, f"field {one.name}: the offsets {what}"))
    except (OSError, RuntimeError, KeyError) as error:
        problems.append(Problem(path, f"is not a readable HDF5 file ({error})"))
    return problems


def _check_set(item: Any, dtype: np.dtype[Any], shape: tuple[int, ...], chunked: bool) -> str | None:
    if not isinstance(item, h5py.Dataset):
        return "is not there"
    if item.dtype != dtype or item.shape != shape:
        return f"is {item.dtype} {item.shape}, not {dtype} {shape}"
    if not chunked and (item.chunks is not None or (item.size and item.id.get_offset() is None)):
        return "is not contiguous"
    return None


def _check_statistics(folder: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    for one in manifest.fields:
        rows = sum(shard.rows(one) for shard in manifest.shards)
        values = rows * int(np.prod(one.shape, dtype=np.int64))
        counted = one.stats.get("count", -1) + one.stats.get("nonfinite", 0)
        path = newest_manifest(folder) or folder
        if counted != values:
            problems.append(Problem(path, f"statistics of {one.name} count {counted} values, not {values}"))
        if one.ragged and (many := one.stats.get("lengths", {}).get("count")) != manifest.samples:
            problems.append(
                Problem(path, f"lengths of {one.name} count {many} samples, not {manifest.samples}")
            )
    return problems
