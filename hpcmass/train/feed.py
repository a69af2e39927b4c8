"""The batches of a rank, read while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from hpcmass.data.loader import Loader, Memory
from hpcmass.data.reader import Dataset
from hpcmass.train.interfaces import DatasetLike

Ids = np.ndarray[Any, np.dtype[np.int64]]
Arrays = dict[str, "np.ndarray[Any, Any]"]


@contextlib.contextmanager
def batches(
    dataset: DatasetLike,
    plan: Iterable[Ids],
    *,
    read: str = "auto",
    block: int | None = None,
    device: torch.device | None = None,
) -> Iterator[Iterator[tuple[Ids, Arrays]]]:
    """Batches with their sample numbers, in the plan's order; a dataset of ours is read ahead by threads.

    A batch is valid until the next one is asked for: its arrays, and tensors made of them without a copy.
    Each has `sample_id` beside the dataset's fields.

    Args:
        dataset: What is read.
        plan: Sample numbers, batch by batch.
        read: The way of reading, `data.read` of the job.
        block: Samples a block, where the order takes blocks of neighbouring samples together.
        device: Where batches go; for a GPU they are read into pinned memory.
    """
    if not isinstance(dataset, Dataset):
        yield ((ids, {**dataset.batch(ids), "sample_id": ids}) for ids in plan)
        return
    gpu = device is not None and device.type == "cuda"
    allocate: Callable[[int], Memory] | None = pinned if gpu else None
    # A copy to the device may still run when the next batch is asked for.
    with Loader(dataset, plan, read=read, block=block, allocate=allocate, keep=2 if gpu else 1) as loader:
        yield ((ids, {**arrays, "sample_id": ids}) for ids, arrays in loader)


def pinned(size: int) -> Memory:
    """Memory that a GPU copies from by itself."""
    memory: Memory = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
