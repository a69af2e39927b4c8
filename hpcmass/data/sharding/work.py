"""What one rank does of a sharding: stretches of the source, then shards; and, by rank 0, the manifests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data.manifest import Field, Manifest, write_manifest
from hpcmass.data.pool import ProcessPool
from hpcmass.data.ragged import Ids
from hpcmass.data.scatter import (
    Scatter,
    SplitStats,
    hash_files,
    make_durable,
    tree_hash,
    write_in_worker,
)
from hpcmass.data.sharding.finish import call, finish_parts
from hpcmass.data.sharding.plan import ShardPlan
from hpcmass.data.sharding.staging import ShardStaging
from hpcmass.data.sources import Progress, Source
from hpcmass.data.stats import FieldStats, empty_stats, field_stats, is_countable
from hpcmass.data.writing.together import Together
from hpcmass.files import fsync_dir, storage_errors


def work(
    plan: ShardPlan, staging: ShardStaging, together: Together, workers: int, progress: Progress | None
) -> None:
    """Do this rank's part, and wait for the others: then all shards are finished and recorded.

    Raises:
        RankFailed: Another rank has ended.
        DataError: The source cannot be read.
        StorageError: The file system refused.
    """
    scatter = _scatter(plan, staging)
    told = _Told(plan, staging, progress)
    mine = _share(range(plan.stretches), staging.done("stretch"), together)
    jobs = _jobs(plan, staging)
    left = _share(
        range(len(jobs)), {n for n, (what, number, _) in enumerate(jobs) if number in told.done[what]}, together
    )
    busy = bool(mine or left)
    with ProcessPool(workers if busy else 1, scatter) as pool:
        if mine:
            _fill(plan, staging, together, pool, mine, scatter, told)
        scatter.close()
        together.meet("filled", told.look)
        told.look(force=True)
        tasks = (jobs[job][2] for job in left)
        for job, result in zip(left, pool.map(call, tasks), strict=True):
            what, number, _ = jobs[job]
            _record(plan, staging, what, number, result)
            told.add(what, number)
            together.check()
    together.meet("finished", told.look)
    told.look(force=True)


def _share(numbers: Sequence[int], done: set[int], together: Together) -> list[int]:
    """What of all this rank does: nobody need ask another one."""
    return [number for number in numbers if number % together.ranks == together.rank and number not in done]


def _scatter(plan: ShardPlan, staging: ShardStaging) -> Scatter:
    parts = range(len(plan.cut.parts))
    return Scatter(
        plan.source,
        plan.fields,
        [staging.plain_path(number) for number in parts],
        staging.offsets,
        [plan.splits.index(part.split) for part in plan.cut.parts],
        frozenset(one.name for one in plan.fields if is_countable(one) or one.classes),
        plan.values,
    )


def _fill(
    plan: ShardPlan,
    staging: ShardStaging,
    together: Together,
    pool: ProcessPool,
    mine: Sequence[int],
    scatter: Scatter,
    told: _Told,
) -> None:
    """Write the rows of some stretches into the shards."""
    given: deque[tuple[int, Any]] = deque()
    wanted = set(mine)

    ragged = {one.name: plan.source.offsets(one.name) for one in plan.fields if one.ragged}

    def blocks() -> Iterator[tuple[int, Any, Any, Any]]:
        before = np.zeros(len(plan.cut.parts), np.int64)
        values = dict.fromkeys(ragged, before)
        for number in range(max(mine) + 1):
            for start, stop in plan.blocks(number):
                part_of = plan.cut.part_of(start, stop)
                if number in wanted:
                    given.append((number, part_of))
                    yield start, part_of, before, values
                before = before + np.bincount(part_of, minlength=len(before))
                values = {
                    name: _added(values[name], part_of, np.diff(offsets[start : stop + 1]))
                    for name, offsets in ragged.items()
                }

    function: Callable[..., SplitStats] = write_in_worker if pool.parallel else scatter.write
    seen: list[SplitStats] = []
    touched: set[int] = set()
    rows = 0
    for of_block in pool.map(function, blocks()):
        number, part_of = given.popleft()
        seen.append(of_block)
        touched.update(np.unique(part_of).tolist())
        rows += len(part_of)
        together.check()
        start, stop = plan.stretch(number)
        if rows == stop - start:
            make_durable(staging.plain_path(part) for part in sorted(touched))
            staging.record_stretch(number, seen)
            seen, touched, rows = [], set(), 0
            told.add("stretch", number)
        else:
            told.samples(rows)


def _added(before: Ids, part_of: Any, lengths: Ids) -> Ids:
    """Values of each part, with those of a block."""
    after = before.copy()
    np.add.at(after, part_of, lengths)
    return after


_Job = tuple[str, int, tuple[Callable[..., Any], tuple[Any, ...]]]
"""Kind and number of the record, and what makes it."""


def _jobs(plan: ShardPlan, staging: ShardStaging) -> list[_Job]:
    jobs: list[_Job] = [
        ("files", number, (hash_files, (paths,))) for number, paths in enumerate(plan.file_groups)
    ]
    for number, group in enumerate(plan.groups):
        parts = [
            (
                staging.plain_path(part),
                staging.whole_path(plan, part),
                plan.fields,
                plan.cut.parts[part].samples,
                staging.offsets[part],
                plan.packing,
                plan.values[part],
            )
            for part in group
        ]
        jobs.append(("group", number, (finish_parts, (parts,))))
    return jobs


def _record(plan: ShardPlan, staging: ShardStaging, what: str, number: int, result: Any) -> None:
    if what == "files":
        staging.record(what, number, {"files": result})
        return
    group = plan.groups[number]
    for folder in {staging.whole_path(plan, part).parent for part in group}:
        with storage_errors(folder, "write the folder"):
            fsync_dir(folder)
    staging.record(what, number, {"shards": [info.to_json() for info in result]})
    for part in group:
        with storage_errors(staging.plain, "remove the plain shard"):
            staging.plain_path(part).unlink(missing_ok=True)  # of a compressed one


class _Told:
    """Says how far all ranks are together; the records tell of the others."""

    def __init__(self, plan: ShardPlan, staging: ShardStaging, progress: Progress | None) -> None:
        self._plan, self._staging, self._progress = plan, staging, progress
        self._read = self._bytes = -1
        self._looked = 0.0
        self._all_bytes = sum(staging.sizes)
        self.done: dict[str, set[int]] = {}
        self.look(force=True)

    def samples(self, more: int) -> None:
        """Samples of a stretch that is not done, beside those that are."""
        if self._progress and self._read + more < self._plan.source.n:
            self._progress("shard", self._read + more, self._plan.source.n)

    def add(self, what: str, number: int) -> None:
        """This rank has recorded something."""
        self.done[what].add(number)
        self.look()
        self._tell()

    def look(self, *, force: bool = False) -> None:
        """Read what is recorded; once a second, unless it has to be."""
        if force or time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            self.done = {what: self._staging.done(what) for what in ("stretch", "group", "files")}
            self._tell()

    def _tell(self) -> None:
        if self._progress is None:
            return
        bounds = (self._plan.stretch(number) for number in self.done["stretch"])
        read = sum(stop - start for start, stop in bounds)
        sizes = self._staging.sizes
        written = sum(sizes[part] for number in self.done["group"] for part in self._plan.groups[number])
        if read > self._read:
            self._read = read
            self._progress("shard", read, self._plan.source.n)
        if written > max(self._bytes, 0):
            self._bytes = written
            self._progress("checksum", written, self._all_bytes)


# -- the end ----------------------------------------------------------------------------------------------
def write_manifests(plan: ShardPlan, staging: ShardStaging) -> list[Manifest]:
    """By rank 0: the manifests of all splits, beside the finished shards."""
    stats = [empty_stats(plan.fields) for _ in plan.splits]
    for number in range(plan.stretches):
        for block in staging.stretch(number):
            for place, of_block in block.items():
                for name, seen in of_block.items():
                    stats[place][name].merge(seen)
    fields = _finished_fields(plan, stats)
    infos = staging.finished(plan)
    source = source_record(plan.source, staging.hashes(plan))
    manifests = []
    for number, split in enumerate(plan.splits):
        shards = tuple(infos[index] for index, part in enumerate(plan.cut.parts) if part.split == split)
        manifest = Manifest(
            split=split,
            samples=sum(info.samples for info in shards),
            fields=fields[number],
            shards=shards,
            cut=plan.record,
            source=source,
            created=time.time(),
        )
        manifests.append(write_manifest(staging.split_folder(split), manifest))
    for folder in {staging.split_folder(split) for split in plan.splits} | {staging.whole}:
        with storage_errors(folder, "write the folder"):
            fsync_dir(folder)
    return manifests


def _finished_fields(plan: ShardPlan, stats: Sequence[Mapping[str, FieldStats]]) -> list[tuple[Field, ...]]:
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


def source_record(source: Source, hashes: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Where the samples came from. Only names are recorded: the id must not depend on the place.

    Args:
        source: The source.
        hashes: Size in bytes and SHA-256 of each of its files.
    """
    files: Sequence[Path] = source.files
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
