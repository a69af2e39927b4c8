"""The batches of a rank, read while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from hpcmass.data.loader import Loader, Memory
from hpcmass.data.order import Ids
from hpcmass.data.reader import Dataset
from hpcmass.data.reading.crew import Each
from hpcmass.train.augment import Augment
from hpcmass.train.interfaces import DatasetLike

Arrays = dict[str, "np.ndarray[Any, Any]"]
_IDS_AT_ONCE = 1 << 14


class Cut(NamedTuple):
    """A micro-batch of a global batch.

    Attributes:
        number: Which one: of the rank, or in a reproducible run of the global batch.
        low: Its first sample, in the global batch.
        high: Its end there.
        width: Samples that it is padded to.
    """

    number: int
    low: int
    high: int
    width: int

    def padded(self, ids: Ids) -> Ids:
        """Its sample numbers, repeated where it is padded."""
        assert len(ids) <= self.width, "padding leaves no sample out"
        return ids if len(ids) == self.width else np.resize(ids, self.width)


class Key(NamedTuple):
    """What the random numbers of a micro-batch depend on.

    Attributes:
        epoch: The epoch.
        first: Position of its first sample in the epoch, or the position of each.
    """

    epoch: int
    first: int | Sequence[int]


class ReadAhead:
    """`batch(ids)` of a dataset, whose arrays threads have read already where `plan` foretold it.

    What was not foretold is read when it is asked for, and so is everything after it: the plan decides how
    soon a batch is there, never what is in it. A dataset that is not ours is always read when asked for.
    A batch is valid until the next one is asked for: its arrays, and tensors made of them without a copy.
    """

    def __init__(
        self,
        dataset: DatasetLike,
        plan: Iterable[Ids],
        *,
        read: str = "auto",
        block: int | None = None,
        device: torch.device | None = None,
        augment: Augment | None = None,
        keys: dict[int, Key] | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            dataset: What is read.
            plan: Sample numbers, batch by batch, as they will be asked for.
            read: The way of reading, `data.read` of the job.
            block: Samples a block, where the order takes blocks of neighbouring samples together.
            device: Where batches go; for a GPU they are read into pinned memory.
            augment: Changes samples on the reading threads.
            keys: With `augment`: of each batch of the plan by number, from before it is taken from it.
        """
        self._dataset, self._augment = dataset, augment
        self._loader: Loader | None = None
        self.foretold = self.surprises = 0
        if isinstance(dataset, Dataset):
            gpu = device is not None and device.type == "cuda"
            # A copy to the device may still run when the next batch is asked for.
            self._loader = Loader(
                dataset, plan, read=read, block=block, allocate=pinned if gpu else None, keep=2 if gpu else 1,
                each=None if augment is None else _each(augment, {} if keys is None else keys),
            )  # fmt: skip

    def batch(self, ids: Ids, key: Key | None = None) -> Arrays:
        """Samples `ids`, an array a field: exactly `dataset.batch(ids)`, augmented where that is asked for.

        Args:
            ids: Sample numbers.
            key: Of the first one, for `augment`.

        Raises:
            CorruptError: A shard was cut off or removed; the message names it.
            StorageError: A shard cannot be read.
        """
        if self._loader is not None:
            read = next(self._loader, None)
            if read is not None and np.array_equal(read.ids, ids):
                self.foretold += 1
                return read.arrays
            self.close()
        self.surprises += 1
        arrays = self._dataset.batch(ids)
        if self._augment is None or key is None:
            return arrays
        arrays = {name: np.array(array) for name, array in arrays.items()}
        samples = self._dataset.views(ids, arrays) if isinstance(self._dataset, Dataset) else arrays
        self._augment(*key, ids, samples)
        return arrays

    def close(self) -> None:
        """End the threads."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


def _each(augment: Augment, keys: dict[int, Key]) -> Each:
    def each(number: int, ids: Ids, arrays: Arrays) -> None:
        augment(*keys.pop(number), ids, arrays)

    return each


def steps_ahead(
    order: Callable[[int, int, int], Ids],
    at: Callable[[], tuple[int, int, int]],
    *,
    usable: int,
    total_steps: int,
    batch: int,
    cut: Callable[[int], Sequence[Cut]],
    keys: dict[int, Key] | None = None,
) -> Iterator[Ids]:
    """Sample numbers of a rank's micro-batches from where a run is to its end, beyond the ends of epochs.

    Args:
        order: Sample numbers of (epoch, start, stop).
        at: Where the run is when the first batch is asked for: step, epoch, samples of the epoch done.
        usable: Samples of an epoch.
        total_steps: Steps of the run.
        batch: Samples of a global batch.
        cut: This rank's micro-batches of a global batch of so many samples.
        keys: Gets the key of each micro-batch under its number, before that is yielded.
    """
    number = 0
    step, epoch, samples = at()
    many = max(1, _IDS_AT_ONCE // batch)
    while step < total_steps:
        if samples >= usable:
            epoch, samples = epoch + 1, 0
        stop = min(usable, samples + batch * min(many, total_steps - step))
        # Numbers are cheap only in bulk; a slice of many positions is bulk by itself.
        known = order(epoch, samples, stop) if many > 1 else None
        for first in range(samples, stop, batch):
            for micro in cut(min(batch, stop - first)):
                low, high = first + micro.low, first + micro.high
                ids = order(epoch, low, high) if known is None else known[low - samples : high - samples]
                if keys is not None:
                    keys[number] = Key(epoch, low)
                    number += 1
                yield micro.padded(ids)
            step += 1
        samples = stop


def pinned(size: int) -> Memory:
    """Memory that a GPU copies from by itself."""
    memory: Memory = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
