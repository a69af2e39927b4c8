"""`ShardWriter`, `append`, `reshard`: every sample once and in order, whoever writes, however often."""

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.data import ShardWriter, append, commit, open_dataset, reshard, shard, verify_dataset
from hpcmass.data.writing import commit as writing_commit
from hpcmass.data.writing import shardout
from hpcmass.errors import AlreadyExists, DataError, HpcmassError, LeaseHeld, NotFound, StorageError

spec = importlib.util.spec_from_file_location("writing_tools", Path(__file__).with_name("writing_tools.py"))
tools = importlib.util.module_from_spec(spec)
sys.modules["writing_tools"] = tools
spec.loader.exec_module(tools)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def save(path: Path, first: int, count: int) -> Path:
    np.savez(path, **tools.samples(first, count))
    return path


def test_ranks_in_any_order_of_time_give_the_same_dataset(tmp_path: Path) -> None:
    counts = [25, 0, 9, 14]
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 2, 0, 1])):
        for rank in order:
            writer = tools.produce(
                tmp_path / name, 100 * rank, counts[rank], rank=rank, ranks=4, batch=3 + rank
            )
            assert (writer.manifest is None) == (rank != order[-1])
    tools.check_samples(tmp_path / "a", [100 * r + i for r in range(4) for i in range(counts[r])])
    assert tools.content(tmp_path / "a") == tools.content(tmp_path / "b")
    assert [one.samples for one in open_dataset(tmp_path / "a").manifest.shards] == [7, 7, 7, 4, 7, 2, 7, 7]
    assert verify_dataset(tmp_path / "a").ok
    # Started once more, each finds it done.
    again = tools.produce(tmp_path / "a", 200, 9, rank=2, ranks=4)
    assert (again.resumed_samples, again.manifest.samples) == (9, 48)
    assert tools.content(tmp_path / "a") == tools.content(tmp_path / "b")


def test_the_same_shards_and_statistics_as_a_cut_of_the_same_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 5)).astype(np.float32)
    x[17, 3] = np.nan
    label = rng.integers(0, 4, 1000)
    np.savez(tmp_path / "all.npz", x=x, label=label)
    (cut,) = shard(tmp_path / "all.npz", tmp_path / "cut", strategy="contiguous", shards=4)
    with ShardWriter(tmp_path / "w", {"x": ("f4", 5), "label": "i8"}, shard_samples=250) as writer:
        for i in range(1000):
            writer.write({"x": x[i], "label": label[i]})
    assert [(one.file, one.sha256) for one in writer.manifest.shards] == [
        (s.file, s.sha256) for s in cut.shards
    ]
    for mine, theirs in zip(writer.manifest.fields, cut.fields, strict=True):
        same_statistics(mine.stats, theirs.stats)
        assert (mine.classes, mine.role) == (theirs.classes, theirs.role)


def same_statistics(mine: dict, theirs: dict) -> None:
    """Counts, extremes, classes and histogram exactly; moments to a float's rounding."""
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key] == (
            pytest.approx(theirs[key], rel=1e-12) if key in ("mean", "std") else theirs[key]
        ), key


@settings(max_examples=10)
@given(
    ranks=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    shard_samples=st.integers(2, 9),
    batch=st.integers(1, 9),
    appended=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=2),
    new_size=st.integers(3, 12),
    stop=st.integers(0, 12),
)
def test_every_sample_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, ranks: list, shard_samples: int, batch: int, appended: list,
    new_size: int, stop: int,
) -> None:  # fmt: skip
    """Written by ranks, one of which is broken off once; appended to; cut anew."""
    folder = tmp_path_factory.mktemp("property")
    numbers = [100 * rank + i for rank, count in enumerate(ranks) for i in range(count)]
    options = {"shard_samples": shard_samples, "ranks": len(ranks), "classes": {"label": ["0", "1", "2"]}}
    tools.break_off(folder / "d", min(stop, ranks[0]), rank=0, **options)
    for rank, count in enumerate(ranks):
        tools.produce(folder / "d", 100 * rank, count, rank=rank, batch=batch, **options)
    for number, (count, shards) in enumerate(appended):
        save(folder / "more.npz", 1000 * (number + 1), count)
        append(folder / "d", folder / "more.npz", shards=min(shards, count))
        numbers += [1000 * (number + 1) + i for i in range(count)]
    tools.check_samples(folder / "d", numbers)
    assert verify_dataset(folder / "d").ok
    with np.load(save(folder / "all.npz", 0, 1)) as one:
        whole = {name: np.concatenate([tools.samples(n, 1)[name] for n in numbers]) for name in one.files}
    np.savez(folder / "all.npz", **whole)
    (cut,) = shard(folder / "all.npz", folder / "cut", strategy="contiguous", shards=1, meta=["number"])
    for mine, theirs in zip(open_dataset(folder / "d").manifest.fields, cut.fields, strict=True):
        if mine.classes == theirs.classes:  # an addition brings no new class
            same_statistics(mine.stats, theirs.stats)
    new = reshard(open_dataset(folder / "d"), folder / "new", shard_samples=new_size)
    tools.check_samples(folder / "new", numbers)
    assert {one.samples for one in new.shards[:-1]} <= {new_size}
    assert sorted(p.name for p in (folder / "d").glob(".*")) == []


def test_an_addition_keeps_what_was_there(tmp_path: Path) -> None:
    tools.produce(tmp_path / "d", 0, 20)
    before = open_dataset(tmp_path / "d")
    files = tools.content(tmp_path / "d")
    manifest = append(tmp_path / "d", save(tmp_path / "more.npz", 50, 10), shards=2)
    assert (manifest.samples, [one.samples for one in manifest.shards]) == (30, [7, 7, 6, 5, 5])
    assert files.items() <= tools.content(tmp_path / "d").items()
    old, new = open_dataset(tmp_path / "d", id=before.id[:12]), open_dataset(tmp_path / "d")
    assert (len(old), len(new)) == (20, 30)
    assert old.batch(range(20))["number"].tolist() == before.batch(range(20))["number"].tolist()
    assert new.batch(range(30))["number"].tolist() == [*range(20), *range(50, 60)]
    (first, second) = manifest.source["parts"]
    assert (first["name"], first["samples"], second["samples"], second["after"]) == (None, 20, 10, before.id)
    assert second["source"]["files"][0]["path"] == "more.npz"
    with pytest.raises(NotFound, match="no manifest with the id"):
        open_dataset(tmp_path / "d", id="0" * 64)
    with pytest.raises(AlreadyExists, match="appended before"):
        append(tmp_path / "d", tmp_path / "more.npz")
    shutil.copy(tmp_path / "more.npz", tmp_path / "copy.npz")
    with pytest.raises(AlreadyExists, match="appended before"):
        append(tmp_path / "d", tmp_path / "copy.npz")
    append(tmp_path / "d", tmp_path / "more.npz", name="once-more")
    tools.check_samples(tmp_path / "d", [*range(20), *range(50, 60), *range(50, 60)])
    assert len(open_dataset(tmp_path / "d").manifest.source["parts"]) == 3


def test_ranks_append_under_a_name(tmp_path: Path) -> None:
    tools.produce(tmp_path / "d", 0, 10)
    for rank in (1, 0):
        tools.produce(tmp_path / "d", 100 * (rank + 1), 9, append="tuesday", rank=rank, ranks=2)
    tools.check_samples(tmp_path / "d", [*range(10), *range(100, 109), *range(200, 209)])
    done = tools.produce(tmp_path / "d", 100, 9, append="tuesday", rank=0, ranks=2)
    assert done.resumed_samples == 9
    assert len(read := sorted((tmp_path / "d").glob("manifest-*"))) == 2, read


def test_class_names_go_by_name_not_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "v,kind\n" + "".join(f"{i}.5,{'cat' if i % 2 else 'dog'}\n" for i in range(8))
    )
    (tmp_path / "b.csv").write_text("v,kind\n" + "1.5,dog\n" * 3)
    (tmp_path / "c.csv").write_text("v,kind\n1.5,cow\n")
    shard(tmp_path / "a.csv", tmp_path / "d", targets=["kind"], inputs=["v"], strategy="contiguous")
    manifest = append(tmp_path / "d", tmp_path / "b.csv")
    assert tools.read_plainly(tmp_path / "d")["kind"].tolist() == [1, 0] * 4 + [1, 1, 1]
    assert next(one for one in manifest.fields if one.name == "kind").stats["class_counts"] == [4, 7]
    with pytest.raises(DataError, match="no class 'cow'"):
        append(tmp_path / "d", tmp_path / "c.csv")
    assert list((tmp_path / "d").glob(".*")) == []


def test_classes_may_be_written_by_name(tmp_path: Path) -> None:
    with ShardWriter(
        tmp_path / "d", {"x": "float32", "label": "uint8"}, classes={"label": ["cat", "dog"]}
    ) as w:
        w.write({"x": 0, "label": "dog"})
        w.write_batch({"x": [1, 2, 3], "label": ["cat", "dog", "cat"]})
        w.write({"x": 4, "label": 1})
        with pytest.raises(DataError, match="label has no class 'cow'"):
            w.write({"x": 5, "label": "cow"})
        with pytest.raises(DataError, match="values that do not fit"):
            w.write({"x": "dog", "label": 1})
    assert open_dataset(tmp_path / "d").batch(range(5))["label"].tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "x": s["x"].astype(np.float64)}, "field x: dtype is 'float32' here, and 'float64'"),
        (lambda s: {**s, "x": s["x"][:, :1]}, r"field x: shape is \(2, 3\) here"),
        (lambda s: {**s, "label": s["label"] + 2}, "has the classes 0 … 2, and was given 4"),
        (lambda s: {key: s[key] for key in ("x", "number")}, "label"),
    ],
)
def test_what_does_not_fit_is_not_appended(tmp_path: Path, change: object, message: str) -> None:
    tools.produce(tmp_path / "d", 0, 20)
    before = tools.content(tmp_path / "d")
    np.savez(tmp_path / "bad.npz", **change(tools.samples(0, 10)))
    with pytest.raises(HpcmassError, match=message):
        append(tmp_path / "d", tmp_path / "bad.npz")
    assert tools.content(tmp_path / "d") == before


def test_a_rank_that_never_came_is_named(tmp_path: Path) -> None:
    tools.produce(tmp_path / "d", 0, 9, rank=0, ranks=4)
    tools.break_off(tmp_path / "d", 8, rank=2, ranks=4)
    with pytest.raises(DataError) as caught:
        commit(tmp_path / "d")
    text = str(caught.value)
    assert "3 of 4 ranks are missing" in text
    assert (
        "rank 1 never came; rank 2 has not finished (7 samples in 1 shards so far); rank 3 never came" in text
    )
    with pytest.raises(NotFound):
        open_dataset(tmp_path / "d")
    for rank in (1, 2, 3):
        tools.produce(tmp_path / "d", 100 * rank, 1 if rank == 1 else 8, rank=rank, ranks=4, publish=False)
    with pytest.raises(NotFound):
        open_dataset(tmp_path / "d")
    assert commit(tmp_path / "d").samples == 9 + 1 + 8 + 8
    assert commit(tmp_path / "d").samples == 26
    with pytest.raises(NotFound, match="nothing is appended as 'x'"):
        commit(tmp_path / "d", append="x")


def test_two_processes_as_one_rank_and_other_arguments_are_refused(tmp_path: Path) -> None:
    options = {"meta": ["number"], "rank": 1, "ranks": 2, "shard_samples": 3}
    with ShardWriter(tmp_path / "d", tools.FIELDS, **options) as writer:
        with pytest.raises(LeaseHeld, match="another process writes as rank 1 of 2"):
            ShardWriter(tmp_path / "d", tools.FIELDS, **options)
        with pytest.raises(DataError, match=r"begun here otherwise .ranks: 2 then, 3 now"):
            ShardWriter(tmp_path / "d", tools.FIELDS, **{**options, "ranks": 3})
        writer.write_batch(tools.samples(0, 4))
    with pytest.raises(DataError, match="has written all its 4 samples already"), ShardWriter(
        tmp_path / "d", tools.FIELDS, **options
    ) as writer:  # fmt: skip
        writer.write_batch(tools.samples(0, 4))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.zeros((2, 2, 3))}, "has the fields x, not x, label, number"),
        ({"x": np.zeros((2, 2, 2)), "label": [0, 0], "number": [0, 0]}, "field x has shape"),
        ({"x": np.zeros((2, 2, 3)), "label": [0], "number": [0, 0]}, "field label has 1 samples"),
        (
            {"x": np.zeros((1, 2, 3)), "label": [0.5], "number": [0]},
            "field label is int64, and was given float64",
        ),
        ({"x": [["a", "b"]], "label": [0], "number": [0]}, "field x has shape"),
        ({"x": np.zeros((1, 2, 3)), "label": [7], "number": [0]}, "has the classes 0 … 2, and was given 7"),
        (
            {"x": np.zeros((1, 2, 3)), "label": [0], "number": [2**63]},
            "field number is int64, and was given uint64",
        ),
    ],
)
def test_samples_that_do_not_fit_are_refused_and_the_others_kept(
    tmp_path: Path, batch: dict, message: str
) -> None:
    classes = {"label": ["a", "b", "c"]}
    with ShardWriter(tmp_path / "d", tools.FIELDS, meta=["number"], classes=classes) as writer:
        writer.write_batch(tools.samples(0, 2))
        with pytest.raises(DataError, match=message):
            writer.write_batch(batch)
        writer.write_batch(tools.samples(2, 3))
    tools.check_samples(tmp_path / "d", list(range(5)))
    assert open_dataset(tmp_path / "d").classes("label") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"x": "float33"}, {}, "numpy knows no type"),
        ({"x": [1, 2]}, {}, "is no type"),
        ({"x": "U8"}, {}, "cannot be stored"),
        ({"x": ("f4", (0, 2))}, {}, "cannot be stored"),
        ({"x": "f4", "y": "i8"}, {"inputs": ["x"], "targets": []}, "the fields y have no role"),
        ({"x": "f4"}, {"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"x": "f4"}, {"shard_samples": 0}, "shards of 0 samples"),
        ({"x": "f4"}, {"source": {"a": object()}}, "not what JSON can say"),
        ({"x": "f4"}, {"append": "../x"}, "is not allowed"),
        ({"../x": "f4"}, {}, "is not allowed"),
        (None, {}, "the fields are not named"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path: Path, fields: dict, options: dict, message: str) -> None:
    with pytest.raises(HpcmassError, match=message):
        ShardWriter(tmp_path / "d", fields, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="holds other files"):
        tools.produce(tmp_path / "d", 0, 3)
    shard(save(tmp_path / "a.npz", 0, 5), tmp_path / "cut")
    with pytest.raises(AlreadyExists, match="holds a dataset already"):
        tools.produce(tmp_path / "cut", 0, 3)
    with pytest.raises(NotFound):
        append(tmp_path / "nowhere", tmp_path / "a.npz")
    with pytest.raises(DataError, match="no rank has written a sample"):
        tools.produce(tmp_path / "none", 0, 0)


@pytest.mark.parametrize("sample", [0, 5, 9])
def test_after_a_full_disk_a_writer_does_not_go_on_and_a_new_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    """The first write of a sample's block is refused once: what follows must not be there without it."""
    fields = {"x": ("float32", (1 << 20,)), "label": "int64"}  # a block a sample
    left = [2 * sample + 1]

    def pwrite(handle: int, view: memoryview, place: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, view, place)

    real = shardout.pwrite
    monkeypatch.setattr(shardout, "pwrite", pwrite)

    def write(writer: ShardWriter, number: int) -> None:
        writer.write({"x": np.full(1 << 20, number, "float32"), "label": number})

    writer = ShardWriter(tmp_path / "d", fields, shard_samples=4)
    for number in range(sample):
        write(writer, number)
    with pytest.raises(StorageError, match="No space left"):
        write(writer, sample)
    for again in (lambda: write(writer, sample), writer.close):
        with pytest.raises(StorageError, match=r"this writer ended .*No space left"):
            again()
    assert not list((tmp_path / "d").glob("manifest*"))
    with ShardWriter(tmp_path / "d", fields, shard_samples=4) as writer:
        assert writer.resumed_samples == sample // 4 * 4
        for number in range(writer.resumed_samples, 12):
            write(writer, number)
    dataset = open_dataset(tmp_path / "d")
    batch = dataset.batch(np.arange(len(dataset)))
    assert batch["label"].tolist() == list(range(12))
    assert (batch["x"][:, 7] == np.arange(12)).all()
    assert verify_dataset(tmp_path / "d").ok


def test_floats_beyond_the_range_of_their_field_are_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "d", {"x": "float16", "y": "float32"}) as writer:
        for x, y in ((70000.0, 0.0), (0.0, 1e300), (0.0, -1e300)):
            with pytest.raises(DataError, match="beyond its range"):
                writer.write_batch({"x": np.array([1.0, x]), "y": np.array([1.0, y])})
        writer.write_batch({"x": np.array([np.inf, 1e-9]), "y": np.array([np.nan, 1e-300])})
    assert len(open_dataset(tmp_path / "d")) == 2


def test_reshard_with_other_sizes_waits_for_a_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the naming of its shards and its manifest, what another call has written is its own."""
    tools.produce(tmp_path / "d", 0, 40)
    dataset = open_dataset(tmp_path / "d")
    tried: list[HpcmassError] = []

    def place(*args: object) -> object:
        infos = real(*args)
        with pytest.raises(HpcmassError) as error:
            reshard(dataset, tmp_path / "new", shards=4)
        tried.append(error.value)
        return infos

    real = writing_commit._place
    monkeypatch.setattr(writing_commit, "_place", place)
    assert reshard(dataset, tmp_path / "new", shards=2).samples == 40
    assert [type(error) for error in tried] == [LeaseHeld]
    assert verify_dataset(tmp_path / "new").ok
    tools.check_samples(tmp_path / "new", list(range(40)))


def filters(folder: Path) -> dict[str, set[tuple[str | None, tuple[int, ...] | None]]]:
    """Of each field of a dataset h5py's own word for its compression and chunks."""
    found: dict[str, set[tuple[str | None, tuple[int, ...] | None]]] = {}
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path) as file:
            for name in file:
                if not name.startswith("_"):
                    found.setdefault(name, set()).add((file[name].compression, file[name].chunks))
    return found


@pytest.mark.parametrize("chunk", [None, 4])
def test_reshard_keeps_the_split_and_the_compression_unless_told_otherwise(
    tmp_path: Path, chunk: int | None
) -> None:
    save(tmp_path / "raw.npz", 0, 60)
    shard(tmp_path / "raw.npz", tmp_path / "d", shards=3, workers=1, splits={"train": 0.5, "valid": 0.5},
          compression="gzip-2", chunk_samples=chunk)  # fmt: skip
    dataset = open_dataset(tmp_path / "d" / "train")
    every = dataset.batch(np.arange(len(dataset)))
    for out, options in {"same": {}, "plain": {"compression": None}, "other": {"compression": "lzf"}}.items():
        manifest = reshard(dataset, tmp_path / out, shards=2, **options)
        assert manifest.split == "train"
        assert verify_dataset(tmp_path / out).ok
        again = open_dataset(tmp_path / out)
        for name, values in again.batch(np.arange(len(again))).items():
            np.testing.assert_array_equal(values, every[name])
    assert {one for of in filters(tmp_path / "plain").values() for one in of} == {(None, None)}
    assert {kind for of in filters(tmp_path / "other").values() for kind, _ in of} == {"lzf"}
    kept = filters(tmp_path / "same")
    assert {kind for of in kept.values() for kind, _ in of} == {"gzip"}
    assert {chunks[0] for of in kept.values() for _, chunks in of if chunks} == {chunk or 15}
    names = {
        c.compression for one in open_dataset(tmp_path / "same").manifest.shards for c in one.chunks.values()
    }
    assert names == {"gzip-2"}


def test_writers_compress_and_what_is_appended_is_as_the_rest(tmp_path: Path) -> None:
    fields = {"x": ("float32", (50,)), "tokens": ("uint16", (None,)), "label": "int64"}
    rows = [
        {"x": np.full(50, n), "tokens": np.arange(n % 7), "label": n % 3} for n in range(47)
    ]  # the last shard is not full
    for ranks in ({"rank": 0, "ranks": 2}, {"rank": 1, "ranks": 2}):
        with ShardWriter(tmp_path / "d", fields, shard_samples=20, compression="zstd-2", **ranks) as writer:
            for row in rows[writer.rank * 24 : 24 + writer.rank * 23]:
                writer.write(row)
    np.savez(tmp_path / "more.npz", x=np.zeros((30, 50), np.float32), label=np.zeros(30, np.int64),
             tokens=np.zeros(60, np.uint16), **{"tokens.offsets": np.arange(0, 61, 2)})  # fmt: skip
    append(tmp_path / "d", tmp_path / "more.npz")
    dataset = open_dataset(tmp_path / "d")
    assert [len(one.chunks) for one in dataset.manifest.shards] == [3] * 5
    assert {c.compression for one in dataset.manifest.shards for c in one.chunks.values()} == {"zstd-2"}
    assert verify_dataset(tmp_path / "d").ok
    for number, row in enumerate(rows):
        for name, value in row.items():
            np.testing.assert_array_equal(dataset[number][name], value)
    append(tmp_path / "d", tmp_path / "more.npz", name="plain", compression=None)
    assert not open_dataset(tmp_path / "d").manifest.shards[-1].chunks
    assert len(open_dataset(tmp_path / "d")) == 107
    with pytest.raises(DataError, match="unknown compression 'best'"):
        ShardWriter(tmp_path / "e", fields, compression="best")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("ragged", [False, True])
def test_a_compressed_shard_that_was_not_finished_leaves_nothing(tmp_path: Path, ragged: bool) -> None:
    fields = {"x": ("int64", (None,)) if ragged else "int64"}

    def rows(low: int, high: int) -> list[object]:
        return [[n] * (n % 4) if ragged else n for n in range(low, high)]

    with (
        contextlib.suppress(KeyboardInterrupt),
        ShardWriter(tmp_path / "d", fields, shard_samples=10, compression="gzip") as writer,
    ):
        writer.write_batch({"x": rows(0, 25)})
        raise KeyboardInterrupt
    with ShardWriter(tmp_path / "d", fields, shard_samples=10, compression="gzip") as writer:
        assert writer.resumed_samples == 20
        writer.write_batch({"x": rows(20, 35)})
    assert sorted(one.name for one in (tmp_path / "d").iterdir()) == [
        "manifest-000001.json", *(f"shard-{number:05d}.h5" for number in range(4))
    ]  # fmt: skip
    dataset = open_dataset(tmp_path / "d")
    assert [dataset[n]["x"].tolist() for n in range(35)] == rows(0, 35)
    with (
        pytest.raises(DataError, match="compression"),
        ShardWriter(tmp_path / "e", fields, ranks=2, compression="gzip"),
    ):
        ShardWriter(tmp_path / "e", fields, rank=1, ranks=2)


def test_reshard_says_where_it_came_from_and_begins_anew_for_other_sizes(tmp_path: Path) -> None:
    tools.produce(tmp_path / "d", 0, 50, shard_samples=1)
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset.manifest.shards) == 50

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    said = []
    for shards in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            reshard(dataset, tmp_path / "new", shards=shards, progress=stop, note=said.append)
    assert len(said) == 1
    assert "begins anew" in said[0]
    manifest = reshard(dataset, tmp_path / "new", shards=4, note=said.append)
    assert "goes on where it was interrupted: 50 samples" in said[1]
    assert [one.samples for one in manifest.shards] == [13, 13, 12, 12]
    assert (manifest.source["of"], manifest.source["kind"]) == (dataset.id, "reshard")
    tools.check_samples(tmp_path / "new", list(range(50)))
    with pytest.raises(AlreadyExists):
        reshard(dataset, tmp_path / "new", shards=4)
    with pytest.raises(DataError, match="cannot be cut into 51 shards"):
        reshard(dataset, tmp_path / "other", shards=51)
    assert json.loads((tmp_path / "new" / "manifest-000001.json").read_text())["id"] == manifest.id
