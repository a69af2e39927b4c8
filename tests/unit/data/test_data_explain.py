"""Which way of reading is chosen, from what, and what `hpcmass data explain` says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hpcmass.cli.root import run
from hpcmass.data import open_dataset, shard
from hpcmass.data.loader import default_block
from hpcmass.data.memory import memory_left
from hpcmass.data.reading.choose import Facts, choose, kept_fields
from hpcmass.data.reading.explain import explain
from hpcmass.data.reading.filesystem import FileSystem, file_system, resident_share
from hpcmass.errors import DataError

LOCAL, SHARED = FileSystem("xfs", True), FileSystem("lustre", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("explain")
    np.savez(base / "a.npz", x=np.random.default_rng(0).random((600, 3000)), label=np.arange(600) % 7)
    shard(base / "a.npz", base / "out", shards=2, workers=1)
    return base / "out"


@pytest.mark.parametrize(
    ("systems", "data", "memory", "blocks", "way", "why"),
    [
        ((LOCAL,), 25, 100, True, "memory", "each rank can hold it"),
        ((SHARED,), 25, 100, False, "memory", "each rank can hold it"),
        ((LOCAL,), 26, 100, False, "map", "belongs to this node"),
        ((LOCAL,), 26, 100, True, "map", "belongs to this node"),
        ((LOCAL,), 90, 100, False, "pread", "larger than the memory"),
        ((LOCAL,), 90, 100, True, "block", "larger than the memory"),
        ((LOCAL,), 90, None, False, "map", "belongs to this node"),
        ((SHARED,), 26, 100, False, "pread", "lustre may be shared"),
        ((SHARED,), 26, 100, True, "block", "lustre may be shared"),
        ((LOCAL, SHARED), 26, 100, False, "pread", "may be shared"),
    ],
)
def test_the_choice(systems: tuple, data: int, memory: int | None, blocks: bool, way: str, why: str) -> None:
    facts = Facts(systems, data, memory, None, blocks)
    found = choose(facts)
    assert found.way == way
    assert why in found.why
    for forced in ("map", "pread", "block", "direct", "memory"):
        assert choose(facts, forced).way == forced
    with pytest.raises(DataError, match="no way of reading"):
        choose(facts, "quickly")


def test_file_systems(tmp_path: Path) -> None:
    kind = os.popen(f"stat -f -c %T {tmp_path}").read().strip()
    known = {"ext2/ext3": "ext4", "xfs": "xfs", "tmpfs": "tmpfs", "btrfs": "btrfs", "overlayfs": "overlay"}
    if kind not in known:
        pytest.skip(f"a file system that this test does not know: {kind}")
    found = file_system(tmp_path)
    assert found.name == known[kind]
    assert found.local == (found.name != "overlay")
    assert file_system(Path("/proc")) == FileSystem("0x9fa0", False)
    assert not file_system(tmp_path / "nowhere").local
    assert (memory_left() or 1) > 0


def test_what_the_page_cache_holds_is_seen(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((64, 1 << 16), np.uint8))
    shard(tmp_path / "x.npy", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    if file_system(tmp_path).name != "ext4":
        pytest.skip("whether pages can be dropped and asked for is known of ext4 only")
    extents = dataset.extents("x")
    dataset.batch(np.arange(64))
    assert resident_share(extents) == 1.0
    handle = os.open(extents[0].path, os.O_RDONLY)
    dataset = open_dataset(tmp_path / "out")  # the maps of the first are gone
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    share = resident_share(extents)
    assert share is not None
    assert share < 0.5
    assert resident_share(extents) == share  # asking brings nothing in


@pytest.mark.parametrize("order", ["global", "block", "sequential"])
@pytest.mark.parametrize("read", ["auto", "map", "pread", "block", "direct", "memory"])
def test_explain(folder: Path, order: str, read: str) -> None:
    dataset = open_dataset(folder)
    found = explain(dataset, batch_size=50, order=order, read=read, seconds=0.1)
    assert read in ("auto", found.choice.way)
    assert found.measured > 0
    assert found.expected > 0
    assert found.measured_samples >= 50
    kept = {"map": [], "memory": ["x", "label"]}.get(found.choice.way, ["label"])
    assert sorted(found.kept) == sorted(kept)
    assert kept_fields(dataset) == ["label"]
    assert default_block(dataset) == -(-(512 << 10) // dataset.row_bytes)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "explain", str(folder), "--batch-size", "64", "--read", "pread"]) == 0
    text = capsys.readouterr().out
    for word in (
        "file system",
        "page cache",
        "pread: it was asked for",
        "label held whole",
        "expected",
        "measured",
    ):
        assert word in text
    assert run(["data", "explain", str(folder), "--order", "block", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["measured"] > 0
    assert run(["data", "explain", str(folder / "nowhere")]) == 2
