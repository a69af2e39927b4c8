"""Sums over the ranks of an MPI communicator that MPI alone does not do well: narrow floats, sent as halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcmass.train.comm.base import narrow_float, shorter
from hpcmass.train.comm.mpi_start import start_mpi

MPI = start_mpi()


def allreduce(comm: Any, flat: Tensor, wire: torch.dtype | None = None) -> None:
    """Sum a contiguous 1-d CPU tensor over the ranks of `comm`, in place, and wait for it.

    Args:
        comm: An mpi4py communicator.
        flat: Narrow floats are summed in float32, for MPI knows none.
        wire: The narrow type in which values travel (see `sum_halves`); None: as they are.
    """
    if comm.size == 1:
        return
    if shorter(wire, flat):
        assert wire is not None
        sum_halves(comm, flat, wire)
    elif narrow_float(flat):
        wide = flat.float()
        comm.Allreduce(MPI.IN_PLACE, wide.numpy(), op=MPI.SUM)
        flat.copy_(wide)
    else:
        comm.Allreduce(MPI.IN_PLACE, flat.numpy(), op=MPI.SUM)


def sum_halves(comm: Any, flat: Tensor, wire: torch.dtype) -> None:
    """Each rank gets its part of all ranks' halves, sums it in float32, in the order of ranks, and sends it.

    Half the bytes of an allreduce; the result is the same on all ranks, and rounded to `wire`.
    """
    part = -(-flat.numel() // comm.size)
    sent = torch.zeros(part * comm.size, dtype=wire)
    sent[: flat.numel()].copy_(flat)
    got = torch.empty_like(sent)
    comm.Alltoall(as_bytes(sent), as_bytes(got))
    parts = got.view(comm.size, part)
    total = parts[0].float()
    for other in parts[1:]:
        total.add_(other)
    comm.Allgather(as_bytes(total.to(wire)), as_bytes(got))
    flat.copy_(got[: flat.numel()])


def as_bytes(tensor: Tensor) -> Any:
    """A contiguous tensor's bytes, for MPI knows not all of its types."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
