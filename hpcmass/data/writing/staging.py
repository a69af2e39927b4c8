"""The hidden folder in which ranks write before a dataset, or what is appended to one, appears.

`DIR/.writing`, or `DIR/.append-NAME`. `plan.json` is published by whoever comes first, and all others must
mean the same. A rank's finished shards each have a record, published once the shard is durable; a shard
without record is left over from a killed process. `rank-00003-done.json` is published when a rank has written
its last sample.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcmass.data.building import abandoned
from hpcmass.data.filters import Packing, check_packing
from hpcmass.data.manifest import (
    Field,
    Manifest,
    ShardInfo,
    newest_manifest,
    parse_field,
    parse_shard,
    read_manifest,
)
from hpcmass.data.stats import FieldStats, state_from_json, state_to_json
from hpcmass.errors import AlreadyExists, CorruptError, DataError, NotFound
from hpcmass.files import Lease, check_name, publish_json, read_json, storage_errors

FORMAT = 1
MAX_NAME = 80  # with what is added to it a shard's file name is still one
WRITTEN = "written"
"""The strategy of a cut that producers made themselves."""

_TEMPORARY = re.compile(r"\.(manifest-\d+\.json)\..*\.tmp")
_GONE = re.compile(r"\.(writing|append-.*)\.[0-9a-f]{16}\.gone")


@dataclass(frozen=True)
class WritingPlan:
    """What all ranks of one writing agree on.

    Attributes:
        name: Name of what is appended; None: the dataset is new.
        ranks: How many write.
        sizes: Samples of the first, second … shard of a rank; the last size holds for all further ones.
        fields: The fields, without statistics.
        source: Where the samples come from, as the manifest will say it.
        packing: How shards are compressed; None: not.
    """

    name: str | None
    ranks: int
    sizes: tuple[int, ...]
    fields: tuple[Field, ...]
    source: dict[str, Any]
    packing: Packing | None = None

    def capacity(self, number: int) -> int:
        """Samples that a rank's shard of this number holds."""
        return self.sizes[min(number, len(self.sizes) - 1)]

    def to_json(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        fields = [{**one.to_json(), "stats": {}} for one in self.fields]
        packed = self.packing
        said = {} if packed is None else {"compression": [packed.compression.name, packed.chunk_samples]}
        return {
            "format": FORMAT, "name": self.name, "ranks": self.ranks, "sizes": list(self.sizes),
            "fields": fields, "source": self.source, **said,
        }  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A finished shard of a rank, and its statistics a field (of a ragged one's lengths too)."""

    info: ShardInfo
    stats: dict[str, FieldStats]


class Staging:
    """The folder of one writing; all that is known of it lies there."""

    def __init__(self, dataset: Path, name: str | None) -> None:
        if name is not None and len(check_name(name, "append")) > MAX_NAME:
            raise DataError(f"the name {name!r} is longer than {MAX_NAME} characters")
        self.dataset = dataset
        self.name = name
        self.path = dataset / (".writing" if name is None else f".append-{name}")

    # -- the plan -------------------------------------------------------------------------------------
    def agree(self, plan: WritingPlan) -> WritingPlan:
        """Publish the plan, or find that the one that stands there is the same.

        Raises:
            DataError: The writing was begun with another plan; the message says in what it differs.
            NotFound: The writing was completed and its folder removed at this moment.
        """
        with contextlib.suppress(AlreadyExists):
            publish_json(self.path / "plan.json", plan.to_json())
        differs = differences(read_json(self.path / "plan.json"), plan.to_json())
        if differs:
            shown = "; ".join(
                f"{key}: {then!r:.300} then, {now!r:.300} now" for key, (then, now) in differs.items()
            )
            raise DataError(
                f"a writing was begun here otherwise ({shown})",
                where=self.path,
                hint="finish it as it was begun; or remove that folder, with what it holds, and begin anew",
                differs=list(differs),
            )
        return plan

    def plan(self) -> WritingPlan:
        """The plan as it was published.

        Raises:
            NotFound: Nothing is being written here.
            CorruptError: The file is damaged.
        """
        value = read_json(self.path / "plan.json")
        try:
            return WritingPlan(
                name=value["name"],
                ranks=int(value["ranks"]),
                sizes=tuple(int(one) for one in value["sizes"]),
                fields=tuple(parse_field(one) for one in value["fields"]),
                source=dict(value["source"]),
                packing=check_packing(*value.get("compression", (None, None))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"is not a plan ({error})", where=self.path / "plan.json") from error

    # -- ranks ----------------------------------------------------------------------------------------
    def lease(self, rank: int) -> Lease:
        """Who writes as this rank now; not taken yet."""
        return Lease(self.path / f"rank-{rank:05d}")

    def new_shard(self, rank: int, number: int) -> Path:
        """A file name for a shard that nobody else uses."""
        return self.path / f"rank-{rank:05d}-{number:05d}.{secrets.token_hex(8)}.h5"

    def publish(self, rank: int, number: int, piece: Piece) -> None:
        """Record a finished shard.

        Raises:
            AlreadyExists: Another process did, as the same rank.
        """
        stats = {name: state_to_json(one) for name, one in piece.stats.items()}
        record = {"format": FORMAT, **asdict(piece.info), "stats": stats}
        publish_json(self.path / f"rank-{rank:05d}-{number:05d}.json", record)

    def pieces(self, rank: int) -> list[Piece]:
        """The finished shards of a rank, in order.

        Raises:
            CorruptError: A record is damaged, or one between others is missing.
        """
        numbers = sorted(int(match[1]) for match in self._matches(rf"rank-{rank:05d}-(\d+)\.json"))
        if numbers != list(range(len(numbers))):
            raise CorruptError(f"records of rank {rank} are missing between {numbers}", where=self.path)
        return [self._piece(self.path / f"rank-{rank:05d}-{number:05d}.json") for number in numbers]

    def _piece(self, path: Path) -> Piece:
        value = read_json(path)
        try:
            stats = {str(name): state_from_json(one) for name, one in value["stats"].items()}
            return Piece(parse_shard(value), stats)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"is not the record of a shard ({error})", where=path) from error

    def finish(self, rank: int, shards: int, samples: int) -> None:
        """Record that a rank has written all its samples."""
        record = {"format": FORMAT, "shards": shards, "samples": samples}
        with contextlib.suppress(AlreadyExists):
            publish_json(self.path / f"rank-{rank:05d}-done.json", record)

    def finished(self) -> dict[int, int]:
        """Shards of each rank that has written all its samples."""
        ranks = [int(match[1]) for match in self._matches(r"rank-(\d+)-done\.json")]
        return {rank: int(read_json(self.path / f"rank-{rank:05d}-done.json")["shards"]) for rank in ranks}

    def remove_leftovers(self, rank: int, keep: Sequence[Piece]) -> None:
        """Remove the shards of a rank that have no record: those that a killed process was filling."""
        known = {piece.info.file for piece in keep}
        for match in self._matches(rf"rank-{rank:05d}-\d+\.[0-9a-f]+\.h5|\.rank-{rank:05d}-.*\.tmp"):
            if match[0] not in known:
                with contextlib.suppress(OSError):
                    (self.path / match[0]).unlink()

    def _matches(self, pattern: str) -> list[re.Match[str]]:
        with storage_errors(self.path, "list the folder"):
            names = sorted(os.listdir(self.path))
        return [match for name in names if (match := re.fullmatch(pattern, name))]

    def discard(self) -> None:
        """Remove the folder, for everybody at one moment."""
        discard_folder(self.path)


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By key what it was then and is now, of all that differs between two plans."""
    keys = [*now, *(key for key in then if key not in now)]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def discard_folder(path: Path) -> None:
    """Remove a folder, for everybody at one moment."""
    gone = path.with_name(f"{path.name}.{secrets.token_hex(8)}.gone")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


# -- what a dataset says of its parts ---------------------------------------------------------------------
def parts_of(manifest: Manifest) -> list[dict[str, Any]]:
    """What a dataset is made of, oldest first: name (None: its first part), samples, shards, cut, source."""
    if manifest.source.get("kind") == "append":
        return list(manifest.source["parts"])
    part = {"samples": manifest.samples, "shards": len(manifest.shards), "cut": manifest.cut}
    return [{"name": None, **part, "source": manifest.source}]


def completed(dataset: Path, name: str | None) -> dict[str, Any] | None:
    """The part of this name in the newest manifest, or None while it is not published.

    Raises:
        AlreadyExists: A new dataset is to be written (no name), and there is one that no writer made.
    """
    if newest_manifest(dataset) is None:
        return None
    for part in parts_of(read_manifest(dataset)):
        if part.get("name") != name:
            continue
        if name is None and part["cut"].get("strategy") != WRITTEN:
            raise AlreadyExists(
                "holds a dataset already",
                where=dataset,
                hint="add to it with a name (append=NAME), or write into another folder",
                complete=True,
            )
        return dict(part)
    return None


def sweep(dataset: Path) -> None:
    """Remove what publications that were cut short left behind: their samples are in the manifest."""
    with contextlib.suppress(OSError, NotFound):
        names = sorted(os.listdir(dataset))
        for manifest in {match[1] for name in names if (match := _TEMPORARY.fullmatch(name))}:
            for temporary in abandoned(dataset / manifest, "tmp"):
                temporary.unlink()
        for name in names:
            if _GONE.fullmatch(name):
                shutil.rmtree(dataset / name, ignore_errors=True)
            elif name == ".writing" or name.startswith(".append-"):
                of = None if name == ".writing" else name.removeprefix(".append-")
                with contextlib.suppress(AlreadyExists):
                    if completed(dataset, of) is not None:
                        Staging(dataset, of).discard()
