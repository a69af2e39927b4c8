"""Reading: batches in any order, other processes, torch's DataLoader, and damaged datasets."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import concat, open_dataset, shard, verify_dataset
from hpcmass.data.mapping import JoinedRows, SeparateRows
from hpcmass.data.reader import Dataset
from hpcmass.errors import CorruptError, DataError, NotFound

N = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits of 700 samples: a narrow, an odd and a wide field; all tell the sample's number."""
    base = tmp_path_factory.mktemp("reader")
    number = np.arange(N)
    np.savez(
        base / "a.npz",
        narrow=number.astype(np.float32),
        odd=np.repeat(number[:, None], 3, axis=1).astype(np.int32),
        wide=np.broadcast_to(number[:, None], (N, 5000)).astype(np.float32),
        label=number % 3,
    )
    shard(base / "a.npz", base / "out", shards=3, splits={"train": 0.8, "test": 0.2}, strategy="stratified")
    return base / "out"


@pytest.fixture
def train(folder: Path) -> Dataset:
    return open_dataset(folder / "train", verify=True)


def check(batch: dict[str, np.ndarray]) -> np.ndarray:
    """All fields agree on the samples' numbers, which are returned."""
    number = batch["narrow"].astype(np.int64)
    assert (batch["odd"] == number[:, None]).all()
    assert (batch["wide"] == number[:, None]).all()
    assert (batch["label"] == number % 3).all()
    assert all(values.flags.c_contiguous and values.flags.owndata for values in batch.values())
    return number


def test_every_sample_once_in_both_orders(folder: Path) -> None:
    train, test = open_dataset(folder / "train"), open_dataset(folder / "test")
    numbers = {}
    for order in ("sequential", "global"):
        for dataset in (train, test):
            seen = [check(batch) for batch in dataset.batches(64, order=order, seed=1)]
            assert [len(one) for one in seen[:-1]] == [64] * (len(seen) - 1)
            numbers[order, dataset.id] = np.concatenate(seen)
    for dataset in (train, test):
        first, second = numbers["sequential", dataset.id], numbers["global", dataset.id]
        assert (first != second).any()
        assert (np.sort(first) == np.sort(second)).all()
    everything = np.concatenate([numbers["sequential", train.id], numbers["sequential", test.id]])
    assert sorted(everything.tolist()) == list(range(N))


def test_both_ways_of_reading_are_used_and_agree(train: Dataset) -> None:
    ids = np.random.default_rng(0).integers(0, len(train), 200)
    check(train.batch(ids))
    for name in ("odd", "wide"):
        joined = train.rows(name)
        assert isinstance(joined, JoinedRows)
        one = train.fields[name]
        separate = SeparateRows(train.extents(name), one.numpy_dtype, one.shape)
        assert (separate.gather(ids) == joined.gather(ids)).all()
        assert separate.gather(ids[:0]).shape == (0, *one.shape)


def test_samples_and_batches(train: Dataset) -> None:
    assert len(train) == 560
    assert train.inputs == ["narrow", "odd", "wide"]
    assert train.targets == ["label"]
    assert train.metas == []
    assert train.classes("label") == ["0", "1", "2"]
    assert train.classes("odd") is None
    sample = train[5]
    assert sample["odd"].shape == (3,)
    assert sample["narrow"].shape == ()
    assert train[-1]["narrow"] == train[559]["narrow"]
    assert check(train.batch([3, 3, 0])).tolist() == [int(train[i]["narrow"]) for i in (3, 3, 0)]
    assert train.batch([])["wide"].shape == (0, 5000)
    assert [len(one) for one in train.shard_ranges()] == [187, 187, 186]
    with pytest.raises(IndexError):
        train.batch([560])
    with pytest.raises(IndexError):
        train.batch([-1])
    with pytest.raises(IndexError):
        train[560]
    with pytest.raises(DataError, match="no field"):
        train.classes("nothing")


def test_batches_do_not_alias_the_files(train: Dataset) -> None:
    batch = train.batch([0])
    batch["odd"][:] = -1
    assert check(train.batch([0]))[0] >= 0


def test_parts_and_concatenation(folder: Path, train: Dataset) -> None:
    part = train.subset_shards([2, 0])
    assert len(part) == 373
    ranges = train.shard_ranges()
    expected = train.batch([*ranges[2], *ranges[0]])["narrow"]
    assert (part.batch(np.arange(373))["narrow"] == expected).all()
    test = open_dataset(folder / "test")
    both = concat([train, test])
    assert sorted(check(both.batch(np.arange(N))).tolist()) == list(range(N))
    assert both.fields["label"].stats["class_counts"] == [234, 233, 233]
    assert both.fields["narrow"].stats["mean"] == pytest.approx((N - 1) / 2)
    assert len({train.id, part.id, both.id, test.id, train.subset_shards([0, 2]).id}) == 5
    assert concat([train, test]).id == both.id
    with pytest.raises(DataError, match="cannot be taken"):
        train.subset_shards([3])


def test_concat_needs_the_same_fields(train: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5.0))
    shard(tmp_path / "x.npy", tmp_path / "out")
    with pytest.raises(DataError, match="other fields"):
        concat([train, open_dataset(tmp_path / "out")])


def first_number(dataset: Dataset, ids: list[int]) -> list[int]:
    return check(dataset.batch(ids)).tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(train: Dataset, method: str) -> None:
    expected = first_number(train, [5, 500])  # mapped before the fork
    assert pickle.loads(pickle.dumps(train)).id == train.id
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(first_number, (train, [5, 500])) == expected


TORCH = """
import sys
from hpcmass.data import open_dataset
assert "torch" not in sys.modules and "h5py" not in sys.modules
import torch
from torch.utils.data import DataLoader
def arrays(samples):
    return {name: torch.from_numpy(values) for name, values in samples.arrays.items()}
if __name__ == "__main__":
    dataset = open_dataset(sys.argv[1])
    assert "h5py" not in sys.modules
    for workers, method in ((0, None), (2, "fork"), (2, "spawn")):
        for collate in (None, arrays):
            loader = DataLoader(dataset, batch_size=100, shuffle=True, num_workers=workers,
                                multiprocessing_context=method, collate_fn=collate)
            numbers = []
            for batch in loader:
                assert batch["wide"].dtype == torch.float32 and batch["label"].dtype == torch.int64
                assert (batch["wide"][:, 7] == batch["narrow"]).all()
                assert batch["odd"].shape[1:] == (3,)
                numbers += batch["narrow"].int().tolist()
            assert len(numbers) == len(set(numbers)) == len(dataset), (workers, method)
    print("right")
"""


def test_torch_data_loader(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import hpcmass

    script = tmp_path / "loader.py"
    script.write_text(TORCH)
    environment = {**os.environ, "PYTHONPATH": str(Path(hpcmass.__file__).parents[1])}
    command = [sys.executable, str(script), str(folder / "train")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "right\n", done.stderr


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A small dataset to be damaged."""
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((100, 50)), y=np.arange(100) % 4)
    shard(tmp_path / "a.npz", tmp_path / "out", shards=2)
    return tmp_path / "out"


def test_truncated_shard(mine: Path) -> None:
    path = mine / "shard-00001.h5"
    size = path.stat().st_size
    opened = open_dataset(mine)
    os.truncate(path, size - 1000)
    with pytest.raises(CorruptError, match=f"truncated: expected {size} bytes, found {size - 1000}") as caught:
        open_dataset(mine)
    assert caught.value.where == str(path)
    with pytest.raises(CorruptError, match=str(size - 1000)):
        opened.batch([0])
    (problem,) = verify_dataset(mine).problems
    assert problem.file == path


def test_missing_shard(mine: Path) -> None:
    (mine / "shard-00000.h5").unlink()
    with pytest.raises(CorruptError, match="is missing") as caught:
        open_dataset(mine)
    assert "shard-00000.h5" in str(caught.value)
    assert len(open_dataset(mine, look=False)) == 100  # another rank looks
    assert [problem.message for problem in verify_dataset(mine).problems] == ["is missing"]


def test_changed_shard(mine: Path) -> None:
    path = mine / "shard-00000.h5"
    offset = open_dataset(mine).manifest.shards[0].offsets["x"]
    with open(path, "r+b") as file:
        file.seek(offset + 100)
        file.write(b"\xff")
    open_dataset(mine)
    with pytest.raises(CorruptError, match="SHA-256"):
        open_dataset(mine, verify=True)
    (problem,) = verify_dataset(mine).problems
    assert problem.file == path
    assert "SHA-256" in problem.message


def test_no_hdf5_any_more(mine: Path) -> None:
    path = mine / "shard-00000.h5"
    with open(path, "r+b") as file:
        file.write(b"nothing!")
    messages = [problem.message for problem in verify_dataset(mine).problems]
    assert any("HDF5" in message for message in messages)


def test_manifest_damaged_newer_or_missing(mine: Path) -> None:
    path = mine / "manifest-000001.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "samples": 99}))
    with pytest.raises(CorruptError, match="add up"):
        open_dataset(mine)
    path.write_text(json.dumps({**value, "created": 0.0}))
    open_dataset(mine)
    path.write_text(json.dumps({**value, "cut": {"strategy": "other"}}))
    with pytest.raises(CorruptError, match="id does not fit"):
        open_dataset(mine)
    path.write_text(json.dumps({key: one for key, one in value.items() if key != "shards"}))
    with pytest.raises(CorruptError, match="lacks the key 'shards'"):
        open_dataset(mine)
    value["shards"][0]["file"] = "../../etc/passwd"
    path.write_text(json.dumps(value))
    with pytest.raises(CorruptError, match="impossible value"):
        open_dataset(mine)
    path.write_text(json.dumps({**value, "format": 4}))
    with pytest.raises(DataError, match="newer than this hpcmass knows"):
        open_dataset(mine)
    path.write_text("{")
    with pytest.raises(CorruptError, match="not valid JSON"):
        open_dataset(mine)
    assert not verify_dataset(mine).ok
    path.unlink()
    with pytest.raises(NotFound, match="not a dataset"):
        open_dataset(mine)


def test_offsets_past_the_end_are_refused(mine: Path) -> None:
    path = mine / "manifest-000001.json"
    value = json.loads(path.read_text())
    value["shards"][0]["offsets"]["x"] += 10**6
    path.write_text(json.dumps(value))
    with pytest.raises(CorruptError, match="past the file's end"):
        open_dataset(mine)


def test_newest_manifest_wins(mine: Path) -> None:
    (mine / "manifest-000002.json").write_text((mine / "manifest-000001.json").read_text())
    (mine / "manifest-000001.json").write_text("{")
    assert len(open_dataset(mine)) == 100


def test_folder_of_splits_and_no_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="splits test, train"):
        open_dataset(folder)
    report = verify_dataset(folder)
    assert report.ok
    assert (report.shards, report.samples, len(report.datasets)) == (6, N, 2)
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotFound):
            open_dataset(wrong)
        with pytest.raises(NotFound):
            verify_dataset(wrong)


def test_importing_the_room_is_light() -> None:
    heavy = ("torch", "h5py", "numpy", "pyarrow")
    code = f"import sys, hpcmass.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
