"""`shard`: cut a source into shards, by any number of ranks and workers, in one pass, whatever its size.

The work is done in a hidden folder beside the wanted one (`data/sharding/`), which takes its name only when all
shards, checksums and manifests are complete. Interrupted, the same call goes on where it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from hpcmass.data.building import check_free, put_in_place, remove_abandoned
from hpcmass.data.cut import STRATEGIES, Codes, fractions_of, plan_cut
from hpcmass.data.filters import Packing, check_packing
from hpcmass.data.manifest import Field, Manifest, read_manifest
from hpcmass.data.roles import TARGET_NAMES, resolve_roles
from hpcmass.data.sharding.plan import BLOCK_BYTES, ShardPlan
from hpcmass.data.sharding.staging import Note, ShardStaging, sweep, sweep_gone
from hpcmass.data.sharding.work import work, write_manifests
from hpcmass.data.sources import Progress, Source, Unread, open_source
from hpcmass.data.sources.base import sizes_of
from hpcmass.data.writing.together import Together
from hpcmass.errors import AlreadyExists, DataError, StorageError
from hpcmass.files import storage_errors

SHARD_BYTES = 256 << 20


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
    note: Note | None = None,
    rank: int = 0,
    ranks: int = 1,
    start: str = "",
) -> list[Manifest]:
    """Cut a source into shards.

    Killed at any moment, the same call goes on with what was done; another one into the same folder, or one
    after the source has changed, begins anew. Several ranks share the work: each makes the same call with its
    own `rank`, and all see the folder of `out`. Ranks, workers and interruptions do not show in the result.

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
        workers: Processes of this rank; None: one a core, 4 at most, and 1 for small sources or several ranks.
        compression: `bitshuffle-lz4`, `gzip-4`, `lzf`, `zstd-3` …; see `hpcmass.data.filters`; None: none.
        chunk_samples: Samples a compressed chunk; None: what suits the fields.
        overwrite: Exchange a dataset that is there already, once the new one is complete.
        progress: Called as progress(stage, done, total).
        note: Called with a sentence about what is resumed, or begun anew.
        rank: Which rank this is, 0 … ranks - 1.
        ranks: How many make this call.
        start: The same text for all ranks of one start and another for the next; see `launch.start_id`.

    Returns:
        The manifests, one a split.

    Raises:
        AlreadyExists: `out` holds something, and `overwrite` is not set.
        DataError: The source or an argument is wrong; nothing is left behind.
        LeaseHeld: Others are cutting something into this folder.
        RankFailed: Another rank has ended; the message says which and why.
        StorageError: The file system refused; the same call goes on later.
    """
    out = Path(os.path.abspath(out))
    if strategy not in STRATEGIES:
        raise DataError(f"unknown strategy {strategy!r}", hint=f"choose from {', '.join(STRATEGIES)}")
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers are not possible")
    packing = check_packing(compression, chunk_samples)
    _check_free(out, overwrite, rank)
    asked = {
        "inputs": inputs and list(inputs),
        "targets": targets and list(targets),
        "meta": meta and list(meta),
        "categories": categories and list(categories),
        "stack": list(stack),
        "resize": resize and list(resize),
    }

    def planned(source: Source) -> ShardPlan:
        named = list(dict.fromkeys(["x", *(inputs or ())])) if stack else inputs
        fields = resolve_roles(
            source.fields, inputs=named, targets=targets, meta=meta, categories=categories, by=by
        )
        source = source.select([one.name for one in fields])
        label = _label_field(strategy, by, fields)
        cut_record = {
            "strategy": strategy,
            "seed": seed,
            "by": label,
            "splits": dict(splits) if splits else None,
        }
        return _plan(source, fields, shards, cut_record, packing, asked)

    with contextlib.ExitStack() as open_files:
        opened = _open(source, inputs, targets, [*(meta or ()), *(categories or ())], by, stack, resize)
        if hasattr(opened, "close"):
            open_files.callback(opened.close)
        # Only sources that must be copied first have `spill`. All others are planned before anything is
        # written, so that every rank finds by itself what is wrong.
        plan = None if hasattr(opened, "spill") else planned(opened)
        staging = ShardStaging(out)
        with _folder_of(out), Together(staging.home, rank, ranks, start) as together:
            try:
                if together.leads:
                    check_free(out, overwrite)  # others may just have finished
                if plan is None:
                    unread = cast(Unread, opened)
                    copied = staging.spill(unread, asked, progress) if together.leads else staging.spilled()
                    plan = planned(copied)
                if together.leads:
                    staging.prepare(plan, note or (lambda words: None))
                    _check_space(staging, plan)
                    together.begin()
                else:
                    staging.follow(plan)
                work(plan, staging, together, _workers(workers, plan, ranks), progress)
                manifests = _published(plan, staging, together, out, overwrite)
                together.discard = True
            except BaseException as error:
                together.discard = staging.is_worthless(error)
                raise
    return manifests


def _published(
    plan: ShardPlan, staging: ShardStaging, together: Together, out: Path, overwrite: bool
) -> list[Manifest]:
    """By rank 0: give the dataset its name. By the others: wait for that, and read it."""
    if together.leads:
        staging.check_source(plan)
        manifests = write_manifests(plan, staging)
        together.check()
        put_in_place(staging.whole, out, overwrite)
        together.part("published")
        return manifests
    together.part("published")
    return [read_manifest(out / split if split else out) for split in plan.splits]


def _check_free(out: Path, overwrite: bool, rank: int) -> None:
    if rank == 0:
        sweep_gone(out)
    try:
        check_free(out, overwrite, repair=rank == 0)
    except AlreadyExists as error:
        if rank == 0 and error.data.get("complete"):
            sweep(out)  # a start that was killed after it had published
        raise
    if rank == 0:
        with storage_errors(out.parent, "make the folder"):
            remove_abandoned(out)


@contextlib.contextmanager
def _folder_of(out: Path) -> Iterator[None]:
    """The folder that `out` is to appear in; made, it goes again when nothing comes of it."""
    missing = [parent for parent in out.parents if not parent.exists()]
    with storage_errors(out.parent, "make the folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


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
    shards: int | Mapping[str, int] | None,
    record: dict[str, Any],
    packing: Packing | None,
    asked: dict[str, Any],
) -> ShardPlan:
    splits, label = record["splits"], record["by"]
    total_bytes = sizes_of(source, fields).before(source.n)
    codes = None if label is None else _codes(source.select([label]), label)
    if shards is None:
        # Checked before they are counted with: a NaN cannot be rounded.
        fractions = dict(zip(splits, fractions_of(splits), strict=True)) if splits else {"": Fraction(1)}
        wanted = {
            name: max(1, round(total_bytes * fraction / SHARD_BYTES)) for name, fraction in fractions.items()
        }
        shards = wanted if splits else wanted[""]
    cut = plan_cut(record["strategy"], source.n, shards=shards, splits=splits, seed=record["seed"], codes=codes)
    return ShardPlan(source, fields, cut, record, packing, asked)


def _codes(source: Source, label: str) -> Codes:
    """Class or group number of each sample, 0 … k - 1 in the order of the values, shape (n,)."""
    rows = 1 << 20
    blocks = [source.read(at, min(at + rows, source.n))[label] for at in range(0, source.n, rows)]
    _, codes = np.unique(np.concatenate(blocks), return_inverse=True)
    return codes.reshape(-1).astype(np.int64, copy=False)


def _workers(workers: int | None, plan: ShardPlan, ranks: int) -> int:
    if workers is not None:
        return workers
    if ranks > 1 or (plan.bytes < 16 * BLOCK_BYTES and plan.source.kind != "images"):
        return 1
    return min(len(os.sched_getaffinity(0)), 4)


def _check_space(staging: ShardStaging, plan: ShardPlan) -> None:
    needed = plan.bytes - staging.allocated()
    with storage_errors(staging.home, "look at the file system"):
        space = os.statvfs(staging.home)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise StorageError(
            f"the shards need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            where=staging.home.parent,
            hint="free space, or put the dataset elsewhere",
            transient=True,
            errno=errno.ENOSPC,
        )
