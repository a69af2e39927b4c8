"""Datasets that their producers write, that grow, and that are cut anew: as people ask for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcmass.data import Manifest, append, commit, open_dataset, reshard
from hpcmass.data.writing.staging import parts_of
from hpcmass.data.writing.writer import ShardWriter as PlainWriter
from hpcmass.errors import DataError, NotFound
from hpcmass.launch.ranks import detect_ranks
from hpcmass.workflow.sharding import TABLES

Tell = Callable[[float, float], None]


class ShardWriter(PlainWriter):
    """`hpcmass.data.ShardWriter` that finds out which rank it is, where nobody says it.

    Ranks are those of mpiexec, of srun, of torchrun or of `hpcmass run`; a process that none of them started is
    rank 0 of 1. Parsl apps, and other tasks that share a launcher's environment, name `rank` and `ranks`.
    """

    def __init__(
        self,
        out: str | Path,
        fields: Mapping[str, Any] | None = None,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        **options: Any,
    ) -> None:
        """As `hpcmass.data.ShardWriter`.

        Raises:
            DataError: Only one of `rank` and `ranks` is given.
            LaunchError: The launcher's variables contradict each other.
        """
        if (rank is None) != (ranks is None):
            raise DataError("`rank` and `ranks` are given together, or neither is")
        if rank is None or ranks is None:
            place = detect_ranks(os.environ)
            rank, ranks = place.rank, place.size
        super().__init__(out, fields, rank=rank, ranks=ranks, **options)


def append_files(
    dataset: str | Path,
    inputs: Sequence[str],
    *,
    name: str | None = None,
    shards: int | None = None,
    input_fields: Sequence[str] | None = None,
    resize: tuple[int, int] | None = None,
    compression: str = "keep",
    chunk_samples: int | None = None,
    progress: Tell | None = None,
    note: Callable[[str], None] | None = None,
) -> Manifest:
    """Add files to a dataset; see `hpcmass.data.append`.

    Args:
        dataset: The dataset's folder.
        inputs: As those of `hpcmass shard`.
        name: Name of the addition.
        shards: Number of new shards.
        input_fields: Columns of a table that are stacked to the field `x`.
        resize: Height and width that images are scaled to.
        compression: Its name, `none`, or `keep`: as the dataset has it.
        chunk_samples: Samples a compressed chunk.
        progress: Called as progress(done samples, all samples).
        note: Called with what there is to say.
    """
    table = len(inputs) == 1 and Path(inputs[0]).suffix.lower() in TABLES
    if input_fields and not table:
        raise DataError("columns are stacked in tables only", hint="leave --input out")
    source = inputs[0] if len(inputs) == 1 and "=" not in inputs[0] else list(inputs)
    stack = tuple(input_fields) if input_fields else ()
    return append(
        dataset,
        source,
        name=name,
        shards=shards,
        stack=stack,
        resize=resize,
        compression=compression,
        chunk_samples=chunk_samples,
        progress=_shards(progress),
        note=note,
    )


def reshard_files(
    dataset: str | Path,
    out: str | Path,
    *,
    shards: int | None = None,
    shard_samples: int | None = None,
    compression: str = "keep",
    chunk_samples: int | None = None,
    progress: Tell | None = None,
    note: Callable[[str], None] | None = None,
) -> Manifest:
    """Cut a dataset anew; see `hpcmass.data.reshard`."""
    opened = open_dataset(dataset)
    return reshard(
        opened, out, shards=shards, shard_samples=shard_samples, compression=compression,
        chunk_samples=chunk_samples, progress=_shards(progress), note=note,
    )  # fmt: skip


def commit_ranks(dataset: str | Path, name: str | None = None) -> Manifest:
    """Publish what ranks have written; see `hpcmass.data.commit`.

    Raises:
        NotFound: There is no such folder, or nothing is being written there.
        DataError: A rank is missing, or several additions are being written and none is named.
    """
    folder = Path(dataset)
    if not folder.is_dir():
        raise NotFound("there is no such folder", where=folder)
    if name is None and not (folder / ".writing").exists():
        begun = sorted(one.parent.name.removeprefix(".append-") for one in folder.glob(".append-*/plan.json"))
        if len(begun) > 1:
            raise DataError(
                f"several additions are being written: {', '.join(begun)}",
                where=folder,
                hint="name one (--name)",
            )
        name = begun[0] if begun else None
    return commit(folder, append=name)


def earlier_states(manifest: Manifest) -> list[str] | None:
    """The ids that a dataset had before something was appended, the last first, and its samples then."""
    parts = parts_of(manifest)
    said = []
    samples = manifest.samples
    for part in reversed(parts[1:]):
        samples -= part["samples"]
        said.append(f"{part['after'][:12]} ({samples} samples)")
    return said or None


def _shards(progress: Tell | None) -> Callable[[str, int, int], None]:
    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None and stage == "shard":
            progress(done, total)

    return tell
