"""The datasets that a job names, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcmass.config import Job, Project
from hpcmass.data import Dataset, ShardInfo, concat, open_dataset
from hpcmass.data.reader import check_sum
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import read_json, storage_errors

AUTO_VERIFY_BYTES = 1 << 30
_VERIFIED: set[tuple[str, str, tuple[tuple[int, int], ...]]] = set()


def open_all(
    project: Project, names: str | list[str], pins: Mapping[str, str] | None = None, *, look: bool = True
) -> Dataset:
    """Open one dataset, or several read one after the other.

    Args:
        project: What the names are relative to.
        names: Their folders.
        pins: The id that each is to have, by name; others are opened as they are now.
        look: Whether to compare the shards' sizes with the manifest: one rank does.

    Raises:
        NotFound: A folder is no dataset.
        DataError: The datasets do not fit together.
    """
    paths = [names] if isinstance(names, str) else names
    pins = pins or {}
    opened = [open_dataset(project.data_path(path), id=pins.get(path), look=look) for path in paths]
    return opened[0] if len(opened) == 1 else concat(opened)


def verify_all(job: Job, project: Project, pins: Mapping[str, str] | None = None) -> None:
    """Check the shards of the training and validation data against their checksums, as `data.verify` says.

    What this process has found right it does not read again while the files keep their size and time, so the
    trials of a sweep pay once a worker.

    Raises:
        NotFound: A folder is no dataset.
        CorruptError: A shard does not fit; the message names it.
    """
    if job.data.verify == "never" or (job.data.verify == "auto" and job.data.stage):
        return  # What is staged is checked on arrival, and what is not by `verify_unstaged`.
    for named in (job.data.train, job.data.valid):
        for path in [named] if isinstance(named, str) else named or []:
            folder = project.data_path(path)
            id = (pins or {}).get(path)
            manifest = open_dataset(folder, id=id).manifest
            if job.data.verify == "auto" and sum(one.bytes for one in manifest.shards) > AUTO_VERIFY_BYTES:
                continue
            with storage_errors(folder, "look at the shards"):
                stats = [(folder / one.file).stat() for one in manifest.shards]
            key = (str(folder.resolve()), manifest.id, tuple((s.st_size, s.st_mtime_ns) for s in stats))
            if key not in _VERIFIED:
                open_dataset(folder, verify=True, id=id)
                _VERIFIED.add(key)


def verify_unstaged(shards: Sequence[tuple[ShardInfo, Path]]) -> str | None:
    """Check shards that were to be staged and are read where they are after all, up to `AUTO_VERIFY_BYTES`.

    Args:
        shards: Each with its file.

    Returns:
        What to tell the user where they are more than that.

    Raises:
        CorruptError: A shard does not fit its checksum; the message names it.
        NotFound: It is not there.
    """
    size = sum(shard.bytes for shard, _ in shards)
    if size > AUTO_VERIFY_BYTES:
        return (
            f"{size / 1e9:.2f} GB of shards on the shared file system were not verified "
            '(data.verify = "always" does)'
        )
    for shard, file in shards:
        if what := check_sum(file.parent, shard):
            raise CorruptError(
                what, where=file, hint="copy the dataset again, or make it again with `hpcmass shard`"
            )
    return None


def open_train(
    project: Project, names: str | list[str], run: Path, pins: Mapping[str, str] | None = None,
    *, look: bool = True,
) -> Dataset:  # fmt: skip
    """The training data of a run: all of it, or the shards that `shards.json` in its folder names.

    Raises:
        NotFound: A folder is no dataset.
        DataError: The datasets do not fit together, or there is no such shard.
        CorruptError: `shards.json` is not what it should be.
    """
    whole = open_all(project, names, pins, look=look)
    try:
        raw = read_json(run / "shards.json")
    except NotFound:
        return whole
    numbers = raw.get("train") if isinstance(raw, dict) and raw.get("format") == 1 else None
    if not isinstance(numbers, list):
        raise CorruptError("is not a list of shards", where=run / "shards.json")
    return whole.subset_shards(numbers)
