"""Ranks over Horovod (0.28.1, CPU operations by MPI)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from hpcmass.errors import LaunchError
from hpcmass.launch import RankEnv
from hpcmass.train.comm.base import (
    BaseCommunicator,
    Op,
    Pending,
    Values,
    bytes_tensor,
    failure,
    narrow_float,
    shorter,
)

# Measured on CPUs: small fusion buffers and a short cycle; both can be overridden from outside.
os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", str(16 << 20))
os.environ.setdefault("HOROVOD_CYCLE_TIME", "1")
# Without mpiexec hvd.init() aborts, or takes another libmpi, unless mpi4py has loaded the right one.
if find_spec("mpi4py") is not None:
    import_module("hpcmass.train.comm.mpi_start").start_mpi()

import horovod.torch as hvd


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # HorovodInternalError is one
        raise failure(error) from error


class _Handle:
    """An allreduce of `sent`, which is `flat` itself or a copy of another type."""

    def __init__(self, flat: Tensor, sent: Tensor, slot: int) -> None:
        self._flat, self._sent = flat, sent
        with _peers():
            self._handle = hvd.allreduce_async_(sent, name=f"bucket.{slot}", op=hvd.Sum)

    def wait(self) -> None:
        with _peers():
            hvd.synchronize(self._handle)
        if self._sent is not self._flat:
            self._flat.copy_(self._sent)


class _Bfloat16:
    """A sum that travels as bfloat16, which Horovod cannot add: ranks exchange parts as whole numbers.

    Each rank sums its part in float32, in the order of ranks; the second exchange is in `wait`.
    """

    def __init__(self, flat: Tensor, slot: int, size: int) -> None:
        self._flat, self._size, self._name = flat, size, f"bfloat16.{slot}"
        self._part = -(-flat.numel() // size)
        sent = torch.zeros(self._part * size, dtype=torch.bfloat16)
        sent[: flat.numel()].copy_(flat)
        splits = torch.full((size,), self._part * sent.element_size(), dtype=torch.int32)
        with _peers():
            self._handle = hvd.alltoall_async(sent.view(torch.uint8), splits, name=f"{self._name}.parts")

    def wait(self) -> None:
        with _peers():
            got = hvd.synchronize(self._handle)
            got = got[0] if isinstance(got, tuple) else got
            parts = got.view(torch.bfloat16).view(self._size, self._part)
            total = parts[0].float()
            for other in parts[1:]:
                total.add_(other)
            mine = total.to(torch.bfloat16).view(torch.uint8)
            whole = hvd.allgather(mine, name=f"{self._name}.whole").view(torch.bfloat16)
        self._flat.copy_(whole[: self._flat.numel()])


class HorovodCommunicator(BaseCommunicator):
    """Ranks started by the `mpiexec` of the MPI that Horovod was built with."""

    name = "horovod"

    def __init__(self, env: RankEnv) -> None:
        """Join the ranks.

        Raises:
            LaunchError: Horovod cannot start here.
        """
        try:
            hvd.init()
        except (RuntimeError, ValueError, ImportError) as error:
            raise LaunchError(f"Horovod does not start: {error}", where="train.backend") from error
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.device = torch.device("cpu")

    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """An asynchronous allreduce; half types are summed in float32, for Horovod lacks bf16."""
        if shorter(wire, flat):
            if wire == torch.bfloat16:
                return _Bfloat16(flat, slot, self.size)
            return _Handle(flat, flat.to(wire), slot)
        return _Handle(flat, flat.float() if narrow_float(flat) else flat, slot)

    def _exchange(self, sent: Tensor) -> Tensor:
        data = sent.reshape(-1).view(torch.uint8)
        splits = torch.full((self.size,), data.numel() // self.size, dtype=torch.int32)
        with _peers():
            got = hvd.alltoall(data, splits, name="exchange")
        made: Tensor = got[0] if isinstance(got, tuple) else got
        return made.view(sent.dtype).view(sent.shape)

    def _gather(self, part: Tensor) -> Tensor:
        with _peers():
            made: Tensor = hvd.allgather(part.view(torch.uint8), name="gather")
        return made.view(part.dtype)

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """One small allreduce."""
        ops = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}
        with _peers():
            sent = torch.from_numpy(values.astype("float64", copy=True))
            result: Values = hvd.allreduce(sent, name=f"values.{op}.{len(values)}", op=ops[op]).numpy()
        return result

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One tensor after the other, as bytes, so that every type passes."""
        for number, tensor in enumerate(tensors):
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            with _peers(), torch.no_grad():
                hvd.broadcast_(data, root, name=f"tensor.{number}")
                tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        with _peers():
            result = hvd.broadcast(bytes_tensor(data, length), root, name="object")
        return bytes(result.numpy())

    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        with _peers():
            joined = hvd.allgather(bytes_tensor(data), name="objects")
        return [bytes(part.numpy()) for part in joined.split(lengths)]

    def start_timeline(self, path: Path) -> None:
        """Horovod's own timeline; `HOROVOD_TIMELINE` was DYNAMIC when it started."""
        with contextlib.suppress(ValueError):  # another timeline is under way, of the user's
            hvd.start_timeline(str(path))

    def stop_timeline(self) -> None:
        """End it."""
        hvd.stop_timeline()

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """MPI_Abort where Horovod runs over MPI, else leave at once."""
        mpi = import_module("mpi4py.MPI") if hvd.mpi_enabled() and find_spec("mpi4py") else None
        if mpi is not None:
            mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        """Stop Horovod's thread."""
        hvd.shutdown()
