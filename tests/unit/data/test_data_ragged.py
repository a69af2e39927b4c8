"""Ragged fields: what h5py alone reads out of the shards, whatever the lengths, types, filters, ways and ranks."""

from __future__ import annotations

import json
import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmass.data import (
    Dataset,
    Loader,
    Plan,
    ShardWriter,
    append,
    concat,
    make_order,
    open_dataset,
    reshard,
    shard,
    verify_dataset,
)
from hpcmass.data.shaping import IGNORED, Shape, pack
from hpcmass.errors import CorruptError, DataError

WAYS = ["map", "pread", "block", "memory"]
Samples = list[np.ndarray]


def plain(folder: Path, name: str) -> Samples:
    """The samples of a ragged field as h5py and json alone read them."""
    manifest = json.loads(max(folder.glob("manifest-*.json")).read_text())
    found: Samples = []
    for one in manifest["shards"]:
        with h5py.File(folder / one["file"]) as file:
            values, offsets = file[name], file[name + ".offsets"][:]
            found += [values[a:b] for a, b in pairwise(offsets)]
    return found


def flat(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(samples), np.concatenate([[0], np.cumsum([len(one) for one in samples])])


def save(path: Path, samples: Samples, **more: np.ndarray) -> Path:
    values, offsets = flat(samples)
    np.savez(path, **{"tokens": values, "tokens.offsets": offsets}, number=np.arange(len(samples)), **more)
    return path


def some(lengths: list[int], dtype: str = "u2", shape: tuple[int, ...] = (), seed: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    return [random.integers(0, 2 if dtype == "?" else 100, (n, *shape)).astype(dtype) for n in lengths]


def padded(samples: Samples, width: int, fill: float) -> np.ndarray:
    out = np.full((len(samples), width, *samples[0].shape[1:]), fill, samples[0].dtype)
    for row, sample in zip(out, samples, strict=True):
        row[: len(sample)] = sample[:width]
    return out


def whole(dataset: Dataset, name: str = "tokens") -> Samples:
    return list(dataset.raw(np.arange(len(dataset)))[name])


def equal(first: Samples, second: Samples) -> bool:
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


LENGTHS = st.lists(st.one_of(st.integers(0, 12), st.just(0), st.integers(0, 3000)), min_size=1, max_size=40)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


# -- writing and reading ----------------------------------------------------------------------------------
@QUICK
@given(
    data=st.data(), lengths=LENGTHS, dtype=st.sampled_from(["u1", "u2", "i8", "f4", "f8", "f2", "?"]),
    shape=st.sampled_from([(), (3,), (2, 2)]), compression=st.sampled_from([None, "bitshuffle-lz4", "gzip-1", "lzf"]),
)  # fmt: skip
def test_shard_gives_back_every_sample(
    tmp_path_factory: pytest.TempPathFactory, data: Any, lengths: list[int], dtype: str, shape: tuple[int, ...],
    compression: str | None,
) -> None:  # fmt: skip
    base = tmp_path_factory.mktemp("shard")
    samples = some(lengths, dtype, shape)
    shards = data.draw(st.integers(1, min(len(lengths), 4)))
    shard(
        save(base / "a.npz", samples), base / "out", shards=shards, compression=compression, seed=len(lengths)
    )
    report = verify_dataset(base / "out")
    assert report.ok, report.problems
    dataset = open_dataset(base / "out")
    order = dataset.batch(np.arange(len(dataset)))["number"]
    expected = [samples[number] for number in order]
    if compression not in ("bitshuffle-lz4",):
        assert equal(plain(base / "out", "tokens"), expected)
    assert equal(whole(dataset), expected)
    ids = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=30)))
    batch = dataset.batch(ids)
    chosen = [expected[one] for one in ids]
    width = max(1, *(len(one) for one in chosen))
    assert batch["tokens"].tobytes() == padded(chosen, width, 0).tobytes()
    assert batch["tokens_length"].tolist() == [len(one) for one in chosen]
    assert batch["number"].tolist() == order[ids].tolist()
    assert list(batch) == list(dataset.fields)


@QUICK
@given(
    lengths=LENGTHS, batches=st.lists(st.integers(1, 9), min_size=1, max_size=5), size=st.integers(1, 15),
    how=st.sampled_from(["list", "flat"]),
)  # fmt: skip
def test_the_writer_gives_back_every_sample(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], batches: list[int], size: int, how: str
) -> None:
    base = tmp_path_factory.mktemp("writer")
    samples = some(lengths, "i4", (2,))
    with ShardWriter(
        base / "out", {"tokens": ("int32", (None, 2)), "n": "int64"}, shard_samples=size
    ) as writer:
        at = turn = 0
        while at < len(samples):
            part = samples[at : at + batches[turn % len(batches)]]
            given_ = part if how == "list" else flat(part)
            writer.write_batch({"tokens": given_, "n": np.arange(at, at + len(part))})
            at, turn = at + len(part), turn + 1
    assert verify_dataset(base / "out").ok
    assert equal(plain(base / "out", "tokens"), samples)
    assert equal(whole(open_dataset(base / "out")), samples)
    lengths_ = open_dataset(base / "out").stored["tokens"].stats["lengths"]
    assert (lengths_["count"], lengths_["min"], lengths_["max"]) == (len(lengths), min(lengths), max(lengths))
    assert lengths_["mean"] == pytest.approx(np.mean(lengths))


def test_quantiles_of_lengths_are_not_exceeded_by_their_share(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(0, 400, 500).tolist()
    shard(save(tmp_path / "a.npz", some(lengths)), tmp_path / "out")
    said = open_dataset(tmp_path / "out").stored["tokens"].stats["lengths"]["quantiles"]
    for share, length in said.items():
        exact = float(np.quantile(lengths, float(share)))
        assert exact <= length <= exact + 8  # bins of 8: 400 lengths in 64 bins


def test_samples_and_writers_in_any_batches_give_the_same_bytes(tmp_path: Path) -> None:
    samples = some(np.random.default_rng(2).integers(0, 50, 400).tolist())
    made = []
    for number, step in enumerate((1, 7, 400)):
        out = tmp_path / f"out{number}"
        with ShardWriter(out, {"tokens": ("uint16", (None,)), "n": "int64"}, shard_samples=150) as writer:
            for at in range(0, 400, step):
                part = samples[at : at + step]
                writer.write_batch({"tokens": part, "n": np.arange(at, at + len(part))})
        made.append(open_dataset(out).id)
    assert len(set(made)) == 1


def test_a_writer_that_broke_off_goes_on_and_gives_the_same_dataset(tmp_path: Path) -> None:
    samples = some(np.random.default_rng(3).integers(0, 30, 50).tolist())

    def produce(out: Path, stop: int | None) -> None:
        with ShardWriter(out, {"tokens": ("uint16", (None,))}, shard_samples=8) as writer:
            for number in range(writer.resumed_samples, len(samples)):
                if number == stop:
                    raise KeyError("broken")
                writer.write({"tokens": samples[number]})

    produce(tmp_path / "whole", None)
    for stop in (21, 22, 40):
        with pytest.raises(KeyError):
            produce(tmp_path / "broken", stop)
    produce(tmp_path / "broken", None)
    assert open_dataset(tmp_path / "broken").id == open_dataset(tmp_path / "whole").id
    assert sorted(os.listdir(tmp_path / "broken")) == sorted(os.listdir(tmp_path / "whole"))


def test_without_shard_samples_a_shard_ends_where_its_bytes_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcmass.data.writing.writer.SHARD_BYTES", 1000)
    samples = some([100] * 20)  # 208 bytes each with its offset
    for name, step in (("one", 1), ("all", 20)):
        with ShardWriter(tmp_path / name, {"tokens": ("uint16", (None,))}) as writer:
            for at in range(0, 20, step):
                writer.write_batch({"tokens": samples[at : at + step]})
    assert [one.samples for one in open_dataset(tmp_path / "one").manifest.shards] == [5, 5, 5, 5]
    assert open_dataset(tmp_path / "one").id == open_dataset(tmp_path / "all").id


def test_append_and_reshard_keep_every_sample(tmp_path: Path) -> None:
    first, second = some([3, 0, 5, 2], seed=1), some([0, 9, 1], seed=2)
    shard(save(tmp_path / "a.npz", first), tmp_path / "out", strategy="contiguous", shards=2)
    append(tmp_path / "out", save(tmp_path / "b.npz", second))
    assert verify_dataset(tmp_path / "out").ok
    both = open_dataset(tmp_path / "out")
    assert equal(whole(both), first + second)
    assert both.stored["tokens"].stats["lengths"]["max"] == 9
    assert both.stored["tokens"].stats["count"] == 20
    reshard(both, tmp_path / "again", shards=3)
    assert verify_dataset(tmp_path / "again").ok
    assert equal(plain(tmp_path / "again", "tokens"), first + second)
    joined = concat([both, open_dataset(tmp_path / "again")])
    assert equal(whole(joined), [*first, *second, *first, *second])
    assert equal(whole(joined.subset_shards([3, 0])), whole_of(joined, [3, 0]))


def whole_of(dataset: Dataset, shards: list[int]) -> Samples:
    ranges = dataset.shard_ranges()
    samples = whole(dataset)
    return [samples[number] for one in shards for number in ranges[one]]


def test_manifests_without_ragged_fields_say_nothing_of_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(6.0))
    shard(tmp_path / "a.npz", tmp_path / "fixed")
    text = (tmp_path / "fixed" / "manifest-000001.json").read_text()
    assert json.loads(text)["format"] == 1
    assert "ragged" not in text
    assert "values" not in text
    shard(save(tmp_path / "b.npz", some([1, 2])), tmp_path / "ragged")
    assert json.loads((tmp_path / "ragged" / "manifest-000001.json").read_text())["format"] == 3


# -- sources ------------------------------------------------------------------------------------------------
def test_sources_with_offsets(tmp_path: Path) -> None:
    samples = some([4, 0, 7, 1], "i4")
    values, offsets = flat(samples)
    np.savez_compressed(tmp_path / "c.npz", **{"tokens": values, "tokens.offsets": offsets})
    np.save(tmp_path / "v.npy", values)
    np.save(tmp_path / "o.npy", offsets)
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file["tokens"], file["tokens.offsets"] = values, offsets
    npy = [f"tokens={tmp_path / 'v.npy'}", f"tokens.offsets={tmp_path / 'o.npy'}"]
    for number, source in enumerate([tmp_path / "c.npz", npy, tmp_path / "h.h5"]):
        shard(source, tmp_path / f"out{number}", strategy="contiguous", inputs=["tokens"])
        assert equal(plain(tmp_path / f"out{number}", "tokens"), samples)


def test_lists_of_a_parquet_table(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    samples = some(np.random.default_rng(4).integers(0, 5, 40_000).tolist(), "i8")  # several batches of rows
    table = {"tokens": [one.tolist() for one in samples], "y": list(range(40_000))}
    parquet.write_table(
        arrow.table(table, schema=arrow.schema({"tokens": arrow.list_(arrow.int64()), "y": arrow.int64()})),
        tmp_path / "t.parquet",
    )
    shard(tmp_path / "t.parquet", tmp_path / "out", strategy="contiguous", shards=3)
    assert equal(whole(open_dataset(tmp_path / "out")), samples)


def test_what_cannot_be_samples_is_refused(tmp_path: Path) -> None:
    objects = np.empty(2, object)
    objects[:] = [np.zeros(1), np.zeros(2)]
    np.savez(tmp_path / "o.npz", tokens=objects)
    with pytest.raises(DataError, match="Python objects"):
        shard(tmp_path / "o.npz", tmp_path / "out")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("tokens", (2,), h5py.vlen_dtype("u2"))
    with pytest.raises(DataError, match="type of variable length") as caught:
        shard(tmp_path / "v.h5", tmp_path / "out")
    assert "tokens.offsets" in str(caught.value.hint)
    for offsets, what in (
        ([1, 2], "begin with 1"), ([0, 3, 2, 5], "do not ascend: 2 follows 3"), ([0, 4], "end with 4"),
        ([0.0, 5.0], "float64"),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", **{"tokens": np.arange(5), "tokens.offsets": np.array(offsets)})
        with pytest.raises(DataError, match=what):
            shard(tmp_path / "a.npz", tmp_path / "out")
    fields = {"tokens": ("uint8", (None,))}
    with ShardWriter(tmp_path / "w", fields) as writer:
        for bad, what in (
            ([np.array([300])], "do not fit"), (np.zeros((2, 3), "u1"), "is ragged"), ([np.zeros((2, 2), "u1")], "shape"),
            ((np.zeros(3, "u1"), [0, 2]), "end with 2"), (["text"], "no number of values"),
        ):  # fmt: skip
            with pytest.raises(DataError, match=what):
                writer.write_batch({"tokens": bad})
        writer.write({"tokens": []})
    with pytest.raises(DataError, match="may not be called 'tokens_length'"):
        ShardWriter(tmp_path / "x", {**fields, "tokens_length": "int64"})


# -- batches ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 samples with tokens, tags of them (a target) and points; some wide, some empty."""
    base = tmp_path_factory.mktemp("ragged")
    random = np.random.default_rng(5)
    lengths = [*random.integers(0, 40, 280).tolist(), *random.integers(2000, 5000, 20).tolist()]
    tokens, tags, points = some(lengths, "u2"), some(lengths, "u1", seed=1), some(lengths, "f4", (3,), seed=2)
    arrays = {}
    for name, samples in (("tokens", tokens), ("tags", tags), ("points", points)):
        arrays[name], arrays[name + ".offsets"] = flat(samples)
    np.savez(base / "a.npz", number=np.arange(300), **arrays)
    for name, compression in (("plain", None), ("packed", "bitshuffle-lz4")):
        shard(base / "a.npz", base / name, shards=3, targets=["tags"], meta=["number"], compression=compression)
    return base


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_the_loader_gives_what_batch_gives(folder: Path, kind: str, way: str) -> None:
    dataset = open_dataset(folder / kind)
    for shapes in ({}, {"tokens": Shape("pack", length=5000)}):
        shaped = dataset.shaped(shapes)
        order = make_order("block" if way == "block" else "global", dataset, batch=32, seed=1)
        plan = Plan(lambda low, high, order=order: order.ids(0, low, high), 0, len(dataset), 32)
        seen = []
        with Loader(shaped, plan, read=way, block=16, unit_bytes=1 << 18) as loader:
            for ids, batch in loader:
                expected = shaped.batch(ids)
                assert list(batch) == list(expected) == list(shaped.fields)
                for name, array in expected.items():
                    assert (array.dtype, array.shape) == (batch[name].dtype, batch[name].shape)
                    assert array.tobytes() == batch[name].tobytes(), name
                seen += ids.tolist()
        assert sorted(seen) == list(range(300))


def test_padding(folder: Path) -> None:
    dataset = open_dataset(folder / "plain")
    tokens, tags = plain(folder / "plain", "tokens"), plain(folder / "plain", "tags")
    ids = np.array([number for number in range(300) if len(tokens[number]) < 40][:9])
    assert [one.role for one in dataset.fields.values() if one.name.endswith("_length")] == [
        "input",
        "meta",
        "input",
    ]
    longest = max(len(tokens[one]) for one in ids)
    batch = dataset.shaped({"tokens": Shape(to_multiple=16, fill=7)}).batch(ids)
    width = -(-longest // 16) * 16
    assert batch["tokens"].tobytes() == padded([tokens[one] for one in ids], width, 7).tobytes()
    # The tags have the same lengths, so they are padded alike, with what a loss leaves out.
    assert batch["tags"].dtype == np.int64
    assert (batch["tags"] == padded([tags[one].astype("i8") for one in ids], width, IGNORED)).all()
    batch = dataset.shaped({"tokens": Shape(length=10, longer="cut")}).batch(ids)
    assert batch["tokens"].tobytes() == padded([tokens[one] for one in ids], 10, 0).tobytes()
    assert batch["tokens_length"].tolist() == [min(10, len(tokens[one])) for one in ids]
    with pytest.raises(
        DataError, match=r"sample \d+ has \d+ values of tokens, more than the length of 10"
    ) as caught:
        dataset.shaped({"tokens": Shape(length=10)}).batch(ids)
    assert caught.value.where == "data.ragged.tokens.length"


def test_one_sample_has_its_own_length_and_a_dataset_travels(folder: Path) -> None:
    dataset = open_dataset(folder / "plain").shaped({"tokens": Shape(length=5000)})
    sample = dataset[3]
    assert sample["tokens"].tobytes() == plain(folder / "plain", "tokens")[3].tobytes()
    assert list(sample) == ["number", "tokens", "tags", "points"]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.batch([1, 2])["tokens"].tobytes() == dataset.batch([1, 2])["tokens"].tobytes()
    assert [one["tokens"].shape for one in dataset.__getitems__([1, 2])] == [(5000,), (5000,)]
    packed = dataset.shaped({"tokens": Shape("pack", length=5000)})
    with pytest.raises(DataError, match="cannot be taken apart"):
        packed.__getitems__([1, 2])


@QUICK
@given(lengths=st.lists(st.integers(0, 20), max_size=60), length=st.integers(20, 50))
def test_packing_is_a_partition_in_order_and_first_fit(lengths: list[int], length: int) -> None:
    places, segments, rows = pack(lengths, length)
    assert pack(lengths, length)[0].tolist() == places.tolist()
    taken = np.zeros(rows * length, int)
    content: dict[int, list[int]] = {row: [] for row in range(rows)}
    for number, (size, place, segment) in enumerate(
        zip(lengths, places.tolist(), segments.tolist(), strict=True)
    ):
        if not size:
            assert segment == 0
            continue
        row = place // length
        assert (place + size - 1) // length == row
        taken[place : place + size] += 1
        # First fit: it would not have fitted into any row before.
        assert all(sum(lengths[k] for k in content[before]) + size > length for before in range(row))
        assert place == row * length + sum(lengths[k] for k in content[row])
        content[row].append(number)
        assert segment == len(content[row])
    assert taken.max(initial=0) <= 1
    assert taken.sum() == sum(lengths)
    assert rows == max(1, sum(bool(one) for one in content.values()))
    alone = pack(lengths, length, alone=True)
    assert alone[0].tolist() == [number * length for number in range(len(lengths))]


@QUICK
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60), shards=st.integers(1, 4),
    ranks=st.integers(1, 4), more=st.integers(1, 4), batch=st.integers(1, 20), stop=st.integers(0, 60),
    kind=st.sampled_from(["pad", "pack"]), order=st.sampled_from(["global", "block"]),
)  # fmt: skip
def test_every_sample_comes_once_an_epoch_for_any_ranks_and_stop(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shards: int, ranks: int, more: int, batch: int,
    stop: int, kind: str, order: str,
) -> None:  # fmt: skip
    base = tmp_path_factory.mktemp("once")
    samples = [np.full(n, number, "u4") for number, n in enumerate(lengths)]
    shard(save(base / "a.npz", samples), base / "out", shards=min(shards, len(lengths)))
    dataset = open_dataset(base / "out").shaped({"tokens": Shape(kind, length=12)})
    made = make_order(order, dataset, batch=batch, seed=3)
    middle = min(stop // batch * batch, len(dataset))
    seen, values = [], np.zeros(len(lengths), int)
    for low, high, size in ((0, middle, ranks), (middle, len(dataset), more)):
        for rank in range(size):
            plan = Plan(lambda a, b: made.ids(1, a, b), low, high, batch, rank, size)
            for ids, arrays in Loader(dataset, plan, read="pread"):
                seen += ids.tolist()
                own = (
                    np.arange(12) < arrays["tokens_length"][:, None]
                    if kind == "pad"
                    else arrays["tokens_segment"] > 0
                )
                np.add.at(values, arrays["tokens"][own], 1)
                if kind == "pack":
                    assert arrays["tokens"].shape == arrays["tokens_position"].shape
    assert sorted(seen) == list(range(len(lengths)))
    assert values.tolist() == lengths


def test_segments_and_positions(tmp_path: Path) -> None:
    shard(save(tmp_path / "a.npz", some([3, 4, 2, 0, 1])), tmp_path / "out", strategy="contiguous")
    dataset = open_dataset(tmp_path / "out").shaped({"tokens": Shape("pack", length=6, fill=9)})
    batch = dataset.batch(np.arange(5))
    assert batch["tokens_segment"].tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 0, 0]]
    assert batch["tokens_position"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch["tokens"][1, 4:].tolist() == [9, 9]
    assert list(dataset.fields) == ["tokens", "tokens_segment", "tokens_position", "number"]
    alone = dataset.shaped(dataset.shapes, alone=True).batch(np.arange(5))
    assert alone["tokens"].shape == (5, 6)
    assert alone["tokens_segment"].sum(axis=1).tolist() == [3, 4, 2, 0, 1]


def test_shapes_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(folder / "plain")
    for shapes, what in (
        ({"words": Shape()}, "no ragged field 'words'"), ({"number": Shape()}, "no ragged field 'number'"),
        ({"tokens": Shape("pack")}, "needs the length"), ({"tokens": Shape(fill=0.5)}, "cannot be filled with 0.5"),
        ({"tokens": Shape("pack", length=5000), "tags": Shape()}, "packed alike, or none"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=what):
            dataset.shaped(shapes)
    one, other = flat(some([1, 2])), flat(some([2, 1]))
    np.savez(tmp_path / "a.npz", **{"a": one[0], "a.offsets": one[1], "b": other[0], "b.offsets": other[1]})
    shard(tmp_path / "a.npz", tmp_path / "out", strategy="contiguous")
    with pytest.raises(DataError, match="sample 0 has 2 values of b and 1 of a"):
        open_dataset(tmp_path / "out").shaped({"a": Shape("pack", length=4)}).batch([0, 1])


# -- damage -------------------------------------------------------------------------------------------------
def break_offsets(folder: Path, number: int, at: int, value: int) -> Path:
    manifest = json.loads((folder / "manifest-000001.json").read_text())
    one = manifest["shards"][number]
    with open(folder / one["file"], "r+b") as file:
        file.seek(one["offsets"]["tokens.offsets"] + 8 * at)
        file.write(np.int64(value).tobytes())
    return folder / one["file"]


@pytest.mark.parametrize(
    ("at", "value", "what"), [(0, 2, "begin with 2"), (2, 99, "do not ascend"), (-1, 3, "end with 3")]
)
def test_damaged_offsets_are_found_and_refused(tmp_path: Path, at: int, value: int, what: str) -> None:
    shard(save(tmp_path / "a.npz", some([2, 1, 4] * 4)), tmp_path / "out", strategy="contiguous", shards=2)
    path = break_offsets(tmp_path / "out", 1, at % 7, value)
    if at == -1:
        break_offsets(tmp_path / "out", 1, 5, 3)  # ascending all the same
        break_offsets(tmp_path / "out", 1, 4, 3)
        break_offsets(tmp_path / "out", 1, 3, 3)
    problems = verify_dataset(tmp_path / "out").problems
    assert {one.file for one in problems} == {path}
    assert any("field tokens" in one.message and what in one.message for one in problems)
    dataset = open_dataset(tmp_path / "out")
    with pytest.raises(CorruptError, match=what) as caught:
        dataset.batch([0])
    assert caught.value.where == str(path)
    assert "field tokens" in caught.value.message
    with pytest.raises(CorruptError, match=what):
        next(Loader(dataset, [np.array([0])]))


@pytest.mark.parametrize("way", ["map", "pread", "memory"])
def test_a_truncated_shard_is_named(tmp_path: Path, way: str) -> None:
    shard(save(tmp_path / "a.npz", some([500] * 20)), tmp_path / "out", strategy="contiguous", shards=2)
    path = tmp_path / "out" / "shard-00001.h5"
    dataset = open_dataset(tmp_path / "out")
    dataset.offsets("tokens")
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(CorruptError) as caught:
        list(Loader(dataset, [np.arange(20)], read=way))
    assert caught.value.where == str(path)
    with pytest.raises(CorruptError, match="truncated"):
        open_dataset(tmp_path / "out")


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    shard(save(tmp_path / "a.npz", some([900] * 20)), tmp_path / "out", compression="gzip-1")
    manifest = json.loads((tmp_path / "out" / "manifest-000001.json").read_text())
    path = tmp_path / "out" / manifest["shards"][0]["file"]
    with h5py.File(path) as file:
        at = file["tokens"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(at + 20)
        file.write(b"\0\0\0\0")
    with pytest.raises(CorruptError, match="field tokens, chunk 0") as caught:
        list(Loader(open_dataset(tmp_path / "out"), [np.arange(20)], read="pread"))
    assert caught.value.where == str(path)
    assert not verify_dataset(tmp_path / "out").ok
