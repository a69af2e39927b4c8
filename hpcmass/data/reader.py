"""Reading a dataset: samples and batches as numpy arrays, in any order, from any process.

A `Dataset` is a value: it can be pickled to a worker process or carried over a fork; each process maps
the shards when it first reads. Only numpy is needed: rows are found at the byte offsets in the manifest
(compressed ones with the libraries of hdf5plugin).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field, Manifest, ShardInfo, check_shards, read_manifest
from hpcmass.data.mapping import Extent, Rows, open_rows
from hpcmass.data.order import Ids, epoch_ids
from hpcmass.data.ragged import OFFSET_BYTES, Sizes
from hpcmass.data.reading.choose import batch_maker, keep
from hpcmass.data.reading.ragged import Values, fill, gather, make_values, read_offsets
from hpcmass.data.reading.rows import Reader
from hpcmass.data.reading.table import ChunkColumn
from hpcmass.data.shaping import Framer, Shape, fields_of, resolve
from hpcmass.data.stats import merge_json
from hpcmass.errors import CorruptError, DataError
from hpcmass.files import canonical_json, sha256_bytes, sha256_file

Batch = dict[str, npt.NDArray[Any]]

# Positions whose ids are worked out at once by `batches`: the permutation is cheap only in bulk.
_IDS_AT_ONCE = 1 << 14


class Samples(Sequence[Batch]):
    """Some samples as a list of dicts, with the batch they are views of.

    What a `DataLoader` hands to its `collate_fn`; a collate function of the user's own can take
    `samples.arrays` and spare the second copy that stacking single samples costs.
    """

    def __init__(self, arrays: Batch, length: int) -> None:
        self.arrays = arrays
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return {name: np.asarray(values[index]) for name, values in self.arrays.items()}


class Dataset:
    """Samples 0 … n-1 of a dataset, or of several read one after the other (`concat`).

    Attributes:
        manifest: What the dataset holds. For a part or a concatenation, a manifest made for it.
        fields: The fields of batches by name: those that are stored, and what says how long ragged ones are.
        stored: The fields of the manifest by name; `ragged` and `fixed` are some of them each.
        shapes: What becomes of each ragged field in a batch.
        row_bytes: Bytes of one sample, all fields together; of ragged ones those of a mean sample.
        held: Fields that a loader has read into memory as a whole; a process's own.
        columns: Where the chunks of compressed fields lie, as far as it was read; a process's own.
    """

    def __init__(
        self, manifest: Manifest, folders: Sequence[Path], shapes: Mapping[str, Shape] | None = None
    ) -> None:
        self.manifest = manifest
        self.stored: dict[str, Field] = {one.name: one for one in manifest.fields}
        self.ragged = {name: one for name, one in self.stored.items() if one.ragged}
        self.fixed = {name: one for name, one in self.stored.items() if not one.ragged}
        self.shapes = resolve(self.stored, shapes or {})
        self.fields: dict[str, Field] = fields_of(self.stored, self.shapes)
        self.row_bytes = sum(self.mean_bytes(name) for name in self.stored)
        self._asked = dict(shapes or {})
        self._offsets: dict[str, Ids] = {}
        self._framer: Framer | None = None
        self._own = threading.local()  # readers, a thread's own
        self._maker: Callable[[], Reader] | None = None
        self.folders = list(folders)  # one a shard
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._rows: dict[str, Rows] = {}
        self.held: dict[str, npt.NDArray[Any]] = {}
        self.columns: dict[str, ChunkColumn] = {}

    @property
    def id(self) -> str:
        """Identity of the content: SHA-256 of the manifest."""
        return self.manifest.id

    @property
    def inputs(self) -> list[str]:
        """Names of the fields that are inputs, in the manifest's order."""
        return [name for name, one in self.fields.items() if one.role == "input"]

    @property
    def targets(self) -> list[str]:
        """Names of the fields that are targets."""
        return [name for name, one in self.fields.items() if one.role == "target"]

    @property
    def metas(self) -> list[str]:
        """Names of the fields that are carried along."""
        return [name for name, one in self.fields.items() if one.role == "meta"]

    def classes(self, field: str) -> list[str] | None:
        """Names of the classes 0, 1, … of a field, or None if it has none.

        Raises:
            DataError: There is no such field.
        """
        if field not in self.fields:
            raise DataError(
                f"has no field {field!r}", where=self._where(), hint=f"there are: {', '.join(self.fields)}"
            )
        return self.fields[field].classes

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        fields = ", ".join(f"{one.name} {one.dtype}{list(one.shape)}" for one in self.fields.values())
        return f"<Dataset {self._where()}: {len(self)} samples, {len(self.folders)} shards; {fields}>"

    def __getitem__(self, index: int) -> Batch:
        """Sample `index` (negative: from the end); arrays without a sample axis, ragged ones of its length."""
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        batch = self.raw(np.array([number % len(self)], np.int64))
        return {name: rows[0] if name in self.ragged else rows[0, ...] for name, rows in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Several samples read as one batch; what a torch `DataLoader` calls.

        Raises:
            DataError: Samples are packed, so that a batch has no row for each of them.
        """
        if any(shape.kind == "pack" and not shape.alone for shape in self.shapes.values()):
            raise DataError(
                "packed batches cannot be taken apart sample by sample", where=self._where(),
                hint="use hpcmass.data.Loader, or dataset.batch(ids)",
            )  # fmt: skip
        return Samples(self.batch(np.asarray(indices, np.int64)), len(indices))

    def batch(self, ids: npt.ArrayLike) -> Batch:
        """Samples in any order, also repeated.

        Args:
            ids: Sample numbers within 0 … n-1, shape (b,).

        Returns:
            A C-contiguous copy a field, shape (b, *field.shape). A ragged field is padded, (b, length, *shape),
            with its lengths (b,) as NAME_length; or packed, (rows, length, *shape), with NAME_segment and
            NAME_position: see `shaped`.

        Raises:
            IndexError: A number is outside 0 … n-1.
            CorruptError: A shard has another size than the manifest says.
            DataError: A sample is longer than its row may be.
        """
        wanted = self.checked(ids)
        batch = self._fixed_rows(wanted)
        if not self.ragged:
            return batch
        frame = self.framer.frame(wanted)
        shaped = {name: np.empty(shape, dtype) for name, dtype, shape in frame.specs}
        fill(frame, self._values(), shaped)
        return self.in_order(batch | shaped)

    def raw(self, ids: npt.ArrayLike) -> dict[str, Any]:
        """The same samples as they are stored: of a ragged field a `Ragged`, neither padded nor packed."""
        wanted = self.checked(ids)
        found: dict[str, Any] = {**self._fixed_rows(wanted)}
        for name, one in self.ragged.items():
            offsets = self.offsets(name)
            starts = offsets[wanted]
            found[name] = gather(one, self._values()[name], starts, offsets[wanted + 1] - starts)
        return {name: found[name] for name in self.stored}

    def shaped(self, shapes: Mapping[str, Shape], *, alone: bool = False) -> Dataset:
        """The same dataset with other batches of ragged fields.

        Args:
            shapes: What becomes of each ragged field; of those not named: see `hpcmass.data.shaping.resolve`.
            alone: A row a sample also where samples are packed.

        Raises:
            DataError: A name is none of a ragged field's, or settings contradict each other.
        """
        asked = {name: replace(one, alone=alone) for name, one in shapes.items()}
        return Dataset(self.manifest, self.folders, asked)

    def offsets(self, name: str) -> Ids:
        """Where the values of each sample of a ragged field begin, and the end of the last one, (n + 1,).

        Numbers of values in the order of the samples, over all shards; read once, and held: 8 bytes a sample.

        Raises:
            CorruptError: A shard's offsets are damaged; the message names it.
        """
        if name not in self._offsets:
            self._offsets[name] = read_offsets(self, name)
        return self._offsets[name]

    @property
    def framer(self) -> Framer:
        """What lays out batches of ragged fields."""
        if self._framer is None:
            offsets = {name: self.offsets(name) for name in self.ragged}
            self._framer = Framer(self.ragged, self.shapes, offsets)
        return self._framer

    def in_order(self, batch: Mapping[str, Any]) -> Batch:
        """A batch with its fields in the order of `fields`."""
        return {name: batch[name] for name in self.fields if name in batch}

    def views(self, ids: Ids, batch: Batch) -> dict[str, Any]:
        """The samples of a batch one by one, without the padding of ragged fields: see `Frame.samples`."""
        return self.framer.frame(ids).samples(batch) if self.ragged else batch

    def sizes(self) -> Sizes:
        """How many bytes samples take, as they are written."""
        fixed = sum(one.row_bytes for one in self.fixed.values())
        ragged = [(self.offsets(name), one.row_bytes) for name, one in self.ragged.items()]
        return Sizes(len(self), fixed + OFFSET_BYTES * len(ragged), ragged)

    def mean_bytes(self, name: str) -> int:
        """Bytes of a sample in a field that is stored; of a ragged field those of a mean sample, rounded up."""
        one = self.stored[name]
        if not one.ragged:
            return one.row_bytes
        values = sum(shard.rows(one) for shard in self.manifest.shards)
        return -(-values * one.row_bytes // max(1, self.manifest.samples))

    def _fixed_rows(self, ids: Ids) -> Batch:
        """The fields whose samples are of one size."""
        out = {name: np.empty((len(ids), *one.shape), one.numpy_dtype) for name, one in self.fixed.items()}
        if not hasattr(self._own, "fixed"):
            if self._maker is None:
                self._maker = batch_maker(self)
            self._own.fixed = self._maker()
        if out:
            self._own.fixed.read(ids, out)
        return out

    def _values(self) -> dict[str, Values]:
        """A reader of ragged fields, this thread's."""
        if not hasattr(self._own, "values"):
            self._own.values = make_values(self)
        values: dict[str, Values] = self._own.values
        return values

    def batches(
        self, batch_size: int, *, order: str = "sequential", seed: int = 0, epoch: int = 0
    ) -> Iterator[Batch]:
        """All samples of one epoch in batches; the last one may be smaller.

        Args:
            batch_size: Samples a batch.
            order: `sequential` or `global` (see `hpcmass.data.order`).
            seed: Seed of the order.
            epoch: Number of the epoch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not possible")
        at_once = max(1, _IDS_AT_ONCE // batch_size) * batch_size
        for start in range(0, len(self), at_once):
            stop = min(start + at_once, len(self))
            ids = epoch_ids(order, len(self), seed, epoch, start, stop)
            for low in range(0, len(ids), batch_size):
                yield self.batch(ids[low : low + batch_size])

    def shard_ranges(self) -> list[range]:
        """The sample numbers that lie in each shard."""
        ends: list[int] = self._ends.tolist()
        return [range(end - shard.samples, end) for end, shard in zip(ends, self.manifest.shards, strict=True)]

    def subset_shards(self, shard_numbers: Sequence[int]) -> Dataset:
        """The samples of some shards only, as a dataset; the statistics stay those of the whole.

        Raises:
            DataError: There is no such shard, none is named, or one is named twice.
        """
        numbers = [int(number) for number in shard_numbers]
        known = range(len(self.folders))
        if not numbers or len(set(numbers)) != len(numbers) or any(n not in known for n in numbers):
            raise DataError(
                f"shards {numbers} cannot be taken",
                where=self._where(),
                hint=f"name some of 0 … {len(known) - 1}, once",
            )
        chosen = tuple(self.manifest.shards[number] for number in numbers)
        identity = sha256_bytes(canonical_json({"of": self.id, "shards": numbers}))
        manifest = replace(
            self.manifest, id=identity, shards=chosen, samples=sum(shard.samples for shard in chosen)
        )
        return Dataset(manifest, [self.folders[number] for number in numbers], self._asked)

    def __getstate__(self) -> dict[str, Any]:
        # Maps belong to a process.
        return {"manifest": self.manifest, "folders": self.folders, "shapes": self._asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["manifest"], state["folders"], state["shapes"])  # type: ignore[misc]

    def extents(self, name: str) -> list[Extent]:
        """Where the rows of a field lie, shard by shard; of a ragged field the values of its samples."""
        one = self.stored[name]
        return [
            Extent(
                folder / shard.file,
                shard.bytes,
                shard.offsets.get(name, 0),
                shard.rows(one),
                shard.chunks.get(name),
            )
            for folder, shard in zip(self.folders, self.manifest.shards, strict=True)
        ]

    def rows(self, name: str) -> Rows:
        """The rows of a field that is not compressed, mapped."""
        if name not in self._rows:
            one = self.fixed[name]
            self._rows[name] = open_rows(self.extents(name), one.numpy_dtype, one.shape)
        return self._rows[name]

    def whole(self, name: str) -> npt.NDArray[Any]:
        """All of a field, (n, *field.shape), read into memory and held there.

        Raises:
            CorruptError: A shard is damaged.
            StorageError: A shard cannot be read.
        """
        return keep(self, [name])[name]

    def checked(self, ids: npt.ArrayLike) -> Ids:
        """Sample numbers as an int64 array.

        Raises:
            IndexError: A number is outside 0 … n-1.
        """
        wanted: Ids = np.ascontiguousarray(ids, np.int64)
        # As unsigned numbers the negative ones are the largest: one comparison for both ends.
        if wanted.size and int(wanted.view(np.uint64).max()) >= len(self):
            raise IndexError(f"samples {wanted.min()} … {wanted.max()} are not all within 0 … {len(self) - 1}")
        return wanted

    def _where(self) -> str:
        return " + ".join(dict.fromkeys(str(folder) for folder in self.folders))


def open_dataset(
    path: str | Path, *, verify: bool = False, id: str | None = None, look: bool = True
) -> Dataset:
    """Open a dataset folder.

    Args:
        path: A folder with a manifest (of a dataset with splits: the folder of one split).
        verify: Compare the checksum of every shard too, which reads all of them.
        id: The dataset as it was when it had this id (8 digits or more), whatever was appended since.
        look: Whether to compare the shards' sizes; not needed where another process of the job does.

    Raises:
        NotFound: There is no dataset, or none with this id.
        CorruptError: A shard is missing, truncated or changed; the message names it.
        DataError: The dataset was made by a newer version.
    """
    folder = Path(os.path.abspath(path))
    manifest = read_manifest(folder, id)
    problems = check_shards(folder, manifest) if look else []
    if verify and not problems:
        problems = [(shard.file, what) for shard in manifest.shards if (what := check_sum(folder, shard))]
    if problems:
        file, what = problems[0]
        more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
        raise CorruptError(
            what + more,
            where=folder / file,
            hint="copy the dataset again, or make it again with `hpcmass shard`",
            problems=problems,
        )
    return Dataset(manifest, [folder] * len(manifest.shards))


def check_sum(folder: Path, shard: ShardInfo) -> str | None:
    """What is wrong with a shard's checksum, or None."""
    found = sha256_file(folder / shard.file)
    if found == shard.sha256:
        return None
    return f"does not fit its checksum: its SHA-256 is {found[:12]}…, the manifest says {shard.sha256[:12]}…"


def concat(datasets: Sequence[Dataset]) -> Dataset:
    """Several datasets as one, one after the other (train and valid, say).

    Raises:
        DataError: None is given, or their fields differ.
    """
    if not datasets:
        raise DataError("there is no dataset to be read")
    first = datasets[0]
    if len(datasets) == 1:
        return first
    fields = list(first.manifest.fields)
    for other in datasets[1:]:
        for number, one in enumerate(fields):
            theirs = other.stored.get(one.name)
            same = theirs and replace(theirs, stats={}) == replace(one, stats={})
            if theirs is None or not same or len(other.stored) != len(fields):
                raise DataError(
                    f"has other fields than {first._where()} (see field {one.name})",
                    where=other._where(),
                    hint="only datasets with the same fields can be read together",
                )
            fields[number] = replace(one, stats=merge_json(one.stats, theirs.stats))
    parts = [one.manifest for one in datasets]
    manifest = replace(
        first.manifest,
        id=sha256_bytes(canonical_json({"concat": [part.id for part in parts]})),
        split="+".join(part.split or "all" for part in parts),
        samples=sum(part.samples for part in parts),
        fields=tuple(fields),
        shards=tuple(shard for part in parts for shard in part.shards),
        cut={"strategy": "concat", "of": [part.id for part in parts]},
    )
    return Dataset(manifest, [folder for one in datasets for folder in one.folders], first._asked)
