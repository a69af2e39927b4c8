"""Ranks over torch.distributed: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from hpcmass.errors import LaunchError
from hpcmass.launch import RankEnv
from hpcmass.train.comm.base import (
    BaseCommunicator,
    Op,
    Pending,
    Values,
    bytes_tensor,
    failure,
    local_device,
    shorter,
)
from hpcmass.train.comm.size import check_size

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
_MEET_TIMEOUT = timedelta(seconds=120)
# Ranks wait for one that fits an estimator or checks data. A rank that died is known by its closed connection,
# one that hangs is ended by who supervises the ranks: a clock here would end only those that are well.
_WAIT_TIMEOUT = timedelta(days=3650)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """What gloo or NCCL says when a rank is gone, or data does not fit, as an error that names the cause."""
    try:
        yield
    except RuntimeError as error:
        raise failure(error) from error


class _Work:
    def __init__(self, work: Any, sent: Tensor, flat: Tensor) -> None:
        self._work, self._sent, self._flat = work, sent, flat

    def wait(self) -> None:
        with _peers():
            self._work.wait()
        if self._sent is not self._flat:
            self._flat.copy_(self._sent)


class TorchCommunicator(BaseCommunicator):
    """Ranks that meet at MASTER_ADDR:MASTER_PORT, or, under mpiexec without those, by MPI."""

    name = "torch"

    def __init__(self, env: RankEnv) -> None:
        """Meet the other ranks.

        Raises:
            LaunchError: There is no address to meet at, or not all ranks came within two minutes.
        """
        self.rank, self.size = env.rank, env.size
        self.local_rank, self.local_size = env.local_rank, env.local_size
        self.device = local_device(env.local_rank, env.local_size)
        if dist.is_initialized():
            raise LaunchError("torch.distributed is in use in this process already", where="train.backend")
        try:
            store = self._meet()
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
                dist.init_process_group("nccl", store=store, rank=self.rank, world_size=self.size)
                self._control = dist.new_group(backend="gloo", timeout=_MEET_TIMEOUT)
            else:
                dist.init_process_group(
                    "gloo", store=store, rank=self.rank, world_size=self.size, timeout=_MEET_TIMEOUT
                )
                self._control = None
            # torch's own way: a group's timeout counts for how its ranks find each other as well.
            dist.distributed_c10d._set_pg_timeout(_WAIT_TIMEOUT, self._control)
        except (RuntimeError, ValueError, OSError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LaunchError(
                f"{self.size} ranks were started, but they did not find each other ({text})",
                where="torch.distributed",
                hint="MASTER_ADDR and MASTER_PORT must name a host and a free port that all ranks reach",
            ) from error
        self.size = dist.get_world_size()

    def _meet(self) -> Any:
        if self.size == 1:
            return HashStore()
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if address and port:
            # Under torchrun the agent owns the store of this address, as env:// knows.
            agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            server = self.rank == 0 and not agent
            return TCPStore(address, int(port), self.size, server, _MEET_TIMEOUT)
        if find_spec("mpi4py") is None:
            raise LaunchError(
                "ranks of the torch backend do not know where to meet",
                where="MASTER_ADDR, MASTER_PORT",
                hint="set both, start with 'hpcmass train JOB --ranks N', or install mpi4py",
            )
        # Imported here, for mpi4py need not be installed.
        start = import_module("hpcmass.train.comm.mpi_start")
        mpi = start.start_mpi()
        self.rank, real = mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
        check_size(self.size, real, self.name, library=start.mpi_library())
        store, host = None, ""
        if self.rank == 0:
            host = socket.gethostname() if self.local_size < self.size else "127.0.0.1"
            store = TCPStore(host, 0, self.size, True, _MEET_TIMEOUT, wait_for_workers=False)
        host, number = mpi.COMM_WORLD.bcast((host, store.port if store else 0), root=0)
        return store or TCPStore(host, number, self.size, False, _MEET_TIMEOUT)

    def allreduce_(self, flat: Tensor, slot: int = 0, wire: torch.dtype | None = None) -> Pending:
        """An asynchronous all_reduce, of a narrower copy where `wire` asks for it."""
        sent = flat.to(wire) if shorter(wire, flat) else flat
        with _peers():
            return _Work(dist.all_reduce(sent, async_op=True), sent, flat)

    def _exchange(self, sent: Tensor) -> Tensor:
        got = torch.empty_like(sent)
        with _peers():
            dist.all_to_all_single(got, sent)
        return got

    def _gather(self, part: Tensor) -> Tensor:
        got = torch.empty(self.size, part.numel(), dtype=part.dtype, device=part.device)
        with _peers():
            dist.all_gather(list(got.unbind()), part)
        return got.view(-1)

    def allreduce_values(self, values: Values, op: Op = "sum") -> Values:
        """One small all_reduce over gloo."""
        result = torch.from_numpy(values.astype("float64", copy=True))
        with _peers():
            dist.all_reduce(result, op=_OPS[op], group=self._control)
        made: Values = result.numpy()
        return made

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """One tensor after the other."""
        for tensor in tensors:
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            with _peers(), torch.no_grad():
                dist.broadcast(data, src=root)
                tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    def _broadcast_bytes(self, data: bytes, length: int, root: int) -> bytes:
        buffer = bytes_tensor(data, length)
        with _peers():
            dist.broadcast(buffer, src=root, group=self._control)
        return bytes(buffer.numpy())

    def _allgather_bytes(self, data: bytes, lengths: list[int]) -> list[bytes]:
        longest = max(lengths)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
        with _peers():
            dist.all_gather(parts, bytes_tensor(data, longest), group=self._control)
        return [bytes(part[:n].numpy()) for part, n in zip(parts, lengths, strict=True)]

    def abort(self, reason: str, code: int = 2) -> NoReturn:
        """Leave at once: the others lose the connection, and the launcher ends them."""
        sys.stdout.flush()
        sys.stderr.flush()
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Is_initialized() and mpi.COMM_WORLD.Get_size() > 1:
            mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
