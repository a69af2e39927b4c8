"""`ShardWriter`: a producer's samples, written as shards by any number of independent ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hpcmass.data.filters import KEEP_PACKING, NO_PACKING, check_packing, packing_as
from hpcmass.data.manifest import Field, Manifest, read_manifest
from hpcmass.data.ragged import OFFSET_BYTES
from hpcmass.data.writing.commit import check_same_fields, commit
from hpcmass.data.writing.fields import as_rows, make_fields
from hpcmass.data.writing.raggedout import RaggedShard
from hpcmass.data.writing.shardout import OpenShard
from hpcmass.data.writing.staging import Staging, WritingPlan, completed, sweep
from hpcmass.errors import AlreadyExists, DataError, LeaseHeld, NotFound, StorageError
from hpcmass.files import canonical_json, make_dir, storage_errors

SHARD_BYTES = 256 << 20


class ShardWriter:
    """Writes samples as the shards of a new dataset, or of an addition to one; a context manager.

    Every rank opens one with the same arguments and its own `rank`, and writes its samples. Nothing is visible
    before the last rank has closed its writer; then the dataset appears, with the samples of rank 0 first,
    each rank's in the order of writing. A rank that was killed is started again: `resumed_samples` says how
    many of its samples are safe (those of its finished shards), and it goes on with the next one.

    Attributes:
        rank: Which one this is, from 0.
        ranks: How many write.
        fields: The fields, in the order in which they lie in the shards.
        resumed_samples: Samples of this rank that are written already, by an earlier start.
        samples: Samples of this rank, those included.
        manifest: Of the whole dataset, where this writer's `close` published it or found it published, or None.
    """

    def __init__(
        self,
        out: str | Path,
        fields: Mapping[str, Any] | None = None,
        *,
        rank: int = 0,
        ranks: int = 1,
        append: str | None = None,
        shard_samples: int | Sequence[int] | None = None,
        inputs: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        meta: Sequence[str] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        source: Mapping[str, Any] | None = None,
        compression: str | None = KEEP_PACKING,
        chunk_samples: int | None = None,
        publish: bool = True,
    ) -> None:
        """Begin a writing, join one, or go on with one.

        Args:
            out: Folder of the dataset; not there yet, or empty. With `append`, a dataset.
            fields: Type of each field by name, as numpy says it: `"int64"`, `("uint8", (3, 32, 32))`; one of
                samples that differ in length is ragged: `("uint16", (None,))`. With `append` they are the
                dataset's.
            rank: Which rank this is, 0 … ranks - 1.
            ranks: How many ranks write.
            append: Name of what is appended to the dataset, of your choice, such as a date. Each name is
                appended once: the same program started again goes on with it, or finds it done.
            shard_samples: Samples a shard, which is what a restart may have to write again; the sizes of the
                first, second, … shard of each rank; default: as many as fit into 256 MiB.
            inputs: Fields with the role input; default: all that have no other role.
            targets: Fields with the role target; default: one called label, target, y or class.
            meta: Fields that are carried along.
            classes: Names of the classes 0, 1, … by field.
            source: Where the samples come from, for the manifest: what JSON can say.
            compression: As of `shard`; None: none. Default: that of the dataset that is appended to.
            chunk_samples: Samples a compressed chunk; default: what suits the fields, or the dataset's.
            publish: Whether the last rank to close publishes the dataset; else `commit` does.

        Raises:
            AlreadyExists: `out` holds something else.
            DataError: An argument is wrong, or the writing was begun with others.
            LeaseHeld: Another process writes as this rank.
            StorageError: The file system refused.
        """
        self._out = Path(os.path.abspath(out))
        self._publish = publish
        self._shard: OpenShard | RaggedShard | None = None
        self._limit = SHARD_BYTES if shard_samples is None else None  # of a shard with ragged fields
        self._closed = False
        self._failed = ""
        self.rank, self.ranks = int(rank), int(ranks)
        self.manifest: Manifest | None = None
        if not 0 <= self.rank < self.ranks:
            raise DataError(f"rank {rank} of {ranks} ranks cannot be")
        self._staging = Staging(self._out, append)
        if append is None:
            if fields is None:
                raise DataError("the fields are not named", hint='name them: {"image": ("uint8", (3, 32, 32))}')
            made = make_fields(fields, inputs=inputs, targets=targets, meta=meta, classes=classes)
            named = compression not in (KEEP_PACKING, NO_PACKING)
            packing = check_packing(compression if named else None, chunk_samples)
        else:
            made = self._fields_there(fields, inputs, targets, meta, classes)
            packing = packing_as(read_manifest(self._out), compression, chunk_samples)
        self.fields: tuple[Field, ...] = made
        sizes = _sizes(shard_samples, made)
        self._plan = WritingPlan(append, self.ranks, sizes, made, _json(source), packing)
        self._done = False
        self._pieces = 0
        self._lease = self._staging.lease(self.rank)
        self.resumed_samples = self._begin()
        self.samples = self.resumed_samples

    def _fields_there(
        self, given: Mapping[str, Any] | None, inputs: Sequence[str] | None, targets: Sequence[str] | None,
        meta: Sequence[str] | None, classes: Mapping[str, Sequence[str]] | None,
    ) -> tuple[Field, ...]:  # fmt: skip
        there = read_manifest(self._out).fields
        if given is not None:
            names = {
                role: [one.name for one in there if one.role == role] for role in ("input", "target", "meta")
            }
            known = [one.name for one in there if one.name in given]
            asked = make_fields(
                given,
                inputs=[name for name in names["input"] if name in known] if inputs is None else inputs,
                targets=[name for name in names["target"] if name in known] if targets is None else targets,
                meta=[name for name in names["meta"] if name in known] if meta is None else meta,
                classes={one.name: one.classes for one in there if one.classes and one.name in given}
                | dict(classes or {}),
            )
            check_same_fields(self._out, there, asked)
        made = tuple(replace(one, stats={}) for one in there)
        check_same_fields(self._out, there, made)  # refuses a form that this writer does not write
        return made

    # -- beginning ------------------------------------------------------------------------------------
    def _begin(self) -> int:
        """Join the writing; how many samples of this rank are there already."""
        for _ in range(100):
            done = completed(self._out, self._plan.name)
            if done is not None:
                return self._already(done)
            self._check_free()
            make_dir(self._staging.path)
            try:
                self._staging.agree(self._plan)
                self._acquire()
            except (NotFound, StorageError):
                if self._staging.path.exists():
                    raise
                continue  # completed and cleared away at this moment
            done = completed(self._out, self._plan.name)
            if done is not None:
                self._lease.release()
                self._staging.discard()
                return self._already(done)
            try:
                return self._resume()
            except BaseException:
                self._lease.release()
                raise
        raise StorageError("the folder of the writing vanishes again and again", where=self._staging.path)

    def _acquire(self) -> None:
        try:
            self._lease.acquire()
        except LeaseHeld as error:
            raise LeaseHeld(
                f"another process writes as rank {self.rank} of {self.ranks} ({error.message})",
                where=self._staging.path,
                hint="wait for it to end; ranks that nobody started as ranks need `rank=` and `ranks=`",
                transient=True,
                owner=error.data.get("owner"),
            ) from error

    def _check_free(self) -> None:
        """Refuse a folder in which a new dataset would lie between other files."""
        if self._plan.name is not None or self._staging.path.exists():
            return
        with storage_errors(self._out, "look at the folder"):
            if os.path.lexists(self._out) and not self._out.is_dir():
                raise AlreadyExists("is there already and is not a folder", where=self._out)
            names = os.listdir(self._out) if self._out.exists() else []
            if any(not name.startswith(".") for name in names) and not self._staging.path.exists():
                raise AlreadyExists(
                    "is there already and holds other files", where=self._out, hint="name another folder"
                )

    def _already(self, part: dict[str, Any]) -> int:
        by_rank = part["cut"]["rank_samples"]
        if len(by_rank) != self.ranks:
            raise AlreadyExists(
                f"was written already, by {len(by_rank)} ranks and not by {self.ranks}",
                where=self._out,
                complete=True,
            )
        manifest = read_manifest(self._out)
        plain = [replace(one, stats={}, classes=None) for one in manifest.fields]
        if plain != [replace(one, stats={}, classes=None) for one in self.fields]:
            raise AlreadyExists("holds a dataset already, with other fields", where=self._out, complete=True)
        sweep(self._out)  # what is left where the publication was cut short after the manifest
        self.manifest = manifest
        self._done = True
        return int(by_rank[self.rank])

    def _resume(self) -> int:
        pieces = self._staging.pieces(self.rank)
        self._staging.remove_leftovers(self.rank, pieces)
        self._pieces = len(pieces)
        self._done = self.rank in self._staging.finished()
        return sum(piece.info.samples for piece in pieces)

    # -- writing --------------------------------------------------------------------------------------
    def write(self, sample: Mapping[str, Any]) -> None:
        """Write one sample.

        Args:
            sample: A value a field, without a sample axis; (length, *shape) where the field is ragged.

        Raises:
            DataError: It does not fit the fields.
            StorageError: As `write_batch`.
        """
        ragged = {one.name for one in self.fields if one.ragged}
        self.write_batch(
            {name: [value] if name in ragged else np.asarray(value)[None] for name, value in sample.items()}
        )

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Write several samples, in order.

        Args:
            batch: An array a field, shape (b, *shape of the field). Of a ragged field a list of b arrays, or a
                tuple (values, offsets): all of them in one array, and b + 1 numbers where each begins.

        Raises:
            DataError: It does not fit the fields; nothing of it is written.
            StorageError: The file system refused. What was finished before is safe; this writer has ended, and
                a new one goes on from there.
        """
        self._check_whole()
        if self._closed:
            raise DataError("the writer is closed", where=self._out)
        rows, count = as_rows(self.fields, batch, self._out)
        if count and self._done:
            raise DataError(
                f"rank {self.rank} has written all its {self.samples} samples already, by an earlier start",
                where=self._out,
                hint="begin with sample number `resumed_samples` of this rank",
            )
        try:
            self._take(rows, count)
        except BaseException as error:
            # How much of it is in the shard is not known: were it gone on with, samples could be lost.
            self._failed = str(error) or type(error).__name__
            self.abandon()
            raise

    def _check_whole(self) -> None:
        """Refuse to go on after an error."""
        if self._failed:
            raise StorageError(
                f"this writer ended when its samples could not be written ({self._failed})",
                where=self._out,
                hint="open a new one: it goes on with sample number `resumed_samples` of this rank",
                transient=True,
            )

    def _take(self, rows: Mapping[str, Any], count: int) -> None:
        at = 0
        while at < count:
            if self._shard is None:
                path = self._staging.new_shard(self.rank, self._pieces)
                self._shard = self._open_shard(path)
            taken = self._shard.takes(rows, at, count)
            self._shard.put(rows, at, at + taken)
            at += taken
            self.samples += taken
            if self._shard.full:
                self._finish_shard()

    def _open_shard(self, path: Path) -> OpenShard | RaggedShard:
        capacity = self._plan.capacity(self._pieces)
        if any(one.ragged for one in self.fields):
            return RaggedShard(path, self.fields, capacity, self._limit, self._plan.packing)
        return OpenShard(path, self.fields, capacity, self._plan.packing)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        piece = self._shard.finish(self._staging.new_shard(self.rank, self._pieces))
        if self._lease.lost:
            raise LeaseHeld(f"another process writes as rank {self.rank} now", where=self._staging.path)
        try:
            self._staging.publish(self.rank, self._pieces, piece)
        except AlreadyExists as error:
            raise LeaseHeld(
                f"another process writes as rank {self.rank} too", where=self._staging.path
            ) from error
        self._pieces += 1
        self._shard = None

    # -- ending ---------------------------------------------------------------------------------------
    def close(self) -> None:
        """Finish this rank's last shard; where all other ranks have closed too, publish the dataset.

        Raises:
            DataError: No rank has written a sample.
            StorageError: The file system refused, now or before; a new start goes on.
        """
        self._check_whole()
        if self._closed:
            return
        if self.manifest is None:
            try:
                if not self._done:
                    if self._shard is not None:
                        self._finish_shard()
                    self._staging.finish(self.rank, self._pieces, self.samples)
            except BaseException:
                self.abandon()
                raise
            self._closed = True
            try:
                self._publish_if_last()
            finally:
                self._lease.release()  # not before: whoever has it may begin anew, and clear away
        self._closed = True

    def _publish_if_last(self) -> None:
        if not self._publish:
            return
        with contextlib.suppress(NotFound):  # cleared away: another one is publishing at this moment
            if len(self._staging.finished()) < self.ranks:
                return
        self.manifest = commit(self._out, append=self._plan.name)

    def abandon(self) -> None:
        """End without the samples since the last finished shard; a new start goes on from there."""
        if self._closed:
            return
        self._closed = True
        if self._shard is not None:
            self._shard.discard()
            self._shard = None
        if self.manifest is not None:
            return
        if self.ranks == 1 and not self._pieces and not self._done:
            self.discard()
        self._lease.release()

    def discard(self) -> None:
        """Give up all that was written and not published; for a writing of one rank."""
        self.abandon()
        self._staging.discard()
        if self._plan.name is None:
            with contextlib.suppress(OSError):
                self._out.rmdir()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _sizes(given: int | Sequence[int] | None, fields: Sequence[Field]) -> tuple[int, ...]:
    if given is None:
        return (max(1, SHARD_BYTES // sum(OFFSET_BYTES if one.ragged else one.row_bytes for one in fields)),)
    sizes = tuple(int(one) for one in given) if isinstance(given, Sequence) else (int(given),)
    if not sizes or min(sizes) < 1:
        raise DataError(f"shards of {given} samples cannot be")
    return sizes


def _json(source: Mapping[str, Any] | None) -> dict[str, Any]:
    said = {"kind": "writer", **(source or {})}
    try:
        canonical_json(said)
    except (TypeError, ValueError) as error:
        raise DataError(f"`source` is not what JSON can say ({error})") from error
    return said
