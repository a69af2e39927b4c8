"""Ranks over MPI by mpi4py.

Within a node gradients are summed in shared memory when the backward pass is over (see `node`). Over several
nodes that have a core to spare for each rank, or where there is no shared memory, a thread of its own sums
bucket after bucket while the backward pass goes on. Open MPI makes little progress on a non-blocking
reduction by itself, so the thread uses blocking ones (its maintainers' advice), in the order in which they
were asked for, on a communicator of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from hpcmass.errors import LaunchError, RankFailed
from hpcmass.launch import RankEnv, usable_cores
from hpcmass.train.comm.base import BaseCommunicator, Op, Pending, Values
from hpcmass.train.comm.mpi_start import start_mpi
from hpcmass.train.comm.mpi_sum import allreduce, as_bytes
from hpcmass.train.comm.node import NodeSums

MPI = start_mpi()
_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
_MISFITS = (
    MPI.ERR_TRUNCATE,
    MPI.ERR_COUNT,
    MPI.ERR_TYPE,
    MPI.ERR_BUFFER,
    MPI.ERR_ARG,
    MPI.ERR_OP,
    MPI.ERR_ROOT,
)
_BETWEEN = "in each node's shared memory, and slice by slice between nodes"


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except MPI.Exception as error:
        raise _failure(error) from error


def _failure(error: BaseException) -> RankFailed:
    """Messages that do not fit together are told from ranks that went away."""
    misfit = isinstance(error, MPI.Exception) and error.Get_error_class() in _MISFITS
    return RankFailed(f"a message between the ranks failed: {error}", lost_peer=not misfit)


class _Job:
    """One reduction, handed to the thread."""

    def __init__(self, flat: Tensor, wire: torch.dtype | None) -> None:
        self.flat, self.wire = flat, wire
        self.error: BaseException | None = None
        self._done = threading.Event()

    def run(self, comm: Any) -> None:
        try:
            allreduce(comm, self.flat, self.wire)
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise _failure(self.error) from self.error


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
        node = self._split_node()
        self._node = NodeSums(self._comm, node)
        spare = usable_cores() // node.size > torch.get_num_threads()
        self._by_thread = not self._node.single and self._agree(spare)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="hpcmass-allreduce")
        self._thread.start()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run(self._buckets)

    def _split_node(self) -> Any:
        """The ranks that share memory with this one, in the order of ranks."""
        return self._comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)

    def _agree(self, yes: bool) -> bool:
        return bool(self.allreduce_values(np.array([float(yes)]), "min")[0])

    def buffer(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Shared memory of the node, where that is how gradients are summed."""
        if self.size > 1 and not self._by_thread:
            made = self._node.buffer(numel, dtype)
            if made is not None:
                self.overlaps = False
                self.reduction = "in the node's shared memory" if self._node.single else _BETWEEN
                return made
            self._by_thread = self.overlaps = True  # buffers made before are summed by it as well
            self.reduction = f"{type(self).reduction}: no shared memory for {numel * dtype.itemsize} bytes"
        return super().buffer(numel, dtype)

    def sum_(self, flats: Sequence[Tensor], wire: torch.dtype | None = None) -> None:
        """In shared memory where all of them lie there."""
        if self.size > 1 and all(self._node.owns(flat) for flat in flats):
            with _peers():
                self._node.sum_(flats, wire)
        else:
            super().sum_(flats, wire)

    def combine_(self, tables: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> None:
        """In shared memory where all of them lie there and no other node takes part."""
        with _peers():
            if self._node.single and all(self._node.owns(table) for table in tables):
                self._node.combine_(tables, steps)
            else:
                super().combine_(tables, steps)

    def _exchange(self, sent: Tensor) -> Tensor:
        got = torch.empty_like(sent)
        self._comm.Alltoall(as_bytes(sent), as_bytes(got))
        return got

    def _gather(self, part: Tensor) -> Tensor:
        got = torch.empty(self.size * part.numel(), dtype=part.dtype)
        self._comm.Allgather(as_bytes(part), as_bytes(got))
        return got

    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """Hand the buffer to the thread."""
        job = _Job(flat, wire)
        self._queue.put(job)
        return job

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """One small blocking reduction."""
        result = np.ascontiguousarray(values, dtype=np.float64).copy()
        with _peers():
            self._comm.Allreduce(MPI.IN_PLACE, result, op=_OPS[op])
        return result

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One tensor after the other, as bytes, so that every type passes."""
        for tensor in tensors:
            data = tensor.detach().contiguous().reshape(-1)
            with _peers(), torch.no_grad():
                self._comm.Bcast(data.view(torch.uint8).numpy(), root=root)
                tensor.copy_(data.view(tensor.shape))

    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        buffer = bytearray(data) if self.rank == root else bytearray(length)
        with _peers():
            self._comm.Bcast([buffer, MPI.BYTE], root=root)
        return bytes(buffer)

    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        buffer = bytearray(sum(lengths))
        with _peers():
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
        self._node.close()
        self._comm.Free()
        self._buckets.Free()


def mpi_abort(code: int) -> NoReturn:
    """End every rank of MPI_COMM_WORLD, with what was printed so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(code)
    os._exit(code)
