"""What lies on disk while `shard` is at work: `.NAME.sharding` beside the folder that is to appear.

See "Sharding" in docs/ARCHITECTURE.md for what is in it. A record appears when what it tells of is durable;
what has no record, or one that a loss of power has spoilt, is done again, to the same bytes.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcmass.data.manifest import ShardInfo, parse_shard
from hpcmass.data.scatter import SplitStats, make_durable
from hpcmass.data.shardfile import create_shard
from hpcmass.data.sharding.plan import FORMAT, ShardPlan, stamps_of
from hpcmass.data.sources import Progress, Source, Unread
from hpcmass.data.sources.arrays import ArraySource, source_from_json
from hpcmass.data.stats import state_from_json, state_to_json
from hpcmass.data.writing.staging import differences, discard_folder
from hpcmass.errors import (
    AlreadyExists,
    CorruptError,
    DataError,
    HpcmassError,
    LeaseHeld,
    NameNotAllowed,
    NotFound,
)
from hpcmass.files import (
    Lease,
    fsync_dir,
    make_dir,
    matching,
    publish_json,
    read_json,
    replace_json,
    sha256_bytes,
    storage_errors,
)
from hpcmass.files.publish import fsync_file

Note = Callable[[str], None]
_NAME_BYTES = 200


def staging_path(out: Path) -> Path:
    """The folder in which `out` is made."""
    name = out.name
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = f"{name[:40]}-{sha256_bytes(os.fsencode(name))[:16]}"
    return out.with_name(f".{name}.sharding")


def sweep_gone(out: Path) -> None:
    """Remove what was given up, and could not be removed to the end."""
    home = staging_path(out)
    for gone in matching(home.parent, f"{glob.escape(home.name)}.*.gone"):
        shutil.rmtree(gone, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what is left beside a finished dataset, unless somebody is at work there."""
    home = staging_path(out)
    with contextlib.suppress(OSError):
        if home.exists():
            lease = Lease(home / "lease")
            with contextlib.suppress(LeaseHeld):
                lease.acquire(watch=False)
                lease.drop()
                discard_folder(home)


class ShardStaging:
    """The folder of one sharding.

    Attributes:
        home: The folder.
        work: The folder in it of shards that this plan makes; another plan has another one.
        plain: The shards that are being filled.
        whole: The dataset as it will be.
        sizes: Bytes of each part's plain shard.
        offsets: Byte offsets of each part's fields in it.
    """

    def __init__(self, out: Path) -> None:
        self.home = staging_path(out)
        self.work = self.plain = self.whole = self.home
        self.sizes: list[int] = []
        self.offsets: list[dict[str, int]] = []
        self._prepared = False

    # -- sources that are copied first ----------------------------------------------------------------
    def spill(self, unread: Unread, asked: dict[str, Any], progress: Progress | None) -> Source:
        """By rank 0: copy the source, or find that it was copied before and has not changed."""
        path = getattr(unread, "path", None)
        said = {"format": FORMAT, "asked": asked, "path": str(path), "stamps": path and stamps_of([path])}
        with contextlib.suppress(NotFound, CorruptError):
            there = read_json(self.home / "spilled.json")
            if path is not None and {key: there.get(key) for key in said} == said:
                return source_from_json(there["source"])
        self._remove("spilled.json", "spilled-*")
        folder = make_dir(self.home / f"spilled-{secrets.token_hex(8)}")
        source = unread.spill(folder, progress)
        assert isinstance(source, ArraySource)
        with storage_errors(folder, "write the file"):
            for path in {one.path for one in source.arrays.values()}:
                fsync_file(path)
        publish_json(self.home / "spilled.json", {**said, "source": source.to_json()})
        return source

    def spilled(self) -> Source:
        """By the other ranks: what rank 0 has copied."""
        return source_from_json(read_json(self.home / "spilled.json")["source"])

    # -- beginning and going on -----------------------------------------------------------------------
    def prepare(self, plan: ShardPlan, note: Note) -> None:
        """By rank 0: go on with what is there, or begin anew where that was another piece of work.

        Raises:
            StorageError: The file system refused.
        """
        wanted = {**plan.to_json(), "stamps": stamps_of(plan.source.files)}
        why = self._why_anew(plan, wanted)
        self._prepared = True
        if why is None:
            self._tell_what_is_there(plan, note)
        else:
            if why:
                note(f"{why}: begins anew")
            # A new name: a process of an earlier start may still be at its last block, and must not find these.
            self._choose_folders(f"work-{secrets.token_hex(8)}")
            replace_json(self.home / "plan.json", {**wanted, "work": self.work.name})
            self._remove(*(path.name for path in matching(self.home, "work-*")))
            self._create(plan)
        self._read_created()
        for manifest in self.whole.rglob("manifest-*.json"):
            manifest.unlink()  # of a start that ended just before it gave the folder its name
        for leftover in self.whole.rglob(".*.tmp"):
            leftover.unlink()

    def _why_anew(self, plan: ShardPlan, wanted: dict[str, Any]) -> str | None:
        """None where there is something to go on with; else why not, "" where there is nothing yet."""
        try:
            there = read_json(self.home / "plan.json")
            self._choose_folders(str(there.pop("work")))
        except (NotFound, CorruptError, AttributeError, KeyError):
            return ""
        differs = differences(there, wanted)
        if set(differs) == {"stamps"}:
            return "the source has changed since this was begun"
        if differs:
            return f"what was begun there otherwise ({', '.join(differs)}) is given up"
        self._remove_spoilt()
        if not (self.work / "created.json").exists() or not self.done("stretch"):
            return ""
        self._read_created()
        return self._missing(plan)

    def _tell_what_is_there(self, plan: ShardPlan, note: Note) -> None:
        read = sum(stop - start for start, stop in map(plan.stretch, self.done("stretch")))
        note(
            f"goes on where it was interrupted: {read} of {plan.source.n} samples are written, "
            f"{len(self.finished(plan))} of {len(plan.cut.parts)} shards are finished"
        )

    def follow(self, plan: ShardPlan) -> None:
        """By the other ranks: what rank 0 has prepared.

        Raises:
            DataError: This rank sees another source or was started with other arguments.
        """
        there = read_json(self.home / "plan.json")
        wanted = plan.to_json()
        differs = [key for key in wanted if wanted[key] != there.get(key)]
        if differs:
            raise DataError(
                f"this rank sees another source, or other arguments, than rank 0 ({', '.join(differs)})",
                where=plan.source.files[0],
                hint="all ranks need the same command, and a source that lies where all of them see it",
            )
        self._choose_folders(there["work"])
        self._read_created()

    def _choose_folders(self, name: str) -> None:
        self.work = self.home / name
        self.plain, self.whole = self.work / "plain", self.work / "whole"

    def _remove(self, *patterns: str) -> None:
        with storage_errors(self.home, "remove what is left"):
            for pattern in patterns:
                for path in matching(self.home, pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove_spoilt(self) -> None:
        """Remove records that are no JSON: their bytes had not reached the disk when the power went."""
        for path in matching(self.work, "*.json"):
            try:
                read_json(path)
            except CorruptError:
                path.unlink()

    def _missing(self, plan: ShardPlan) -> str | None:
        """What is not as the records say, or None."""
        finished = self.finished(plan)
        for number in range(len(plan.cut.parts)):
            whole = self.whole_path(plan, number)
            # A plain shard becomes the whole one by a new name, before its record.
            places = [whole] if number in finished or plan.packing is None else []
            if number not in finished:
                places.insert(0, self.plain_path(number))
            size = finished[number].bytes if number in finished else self.sizes[number]
            if not any(_size(place) == size for place in places):
                return f"{whole.name} is missing or was changed"
        return None

    # -- shards ---------------------------------------------------------------------------------------
    def plain_path(self, part: int) -> Path:
        """The shard that is being filled with a part's rows."""
        return self.plain / f"part-{part:05d}.h5"

    def whole_path(self, plan: ShardPlan, part: int) -> Path:
        """The finished shard of a part."""
        one = plan.cut.parts[part]
        return self.split_folder(one.split) / f"shard-{one.number:05d}.h5"

    def split_folder(self, split: str | None) -> Path:
        """The dataset of a split."""
        return self.whole if split is None else self.whole / split

    def _create(self, plan: ShardPlan) -> None:
        make_dir(self.plain)
        for split in plan.splits:
            make_dir(self.split_folder(split))
        made = [
            create_shard(self.plain_path(number), plan.fields, part.samples, plan.values[number])
            for number, part in enumerate(plan.cut.parts)
        ]
        # What is read in one go touches them all before its record; else those must be there that it does not.
        if plan.stretches > 1:
            make_durable(self.plain_path(number) for number in range(len(plan.cut.parts)))
        with storage_errors(self.plain, "write the folder"):
            for folder in (self.plain, self.work):
                fsync_dir(folder)
        record = {
            "format": FORMAT,
            "sizes": [size for size, _ in made],
            "offsets": [place for _, place in made],
        }
        replace_json(self.work / "created.json", record, durable=False)

    def _read_created(self) -> None:
        value = read_json(self.work / "created.json")
        self.sizes, self.offsets = list(value["sizes"]), list(value["offsets"])

    # -- records --------------------------------------------------------------------------------------
    def done(self, what: str) -> set[int]:
        """Numbers of the records of a kind: `stretch`, `group` or `files`."""
        with storage_errors(self.work, "list the folder"):
            names = os.listdir(self.work)
        return {int(match[1]) for name in names if (match := re.fullmatch(rf"{what}-(\d+)\.json", name))}

    def record(self, what: str, number: int, value: dict[str, Any]) -> None:
        """Write a record; where another start's straggler has done so, it says the same."""
        replace_json(self.work / f"{what}-{number:05d}.json", {"format": FORMAT, **value}, durable=False)

    def record_stretch(self, number: int, blocks: Sequence[SplitStats]) -> None:
        """Say that a stretch lies in the shards, durably."""
        told = [
            {str(split): {name: state_to_json(one) for name, one in of.items()} for split, of in block.items()}
            for block in blocks
        ]
        self.record("stretch", number, {"blocks": told})

    def stretch(self, number: int) -> list[SplitStats]:
        """The statistics of a stretch, block by block."""
        path = self.work / f"stretch-{number:05d}.json"
        value = read_json(path)
        try:
            return [
                {int(split): {n: state_from_json(one) for n, one in of.items()} for split, of in block.items()}
                for block in value["blocks"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"is not the record of a stretch ({error})", where=path) from error

    def finished(self, plan: ShardPlan) -> dict[int, ShardInfo]:
        """The shards, by part, that are recorded as finished."""
        found: dict[int, ShardInfo] = {}
        for number in self.done("group"):
            path = self.work / f"group-{number:05d}.json"
            value = read_json(path)
            try:
                infos = [parse_shard(one) for one in value["shards"]]
                found.update(zip(plan.groups[number], infos, strict=True))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise CorruptError(f"is not the record of shards ({error})", where=path) from error
        return found

    def hashes(self, plan: ShardPlan) -> list[tuple[int, str]]:
        """Size in bytes and SHA-256 of each file of the source."""
        values = [read_json(self.work / f"files-{number:05d}.json") for number in range(len(plan.file_groups))]
        return [(int(size), str(digest)) for value in values for size, digest in value["files"]]

    def check_source(self, plan: ShardPlan) -> None:
        """Refuse a source that has changed while it was read.

        Raises:
            DataError: It has.
        """
        if stamps_of(plan.source.files) != read_json(self.home / "plan.json")["stamps"]:
            raise DataError(
                "the source has changed while it was cut into shards",
                where=plan.source.files[0],
                hint="run the command again when nothing writes there any more",
            )

    def is_worthless(self, error: BaseException) -> bool:
        """Whether the same call would not go on with what is here, now that it ended with this error."""
        lasting = isinstance(error, (DataError, NameNotAllowed, AlreadyExists))
        if isinstance(error, HpcmassError) and error.data.get("lasting"):
            lasting = True
        if not self._prepared:  # what is here may be another call's
            there = ("plan.json",) if lasting else ("plan.json", "spilled.json")
            return not any((self.home / name).exists() for name in there)
        try:
            return lasting or not (self.done("stretch") or (self.home / "spilled.json").exists())
        except HpcmassError:
            return False

    def allocated(self) -> int:
        """Bytes of the disk that are taken here already."""
        return sum(path.stat().st_blocks * 512 for path in self.work.rglob("*.h5") if path.is_file())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
