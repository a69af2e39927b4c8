"""What the tests of writing share: a producer, a reader that knows h5py and json alone, and processes that die."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from hpcmass.data import ShardWriter

FIELDS = {"x": ("float32", (2, 3)), "label": "int64", "number": "int64"}


def samples(first: int, count: int) -> dict[str, np.ndarray]:
    """Samples that say who they are."""
    numbers = np.arange(first, first + count)
    x = (numbers[:, None, None] * 10 + np.arange(6).reshape(2, 3)).astype(np.float32)
    return {"x": x, "label": numbers % 3, "number": numbers}


def produce(
    out: Path, first: int, count: int, *, shard_samples: int = 7, batch: int = 5, **options: object
) -> ShardWriter:
    """The samples `first` … of one rank, from where an earlier start ended."""
    fields = {} if "append" in options else {"fields": FIELDS, "meta": ["number"]}
    with ShardWriter(out, **fields, shard_samples=shard_samples, **options) as writer:
        for at in range(writer.resumed_samples, count, batch):
            writer.write_batch(samples(first + at, min(batch, count - at)))
    return writer


class Broken(Exception):
    """What a producer raises that breaks off."""


def break_off(out: Path, count: int, *, shard_samples: int = 7, **options: object) -> None:
    """A producer that raises after some samples."""
    try:
        with ShardWriter(out, FIELDS, meta=["number"], shard_samples=shard_samples, **options) as writer:
            writer.write_batch(samples(0, count))
            raise Broken
    except Broken:
        pass


def read_plainly(folder: Path) -> dict[str, np.ndarray]:
    """All samples of the newest manifest, by h5py and json alone."""
    manifest = json.loads(max(folder.glob("manifest-*.json")).read_text())
    parts = []
    for shard in manifest["shards"]:
        with h5py.File(folder / shard["file"]) as file:
            parts.append({one["name"]: file[one["name"]][:] for one in manifest["fields"]})
            assert all(len(rows) == shard["samples"] for rows in parts[-1].values())
    return {one["name"]: np.concatenate([part[one["name"]] for part in parts]) for one in manifest["fields"]}


def check_samples(folder: Path, numbers: list[int]) -> None:
    """The dataset holds these samples, in this order, whole."""
    read = read_plainly(folder)
    assert read["number"].tolist() == numbers
    for number, x, label in zip(numbers, read["x"], read["label"], strict=True):
        assert label == number % 3
        assert np.array_equal(x, samples(number, 1)["x"][0])


def content(folder: Path) -> dict[str, object]:
    """Every file of a folder, hidden ones too; a manifest without its time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = {
                key: value for key, value in json.loads(path.read_text()).items() if key != "created"
            }
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


class Dying:
    """Ends the process by SIGKILL within the nth call of the system that changes a file or folder."""

    CALLS = ("link", "rename", "replace", "unlink", "fsync", "pwrite", "open", "mkdir", "write", "rmdir")

    def __init__(self, at: int) -> None:
        self.left = at
        for name in self.CALLS:
            setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, call: Callable) -> Callable:
        def counted(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted


def fork(work: Callable[[], object], dies_at: int | None = None) -> int:
    """A child that does the work; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if dies_at is not None:
            Dying(dies_at)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """How a child ended: its exit code, or the signal as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
