"""What a model said of each sample, gathered from all ranks in the order of the samples.

Every rank takes a run of whole batches, and batches begin at the same samples however many ranks there are.
Rank 0 computes every number from all samples in their order, so that no number depends on the ranks.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcmass.train.interfaces import DatasetLike

T = TypeVar("T")
Columns = dict[str, NDArray[Any]]
_PIECE_BYTES = 32 << 20  # sent at once; the count of a message is a 32-bit number


class Ranks(Protocol):
    """What is needed of a communicator: `hpcmass.train.comm` has it."""

    rank: int
    size: int

    def share_objects(self, value: Any) -> list[Any]:
        """What JSON can say, from all ranks to all."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """What JSON can say, from one rank to all."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The metrics of each sample, in the order of the samples.

    Attributes:
        task: The model's task.
        dataset: Id of the dataset.
        values: By metric: (n,) float64 (`accuracy` is 0 or 1), or (n, 2), a sum and number of values a sample.
    """

    task: str
    dataset: str
    values: dict[str, NDArray[np.float64]]

    @property
    def n(self) -> int:
        """Samples."""
        return len(next(iter(self.values.values())))


def my_batches(
    dataset: DatasetLike, batch_size: int, ranks: Ranks | None
) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """Places (b,) and samples of the batches that are this rank's."""
    n = len(dataset)
    first, stop = 0, -(-n // batch_size)
    if ranks is not None:
        first, stop = (stop * one // ranks.size for one in (ranks.rank, ranks.rank + 1))
    for number in range(first, stop):
        ids = np.arange(number * batch_size, min(n, (number + 1) * batch_size), dtype=np.int64)
        yield ids, dataset.batch(ids)


def joined(parts: list[Columns]) -> Columns:
    """The columns of several batches, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def gather(work: Callable[[], Columns], ranks: Ranks | None) -> Columns:
    """The columns of all ranks, one after the other, on rank 0; nothing on the others. Collective.

    Args:
        work: Makes this rank's columns.
        ranks: All ranks; None: this process alone.

    Raises:
        HpcmassError: What `work` raised on any rank, on every rank.
    """
    columns = on_all(work, ranks)
    if ranks is None or ranks.size == 1:
        return columns
    payload = b"".join(np.ascontiguousarray(column).tobytes() for column in columns.values())
    heads = ranks.share_objects([[name, one.dtype.str, list(one.shape)] for name, one in columns.items()])
    most = max(sum(_bytes(dtype, shape) for _, dtype, shape in head) for head in heads)
    got = [bytearray() for _ in heads]
    for start in range(0, most, _PIECE_BYTES):
        piece = base64.b64encode(payload[start : start + _PIECE_BYTES]).decode()
        for whole, text in zip(got, ranks.share_objects(piece), strict=True):
            if ranks.rank == 0:
                whole += base64.b64decode(text)
    if ranks.rank:
        return {}
    return joined([_columns(head, whole) for head, whole in zip(heads, got, strict=True) if head])


def on_all(work: Callable[[], T], ranks: Ranks | None) -> T:
    """What `work` makes, here; what it raises on any rank, every rank raises. Collective."""
    if ranks is None or ranks.size == 1:
        return work()
    from hpcmass.train.comm.agree import everywhere

    return everywhere(ranks, work)  # type: ignore[arg-type]


def from_root(make: Callable[[], Mapping[str, Any]], ranks: Ranks | None) -> Mapping[str, Any]:
    """What rank 0 makes, JSON, on all ranks. Collective.

    Raises:
        HpcmassError: What `make` raised, on every rank.
    """
    if ranks is None or ranks.size == 1:
        return make()
    from hpcmass.train.comm.agree import on_root

    found: Mapping[str, Any] = on_root(ranks, make)  # type: ignore[arg-type]
    return found


def _bytes(dtype: str, shape: list[int]) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))


def _columns(head: list[Any], whole: bytearray) -> Columns:
    made, at = {}, 0
    for name, dtype, shape in head:
        size = _bytes(dtype, shape)
        made[name] = np.frombuffer(bytes(whole[at : at + size]), dtype).reshape(shape)
        at += size
    return made
