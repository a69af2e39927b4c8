"""`shard`: cut a source into shards, in parallel workers, in one pass, whatever its size.

Everything is written into a temporary folder beside the wanted one, which takes its name only when all
shards, checksums and manifests are complete. A run that fails or is interrupted removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data.building import building, check_free
from hpcmass.data.compress import compress_shard
from hpcmass.data.cut import STRATEGIES, Codes, Cut, fractions_of, plan_cut
from hpcmass.data.filters import Packing, check_packing
from hpcmass.data.manifest import ChunkInfo, Field, Manifest, ShardInfo, write_manifest
from hpcmass.data.pool import ProcessPool
from hpcmass.data.ragged import Sizes
from hpcmass.data.roles import TARGET_NAMES, resolve_roles
from hpcmass.data.scatter import (
    Scatter,
    SplitStats,
    finish_shard,
    hash_files,
    tree_hash,
    write_in_worker,
)
from hpcmass.data.shardfile import create_shard
from hpcmass.data.sources import Progress, Source, Unread, open_source
from hpcmass.data.sources.base import sizes_of
from hpcmass.data.stats import FieldStats, empty_stats, field_stats, is_countable
from hpcmass.errors import DataError, StorageError
from hpcmass.files import storage_errors

BLOCK_BYTES = 8 << 20
MAX_BLOCK_ROWS = 1 << 18
SHARD_BYTES = 256 << 20
_HASHED_TOGETHER = 256


def shard(
    source: Source | Unread | str | Path | Sequence[str | Path],
    out: Path,
    *,
    strategy: str = "even",
    shards: int | Mapping[str, int] | None = None,
    splits: Mapping[str, float] | None = None,
    by: str | None = None,
    seed: int = 0,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    meta: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    stack: Sequence[str] = (),
    resize: tuple[int, int] | None = None,
    workers: int | None = None,
    compression: str | None = None,
    chunk_samples: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Manifest]:
    """Cut a source into shards.

    Args:
        source: What `open_source` takes or gives.
        out: Folder of the dataset (or of its splits); not there yet, or empty.
        strategy: `even`, `random-cut`, `stratified`, `grouped` or `contiguous`; see `hpcmass.data.cut`.
        shards: Shards of every split, or a number for each split; None: one for each 256 MiB.
        splits: Fraction of each split by name, such as {"train": 0.8, "valid": 0.1, "test": 0.1}.
        by: Field with the class (`stratified`; default: the target) or the group (`grouped`).
        seed: The same source, arguments and seed give the same shards, byte for byte.
        inputs: Fields with the role input; fields named nowhere are then left out.
        targets: Fields with the role target; default: a field called label, target, y or class.
        meta: Fields with the role meta.
        categories: Inputs that may hold text: its words become class numbers.
        stack: Table columns that become one vector field `x`, an input; columns named nowhere are left out.
        resize: (height, width) that images are scaled to.
        workers: Processes; None: one a core, 4 at most, and 1 for small sources.
        compression: `bitshuffle-lz4`, `gzip-4`, `lzf`, `zstd-3` …; see `hpcmass.data.filters`; None: none.
        chunk_samples: Samples a compressed chunk; None: what suits the fields.
        overwrite: Exchange a dataset that is there already, once the new one is complete.
        progress: Called as progress(stage, done, total).

    Returns:
        The manifests, one a split.

    Raises:
        AlreadyExists: `out` holds something, and `overwrite` is not set.
        DataError: The source or an argument is wrong.
        StorageError: The file system refused; nothing is left behind.
    """
    out = Path(os.path.abspath(out))
    if strategy not in STRATEGIES:
        raise DataError(f"unknown strategy {strategy!r}", hint=f"choose from {', '.join(STRATEGIES)}")
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers are not possible")
    packing = check_packing(compression, chunk_samples)
    check_free(out, overwrite)
    with building(out, overwrite) as folder, contextlib.ExitStack() as open_files:
        scratch = folder / ".scratch"
        scratch.mkdir()
        opened = _open(source, inputs, targets, [*(meta or ()), *(categories or ())], by, stack, resize)
        if hasattr(opened, "close"):
            open_files.callback(opened.close)
        # Only sources that must be copied first have `spill`.
        readable: Source = opened.spill(scratch, progress) if hasattr(opened, "spill") else opened
        if stack:
            inputs = list(dict.fromkeys(["x", *(inputs or ())]))
        fields = resolve_roles(
            readable.fields, inputs=inputs, targets=targets, meta=meta, categories=categories, by=by
        )
        readable = readable.select([one.name for one in fields])
        label = _label_field(strategy, by, fields)
        plan = _plan(readable, fields, strategy, shards, splits, seed, label)
        cut_record = {
            "strategy": strategy,
            "seed": seed,
            "by": label,
            "splits": dict(splits) if splits else None,
        }
        manifests = _write(plan, folder, cut_record, _workers(workers, plan), packing, progress)
        shutil.rmtree(scratch)
    return manifests


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the first sample is written."""

    source: Source
    fields: tuple[Field, ...]
    cut: Cut

    @property
    def splits(self) -> list[str | None]:
        return list(dict.fromkeys(part.split for part in self.cut.parts))

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.source, self.fields)

    @property
    def data_bytes(self) -> int:
        return self.sizes.before(self.source.n)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Blocks of samples: a function of the data alone, as the statistics are merged block by block."""
        return self.sizes.blocks(0, BLOCK_BYTES, MAX_BLOCK_ROWS)

    def values(self) -> dict[str, list[int]]:
        """Of each ragged field the number of values in each part."""
        found: dict[str, list[int]] = {}
        for one in self.fields:
            if one.ragged:
                lengths, total = np.diff(self.source.offsets(one.name)), np.zeros(len(self.cut.parts), np.int64)
                for start, stop in self.blocks():
                    np.add.at(total, self.cut.part_of(start, stop), lengths[start:stop])
                found[one.name] = total.tolist()
        return found


def _open(
    source: Source | Unread | str | Path | Sequence[str | Path],
    inputs: Sequence[str] | None,
    targets: Sequence[str] | None,
    meta: Sequence[str] | None,
    by: str | None,
    stack: Sequence[str],
    resize: tuple[int, int] | None,
) -> Source | Unread:
    if not isinstance(source, (str, Path, list, tuple)):
        return source  # type: ignore[return-value]
    if inputs is None and not stack:
        return open_source(source, stack=stack, resize=resize)
    # All but the target is named: other columns and arrays need not even be of a kind that can be read.
    named = [*(["x"] if stack else []), *(inputs or ()), *(targets or ()), *(meta or ()), *([by] if by else [])]
    optional = TARGET_NAMES if targets is None else ()
    return open_source(source, fields=list(dict.fromkeys(named)), optional=optional, stack=stack, resize=resize)


def _label_field(strategy: str, by: str | None, fields: Sequence[Field]) -> str | None:
    """The field that the strategy goes by."""
    if strategy not in ("stratified", "grouped"):
        if by is not None:
            raise DataError(f"the strategy {strategy} goes by no field", hint="leave `by` out")
        return None
    if by is None:
        candidates = [one.name for one in fields if one.role == "target"]
        if strategy == "grouped" or len(candidates) != 1:
            what = "group" if strategy == "grouped" else "class"
            raise DataError(
                f"the strategy {strategy} needs the field with the {what}", hint="name it with `by`"
            )
        by = candidates[0]
    label = next(one for one in fields if one.name == by)
    if label.shape != () or np.dtype(label.dtype).kind not in "iub":
        raise DataError(
            f"field {by} ({label.dtype}, shape {list(label.shape)}) is no class or group number",
            hint="name a field with one integer or text a sample",
        )
    return by


def _plan(
    source: Source,
    fields: tuple[Field, ...],
    strategy: str,
    shards: int | Mapping[str, int] | None,
    splits: Mapping[str, float] | None,
    seed: int,
    label: str | None,
) -> _Plan:
    total_bytes = sizes_of(source, fields).before(source.n)
    codes = None if label is None else _codes(source.select([label]), label)
    if shards is None:
        # Checked before they are counted with: a NaN cannot be rounded.
        fractions = dict(zip(splits, fractions_of(splits), strict=True)) if splits else {"": Fraction(1)}
        wanted = {
            name: max(1, round(total_bytes * fraction / SHARD_BYTES)) for name, fraction in fractions.items()
        }
        shards = wanted if splits else wanted[""]
    cut = plan_cut(strategy, source.n, shards=shards, splits=splits, seed=seed, codes=codes)
    return _Plan(source, fields, cut)


def _codes(source: Source, label: str) -> Codes:
    """Class or group number of each sample, 0 … k - 1 in the order of the values, shape (n,)."""
    rows = 1 << 20
    blocks = [source.read(at, min(at + rows, source.n))[label] for at in range(0, source.n, rows)]
    _, codes = np.unique(np.concatenate(blocks), return_inverse=True)
    return codes.reshape(-1).astype(np.int64, copy=False)


def _workers(workers: int | None, plan: _Plan) -> int:
    if workers is not None:
        return workers
    if plan.data_bytes < 16 * BLOCK_BYTES and plan.source.kind != "images":
        return 1
    return min(len(os.sched_getaffinity(0)), 4)


def _write(
    plan: _Plan,
    folder: Path,
    cut_record: dict[str, Any],
    workers: int,
    packing: Packing | None,
    progress: Progress | None,
) -> list[Manifest]:
    """Write shards and manifests into the folder."""
    _check_space(folder, plan)
    scatter, sizes = _create_shards(plan, folder)
    total = sum(sizes)
    with ProcessPool(workers, scatter) as pool:
        stats = _scatter_all(plan, scatter, pool, progress)
        scatter.close()
        chunks: list[dict[str, ChunkInfo]] = [{} for _ in sizes]
        places = scatter.offsets
        if packing is not None:
            parts = zip(scatter.paths, plan.cut.parts, scatter.offsets, scatter.values, strict=True)
            tasks = ((path, plan.fields, part.samples, at, packing, many) for path, part, at, many in parts)
            packed = list(pool.map(compress_shard, tasks))
            chunks, places = [one[0] for one in packed], [one[1] for one in packed]
            sizes = [path.stat().st_size for path in scatter.paths]
            total = sum(sizes)
        tell = _adder("checksum", total, progress)
        sums = []
        for size, digest in pool.map(finish_shard, ((path,) for path in scatter.paths)):
            sums.append(digest)
            tell(size)
        source_record = _source_record(plan.source, pool)
    fields = _finished_fields(plan, stats)
    manifests = []
    for number, split in enumerate(plan.splits):
        infos = tuple(
            ShardInfo(
                scatter.paths[index].name,
                part.samples,
                sizes[index],
                sums[index],
                places[index],
                chunks[index],
                scatter.values[index],
            )
            for index, part in enumerate(plan.cut.parts)
            if part.split == split
        )
        manifest = Manifest(
            split=split,
            samples=sum(info.samples for info in infos),
            fields=fields[number],
            shards=infos,
            cut=cut_record,
            source=source_record,
            created=time.time(),
        )
        manifests.append(write_manifest(_split_folder(folder, split), manifest))
    return manifests


def _create_shards(plan: _Plan, folder: Path) -> tuple[Scatter, list[int]]:
    scatter = Scatter(plan.source, plan.fields, [], [], [], frozenset(), [])
    scatter.countable = frozenset(one.name for one in plan.fields if is_countable(one) or one.classes)
    sizes, values = [], plan.values()
    for number, part in enumerate(plan.cut.parts):
        home = _split_folder(folder, part.split)
        with storage_errors(home, "make the folder"):
            home.mkdir(exist_ok=True)
        path = home / f"shard-{part.number:05d}.h5"
        many = {name: of_parts[number] for name, of_parts in values.items()}
        size, offsets = create_shard(path, plan.fields, part.samples, many)
        scatter.paths.append(path)
        scatter.values.append(many)
        scatter.offsets.append(offsets)
        scatter.split_of_part.append(plan.splits.index(part.split))
        sizes.append(size)
    return scatter, sizes


def _scatter_all(
    plan: _Plan, scatter: Scatter, pool: ProcessPool, progress: Progress | None
) -> list[dict[str, FieldStats]]:
    """Write all blocks; statistics a split are merged in the order of the blocks."""
    stats = [empty_stats(plan.fields) for _ in plan.splits]
    tell = _adder("shard", plan.source.n, progress)
    ragged = {one.name: plan.source.offsets(one.name) for one in plan.fields if one.ragged}
    before = {name: np.zeros(len(plan.cut.parts), np.int64) for name in ("", *ragged)}
    lengths = []

    def blocks() -> Iterator[tuple[int, Any, Any, Any]]:
        for start, stop in plan.blocks():
            part_of = plan.cut.part_of(start, stop)
            lengths.append(len(part_of))
            samples, values = before[""].copy(), {name: before[name].copy() for name in ragged}
            yield start, part_of, samples, values
            np.add.at(before[""], part_of, 1)
            for name, offsets in ragged.items():
                np.add.at(before[name], part_of, np.diff(offsets[start : stop + 1]))

    function: Callable[..., SplitStats] = write_in_worker if pool.parallel else scatter.write
    for number, of_block in enumerate(pool.map(function, blocks())):
        for split, by_field in of_block.items():
            for name, seen in by_field.items():
                stats[split][name].merge(seen)
        tell(lengths[number])
    return stats


def _finished_fields(plan: _Plan, stats: Sequence[Mapping[str, FieldStats]]) -> list[tuple[Field, ...]]:
    """The fields of each split with statistics; class names are those of all splits together."""
    finished: list[list[Field]] = [[] for _ in stats]
    for one in plan.fields:
        classes = one.classes
        if classes is None and is_countable(one):
            counts = [by_field[one.name].classes for by_field in stats]
            known = [count.size for count in counts if count is not None]
            if len(known) == len(counts):
                classes = [str(number) for number in range(max(known))]
        for number, by_field in enumerate(stats):
            shown = len(classes) if classes is not None and one.role == "target" else None
            finished[number].append(replace(one, classes=classes, stats=field_stats(one, by_field, shown)))
    return [tuple(fields) for fields in finished]


def _source_record(source: Source, pool: ProcessPool) -> dict[str, Any]:
    """Where the samples came from. Only names are recorded: the id must not depend on the place."""
    files = source.files
    groups = [files[at : at + _HASHED_TOGETHER] for at in range(0, len(files), _HASHED_TOGETHER)]
    hashes = [one for group in pool.map(hash_files, ((group,) for group in groups)) for one in group]
    if source.kind == "images":
        names = [f"{path.parent.name}/{path.name}" for path in files]
        total = sum(size for size, _ in hashes)
        folder = files[0].parent.parent.resolve().name
        entry = {"path": folder, "bytes": total, "sha256": tree_hash(names, hashes), "count": len(files)}
        return {"kind": source.kind, "files": [entry]}
    entries = [
        {"path": path.name, "bytes": size, "sha256": digest}
        for path, (size, digest) in zip(files, hashes, strict=True)
    ]
    return {"kind": source.kind, "files": entries}


def _adder(stage: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(stage, done, total)

    return add


def _split_folder(folder: Path, split: str | None) -> Path:
    return folder if split is None else folder / split


def _check_space(folder: Path, plan: _Plan) -> None:
    needed = plan.data_bytes
    with storage_errors(folder, "look at the file system"):
        space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise StorageError(
            f"the shards need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            where=folder.parent,
            hint="free space, or put the dataset elsewhere",
            transient=True,
            errno=errno.ENOSPC,
        )
