"""One rank alone: nothing to talk to, and nothing of MPI imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from hpcmass.errors import RankFailed
from hpcmass.train.comm.base import BaseCommunicator, Op, Pending, Values, local_device


class _Done:
    def wait(self) -> None:
        return


class SingleCommunicator(BaseCommunicator):
    """The communicator of a run of one rank."""

    name = "single"
    reduction = "none: one rank"

    def __init__(self) -> None:
        self.rank, self.size, self.local_rank, self.local_size = 0, 1, 0, 1
        self.device = local_device(0, 1)

    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """A sum over one rank."""
        return _Done()

    def _exchange(self, sent: Tensor) -> Tensor:
        return sent.clone()

    def _gather(self, part: Tensor) -> Tensor:
        return part.clone()

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """A copy."""
        return values.copy()

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Nothing to do."""

    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        return data

    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        return [data]

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """Raise, since the process may be somebody else's (a Parsl worker, a notebook)."""
        raise RankFailed(reason, rank=0, exit_code=code)

    def close(self) -> None:
        """Nothing to give back."""
