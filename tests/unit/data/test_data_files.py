"""What readers have open, and what they read past the page cache."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import Loader, ShardWriter, open_dataset, shard
from hpcmass.data.reading import choose
from hpcmass.data.reading.files import DirectFiles, Files
from hpcmass.data.reading.filesystem import FileSystem, resident_share
from hpcmass.errors import CorruptError

ROOT = Path(__file__).parents[3]
FIELDS = {"x": ("float32", (512,)), "y": "int64"}


def make(
    folder: Path, samples: int, shard_samples: int, compression: str | None = None
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    batch = {"x": rng.normal(size=(samples, 512)).astype("float32"), "y": np.arange(samples)}
    if compression is None:
        with ShardWriter(folder, FIELDS, shard_samples=shard_samples) as writer:
            writer.write_batch(batch)
    else:
        np.savez(folder.with_suffix(".npz"), **batch)
        many = samples // shard_samples
        shard(folder.with_suffix(".npz"), folder, inputs=["x"], targets=["y"], shards=many, workers=1,
              strategy="contiguous", compression=compression)  # fmt: skip
    return batch


def opened(folder: Path) -> int:
    """Descriptors of this process that are files of a folder."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(one).startswith(str(folder))
        except FileNotFoundError:
            continue
    return found


# Two loaders at once, of eight threads each, over more shards than the process may have open.
MANY = """
import os, resource, sys
import numpy as np
from hpcmass.data import Loader, open_dataset
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
dataset = open_dataset(sys.argv[1])
rng = np.random.default_rng(0)
plan = [rng.permutation(len(dataset)) for _ in range(12)]
loaders = [Loader(dataset, plan, read=sys.argv[2], threads=8, unit_bytes=1) for _ in range(2)]
most = 0
for batches in zip(*loaders, strict=True):
    for one in batches:
        assert (one.arrays["y"] == one.ids).all()
    most = max(most, len(os.listdir("/proc/self/fd")))
print("most", most)
"""


@pytest.mark.parametrize("way", ["pread", "block", "direct", "map"])
def test_readers_share_what_a_process_may_have_open(tmp_path: Path, way: str) -> None:
    make(tmp_path / "d", 300, 2)
    words = [sys.executable, "-c", MANY, str(tmp_path / "d"), way]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) <= 128


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_is_forgotten_is_closed(tmp_path: Path, compression: str | None) -> None:
    batch = make(tmp_path / "d", 40, 5, compression=compression)
    ids = np.array([39, 0, 17, 17])
    for _ in range(3):
        dataset = open_dataset(tmp_path / "d")
        assert (dataset.batch(ids)["x"] == batch["x"][ids]).all()
        assert 0 < opened(tmp_path / "d") <= 32
        del dataset
        gc.collect()
        assert opened(tmp_path / "d") == 0


def test_a_batch_of_a_shard_that_is_cut_off_is_an_error_not_a_signal(tmp_path: Path) -> None:
    make(tmp_path / "d", 400, 200)
    program = """
import os, sys
import numpy as np
from hpcmass.data import open_dataset
from hpcmass.errors import CorruptError
dataset = open_dataset(sys.argv[1])
dataset.batch(np.arange(400))
os.truncate(sys.argv[1] + "/shard-00001.h5", 8192)
import time; time.sleep(0.01)
try:
    dataset.batch(np.arange(200, 400))
except CorruptError as error:
    assert "shard-00001.h5" in str(error), error
    print("named")
"""
    words = [sys.executable, "-c", program, str(tmp_path / "d")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "named\n"), done.stderr


def test_batches_of_shared_shards_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make(tmp_path / "d", 40, 5)
    monkeypatch.setattr(choose, "file_system", lambda folder: FileSystem("lustre", local=False))
    dataset = open_dataset(tmp_path / "d")
    got = dataset.batch([3, 39, 3])
    assert (got["x"] == batch["x"][[3, 39, 3]]).all()
    assert (got["y"] == [3, 39, 3]).all()
    assert str(tmp_path / "d") not in Path("/proc/self/maps").read_text()
    monkeypatch.undo()
    local = open_dataset(tmp_path / "d")
    local.batch([3])
    assert str(tmp_path / "d") in Path("/proc/self/maps").read_text()


def forget(folder: Path) -> None:
    """Drop the shards from the page cache."""
    for path in folder.glob("*.h5"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@pytest.mark.parametrize("way", ["block", "direct"])
def test_direct_leaves_the_page_cache_alone(tmp_path: Path, way: str) -> None:
    batch = make(tmp_path / "d", 1000, 500)
    dataset = open_dataset(tmp_path / "d")
    forget(tmp_path / "d")
    if resident_share(dataset.extents("x")) != 0.0:
        pytest.skip("this file system keeps its pages (a tmpfs?)")
    with Loader(dataset, [np.arange(1000)], read=way, block=50) as loader:
        assert (next(loader).arrays["x"] == batch["x"]).all()
    held = resident_share(dataset.extents("x"))
    assert held is not None
    assert held < 0.1 if way == "direct" else held > 0.9  # the labels are read in another way


class Refusing(DirectFiles):
    """On a file system that knows no O_DIRECT: open(2) says EINVAL, as for a flag that it does not know."""

    _flags = os.O_DIRECT | os.O_TMPFILE


def test_where_it_cannot_be_direct_it_is_read_all_the_same(tmp_path: Path) -> None:
    batch = make(tmp_path / "d", 20, 20)
    [extent] = open_dataset(tmp_path / "d").extents("x")
    want = batch["x"].tobytes()
    for kind in (Files, DirectFiles, Refusing):
        files = kind()
        for begin, length in ((0, 5), (4095, 2), (3, len(want) - 3), (len(want) - 1, 1)):
            parts = [bytearray(length // 2), bytearray(length - length // 2)]
            files.fill(extent, [memoryview(part) for part in parts], extent.offset + begin)
            assert b"".join(parts) == want[begin : begin + length], kind
        files.close()
    with pytest.raises(CorruptError, match="cut off"):
        DirectFiles().fill(extent, [memoryview(bytearray(100))], extent.file_bytes - 50)


def test_wide_rows_are_all_advised_before_the_first_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.arange(24 * 10_000, dtype=np.float32).reshape(24, 10_000))  # 40 kB a row
    shard(tmp_path / "x.npy", tmp_path / "d", shards=1)
    dataset = open_dataset(tmp_path / "d")
    place = dataset.manifest.shards[0].offsets["x"]
    said: list[tuple[str, int]] = []
    advise, read = os.posix_fadvise, os.preadv

    def advised(handle: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            assert length == 40_000
            said.append(("advised", (offset - place) // 40_000))
        advise(handle, offset, length, advice)

    def was_read(handle: int, parts: list[memoryview], offset: int) -> int:
        said.append(("read", (offset - place) // 40_000))
        return read(handle, parts, offset)

    monkeypatch.setattr(os, "posix_fadvise", advised)
    monkeypatch.setattr(os, "preadv", was_read)
    with Loader(dataset, [[3, 20], [9, 0]], read="pread", threads=1) as loader:
        for ids, batch in loader:
            np.testing.assert_array_equal(batch["x"][:, 0], ids * 10_000)
    assert said == [("advised", n) for n in (0, 3, 9, 20)] + [("read", n) for n in (0, 3, 9, 20)]
