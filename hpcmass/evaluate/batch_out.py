"""Where predictions go: shards of a dataset, or Parquet files. A part is there whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcmass.data import ShardWriter, read_manifest
from hpcmass.data.manifest import newest_manifest
from hpcmass.data.writing.commit import commit
from hpcmass.data.writing.staging import Staging, completed, differences
from hpcmass.errors import AlreadyExists, DataError, LeaseHeld, MissingDependency, NotFound
from hpcmass.evaluate.batch_plan import KIND, BatchPlan, Columns
from hpcmass.files import Lease, publish_json, publishing, read_json, sha256_file, storage_errors

FORMATS = ("hdf5", "parquet")
FORMAT = 1
Rows = Callable[[], Sequence[Columns]]


class Output(Protocol):
    """A folder of predictions; every process of every start has one of its own."""

    def pinned(self) -> str | None:
        """Id of the dataset that was begun with, or None where nothing was begun."""

    def agree(self, plan: BatchPlan) -> None:
        """Begin, or find that what was begun is the same.

        Raises:
            DataError: It was begun otherwise; the message says in what.
            AlreadyExists: The folder holds something else.
        """

    def done(self) -> set[int]:
        """The parts that are finished."""

    def write(self, part: int, rows: Rows) -> bool:
        """Make a part; False where another process makes it at this moment."""

    def finish(self) -> bool:
        """Complete the whole where all parts are finished, and say whether it is complete."""


def open_output(folder: Path, kind: str) -> Output:
    """The output of a kind, `hdf5` or `parquet`."""
    return ShardOutput(folder) if kind == "hdf5" else ParquetOutput(folder)


class ShardOutput:
    """A dataset of one shard a part: each part is a rank of a `ShardWriter`, whoever makes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._staging = Staging(self._folder, None)
        self._plan: BatchPlan | None = None

    def pinned(self) -> str | None:
        """See `Output`."""
        source = self._begun()
        return None if source is None else str(source.get("dataset"))

    def agree(self, plan: BatchPlan) -> None:
        """See `Output`."""
        source = self._begun()
        if source is not None:
            _refuse(self._folder, source, plan)
        self._plan = plan

    def done(self) -> set[int]:
        """See `Output`."""
        assert self._plan is not None
        if newest_manifest(self._folder) is not None:
            return set(range(self._plan.parts))
        try:
            names = os.listdir(self._staging.path)
        except FileNotFoundError:
            # Not begun, or published at this moment.
            return set() if newest_manifest(self._folder) is None else set(range(self._plan.parts))
        return {int(match[1]) for name in names if (match := re.fullmatch(r"rank-(\d+)-done\.json", name))}

    def write(self, part: int, rows: Rows) -> bool:
        """See `Output`."""
        plan = self._plan
        assert plan is not None
        try:
            writer = ShardWriter(
                self._folder,
                {one.name: (one.dtype, one.shape) for one in plan.columns},
                rank=part,
                ranks=plan.parts,
                inputs=[one.name for one in plan.columns if one.role == "input"],
                targets=[one.name for one in plan.columns if one.role == "target"],
                meta=[one.name for one in plan.columns if one.role == "meta"],
                classes={one.name: list(one.classes) for one in plan.columns if one.classes is not None},
                source=plan.to_json(),
                shard_samples=plan.part_samples,
                publish=False,
            )
        except LeaseHeld:
            return False
        with writer:
            if writer.manifest is None and not writer.resumed_samples:
                for batch in rows():
                    writer.write_batch(batch)
        return True

    def finish(self) -> bool:
        """See `Output`."""
        assert self._plan is not None
        if len(self.done()) < self._plan.parts:
            return False
        commit(self._folder)
        return True

    def _begun(self) -> dict[str, Any] | None:
        """What the folder says that it is of, published or not."""
        for _ in range(2):  # it may be published between the two looks
            if completed(self._folder, None) is not None:
                return dict(read_manifest(self._folder).source)
            with contextlib.suppress(NotFound):
                return dict(self._staging.plan().source)
        return None


class ParquetOutput:
    """Parquet files, one a part; `_plan.json` from the beginning, `_complete.json` when all are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._plan: BatchPlan | None = None

    def pinned(self) -> str | None:
        """See `Output`."""
        with contextlib.suppress(NotFound):
            return str(read_json(self._folder / "_plan.json").get("dataset"))
        return None

    def agree(self, plan: BatchPlan) -> None:
        """See `Output`."""
        _pyarrow()
        path = self._folder / "_plan.json"
        if not path.exists():
            with storage_errors(self._folder, "look at the folder"):
                if os.path.lexists(self._folder) and not self._folder.is_dir():
                    raise AlreadyExists("is there already and is not a folder", where=self._folder)
                names = os.listdir(self._folder) if self._folder.is_dir() else []
            # Hidden is what a process left that was killed before it had a plan; but for shards under way.
            held = [name for name in names if name == ".writing" or not name.startswith(".")]
            if held and not path.exists():
                raise AlreadyExists(
                    "is there already and holds other files", where=self._folder, hint="name another folder"
                )
            with contextlib.suppress(AlreadyExists):
                publish_json(path, {"format": FORMAT, **plan.to_json()})
        said = read_json(path)
        _refuse(self._folder, {key: value for key, value in said.items() if key != "format"}, plan)
        self._plan = plan

    def done(self) -> set[int]:
        """See `Output`."""
        with storage_errors(self._folder, "list the folder"):
            names = os.listdir(self._folder)
        return {int(match[1]) for name in names if (match := re.fullmatch(r"part-(\d{5,})\.parquet", name))}

    def write(self, part: int, rows: Rows) -> bool:
        """See `Output`."""
        assert self._plan is not None
        lease = Lease(self._folder / ".leases" / f"part-{part:05d}")
        try:
            lease.acquire()
        except LeaseHeld:
            return False
        try:
            if part in self.done():
                return True
            batches = rows()
            pyarrow = _pyarrow()
            schema = _schema(pyarrow, self._plan)
            with (
                contextlib.suppress(AlreadyExists),
                publishing(self._path(part)) as temporary,
                pyarrow.parquet.ParquetWriter(temporary, schema) as writer,
            ):
                whole = {name: np.concatenate([batch[name] for batch in batches]) for name in schema.names}
                columns = [_array(pyarrow, whole[one.name], one.type) for one in schema]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
        finally:
            lease.release()
        return True

    def finish(self) -> bool:
        """See `Output`."""
        assert self._plan is not None
        path = self._folder / "_complete.json"
        if path.exists():
            return True
        if len(self.done()) < self._plan.parts:
            return False
        files = []
        for part in range(self._plan.parts):
            first, stop = self._plan.range(part)
            at = self._path(part)
            with storage_errors(at, "read the file"):
                size = at.stat().st_size
            files.append({"file": at.name, "samples": stop - first, "bytes": size, "sha256": sha256_file(at)})
        with contextlib.suppress(AlreadyExists):
            publish_json(path, {"format": FORMAT, "samples": self._plan.samples, "files": files})
        shutil.rmtree(self._folder / ".leases", ignore_errors=True)
        for left in [
            *self._folder.glob(".part-*.tmp"),
            *self._folder.glob("._plan*.tmp"),
        ]:  # of processes that were killed: every part is there
            left.unlink(missing_ok=True)
        return True

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part:05d}.parquet"


def _refuse(folder: Path, said: dict[str, Any], plan: BatchPlan) -> None:
    """Refuse to go on with something else than what was begun."""
    if said.get("kind") != KIND:
        raise AlreadyExists(
            "holds a dataset that is no prediction", where=folder, hint="name another folder", complete=True
        )
    if differs := differences(said, plan.to_json()):
        shown = "; ".join(
            f"{key}: {then!r:.200} then, {now!r:.200} now" for key, (then, now) in differs.items()
        )
        raise DataError(
            f"was begun with another model, dataset or options ({shown})",
            where=folder,
            hint="name another folder, or remove this one",
            differs=list(differs),
        )


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            "writing Parquet needs pyarrow", hint="pip install 'hpcmass[tables]', or --format hdf5"
        ) from error
    return pyarrow


def _schema(pyarrow: Any, plan: BatchPlan) -> Any:
    fields = []
    for one in plan.columns:
        kind = pyarrow.from_numpy_dtype(np.dtype(one.dtype))
        if one.shape:
            kind = pyarrow.list_(kind, int(np.prod(one.shape, dtype=np.int64)))
        said = {"shape": list(one.shape), "role": one.role, "classes": one.classes}
        fields.append(pyarrow.field(one.name, kind, nullable=False, metadata={"hpcmass": json.dumps(said)}))
    return pyarrow.schema(fields)


def _array(pyarrow: Any, values: Any, kind: Any) -> Any:
    if values.ndim == 1:
        return pyarrow.array(values, kind)
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
