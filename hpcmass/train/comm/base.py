"""What the rest of `train` knows of a communicator, and what all implementations share."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from hpcmass.errors import RankFailed

Op = Literal["sum", "max", "min"]
Values = np.ndarray[Any, np.dtype[np.float64]]
_COMBINED_BYTES = 16 << 20  # sent at once; below glibc's 32 MiB ceiling, above which memory is faulted in anew


# Of gloo, NCCL and Horovod, which have no types for it; a shape that does not fit is said otherwise.
_LOST = re.compile(
    r"connection|closed by peer|reset by peer|broken pipe|timed out|socket|shut ?down|remote (process|error)|"
    r"failed, see MPI output",
    re.IGNORECASE,
)


class Pending(Protocol):
    """A reduction under way."""

    def wait(self) -> None:
        """Return when the result lies in the buffer.

        Raises:
            RankFailed: Another rank went away meanwhile.
        """


class Communicator(Protocol):
    """All ranks of a run. Every method but `abort` and `close` is collective: all ranks call it, in one order.

    Attributes:
        name: `single`, `mpi`, `torch` or `horovod`.
        rank: This process, 0 to `size` - 1.
        size: Ranks that really found each other.
        local_rank: This process among those of its node.
        local_size: Ranks on this node.
        device: Where this rank's model lies.
        overlaps: Whether to sum a buffer's parts with `allreduce_` as they are ready, while this rank goes on
            computing; else all of it with `sum_` when nothing is left to compute. Known after `buffer`.
        reduction: In a few words, how gradients are summed. Known after `buffer`.
    """

    name: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    overlaps: bool
    reduction: str

    def buffer(self, numel: int, dtype: torch.dtype) -> Tensor:
        """A zeroed 1-d tensor on `device` that is to be summed often; not to be touched after `close`."""

    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """Start summing a contiguous 1-d tensor over all ranks, in place.

        Args:
            flat: On `device`; not to be touched until `wait` has returned.
            slot: A number that stands for this buffer in every step; those under way at once differ.
            wire: A narrower float type (float16, bfloat16) for what is sent between ranks.
        """

    def sum_(self, flats: Sequence[Tensor], wire: torch.dtype | None = None) -> None:
        """Sum contiguous 1-d tensors over all ranks, in place, and wait for it; quickest in a `buffer`."""

    def combine_(self, tables: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> None:
        """Add up rows of all ranks in one given order, and wait for it; quickest in a `buffer`.

        Args:
            tables: Contiguous, (rows, n), of one shape on all ranks; row 0 is the result, others are spoilt.
            steps: Pairs (to, of) of rows: row `of` is added to row `to`. Row r * rows + n is row n of rank r;
                the result comes to lie in row 0.
        """

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """Reduce float64 values over all ranks; the result is the same on all."""

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Overwrite the tensors of all ranks with those of `root`."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """What JSON can say, from `root` to all."""

    def share_objects(self, value: Any) -> list[Any]:
        """What JSON can say, from all ranks, in the order of ranks, to all."""

    def barrier(self) -> None:
        """Return when all ranks have come here."""

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """End all ranks at once, from any thread; not collective."""

    def start_timeline(self, path: Path) -> None:
        """Begin to record what the backend does, where it can (Horovod). All ranks call it."""

    def stop_timeline(self) -> None:
        """End the record. All ranks call it."""

    def close(self) -> None:
        """Give threads and connections back."""


class BaseCommunicator(ABC):
    """Objects, tensors and barriers out of three primitives on bytes and float64 values."""

    name: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    overlaps = True
    reduction = "in buckets, during the backward pass"

    @abstractmethod
    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """See `Communicator.allreduce_`."""

    @abstractmethod
    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """See `Communicator.allreduce_values`."""

    @abstractmethod
    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """See `Communicator.broadcast_`."""

    @abstractmethod
    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        """The `length` bytes of `root`, on all ranks; `data` counts on `root` only."""

    @abstractmethod
    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        """The bytes of all ranks, on all ranks; `lengths` are theirs, by rank."""

    @abstractmethod
    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """See `Communicator.abort`."""

    @abstractmethod
    def close(self) -> None:
        """See `Communicator.close`."""

    def buffer(self, numel: int, dtype: torch.dtype) -> Tensor:
        """See `Communicator.buffer`."""
        return torch.zeros(numel, dtype=dtype, device=self.device)

    def sum_(self, flats: Sequence[Tensor], wire: torch.dtype | None = None) -> None:
        """See `Communicator.sum_`."""
        for pending in [self.allreduce_(flat, slot, wire) for slot, flat in enumerate(flats)]:
            pending.wait()

    def combine_(self, tables: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> None:
        """Each rank gets its part of all ranks' rows, adds it up, and sends it to all."""
        for table in tables:
            rows, n = table.shape
            width = max(
                1, min(-(-n // self.size), _COMBINED_BYTES // (table.element_size() * rows * self.size))
            )
            sent = torch.zeros(self.size, rows, width, dtype=table.dtype, device=table.device)
            for low in range(0, n, width * self.size):
                piece = table[:, low : low + width * self.size]
                for rank, part in enumerate(torch.split(piece, width, dim=1)):
                    sent[rank, :, : part.shape[1]].copy_(part)
                got = self._exchange(sent).view(self.size * rows, width)
                for to, of in steps:
                    got[to].add_(got[of])
                piece[0].copy_(self._gather(got[0])[: piece.shape[1]])

    @abstractmethod
    def _exchange(self, sent: Tensor) -> Tensor:
        """Row r of a contiguous tensor to rank r; of what came, row r is of rank r."""

    @abstractmethod
    def _gather(self, part: Tensor) -> Tensor:
        """The contiguous 1-d tensors of all ranks one after the other, on all ranks."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """See `Communicator.broadcast_object`."""
        data = json.dumps(value).encode() if self.rank == root else b""
        # A maximum is a broadcast when all others hold zero.
        length = int(self.allreduce_values(np.array([float(len(data))]), "max")[0])
        return json.loads(self._broadcast_bytes(data, length, root))

    def share_objects(self, value: Any) -> list[Any]:
        """See `Communicator.share_objects`."""
        data = json.dumps(value).encode()
        lengths = np.zeros(self.size)
        lengths[self.rank] = len(data)
        counts = [int(n) for n in self.allreduce_values(lengths)]
        return [json.loads(part) for part in self._allgather_bytes(data, counts)]

    def barrier(self) -> None:
        """See `Communicator.barrier`."""
        self.allreduce_values(np.zeros(1))

    def start_timeline(self, path: Path) -> None:  # noqa: B027 - most backends have none
        """See `Communicator.start_timeline`."""

    def stop_timeline(self) -> None:  # noqa: B027
        """See `Communicator.stop_timeline`."""


def bytes_tensor(data: bytes, length: int | None = None) -> Tensor:
    """Bytes as a uint8 tensor of `length`, filled up with zeros."""
    made = torch.zeros(len(data) if length is None else length, dtype=torch.uint8)
    if data:
        made[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return made


def failure(error: Exception) -> RankFailed:
    """What a library says of a collective that failed: that another rank went away, or something else."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if _LOST.search(text):
        return RankFailed(f"lost the connection to another rank ({text})", lost_peer=True)
    return RankFailed(f"the ranks could not exchange data ({text})")


def narrow_float(tensor: Tensor) -> bool:
    """Whether MPI and Horovod on CPUs have to sum this type in float32 instead."""
    return tensor.dtype in (torch.float16, torch.bfloat16)


def shorter(wire: torch.dtype | None, tensor: Tensor) -> bool:
    """Whether a tensor is to be sent in the narrower type `wire`."""
    return wire is not None and tensor.is_floating_point() and wire.itemsize < tensor.element_size()


def gpu_index(local_rank: int, local_size: int) -> int | None:
    """Which of the GPUs that this process sees is its own; None where there are not enough."""
    if not torch.cuda.is_available():
        return None
    if os.environ.get("HPCMASS_OWN_GPUS"):  # it sees no other rank's
        return 0
    return local_rank if torch.cuda.device_count() >= local_size else None


def local_device(local_rank: int, local_size: int) -> torch.device:
    """A GPU of its own for every rank of the node where there are enough, else the CPU."""
    index = gpu_index(local_rank, local_size)
    return torch.device("cpu") if index is None else torch.device("cuda", index)
