"""Publishing what ranks have written: one manifest, when all of them are done, whoever is last."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpcmass.data.manifest import (
    Field,
    Manifest,
    ShardInfo,
    manifest_numbers,
    manifest_path,
    newest_manifest,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from hpcmass.data.stats import FieldStats, empty_stats, field_stats, is_countable, seen_before
from hpcmass.data.writing.staging import WRITTEN, Piece, Staging, WritingPlan, completed, parts_of, sweep
from hpcmass.errors import AlreadyExists, CorruptError, DataError, HpcmassError, NotFound
from hpcmass.files import fsync_dir, matching, read_json, storage_errors


def commit(out: str | Path, *, append: str | None = None) -> Manifest:
    """Publish what all ranks of a `ShardWriter` have written.

    The last rank that closes its writer does so by itself; this is for the case that it could not, or was told
    not to. Called again, or by several at once, it does the same once.

    Args:
        out: The dataset's folder.
        append: Name of what is appended; None: the dataset is new.

    Returns:
        The newest manifest.

    Raises:
        NotFound: Nothing is being written here.
        DataError: A rank has not come or not finished; the message names it. Or no sample was written.
        CorruptError: A shard has changed since it was finished.
        StorageError: The file system refused; the same call goes on later.
    """
    folder = Path(os.path.abspath(out))
    staging = Staging(folder, append)
    while True:
        if completed(folder, append) is not None:
            sweep(folder)
            return read_manifest(folder)
        try:
            _publish(staging)
        except HpcmassError as error:
            # Another process may have published and cleared away meanwhile.
            if completed(folder, append) is None:
                if isinstance(error, NotFound) and not staging.path.exists():
                    raise NotFound(
                        "nothing is being written here"
                        if append is None
                        else f"nothing is appended as {append!r}",
                        where=folder,
                        hint="a ShardWriter begins a writing; each rank opens one",
                    ) from error
                raise


def _publish(staging: Staging) -> None:
    plan = staging.plan()
    by_rank = _all_pieces(staging, plan)
    pieces = [piece for of_rank in by_rank for piece in of_rank]
    if not pieces:
        raise DataError("no rank has written a sample", where=staging.path)
    infos = _place(staging, pieces)
    part: dict[str, Any] = {
        "name": plan.name,
        "samples": sum(info.samples for info in infos),
        "shards": len(infos),
        "cut": {
            "strategy": WRITTEN,
            "ranks": plan.ranks,
            "rank_samples": [sum(piece.info.samples for piece in of_rank) for of_rank in by_rank],
        },
        "source": plan.source,
    }
    while True:
        number, base = _newest(staging.dataset)
        # Looked for in the very manifest that the new one would follow: published twice it cannot be.
        if base is not None and any(one.get("name") == plan.name for one in parts_of(base)):
            completed(staging.dataset, plan.name)  # refuses a new dataset's place that another one took
            return
        if plan.name is not None and base is None:
            raise NotFound("the dataset that is appended to is gone", where=staging.dataset)
        manifest = (
            _new(plan, infos, pieces, part)
            if base is None
            else _longer(staging, base, plan, infos, pieces, part)
        )
        # Where somebody else's samples came first, ours follow.
        with contextlib.suppress(AlreadyExists):
            write_manifest(staging.dataset, manifest, number + 1)
            return


def _all_pieces(staging: Staging, plan: WritingPlan) -> list[list[Piece]]:
    """The finished shards of all ranks.

    Raises:
        DataError: A rank has not finished; each is named.
    """
    done = staging.finished()
    by_rank = [staging.pieces(rank) for rank in range(plan.ranks)]
    missing = []
    for rank, of_rank in enumerate(by_rank):
        if rank in done:
            if done[rank] != len(of_rank):
                raise CorruptError(
                    f"rank {rank} has {len(of_rank)} shards, not {done[rank]}", where=staging.path
                )
        elif of_rank:
            samples = sum(piece.info.samples for piece in of_rank)
            missing.append(f"rank {rank} has not finished ({samples} samples in {len(of_rank)} shards so far)")
        else:
            begun = next(iter(matching(staging.path, f"rank-{rank:05d}.*.json")), None)
            missing.append(f"rank {rank} " + ("never came" if begun is None else "has not finished a shard"))
    if missing:
        shown = "; ".join(missing[:8]) + (f"; and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise DataError(
            f"{len(missing)} of {plan.ranks} ranks are missing: {shown}",
            where=staging.path,
            hint="start the same program again: it goes on with what is there",
            ranks=[rank for rank in range(plan.ranks) if rank not in done],
        )
    return by_rank


def _place(staging: Staging, pieces: Sequence[Piece]) -> list[ShardInfo]:
    """Give all shards their names in the dataset's folder; again where that was cut short."""
    stem = "shard" if staging.name is None else f"shard-{staging.name}"
    infos = []
    with storage_errors(staging.dataset, "name the shards"):
        for number, piece in enumerate(pieces):
            info = replace(piece.info, file=f"{stem}-{number:05d}.h5")
            final = staging.dataset / info.file
            try:
                os.rename(staging.path / piece.info.file, final)
            except FileNotFoundError:
                if not final.exists():
                    raise
            if final.stat().st_size != info.bytes:
                raise CorruptError(f"has {final.stat().st_size} bytes, not {info.bytes}", where=final)
            infos.append(info)
        fsync_dir(staging.dataset)
    return infos


def _newest(dataset: Path) -> tuple[int, Manifest | None]:
    if newest_manifest(dataset) is None:
        return 0, None
    number = manifest_numbers(dataset)[-1]
    path = manifest_path(dataset, number)
    return number, parse_manifest(read_json(path), path)


def _new(
    plan: WritingPlan, infos: Sequence[ShardInfo], pieces: Sequence[Piece], part: dict[str, Any]
) -> Manifest:
    fields = []
    for one in plan.fields:
        stats = _merged(empty_stats([one]), pieces)
        classes, counted = one.classes, stats[one.name].classes
        if classes is None and is_countable(one) and counted is not None:
            classes = [str(number) for number in range(counted.size)]
        fields.append(_finished(replace(one, classes=classes), stats))
    split = plan.source.get("split")
    return Manifest(
        split if isinstance(split, str) else None, part["samples"], tuple(fields), tuple(infos), part["cut"],
        plan.source, created=time.time(),
    )  # fmt: skip


def _longer(
    staging: Staging, base: Manifest, plan: WritingPlan, infos: Sequence[ShardInfo], pieces: Sequence[Piece],
    part: dict[str, Any],
) -> Manifest:  # fmt: skip
    """The manifest with the new shards behind the ones that it has."""
    check_same_fields(staging.dataset, base.fields, plan.fields)
    fields = tuple(_finished(one, _merged(seen_before(one), pieces)) for one in base.fields)
    parts = [*parts_of(base), {**part, "after": base.id}]
    return replace(
        base,
        samples=base.samples + part["samples"],
        fields=fields,
        shards=(*base.shards, *infos),
        cut={"strategy": "append", "parts": len(parts)},
        source={"kind": "append", "parts": parts},
        created=time.time(),
    )


def _merged(stats: dict[str, FieldStats], pieces: Sequence[Piece]) -> dict[str, FieldStats]:
    for piece in pieces:
        for name, seen in stats.items():
            seen.merge(piece.stats[name])
    return stats


def _finished(one: Field, stats: dict[str, FieldStats]) -> Field:
    shown = len(one.classes) if one.classes is not None and one.role == "target" else None
    return replace(one, stats=field_stats(one, stats, shown))


def check_same_fields(dataset: Path, there: Sequence[Field], new: Sequence[Field]) -> None:
    """Refuse fields that are not those of the dataset; statistics do not count.

    Raises:
        DataError: The message names the first field that differs, and in what.
    """
    names, others = [one.name for one in there], [one.name for one in new]
    if sorted(names) != sorted(others):
        raise DataError(
            f"has the fields {', '.join(names)}, and what is appended has {', '.join(others)}", where=dataset
        )
    by_name = {one.name: asdict(one) for one in new}
    for one in there:
        mine, theirs = asdict(one), by_name[one.name]
        for key in mine:
            if key != "stats" and mine[key] != theirs[key]:
                raise DataError(
                    f"field {one.name}: {key} is {mine[key]!r:.200} here, "
                    f"and {theirs[key]!r:.200} in what is appended",
                    where=dataset,
                    hint="bring the new samples into the same form, or make a dataset of their own",
                    field=one.name,
                )
