"""Reading a dataset: samples and batches as numpy arrays, in any order, from any process.

A `Dataset` is a value: it can be pickled to a worker process or carried over a fork; each process maps
the shards when it first reads. Only numpy is needed: rows are found at the byte offsets in the manifest
(compressed ones with the libraries of hdf5plugin).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field, Manifest, ShardInfo, check_shards, read_manifest
from hpcmass.data.mapping import Extent, Rows, open_rows
from hpcmass.data.order import Ids, epoch_ids
from hpcmass.data.reading.choose import keep, kept_fields
from hpcmass.data.reading.packed import ChunkRows, HeldRows, compressed_fields
from hpcmass.data.reading.table import ChunkColumn
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
        fields: The fields by name.
        row_bytes: Bytes of one sample, all fields together.
        held: Fields that a loader has read into memory as a whole; a process's own.
        columns: Where the chunks of compressed fields lie, as far as it was read; a process's own.
    """

    def __init__(self, manifest: Manifest, folders: Sequence[Path]) -> None:
        self.manifest = manifest
        self.fields: dict[str, Field] = {one.name: one for one in manifest.fields}
        self.row_bytes = sum(one.row_bytes for one in manifest.fields)
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
        """Sample `index` (negative: from the end); arrays without a sample axis."""
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        batch = self.batch(np.array([number % len(self)], np.int64))
        return {name: values[0, ...] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Several samples read as one batch; what a torch `DataLoader` calls."""
        return Samples(self.batch(np.asarray(indices, np.int64)), len(indices))

    def batch(self, ids: npt.ArrayLike) -> Batch:
        """Samples in any order, also repeated.

        Args:
            ids: Sample numbers within 0 … n-1, shape (b,).

        Returns:
            A C-contiguous copy a field, shape (b, *field.shape).

        Raises:
            IndexError: A number is outside 0 … n-1.
            CorruptError: A shard has another size than the manifest says.
        """
        wanted = self.checked(ids)
        return {name: self.rows(name).gather(wanted) for name in self.fields}

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
        return Dataset(manifest, [self.folders[number] for number in numbers])

    def __getstate__(self) -> dict[str, Any]:
        # Maps belong to a process.
        return {"manifest": self.manifest, "folders": self.folders}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["manifest"], state["folders"])  # type: ignore[misc]

    def extents(self, name: str) -> list[Extent]:
        """Where the rows of a field lie, shard by shard."""
        return [
            Extent(
                folder / shard.file,
                shard.bytes,
                shard.offsets.get(name, 0),
                shard.samples,
                shard.chunks.get(name),
            )
            for folder, shard in zip(self.folders, self.manifest.shards, strict=True)
        ]

    def rows(self, name: str) -> Rows:
        """The rows of a field, mapped; compressed ones are decoded, narrow ones once and for all."""
        rows = self._rows.get(name)
        if rows is None:
            one = self.fields[name]
            if name not in compressed_fields(self):
                rows = open_rows(self.extents(name), one.numpy_dtype, one.shape)
            elif name in self.held or name in kept_fields(self):
                rows = HeldRows(self.whole(name))
            else:
                rows = ChunkRows(self, name)
            self._rows[name] = rows
        return rows

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
            theirs = other.fields.get(one.name)
            same = theirs and (theirs.dtype, theirs.shape, theirs.role, theirs.classes) == (
                one.dtype,
                one.shape,
                one.role,
                one.classes,
            )
            if theirs is None or not same or len(other.fields) != len(fields):
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
    return Dataset(manifest, [folder for one in datasets for folder in one.folders])
