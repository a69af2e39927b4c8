"""Shards in pieces: read by one rank, sent to all, written and checked beside each other on each node.

A few shards are under way at once, piece by piece in turn, so that several threads of a node write and compute
SHA-256. The order of the pieces is the same on all ranks, whatever fails on one. While a piece is sent, the
next ones are read and earlier ones written and checked; a ring of buffers, used again and again, holds them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hpcmass.data import ShardInfo
from hpcmass.data.stage import Arrival
from hpcmass.errors import CorruptError, HpcmassError
from hpcmass.files import storage_errors
from hpcmass.launch import usable_cores
from hpcmass.train.comm.agree import everywhere
from hpcmass.train.comm.base import Communicator, Values

PIECE_BYTES = 4 << 20
LANES = 8  # shards under way at once, at most; at least as many cores has each rank
_AHEAD = 2  # pieces that are read before their turn
_HEADER = 64  # bytes before a piece, of which the first is 1 where it could be read

Buffer = np.ndarray[Any, np.dtype[np.uint8]]


class Receiver(Protocol):
    """A node's disk, on the rank that writes to it; on other ranks nothing is missing.

    Attributes:
        missing: The checksums of the shards that it wants.
    """

    missing: set[str]

    def arrival(self, sha: str) -> Arrival | None:
        """Where a shard is written to; None where it cannot be."""

    def arrived(self, sha: str, arrival: Arrival, source: Path) -> None:
        """All of it is written.

        Raises:
            CorruptError: It does not fit its checksum.
        """

    def refused(self, error: HpcmassError) -> None:
        """The disk takes no more."""


@dataclass
class _Shard:
    """A shard under way, on this rank."""

    info: ShardInfo
    file: Path
    lane: int
    root: int  # the rank that reads it
    sent: bool  # to all ranks, as several nodes lack it
    arrival: Arrival | None
    handle: int = -1
    opening: threading.Lock = field(default_factory=threading.Lock)
    wrong: HpcmassError | None = None  # in the file that is read
    refused: HpcmassError | None = None  # by this node's disk
    broken: bool = False  # the root could not read it: known on all ranks
    under_way: list[Future[None]] = field(default_factory=list)

    def write(self, data: memoryview) -> None:
        """The next bytes, to this node's disk."""
        if self.arrival is None or self.refused is not None:
            return
        try:
            self.arrival.write(data)
        except HpcmassError as error:
            self.refused = error

    def read(self, start: int, buffer: Buffer) -> None:
        """Fill a buffer with the bytes from `start` on; its header says whether they could be read."""
        buffer[0] = 0
        length, done = len(buffer) - _HEADER, 0
        try:
            with storage_errors(self.file, "read a shard"):
                with self.opening:
                    if self.handle < 0:
                        self.handle = os.open(self.file, os.O_RDONLY)
                while done < length:
                    got = os.preadv(self.handle, [buffer.data[_HEADER + done :]], start + done)
                    if got == 0:
                        raise CorruptError(
                            f"ends at byte {start + done}, and has {self.info.bytes} by its manifest",
                            where=self.file,
                            hint="copy the dataset again, or make it again with `hpcmass shard`",
                        )
                    done += got
            buffer[0] = 1
        except HpcmassError as error:
            self.wrong = self.wrong or error


def bring(
    wanted: Sequence[tuple[ShardInfo, Path]], comm: Communicator, node: Receiver, leaders: Sequence[int]
) -> None:
    """Read and send what any node lacks. Collective.

    Args:
        wanted: All shards, and their files, the same on all ranks.
        comm: The ranks.
        node: This rank's.
        leaders: The ranks that write, one a node.

    Raises:
        CorruptError: A shard does not fit its checksum or its manifest; on all ranks.
        HpcmassError: It cannot be read; on all ranks.
    """
    if not wanted:
        return
    cores = float(max(1, min(LANES, usable_cores())))
    lanes = int(comm.allreduce_values(np.array([cores]), "min")[0])
    with _Stream(comm, node, lanes) as stream:
        lacks = comm.allreduce_values(_lacks(wanted, node), "max")
        due = [pair for pair, lack in zip(wanted, lacks.tolist(), strict=True) if lack]
        for first in range(0, len(due), lanes):
            stream.send(due[first : first + lanes], first, leaders)
            stream.settle(but_last=True)
        stream.settle()


def _lacks(shards: Sequence[tuple[ShardInfo, Path]], node: Receiver) -> Values:
    return np.array([float(info.sha256 in node.missing) for info, _ in shards])


class _Stream:
    """The ring of buffers, the threads, and what is under way."""

    def __init__(self, comm: Communicator, node: Receiver, lanes: int) -> None:
        self._comm, self._node = comm, node
        self._ring = [np.empty(0, np.uint8) for _ in range(2 * lanes + _AHEAD)]
        self._busy: list[list[Future[None]]] = [[] for _ in self._ring]
        self._readers = ThreadPoolExecutor(_AHEAD, "hpcmass-stage-read")
        self._writers = [ThreadPoolExecutor(1, "hpcmass-stage-write") for _ in range(lanes)]
        self._checkers = [ThreadPoolExecutor(1, "hpcmass-stage-check") for _ in range(lanes)]
        self._groups: list[list[_Shard]] = []

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        for threads in (self._readers, *self._writers, *self._checkers):
            threads.shutdown()
        for shard in [shard for group in self._groups for shard in group]:
            _close(shard)
            if shard.arrival is not None:
                shard.arrival.discard()

    def send(self, wanted: Sequence[tuple[ShardInfo, Path]], first: int, leaders: Sequence[int]) -> None:
        """Bring as many shards as there are lanes, of which `first` is the number; collective."""
        group = self._begin(wanted, first, leaders)
        self._groups.append(group)
        pieces = [piece for piece in _in_turn(group) if piece[0].sent or piece[0].root == self._comm.rank]
        reads: dict[int, Future[None]] = {}
        for number, (shard, _, length) in enumerate(pieces):
            for ahead in range(number, min(number + _AHEAD, len(pieces))):
                if ahead not in reads and pieces[ahead][0].root == self._comm.rank:
                    source, begin, many = pieces[ahead]
                    reads[ahead] = self._readers.submit(source.read, begin, self._free(ahead, many))
            buffer = self._buffer(number, length) if number in reads else self._free(number, length)
            if number in reads:
                reads.pop(number).result()
            if shard.broken:
                continue
            if shard.sent:
                _send(self._comm, buffer, shard.root)
            if buffer[0] != 1:
                shard.broken = True
            elif shard.arrival is not None and shard.refused is None:
                self._take(number, shard, buffer.data[_HEADER:])

    def _begin(
        self, wanted: Sequence[tuple[ShardInfo, Path]], first: int, leaders: Sequence[int]
    ) -> list[_Shard]:
        lacks = _lacks(wanted, self._node)  # a disk may have become full meanwhile
        many = self._comm.allreduce_values(lacks)
        last = self._comm.allreduce_values(lacks * (self._comm.rank + 1), "max")
        group = []
        for lane, (info, file) in enumerate(wanted):
            if many[lane] == 0:
                continue
            sent = many[lane] > 1
            root = leaders[(first + lane) % len(leaders)] if sent else int(last[lane]) - 1
            group.append(_Shard(info, file, lane, root, sent, self._node.arrival(info.sha256)))
        return group

    def _buffer(self, number: int, length: int) -> Buffer:
        slot = number % len(self._ring)
        if len(self._ring[slot]) < _HEADER + length:
            self._ring[slot] = np.empty(_HEADER + length, np.uint8)
        return self._ring[slot][: _HEADER + length]

    def _free(self, number: int, length: int) -> Buffer:
        """The buffer for a piece, when what it held is written and checked."""
        slot = number % len(self._ring)
        for one in self._busy[slot]:
            one.result()
        self._busy[slot] = []
        return self._buffer(number, length)

    def _take(self, number: int, shard: _Shard, data: memoryview) -> None:
        assert shard.arrival is not None
        both = [
            self._writers[shard.lane].submit(shard.write, data),
            self._checkers[shard.lane].submit(shard.arrival.check, data),
        ]
        self._busy[number % len(self._ring)] = both
        shard.under_way[:] = both  # of one lane, so those before are done when these are

    def settle(self, *, but_last: bool = False) -> None:
        """Take what has come to the node's disk; collective.

        Args:
            but_last: Leave the group that was sent last to its threads.
        """
        due = self._groups[:-1] if but_last else self._groups
        self._groups = self._groups[-1:] if but_last else []
        errors = [error for group in due for shard in group if (error := self._settled(shard)) is not None]
        everywhere(self._comm, lambda: _raise(errors))

    def _settled(self, shard: _Shard) -> HpcmassError | None:
        for one in shard.under_way:
            one.result()
        _close(shard)
        arrival, shard.arrival = shard.arrival, None
        if arrival is None:
            return shard.wrong
        if shard.broken or shard.refused is not None:
            arrival.discard()
            if shard.refused is not None:
                self._node.refused(shard.refused)
            return shard.wrong
        try:
            self._node.arrived(shard.info.sha256, arrival, shard.file)
        except CorruptError as error:
            return error
        return None


def _raise(errors: Sequence[HpcmassError]) -> None:
    if errors:
        raise errors[0]


def _close(shard: _Shard) -> None:
    if shard.handle >= 0:
        os.close(shard.handle)
        shard.handle = -1


def _in_turn(group: Sequence[_Shard]) -> Iterator[tuple[_Shard, int, int]]:
    """The pieces of some shards, one of each in turn: shard, first byte, length."""
    longest = max((shard.info.bytes for shard in group), default=0)
    for start in range(0, longest, PIECE_BYTES):
        for shard in group:
            if start < shard.info.bytes:
                yield shard, start, min(PIECE_BYTES, shard.info.bytes - start)


def _send(comm: Communicator, buffer: Buffer, root: int) -> None:
    tensor = torch.from_numpy(buffer)
    if comm.device.type == "cpu":
        comm.broadcast_([tensor], root)
        return
    there = tensor.to(comm.device)
    comm.broadcast_([there], root)
    tensor.copy_(there)
