"""`reshard`: a dataset's samples in shards of another size, in the same order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hpcmass.data.filters import KEEP_PACKING, Packing, packing_as
from hpcmass.data.manifest import Manifest, newest_manifest
from hpcmass.data.reader import Dataset
from hpcmass.data.sources import Progress
from hpcmass.data.writing.append import even_sizes
from hpcmass.data.writing.staging import Staging, sweep
from hpcmass.data.writing.writer import ShardWriter
from hpcmass.errors import AlreadyExists, CorruptError, DataError, NotFound

_BLOCK_BYTES = 8 << 20


def reshard(
    dataset: Dataset,
    out: str | Path,
    *,
    shards: int | None = None,
    shard_samples: int | None = None,
    compression: str | None = KEEP_PACKING,
    chunk_samples: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Manifest:
    """Write the samples of a dataset anew, in their order, into shards of another size.

    Memory is bounded by a few blocks. Killed, the same call goes on where it was; a call with other sizes, or
    after the dataset has changed, begins anew.

    Args:
        dataset: What is read.
        out: Folder of the new dataset; not there yet, or empty.
        shards: Number of shards; default: one for each 256 MiB.
        shard_samples: Samples a shard instead; the last one has what is left.
        compression: As of `shard`; None: none. Default: that which most of the samples have now.
        chunk_samples: Samples a compressed chunk; default: as now, or what suits the fields.
        progress: Called as progress("shard", samples done, samples).
        note: Called with a sentence about what is resumed, or begun anew.

    Returns:
        The new dataset's manifest; its `source` names the id of the old one.

    Raises:
        AlreadyExists: `out` holds something.
        DataError: There are fewer samples than shards, or both numbers are given.
        CorruptError: A shard of the old dataset is missing or truncated.
        LeaseHeld: Another process writes there.
        StorageError: The file system refused; the same call goes on later.
    """
    folder = Path(os.path.abspath(out))
    if shards is not None and shard_samples is not None:
        raise DataError("the number of shards and their size cannot both be given")
    if newest_manifest(folder) is not None:
        sweep(folder)
        raise AlreadyExists("holds a dataset already", where=folder, hint="name another folder", complete=True)
    whole = dataset.manifest.data_bytes
    sizes = even_sizes(len(dataset), shards, whole) if shard_samples is None else shard_samples
    packing = packing_as(dataset.manifest, compression, chunk_samples)
    try:
        writer = _writer(dataset, folder, sizes, packing)
    except DataError as error:
        if not error.data.get("differs"):
            raise
        _begin_anew(folder)
        if note:
            note("what was begun there with other arguments is given up: begins anew")
        writer = _writer(dataset, folder, sizes, packing)
    with writer:
        if writer.resumed_samples and note:
            note(f"goes on where it was interrupted: {writer.resumed_samples} samples are there")
        for start, stop in dataset.sizes().blocks(writer.samples, _BLOCK_BYTES, len(dataset)):
            writer.write_batch(dataset.raw(np.arange(start, stop, dtype=np.int64)))
            if progress:
                progress("shard", stop, len(dataset))
    assert writer.manifest is not None
    return writer.manifest


def _writer(dataset: Dataset, folder: Path, sizes: int | Sequence[int], packing: Packing | None) -> ShardWriter:
    manifest = dataset.manifest
    roles = {
        role: [one.name for one in manifest.fields if one.role == role] for role in ("input", "target", "meta")
    }
    return ShardWriter(
        folder,
        {one.name: (one.dtype, (None, *one.shape) if one.ragged else one.shape) for one in manifest.fields},
        inputs=roles["input"],
        targets=roles["target"],
        meta=roles["meta"],
        classes={one.name: one.classes for one in manifest.fields if one.classes},
        shard_samples=sizes,
        compression=packing.compression.name if packing else None,
        chunk_samples=packing.chunk_samples if packing else None,
        source={"kind": "reshard", "of": manifest.id, "split": manifest.split, "source": manifest.source},
    )


def _begin_anew(folder: Path) -> None:
    """Give up what was begun, unless somebody is at it.

    Raises:
        LeaseHeld: Somebody is.
        AlreadyExists: Somebody has completed it meanwhile.
    """
    staging = Staging(folder, None)
    named = 0
    with contextlib.ExitStack() as leases:
        with contextlib.suppress(NotFound, CorruptError):
            for rank in range(staging.plan().ranks):
                leases.enter_context(staging.lease(rank))
                named += len(staging.pieces(rank))
        # From here on nobody can publish it: the records of its shards are gone.
        staging.discard()
        if newest_manifest(folder) is not None:
            raise AlreadyExists(
                "holds a dataset already", where=folder, hint="name another folder", complete=True
            )
        for number in range(named):  # those that a commit, cut short, had named already
            (folder / f"shard-{number:05d}.h5").unlink(missing_ok=True)
