"""Sums in memory that the ranks of a node share: nothing is sent within a node.

Every rank's buffer is a segment of an MPI shared-memory window. When all have come, each rank sums its own
slice of all segments, in the order of ranks, piece by piece in its cache, and writes the sum into every
segment; so the result is the same, bit for bit, on all ranks. Measured on CPUs it costs less than any
allreduce, and less than one that hides behind the backward pass where that has no core of its own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmass.train.comm.base import narrow_float
from hpcmass.train.comm.mpi_start import start_mpi
from hpcmass.train.comm.mpi_sum import allreduce

MPI = start_mpi()
# A thread's part of a piece, in elements: what torch gives one thread at least; two of them fit an L2 cache.
_PIECE = 1 << 15
# Between nodes: large enough for the bandwidth, below glibc's 32 MiB ceiling for MPI's temporary.
_MESSAGE_BYTES = 8 << 20
_BACKING = "/dev/shm"
_SPIN_S, _NAP_S = 2e-4, 5e-5


@dataclass
class _Window:
    """A window and what lies in it: `segments` are all ranks' of the node, as bytes, in the order of ranks."""

    handle: Any
    segments: list[Tensor]


@dataclass
class _Part:
    """This rank's slice of one tensor.

    Attributes:
        pieces: Cut to the cache; of each piece every rank's view.
        slices: Every rank's view of the whole slice.
        whole: Every rank's view of the whole tensor.
    """

    pieces: list[list[Tensor]]
    slices: list[Tensor]
    whole: list[Tensor]


class NodeSums:
    """The ranks of `world`, by node. All methods are collective over `world`, but `owns`."""

    def __init__(self, world: Any, node: Any) -> None:
        """Find out who shares memory with whom.

        Args:
            world: All ranks.
            node: Those of `world` that share memory with this one, in its order.
        """
        self._world, self._node = world, node
        sizes = world.allgather(node.size)
        self.single = sizes[0] == world.size
        self._equal = len(set(sizes)) == 1
        # Equal nodes: every rank has peers for its slice. Else the first rank of each node speaks for it.
        color = node.rank if self._equal else (0 if node.rank == 0 else MPI.UNDEFINED)
        self._peers = None if self.single else world.Split(color, world.rank)
        self._windows: list[_Window] = []
        self._parts: dict[tuple[int, int, torch.dtype], _Part] = {}
        self._tables: dict[tuple[int, int, torch.dtype], list[list[Tensor]]] = {}

    def buffer(self, numel: int, dtype: torch.dtype) -> Tensor | None:
        """This rank's segment of a new window, zeroed; None, on all ranks, where one of them cannot have it."""
        nbytes = max(1, numel) * dtype.itemsize
        nbytes += -nbytes % 64
        window = None
        if self._all(_room(nbytes * self._node.size)):
            info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each rank's pages near to it
            try:
                window = MPI.Win.Allocate_shared(nbytes, 1, info=info, comm=self._node)
            except MPI.Exception:
                window = None
            finally:
                info.Free()
            if not self._all(window is not None):
                if window is not None:
                    window.Free()
                window = None
        if window is None:
            return None
        window.Lock_all(MPI.MODE_NOCHECK)  # Sync is for those who hold a lock
        segments = [
            torch.from_numpy(np.frombuffer(window.Shared_query(rank)[0], np.uint8)[:nbytes])
            for rank in range(self._node.size)
        ]
        segments[self._node.rank].zero_()
        self._windows.append(_Window(window, segments))
        own: Tensor = segments[self._node.rank][: numel * dtype.itemsize]
        return own.view(dtype)

    def _all(self, yes: bool) -> bool:
        return bool(self._world.allreduce(int(yes), op=MPI.MIN))

    def owns(self, flat: Tensor) -> bool:
        """Whether a tensor lies in a `buffer`."""
        return self._find(flat) is not None

    def sum_(self, flats: Sequence[Tensor], wire: torch.dtype | None = None) -> None:
        """Sum tensors that lie in buffers, at the same places on all ranks.

        Args:
            flats: Contiguous, 1-d.
            wire: The narrow type in which sums of a node travel to other nodes.
        """
        parts = [self._part(flat) for flat in flats]
        self._meet()
        for part in parts:
            if self.single:
                self._sum_and_spread(part)
            elif self._equal:
                self._sum_to(part, self._node.rank)
                self._between(part.slices[self._node.rank], wire)
                _spread(part, self._node.rank)
            else:
                self._by_leaders(part, wire)
        self._meet()

    def combine_(self, tables: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> None:
        """Add up rows of all ranks of a single node, each rank its slice: see `Communicator.combine_`."""
        columns = [self._columns(table) for table in tables]
        self._meet()
        for pieces in columns:
            for rows in pieces:
                for to, of in steps:
                    rows[to].add_(rows[of])
                for row in rows[:: len(rows) // self._node.size][1:]:  # row 0 of the other ranks
                    row.copy_(rows[0])
        self._meet()

    def _columns(self, table: Tensor) -> list[list[Tensor]]:
        """This rank's slice, cut to the cache; of each piece all ranks' rows, in the order of ranks."""
        key = (table.data_ptr(), table.numel(), table.dtype)
        if key not in self._tables:
            found = self._find(table)
            assert found is not None, "not a tensor of a buffer"
            window, start = found
            stop, n = start + table.numel() * table.element_size(), table.shape[1]
            low, high = (n * rank // self._node.size for rank in (self._node.rank, self._node.rank + 1))
            rows = [
                row[low:high]
                for segment in window.segments
                for row in segment[start:stop].view(table.dtype).view(table.shape)
            ]
            length = _PIECE * max(1, torch.get_num_threads())
            self._tables[key] = [list(cut) for cut in zip(*(row.split(length) for row in rows), strict=True)]
        return self._tables[key]

    def _by_leaders(self, part: _Part, wire: torch.dtype | None) -> None:
        self._sum_to(part, 0)
        self._meet()
        if self._node.rank == 0:
            self._between(part.whole[0], wire)
        self._meet()
        _spread(part, 0)

    def _sum_and_spread(self, part: _Part) -> None:
        """While a piece is in the cache it is summed and written to all."""
        wide = _scratch(part)
        for piece in part.pieces:
            total = _ordered(piece, wide)
            for segment in piece:
                if segment is not total:
                    segment.copy_(total)

    def _sum_to(self, part: _Part, rank: int) -> None:
        wide = _scratch(part)
        for piece in part.pieces:
            total = _ordered(piece, wide)
            if piece[rank] is not total:
                piece[rank].copy_(total)

    def _between(self, flat: Tensor, wire: torch.dtype | None) -> None:
        for message in torch.split(flat, _MESSAGE_BYTES // flat.element_size()):
            allreduce(self._peers, message, wire)

    def _meet(self) -> None:
        """What all ranks of the node wrote before, all of them read afterwards."""
        for window in self._windows:
            window.handle.Sync()
        request, began = self._node.Ibarrier(), time.perf_counter()
        while not request.Test():
            # A blocking barrier never lets go of its core, which the rank that is late may need.
            time.sleep(0.0 if time.perf_counter() - began < _SPIN_S else _NAP_S)
        for window in self._windows:
            window.handle.Sync()

    def _find(self, flat: Tensor) -> tuple[_Window, int] | None:
        for window in self._windows:
            own = window.segments[self._node.rank]
            start = flat.data_ptr() - own.data_ptr()
            if start >= 0 and start + flat.numel() * flat.element_size() <= own.numel():
                return window, start
        return None

    def _part(self, flat: Tensor) -> _Part:
        key = (flat.data_ptr(), flat.numel(), flat.dtype)
        if key not in self._parts:
            found = self._find(flat)
            assert found is not None, "not a tensor of a buffer"
            window, start = found
            stop, size, mine = start + flat.numel() * flat.element_size(), self._node.size, self._node.rank
            whole = [segment[start:stop].view(flat.dtype) for segment in window.segments]
            low, high = (flat.numel() * rank // size for rank in (mine, mine + 1))
            slices = [segment[low:high] for segment in whole]
            length = _PIECE * max(1, torch.get_num_threads())
            pieces = [list(cut) for cut in zip(*(torch.split(s, length) for s in slices), strict=True)]
            self._parts[key] = _Part(pieces, slices, whole)
        return self._parts[key]

    def close(self) -> None:
        """Free the windows; whoever holds a tensor of one may not touch it any more."""
        self._parts.clear()
        self._tables.clear()
        for window in self._windows:
            window.segments.clear()
            window.handle.Unlock_all()
            window.handle.Free()
        self._windows.clear()
        if self._peers is not None and self._peers != MPI.COMM_NULL:
            self._peers.Free()
        self._node.Free()


def _room(nbytes: int) -> bool:
    """Whether the node has shared memory for that: a file there that is too large ends a rank by SIGBUS."""
    return not os.path.isdir(_BACKING) or shutil.disk_usage(_BACKING).free > nbytes + (16 << 20)


def _scratch(part: _Part) -> Tensor | None:
    """Where narrow floats are summed, in float32."""
    first = part.slices[0]
    if not narrow_float(first) or not part.pieces:
        return None
    return torch.empty(part.pieces[0][0].numel(), dtype=torch.float32)


def _ordered(piece: list[Tensor], wide: Tensor | None) -> Tensor:
    """The sum of all ranks' views, in the order of ranks: in the first one, or in `wide`."""
    total = piece[0] if wide is None else wide[: piece[0].numel()].copy_(piece[0])
    for other in piece[1:]:
        total.add_(other)
    return total


def _spread(part: _Part, root: int) -> None:
    for number, segment in enumerate(part.slices):
        if number != root:
            segment.copy_(part.slices[root])
