"""Ranks over MPI by mpi4py. Buckets are summed by a thread of its own while the backward pass goes on.

Open MPI makes little progress on a non-blocking reduction by itself, so the thread uses blocking ones
(its maintainers' advice), in the order in which they were asked for, on a communicator of its own.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from hpcmass.errors import LaunchError, RankFailed
from hpcmass.launch import RankEnv
from hpcmass.train.comm.base import BaseCommunicator, Op, Pending, Values, narrow_float
from hpcmass.train.comm.mpi_start import start_mpi

MPI = start_mpi()
_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class _Job:
    """One reduction, handed to the thread."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat
        self.error: BaseException | None = None
        self._done = threading.Event()

    def run(self, comm: Any) -> None:
        try:
            if narrow_float(self.flat):
                wide = self.flat.float()
                comm.Allreduce(MPI.IN_PLACE, wide.numpy(), op=MPI.SUM)
                self.flat.copy_(wide)
            else:
                comm.Allreduce(MPI.IN_PLACE, self.flat.numpy(), op=MPI.SUM)
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise RankFailed(f"a reduction over the ranks failed: {self.error}") from self.error


class MpiCommunicator(BaseCommunicator):
    """Ranks started by an `mpiexec` (or `srun`) that fits the MPI library of mpi4py."""

    name = "mpi"

    def __init__(self, env: RankEnv) -> None:
        """Join the ranks.

        Raises:
            LaunchError: The MPI library does not let several threads call it.
        """
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise LaunchError(
                "the MPI library allows one thread only (no MPI_THREAD_MULTIPLE)",
                where="train.backend",
                hint='use another MPI library, or train.backend = "torch"',
            )
        self.rank, self.size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
        self.local_rank, self.local_size = env.local_rank, env.local_size
        self.device = torch.device("cpu")
        self._comm = MPI.COMM_WORLD.Dup()
        self._buckets = MPI.COMM_WORLD.Dup()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="hpcmass-allreduce")
        self._thread.start()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run(self._buckets)

    def allreduce_(self, flat: Tensor, slot: int = 0) -> Pending:
        """Hand the buffer to the thread."""
        job = _Job(flat)
        self._queue.put(job)
        return job

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """One small blocking reduction."""
        result = np.ascontiguousarray(values, dtype=np.float64).copy()
        self._comm.Allreduce(MPI.IN_PLACE, result, op=_OPS[op])
        return result

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One tensor after the other, as bytes, so that every type passes."""
        for tensor in tensors:
            data = tensor.detach().contiguous().reshape(-1)
            self._comm.Bcast(data.view(torch.uint8).numpy(), root=root)
            with torch.no_grad():
                tensor.copy_(data.view(tensor.shape))

    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        buffer = bytearray(data) if self.rank == root else bytearray(length)
        self._comm.Bcast([buffer, MPI.BYTE], root=root)
        return bytes(buffer)

    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        buffer = bytearray(sum(lengths))
        self._comm.Allgatherv([data, MPI.BYTE], [buffer, lengths, None, MPI.BYTE])
        ends = np.cumsum(lengths).tolist()
        return [bytes(buffer[end - n : end]) for end, n in zip(ends, lengths, strict=True)]

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """MPI_Abort: the launcher ends every rank."""
        mpi_abort(code)

    def close(self) -> None:
        """End the thread and free the communicators."""
        self._queue.put(None)
        self._thread.join()
        self._comm.Free()
        self._buckets.Free()


def mpi_abort(code: int) -> NoReturn:
    """End every rank of MPI_COMM_WORLD, with what was printed so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(code)
    os._exit(code)
