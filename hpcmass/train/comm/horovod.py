"""Ranks over Horovod (0.28.1, CPU operations by MPI)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
from torch import Tensor

from hpcmass.errors import LaunchError, RankFailed
from hpcmass.launch import RankEnv
from hpcmass.train.comm.base import BaseCommunicator, Op, Pending, Values, bytes_tensor, narrow_float

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
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RankFailed(f"lost the connection to another rank ({text})", lost_peer=True) from error


class _Handle:
    def __init__(self, handle: Any, wide: Tensor, flat: Tensor) -> None:
        self._handle, self._wide, self._flat = handle, wide, flat

    def wait(self) -> None:
        with _peers():
            hvd.synchronize(self._handle)
        if self._wide is not self._flat:
            self._flat.copy_(self._wide)


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

    def allreduce_(self, flat: Tensor, slot: int = 0) -> Pending:
        """An asynchronous allreduce; half types are summed in float32, for Horovod lacks bf16."""
        wide = flat.float() if narrow_float(flat) else flat
        with _peers():
            return _Handle(hvd.allreduce_async_(wide, name=f"bucket.{slot}", op=hvd.Sum), wide, flat)

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

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """MPI_Abort where Horovod runs over MPI, else leave at once."""
        mpi = import_module("mpi4py.MPI") if hvd.mpi_enabled() and find_spec("mpi4py") else None
        if mpi is not None:
            mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        """Stop Horovod's thread."""
        hvd.shutdown()
