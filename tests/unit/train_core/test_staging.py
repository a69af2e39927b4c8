"""Staging by one rank: read from the node's own disk, reused, and given up where there is no room."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import Dataset, open_dataset, shard
from hpcmass.data.stage import Arrival
from hpcmass.errors import CorruptError, HpcmassError
from hpcmass.train import datasets, pieces
from hpcmass.train.comm.single import SingleCommunicator
from hpcmass.train.staging import stage


@pytest.fixture
def comm() -> SingleCommunicator:
    return SingleCommunicator()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)  # several pieces a shard
    x = np.random.default_rng(0).normal(size=(300, 11)).astype("float32")
    np.savez(tmp_path / "raw.npz", x=x, y=np.arange(300))
    shard(tmp_path / "raw.npz", tmp_path / "d", inputs=["x"], targets=["y"], shards=3, workers=1)
    return open_dataset(tmp_path / "d")


def test_the_same_samples_from_the_nodes_own_disk(tmp_path: Path, comm, dataset: Dataset) -> None:
    staged = stage([dataset, dataset.subset_shards([1])], comm, str(tmp_path / "disk"))
    whole, part = staged.datasets
    assert staged.notes == []
    assert staged.unchecked == []
    assert all(folder.is_relative_to(tmp_path / "disk") for folder in [*whole.folders, *part.folders])
    assert whole.id == dataset.id
    ids = np.random.default_rng(1).permutation(300)
    for name, values in dataset.batch(ids).items():
        assert np.array_equal(whole.batch(ids)[name], values)
    assert np.array_equal(part.batch([0, 5])["x"], dataset.batch([100, 105])["x"])
    # The next job finds them: the shared files are not even opened.
    for file in (tmp_path / "d").glob("*.h5"):
        os.chmod(file, 0o600)
        file.write_bytes(b"\0" * file.stat().st_size)
    again = stage([dataset], comm, str(tmp_path / "disk")).datasets[0]
    assert np.array_equal(again.batch(ids)["x"], whole.batch(ids)["x"])
    staged.close()


def test_a_flipped_byte_ends_it_with_the_shards_name(tmp_path: Path, comm, dataset: Dataset) -> None:
    file = tmp_path / "d" / "shard-00001.h5"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(file, 0o600)
    file.write_bytes(data)
    with pytest.raises(CorruptError, match=r"shard-00001\.h5"):
        stage([dataset], comm, str(tmp_path / "disk"))
    left = [p for p in (tmp_path / "disk").rglob("*") if p.name.startswith((".part", "use-"))]
    assert left == []


def test_a_truncated_shard_ends_it_with_its_name(tmp_path: Path, comm, dataset: Dataset) -> None:
    file = tmp_path / "d" / "shard-00002.h5"
    os.chmod(file, 0o600)
    os.truncate(file, 1500)
    with pytest.raises(CorruptError, match=r"ends at byte 1500"):
        stage([dataset], comm, str(tmp_path / "disk"))
    file.unlink()
    with pytest.raises(HpcmassError, match=r"shard-00002\.h5"):
        stage([dataset], comm, str(tmp_path / "disk"))


def test_damage_on_the_nodes_disk_is_found_by_checking_again(tmp_path: Path, comm, dataset: Dataset) -> None:
    staged = stage([dataset], comm, str(tmp_path / "disk"))
    file = staged.datasets[0].folders[1] / "shard-00001.h5"
    staged.close()
    before, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(file, 0o600)
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = stage([dataset], comm, str(tmp_path / "disk"), check_again=True)
    assert again.notes == []
    assert file.read_bytes() == (tmp_path / "d" / "shard-00001.h5").read_bytes()
    again.close()


def test_what_is_not_staged_is_verified_where_it_is_or_that_is_told(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [(one, tmp_path / "d" / one.file) for one in dataset.manifest.shards]
    assert datasets.verify_unstaged(shards) is None
    file = shards[2][1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(file, 0o600)
    file.write_bytes(data)
    with pytest.raises(CorruptError, match=r"shard-00002\.h5"):
        datasets.verify_unstaged(shards)
    monkeypatch.setattr(datasets, "AUTO_VERIFY_BYTES", 1000)
    assert "were not verified" in datasets.verify_unstaged(shards)


def test_no_room_is_told_and_no_error(tmp_path: Path, comm, dataset: Dataset) -> None:
    staged = stage([dataset], comm, str(tmp_path / "disk"), limit_bytes=5000)
    assert staged.datasets[0].folders == dataset.folders
    (note,) = staged.notes
    assert "no room" in note
    assert "shared file system" in note
    assert [shard.file for shard, _ in staged.unchecked] == [s.file for s in dataset.manifest.shards]


def test_a_full_disk_leaves_what_came_and_reads_the_rest_elsewhere(
    tmp_path: Path, comm, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "LANES", 1)
    write, left = os.write, [1.5 * dataset.manifest.shards[0].bytes]

    def full(handle: int, data) -> int:
        if "/disk/" in os.readlink(f"/proc/self/fd/{handle}") and len(data) > 100:
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    staged = stage([dataset], comm, str(tmp_path / "disk"))
    (note,) = staged.notes
    assert "No space left" in note
    moved = [folder != old for folder, old in zip(staged.datasets[0].folders, dataset.folders, strict=True)]
    assert moved == [True, False, False]
    assert [shard.file for shard, _ in staged.unchecked] == ["shard-00001.h5", "shard-00002.h5"]
    assert np.array_equal(staged.datasets[0].batch(range(300))["x"], dataset.batch(range(300))["x"])
    assert not list((tmp_path / "disk").rglob(".part-*"))


def test_what_somebody_takes_away_meanwhile_is_read_elsewhere(
    tmp_path: Path, comm, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, count = Arrival.finish, [0]

    def taken_away(self: Arrival, where: Path) -> Path:
        count[0] += 1
        if count[0] == 2:
            for part in (tmp_path / "disk").rglob(".part-*"):
                shutil.rmtree(part)
        return finish(self, where)

    monkeypatch.setattr(Arrival, "finish", taken_away)
    staged = stage([dataset], comm, str(tmp_path / "disk"))
    (note,) = staged.notes
    assert "no such file" in note
    assert "shared file system" in note
    moved = [folder != old for folder, old in zip(staged.datasets[0].folders, dataset.folders, strict=True)]
    assert moved == [True, False, False]
    assert np.array_equal(staged.datasets[0].batch(range(300))["x"], dataset.batch(range(300))["x"])
    staged.close()


@pytest.mark.parametrize("scratch", ["/proc/nowhere", "$NO_SUCH_VARIABLE/x"])
def test_a_folder_that_cannot_be(scratch: str, comm, dataset: Dataset) -> None:
    staged = stage([dataset], comm, scratch)
    assert staged.datasets[0].folders == dataset.folders
    assert scratch.split("/x")[0] in staged.notes[0]
