"""A job's shards on the disks of its nodes: each is read once from the shared file system and broadcast.

One rank a node, the leader, has the disk's `Stage`. A shard that several nodes lack is read by one of the
leaders, in turn, and sent to all ranks (see `pieces`); one that a single node lacks its leader reads alone. A
node whose disk has no room reads from the shared file system.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.data import Dataset, ShardInfo
from hpcmass.data.stage import Arrival, Stage
from hpcmass.errors import CorruptError, HpcmassError
from hpcmass.train.comm.base import Communicator
from hpcmass.train.pieces import bring


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
        bring(wanted, comm, node, leaders)
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
