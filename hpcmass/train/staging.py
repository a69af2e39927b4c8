"""A job's shards on the disks of its nodes: each is read once from the shared file system and broadcast.

One rank a node, the leader, has the disk's `Stage`. A shard that any node lacks is read by one of the leaders,
in turn, in pieces that go to all ranks; reading, sending, and writing with the checksum overlap. A node whose
disk has no room reads from the shared file system.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.data import Dataset, ShardInfo
from hpcmass.data.stage import Arrival, Stage
from hpcmass.errors import CorruptError, HpcmassError
from hpcmass.files import storage_errors
from hpcmass.train.comm.agree import everywhere
from hpcmass.train.comm.base import Communicator

PIECE_BYTES = 8 << 20
_HEADER = 8  # bytes before a piece: its length, or -1 where it could not be read


@dataclass
class Staged:
    """What staging came to, on one rank.

    Attributes:
        datasets: As they were given, with the folders of what lies on this node now.
        notes: What the user is to know, the same on all ranks.
        unchecked: Shards, and their files, that some node reads from the shared file system and that were not
            read there, nor checked, by this job; the same on all ranks.
        close: Call it when nothing is read any more.
    """

    datasets: list[Dataset]
    notes: list[str]
    unchecked: list[tuple[ShardInfo, Path]]
    close: Callable[[], None]


def stage(
    datasets: Sequence[Dataset], comm: Communicator, scratch: str | None, limit_bytes: int | None = None, *,
    check_again: bool = False,
) -> Staged:  # fmt: skip
    """Bring the shards of some datasets to the nodes. Collective.

    Args:
        datasets: The same on all ranks.
        comm: The ranks.
        scratch: A folder of each node's own disk; variables in it are each node's. None: $TMPDIR, else /tmp.
        limit_bytes: What staged shards may take of it, of this job and others.
        check_again: Read what an earlier job has left there, and checked, once more against its checksum.

    Raises:
        CorruptError: A shard does not fit its checksum, or cannot be read whole; on all ranks.
    """
    hosts = comm.share_objects(socket.gethostname())
    leader = hosts.index(hosts[comm.rank])
    folder = tempfile.gettempdir() if scratch is None else os.path.expandvars(scratch)
    node = _Node(Path(folder), limit_bytes, lead=leader == comm.rank)
    try:
        wanted = _shards(datasets)
        node.look([shard for shard, _ in wanted], check_again=check_again)
        leaders = sorted({hosts.index(host) for host in hosts})
        _bring(wanted, comm, node, leaders)
        said = comm.share_objects(node.result())
    except BaseException:
        node.close()
        raise
    places = {str(sha): Path(place) for sha, place in said[leader]["places"].items()}
    made = [_moved(dataset, places) for dataset in datasets]
    notes = [f"{hosts[rank]}: {one['problem']}" for rank, one in enumerate(said) if one["problem"]]
    everywhere_there = set.intersection(*(set(said[rank]["places"]) for rank in leaders))
    checked = {sha for one in said for sha in one["brought"]}
    unchecked = [pair for pair in wanted if pair[0].sha256 not in everywhere_there | checked]
    return Staged(made, notes, unchecked, node.close)


def _shards(datasets: Sequence[Dataset]) -> list[tuple[ShardInfo, Path]]:
    """Each shard once, with the file that it is read from."""
    found: dict[str, tuple[ShardInfo, Path]] = {}
    for dataset in datasets:
        for shard, folder in zip(dataset.manifest.shards, dataset.folders, strict=True):
            found.setdefault(shard.sha256, (shard, folder / shard.file))
    return list(found.values())


def _moved(dataset: Dataset, places: dict[str, Path]) -> Dataset:
    pairs = zip(dataset.manifest.shards, dataset.folders, strict=True)
    return Dataset(dataset.manifest, [places.get(shard.sha256, folder) for shard, folder in pairs])


class _Node:
    """What the leader of a node does; on the other ranks nothing."""

    def __init__(self, scratch: Path, limit: int | None, *, lead: bool) -> None:
        self._stage: Stage | None = None
        self._scratch = scratch
        self._problem = ""
        self.missing: set[str] = set()
        self._shards: dict[str, ShardInfo] = {}
        self._places: dict[str, str] = {}
        self._brought: list[str] = []
        if not lead:
            return
        if "$" in str(scratch):
            self._give_up(f"{scratch} names a variable that is not set")
            return
        try:
            self._stage = Stage(scratch, limit)
        except HpcmassError as error:
            self._give_up(f"{error.message} ({scratch})")

    def look(self, shards: Sequence[ShardInfo], *, check_again: bool) -> None:
        """Find out what is there, and make room for the rest."""
        self._shards = {shard.sha256: shard for shard in shards}
        if self._stage is None:
            return
        try:
            there = self._stage.use(shards)
            if check_again:
                there = [
                    is_there and self._stage.check_again(shard)
                    for shard, is_there in zip(shards, there, strict=True)
                ]
            lacking = [shard for shard, found in zip(shards, there, strict=True) if not found]
            needed = sum(shard.bytes for shard in lacking)
            room = not needed or self._stage.make_room(needed)
        except HpcmassError as error:
            self.refused(error)
            return
        found = [shard for shard, is_there in zip(shards, there, strict=True) if is_there]
        self._places = {shard.sha256: str(self._stage.place(shard)) for shard in found}
        if room:
            self.missing = {shard.sha256 for shard in lacking}
        else:
            self._give_up(f"there is no room for {needed / 1e9:.2f} GB of shards in {self._scratch}")

    def arrival(self, sha: str) -> Arrival | None:
        """Where a shard that this node lacks is written to."""
        if sha not in self.missing or self._stage is None:
            return None
        try:
            return self._stage.receive(self._shards[sha])
        except HpcmassError as error:
            self.refused(error)
            return None

    def arrived(self, sha: str, arrival: Arrival, source: Path) -> None:
        """All of a shard is there.

        Raises:
            CorruptError: It does not fit its checksum.
        """
        try:
            self._places[sha] = str(arrival.finish(source))
            self._brought.append(sha)
        except CorruptError:
            raise
        except HpcmassError as error:
            arrival.discard()
            self.refused(error)

    def refused(self, error: HpcmassError) -> None:
        """The disk takes no more: what is not there yet is read from the shared file system."""
        self._give_up(error.message)

    def _give_up(self, why: str) -> None:
        self._problem = f"{why}; shards are read from the shared file system"
        self.missing = set()

    def result(self) -> dict[str, Any]:
        """What JSON can say of it."""
        return {"problem": self._problem, "places": self._places, "brought": self._brought}

    def close(self) -> None:
        """Nothing is read here any more."""
        if self._stage is not None:
            self._stage.close()


def _bring(
    wanted: Sequence[tuple[ShardInfo, Path]], comm: Communicator, node: _Node, leaders: Sequence[int]
) -> None:
    """Read and broadcast what any node lacks."""
    lacking = np.array([float(shard.sha256 in node.missing) for shard, _ in wanted])
    if not len(lacking):
        return
    lacking = comm.allreduce_values(lacking, "max")
    due = [pair for pair, lacks in zip(wanted, lacking.tolist(), strict=True) if lacks]
    with ThreadPoolExecutor(2, "hpcmass-stage") as threads:
        for number, (shard, file) in enumerate(due):
            root = leaders[number % len(leaders)]
            said = _one(shard, file, comm, root, node, threads)
            everywhere(comm, lambda said=said: _raise(said))  # type: ignore[misc]


def _raise(error: HpcmassError | None) -> None:
    if error is not None:
        raise error


def _one(
    shard: ShardInfo, file: Path, comm: Communicator, root: int, node: _Node, threads: ThreadPoolExecutor
) -> HpcmassError | None:
    """Bring one shard to all nodes that lack it; what is wrong with it."""
    arrival = node.arrival(shard.sha256)
    pieces = _pieces(shard, file) if comm.rank == root else None
    size = _HEADER + min(PIECE_BYTES, max(1, shard.bytes))
    buffers = [np.zeros(size, np.uint8) for _ in range(3)]  # read, sent, written
    many = max(1, -(-shard.bytes // PIECE_BYTES))
    wrong: HpcmassError | None = None
    writing: Future[None] | None = None
    reading = None if pieces is None else threads.submit(_fill, pieces, buffers[0])
    length = 0
    for number in range(many):
        buffer = buffers[number % 3]
        if pieces is not None and reading is not None:
            wrong = reading.result()
            further = wrong is None and number + 1 < many
            reading = threads.submit(_fill, pieces, buffers[(number + 1) % 3]) if further else None
        if comm.size > 1:
            _send(comm, buffer, root)
        length = int(buffer[:_HEADER].view(np.int64)[0])
        if writing is not None:
            arrival = _settle(writing, arrival, node)
            writing = None
        if length < 0:
            break  # the root tells what is wrong
        if arrival is not None:
            writing = threads.submit(arrival.write, buffer.data[_HEADER : _HEADER + length])
    if pieces is not None:
        pieces.close()
    if writing is not None:
        arrival = _settle(writing, arrival, node)
    if arrival is None:
        return wrong
    if length < 0:
        arrival.discard()
        return wrong
    try:
        node.arrived(shard.sha256, arrival, file)
    except CorruptError as error:
        return error
    return wrong


def _settle(writing: Future[None], arrival: Arrival | None, node: _Node) -> Arrival | None:
    """A piece was written, or this node takes no more."""
    try:
        writing.result()
    except HpcmassError as error:
        if arrival is not None:
            arrival.discard()
        node.refused(error)
        return None
    return arrival


def _send(comm: Communicator, buffer: np.ndarray[Any, Any], root: int) -> None:
    tensor = torch.from_numpy(buffer)
    if comm.device.type == "cpu":
        comm.broadcast_([tensor], root)
        return
    there = tensor.to(comm.device)
    comm.broadcast_([there], root)
    tensor.copy_(there)


def _pieces(shard: ShardInfo, file: Path) -> Generator[Callable[[memoryview], int], None, None]:
    """What reads the pieces of a file, one after the other."""
    with storage_errors(file, "read a shard"):
        handle = os.open(file, os.O_RDONLY)
    try:
        for start in range(0, max(1, shard.bytes), PIECE_BYTES):
            length = min(PIECE_BYTES, shard.bytes - start)

            def read(into: memoryview, start: int = start, length: int = length) -> int:
                done = 0
                while done < length:
                    got = os.preadv(handle, [into[done:length]], start + done)
                    if got == 0:
                        raise CorruptError(
                            f"ends at byte {start + done}, and has {shard.bytes} by its manifest", where=file,
                            hint="copy the dataset again, or make it again with `hpcmass shard`",
                        )  # fmt: skip
                    done += got
                return length

            yield read
    finally:
        os.close(handle)


def _fill(
    pieces: Iterator[Callable[[memoryview], int]], buffer: np.ndarray[Any, np.dtype[np.uint8]]
) -> HpcmassError | None:
    """Read the next piece into a buffer; what is wrong, which the piece's length then says too."""
    header = buffer[:_HEADER].view(np.int64)
    try:
        with storage_errors("a shard", "read a shard"):
            header[0] = next(pieces)(buffer.data[_HEADER:])
    except HpcmassError as error:
        header[0] = -1
        return error
    return None
