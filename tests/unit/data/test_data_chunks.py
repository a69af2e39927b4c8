"""Compressed shards: what was written is what is read, in every way; damage is found and named, never a crash."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py._objects import phil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmass.cli.root import run
from hpcmass.data import (
    Dataset,
    Loader,
    Plan,
    ShardWriter,
    concat,
    epoch_ids,
    manifest,
    open_dataset,
    shard,
    verify_dataset,
)
from hpcmass.data.filters import (
    CHUNK_BYTES,
    INDEX_DTYPE,
    KINDS,
    block_elements,
    chunk_samples,
    parse_compression,
)
from hpcmass.data.manifest import INDEX_ENTRY_BYTES, INDEX_GROUP, Field
from hpcmass.data.orders import make_order, read_labels
from hpcmass.data.reading import decode
from hpcmass.data.reading.choose import Facts, choose
from hpcmass.data.reading.filesystem import FileSystem
from hpcmass.errors import CorruptError, DataError

WAYS = ["map", "pread", "block", "direct", "memory"]
NAMES = ["bitshuffle-lz4", "gzip-1", "lzf", "zstd-2"]
DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def plain(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The samples as h5py and hdf5plugin alone read them."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path, "r") as file:
            for name in file:
                if name != INDEX_GROUP:
                    parts.setdefault(name, []).append(file[name][()])
    return {name: np.concatenate(arrays)[ids] for name, arrays in parts.items()}


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        assert array.tobytes() == expected[name].tobytes(), name


def arrays(samples: int) -> dict[str, np.ndarray]:
    """A label, odd rows, rows of several a chunk, rows of several blocks a chunk, with something to compress."""
    random = np.random.default_rng(0)
    steps = random.integers(-2, 3, (samples, 17_000)).cumsum(axis=1)
    return {
        "label": np.arange(samples) % 5,
        "odd": random.integers(0, 9, (samples, 3)).astype(np.int16),
        "middle": steps[:, :300].astype(np.float64),
        "uneven": steps[:, :1021].astype(np.uint8),
        "wide": steps.astype(np.float32),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 60 samples in three shards, plain and in every compression."""
    base = tmp_path_factory.mktemp("chunks")
    np.savez(base / "a.npz", **arrays(60))
    shard(base / "a.npz", base / "plain", shards=3, workers=1)
    for name in NAMES:
        shard(base / "a.npz", base / name, shards=3, workers=1, compression=name)
    return base


def copy(base: Path, name: str, to: Path) -> Path:
    folder = to / name
    folder.mkdir()
    for path in (base / name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# -- round trips ----------------------------------------------------------------------------------------
@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], int]:
    samples = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    fields = {}
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.sampled_from([(), (1,), (3,), (8,), (5, 7), (300,), (2, 20, 50), (9001,)]))
        top = draw(st.sampled_from([2, 100]))
        fields[f"f{number}"] = random.integers(0, 2 if dtype == "?" else top, (samples, *shape)).astype(dtype)
    return fields, draw(st.integers(1, min(samples, 3)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), made=datasets(), name=st.sampled_from([None, *NAMES]), way=st.sampled_from(WAYS),
    chunk=st.none() | st.integers(1, 50),
)  # fmt: skip
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, made: tuple[Any, int], name: str | None,
    way: str, chunk: int | None,
) -> None:  # fmt: skip
    fields, shards = made
    base = tmp_path_factory.mktemp("any")
    np.savez(base / "a.npz", **fields)
    shard(
        base / "a.npz", base / "out", strategy="contiguous", shards=shards, workers=1, compression=name,
        chunk_samples=chunk if name else None,
    )  # fmt: skip
    dataset = open_dataset(base / "out", verify=True)
    everything = np.arange(len(dataset))
    same(plain(base / "out", everything), fields)
    same(dataset.batch(everything), fields)
    same(dataset.batch([]), {key: values[:0] for key, values in fields.items()})
    numbers = st.lists(st.integers(0, len(dataset) - 1), max_size=40)
    plan = data.draw(st.lists(numbers, max_size=8))
    loader = Loader(
        dataset, plan, read=way, threads=data.draw(st.none() | st.integers(1, 3)),
        unit_bytes=data.draw(st.none() | st.sampled_from([1, 1000, 100_000])),
        block=data.draw(st.none() | st.integers(1, 9)),
        pool_bytes=data.draw(st.sampled_from([1, 9_000, 50_000, 1 << 22])),
    )  # fmt: skip
    seen = []
    for ids, batch in loader:
        seen.append(ids.tolist())
        same(batch, {key: values[ids] for key, values in fields.items()})
    assert seen == plan


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["global", "block"])
def test_the_same_batches_as_h5py_in_the_same_order(base: Path, name: str, way: str, order: str) -> None:
    dataset = open_dataset(base / name)
    made = make_order(order, dataset, seed=3, batch=16)
    plan = Plan(lambda a, b: made.ids(1, a, b), 0, 60, 16)
    with Loader(dataset, plan, read=way, block=getattr(made, "block", None)) as loader:
        for ids, batch in loader:
            same(batch, plain(base / name, ids))
    with Loader(open_dataset(base / "plain"), plan) as loader:
        for ids, batch in loader:
            same(dataset.batch(ids), batch)


@pytest.mark.parametrize("way", WAYS)
def test_plain_and_differently_compressed_shards_together(base: Path, way: str) -> None:
    both = concat([open_dataset(base / name) for name in ("plain", *NAMES)])
    ids = np.random.default_rng(0).integers(0, len(both), 200)
    ((_, batch),) = Loader(both, [ids], read=way)
    same(batch, plain(base / "plain", ids % 60))
    same(both.batch(ids), batch)


def test_parts_copies_and_labels(base: Path) -> None:
    dataset = open_dataset(base / "bitshuffle-lz4")
    ids = np.array([7, 3, 3, 19])
    part = dataset.subset_shards([1])
    same(part.batch(ids), dataset.batch(ids + dataset.shard_ranges()[1].start))
    same(pickle.loads(pickle.dumps(dataset)).batch(ids), dataset.batch(ids))
    labels = read_labels(open_dataset(base / "bitshuffle-lz4"), "label")
    assert labels.tolist() == read_labels(open_dataset(base / "plain"), "label").tolist()
    order = make_order("stratified", open_dataset(base / "zstd-2"), batch=10, field="label")
    assert sorted(order.ids(0, 0, 60).tolist()) == list(range(60))


# -- what is written ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_for_any_number_of_workers(base: Path, tmp_path: Path, name: str) -> None:
    shard(base / "a.npz", tmp_path / "out", shards=3, workers=2, compression=name)
    assert open_dataset(tmp_path / "out").id == open_dataset(base / name).id
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (base / name).iterdir()
    )


def test_the_manifest_says_how_and_old_versions_refuse_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = json.loads((base / "bitshuffle-lz4" / "manifest-000001.json").read_text())
    entry = value["shards"][0]
    assert value["format"] == 2
    assert entry["offsets"] == {}
    chunks = entry["chunks"]["middle"]
    assert (chunks["compression"], chunks["samples"]) == ("bitshuffle-lz4", 1)
    with h5py.File(base / "bitshuffle-lz4" / entry["file"]) as file:
        item = file["middle"]
        assert item.chunks == (1, 300)
        assert item.id.get_create_plist().get_filter(0)[0] == hdf5plugin.Bitshuffle().filter_id
        stored = sum(item.id.get_chunk_info(number).size for number in range(item.id.get_num_chunks()))
        assert chunks["bytes"] == stored < item.nbytes
    assert INDEX_DTYPE.itemsize == INDEX_ENTRY_BYTES
    monkeypatch.setattr(manifest, "FORMAT", 1)
    with pytest.raises(DataError, match="format 2, newer than this hpcmass knows"):
        open_dataset(base / "bitshuffle-lz4")
    old = json.loads((base / "plain" / "manifest-000001.json").read_text())
    assert old["format"] == 1
    assert "chunks" not in old["shards"][0]
    open_dataset(base / "plain")


def test_names_and_sizes() -> None:
    assert [parse_compression(name).name for name in KINDS] == ["bitshuffle-lz4", "gzip-4", "lzf", "zstd-3"]
    for wrong in ("", "gzip-0", "gzip-10", "lzf-1", "zstd-23", "bitshuffle-lz4-1", "blosc", "gzip-"):
        with pytest.raises(DataError, match="unknown compression"):
            parse_compression(wrong)
    quick = parse_compression("bitshuffle-lz4")
    for shape in [(), (3,), (28, 28), (3, 32, 32), (128, 128), (3, 512, 512)]:
        one = Field("x", "uint8", shape)
        many = chunk_samples(one, 10_000, quick)
        assert many == 1 or many * one.row_bytes <= CHUNK_BYTES["bitshuffle-lz4"]
        assert block_elements(one, many) % 8 == 0
        assert chunk_samples(one, 2, quick) <= 2
        assert chunk_samples(one, 10_000, quick, 77) == 77
    with pytest.raises(DataError, match="HDF5's limit"):
        chunk_samples(Field("x", "float64", (1 << 29,)), 5, quick)


def test_wrong_arguments_leave_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown compression"):
        shard(base / "a.npz", tmp_path / "out", compression="zip")
    with pytest.raises(DataError, match="only compressed shards"):
        shard(base / "a.npz", tmp_path / "out", chunk_samples=3)
    with pytest.raises(DataError, match="not possible"):
        shard(base / "a.npz", tmp_path / "out", compression="lzf", chunk_samples=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bitshuffle", "zstd", "gzip", "lzf", "blosc"])
def test_compressed_files_of_others_are_a_source(tmp_path: Path, name: str) -> None:
    how: dict[str, Any] = {
        "bitshuffle": hdf5plugin.Bitshuffle(),
        "zstd": hdf5plugin.Zstd(),
        "blosc": hdf5plugin.Blosc(),
    }
    values = np.arange(600, dtype=np.int32).reshape(60, 10)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(7, 4), **(how.get(name) or {"compression": name}))
    # In a process of its own: this one has the filters already.
    code = f"""
        import sys
        from pathlib import Path
        from hpcmass.data import shard
        base = Path({str(tmp_path)!r})
        shard(base / "a.h5", base / "out", shards=1, strategy="contiguous", workers=1)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert (open_dataset(tmp_path / "out").batch(range(60))["x"] == values).all()


# -- damage ---------------------------------------------------------------------------------------------
def chunk_place(folder: Path, name: str, number: int) -> tuple[Path, int, int]:
    """The first shard, and where a chunk lies in it."""
    path = folder / "shard-00000.h5"
    with h5py.File(path) as file:
        row = file[INDEX_GROUP][name][number]
    return path, int(row["offset"]), int(row["size"])


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ bits]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_found_and_named(base: Path, tmp_path: Path, name: str, where: float) -> None:
    folder = copy(base, name, tmp_path)
    path, offset, size = chunk_place(folder, "wide", 4)
    flip(path, offset + round(where * (size - 1)))
    report = verify_dataset(folder)
    assert any(problem.file == path and "checksum" in problem.message for problem in report.problems)
    assert any("data set wide" in problem.message for problem in report.problems)
    for way in WAYS:
        dataset = open_dataset(folder)
        with pytest.raises(CorruptError, match=r"field wide, chunk 4 \(samples 4 … 4 of the shard\)") as caught:
            for _ in Loader(dataset, [np.arange(30)], read=way):
                pass
        assert caught.value.where == str(path)
    with pytest.raises(CorruptError, match="field wide, chunk 4"):
        open_dataset(folder).batch([4])
    open_dataset(folder).batch([5])


@pytest.mark.parametrize("what", ["offset", "size"])
def test_a_damaged_table_is_found_and_named(base: Path, tmp_path: Path, what: str) -> None:
    folder = copy(base, "bitshuffle-lz4", tmp_path)
    place = open_dataset(folder).manifest.shards[0].chunks["wide"].index
    flip(folder / "shard-00000.h5", place + 2 * INDEX_ENTRY_BYTES + (7 if what == "offset" else 11), 0x80)
    with pytest.raises(CorruptError, match=r"field wide, chunk 2 .*lies outside the file"):
        open_dataset(folder).batch([0])
    assert not verify_dataset(folder).ok


@pytest.mark.parametrize("way", ["map", "pread", "block", "direct"])
def test_a_shard_cut_off_within_an_epoch(base: Path, tmp_path: Path, way: str) -> None:
    folder = copy(base, "bitshuffle-lz4", tmp_path)
    dataset = open_dataset(folder)
    plan = Plan(lambda a, b: np.arange(a, b) % 60, 0, 9000, 8)
    path = folder / "shard-00001.h5"
    with Loader(dataset, plan, read=way, pool_bytes=1, unit_bytes=1) as loader:
        next(loader)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 3)
        with pytest.raises(CorruptError) as caught:
            for _ in loader:
                pass
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("bitshuffle-lz4", field) for field in ("middle", "uneven", "wide")),
        ("gzip-1", "middle"),
        ("zstd-2", "middle"),
        ("lzf", "middle"),
    ],
)
def test_no_damage_to_a_chunk_crashes_its_decoder(base: Path, name: str, field: str) -> None:
    # In a process of its own, which a read or write out of bounds would end with a signal.
    code = f"""
        import h5py, numpy as np
        from hpcmass.data import open_dataset
        from hpcmass.data.filters import parse_compression
        from hpcmass.data.reading.decode import BadChunk, decoder_for
        dataset = open_dataset({str(base / name)!r})
        one, info = dataset.fields[{field!r}], dataset.manifest.shards[0].chunks[{field!r}]
        decoder = decoder_for(parse_compression(info.compression), info.samples * one.row_bytes, one.numpy_dtype.itemsize)
        with h5py.File(dataset.folders[0] / dataset.manifest.shards[0].file) as file:
            good = file[{field!r}].id.read_direct_chunk((0,) * file[{field!r}].ndim)[1]
        random = np.random.default_rng(0)
        out = np.empty((3, decoder.chunk_bytes), np.uint8)
        refused = 0
        for number in range(600):
            bad = bytearray(good)
            for _ in range(random.integers(1, 4)):
                at = random.integers(0, len(bad)) if number % 2 else random.integers(0, min(40, len(bad)))
                bad[at] = random.choice([0, 1, 127, 128, 255, random.integers(0, 256)])
            if number % 5 == 0:
                bad = bad[: random.integers(0, len(bad))]
            elif number % 5 == 1:
                bad += bytes(random.integers(1, 30))
            try:
                decoder.decode([memoryview(good), memoryview(bad), memoryview(good)], [0, int(number % 97 == 0), 0], out)
            except BadChunk as error:
                refused += 1
                assert error.number == 1, error
        assert refused > 100, refused
        decoder.decode([memoryview(good)], [0], out[:1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def changed(good: bytes, at: int, value: int, size: int) -> bytes:
    return good[:at] + value.to_bytes(size, "big") + good[at + size :]


@pytest.mark.parametrize("field", ["middle", "uneven", "wide"])
def test_what_a_chunk_says_of_its_sizes_is_checked_before_it_is_decoded(base: Path, field: str) -> None:
    dataset = open_dataset(base / "bitshuffle-lz4")
    one, info = dataset.fields[field], dataset.manifest.shards[0].chunks[field]
    kind, itemsize = parse_compression(info.compression), one.numpy_dtype.itemsize
    decoder = decode.decoder_for(kind, info.samples * one.row_bytes, itemsize)
    path, offset, size = chunk_place(base / "bitshuffle-lz4", field, 0)
    good = path.read_bytes()[offset : offset + size]
    out = np.empty((1, decoder.chunk_bytes), np.uint8)
    decoder.decode([memoryview(good)], [0], out)
    assert isinstance(decoder, decode.BitshuffleDecoder)

    def called(*arguments: object) -> int:
        raise AssertionError("C was called")

    decoder._call = called
    block = int.from_bytes(good[12:16], "big")
    wrong = [
        changed(good, 0, decoder.chunk_bytes + itemsize, 8), changed(good, 0, 1 << 63, 8), changed(good, 8, 0, 4),
        changed(good, 8, 3 * itemsize, 4), changed(good, 12, block + 1, 4), changed(good, 12, block - 1, 4),
        changed(good, 12, (1 << 32) - 1, 4), good[:-1], good[:12], good[:3], b"", good + b"x",
    ]  # fmt: skip
    for raw in wrong:
        with pytest.raises(decode.BadChunk):
            decoder.decode([memoryview(raw)], [0], out)
    with pytest.raises(decode.BadChunk):
        decoder.decode([memoryview(good)], [1], out)


# -- how it is read -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bitshuffle-lz4", "gzip-1", "zstd-2"])
@pytest.mark.parametrize("way", WAYS)
def test_no_lock_of_h5py_is_taken(base: Path, name: str, way: str) -> None:
    dataset = open_dataset(base / name)
    taken, give_back = threading.Event(), threading.Event()
    in_time = []

    def hold() -> None:
        with phil:
            taken.set()
            in_time.append(give_back.wait(240))

    # What earlier tests left in reference cycles takes the lock when it is collected, whoever's turn it is.
    gc.collect()
    gc.disable()
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(120)
        with Loader(dataset, [np.arange(60)[::-1]], read=way) as loader:
            next(loader)
    finally:
        give_back.set()
        thread.join()
        gc.enable()
    assert in_time == [True], "the loader waited for h5py's lock"


@pytest.mark.parametrize("name", ["bitshuffle-lz4", "zstd-2"])
def test_without_the_libraries_hdf5_decodes(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(decode, "_bitshuffle", lambda: None)
    monkeypatch.setattr(decode, "_zstd", lambda: None)
    dataset = open_dataset(base / name)
    ids = np.arange(60)[::-2]
    with Loader(dataset, [ids], read="pread") as loader:
        same(next(loader).arrays, plain(base / "plain", ids))


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    real = decode.BitshuffleDecoder.decode

    def counted(self: Any, raw: Any, masks: Any, out: Any) -> None:
        decoded.append(len(raw))
        real(self, raw, masks, out)

    monkeypatch.setattr(decode.BitshuffleDecoder, "decode", counted)
    return decoded


@pytest.mark.parametrize("way", ["map", "pread"])
def test_chunks_in_the_pool_are_decoded_once(base: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    dataset = open_dataset(base / "bitshuffle-lz4")
    wide = [name for name in dataset.fields if name not in ("label", "odd")]
    chunks = sum(-(-s.samples // s.chunks[name].samples) for s in dataset.manifest.shards for name in wide)
    dataset.whole("label"), dataset.whole("odd")
    decoded = count_decoded(monkeypatch)
    plan = [epoch_ids("global", 60, 0, epoch, low, low + 10) for epoch in range(3) for low in range(0, 60, 10)]
    with Loader(dataset, plan, read=way, unit_bytes=1, threads=1) as loader:
        for ids, batch in loader:
            same(batch, plain(base / "plain", ids))
        assert loader.choice.pool_bytes >= loader.buffer_bytes - 64 * 1024 * 1024
    assert sum(decoded) == chunks
    decoded.clear()
    with Loader(dataset, plan, read=way, unit_bytes=1, threads=1, pool_bytes=1 << 20) as loader:
        for ids, batch in loader:
            same(batch, plain(base / "plain", ids))
        assert loader.buffer_bytes < 5 << 20
    assert sum(decoded) > chunks


def test_a_block_has_several_chunks(base: Path, tmp_path: Path) -> None:
    shard(base / "a.npz", tmp_path / "out", shards=1, workers=1, compression="gzip-1", chunk_samples=4)
    order = make_order("block", open_dataset(tmp_path / "out"), batch=8)
    assert getattr(order, "block", 0) >= 15  # 60 samples in blocks of 16 at least, made equal
    assert getattr(make_order("block", open_dataset(base / "gzip-1"), batch=8), "block", 0) < 15


def test_the_choice_for_compressed_data() -> None:
    local, shared = FileSystem("xfs", True), FileSystem("lustre", False)
    small = choose(Facts((local,), 20, 100, None, False, 1, 10))
    assert (small.way, small.pool_bytes) == ("memory", 0)
    assert "decoded once" in small.why
    assert choose(Facts((local,), 100, 100, None, False, 1, 70)).way == "map"
    assert choose(Facts((local,), 100, 100, None, False, 1, 70), pool_bytes=5).pool_bytes == 5
    found = choose(Facts((local,), 100, 100, None, True, 1, 70))
    assert found.way == "block"
    assert "compressed" in found.why
    assert choose(Facts((local,), 100, 100, None, False, 1, 90)).way == "pread"
    assert choose(Facts((shared,), 100, 100, None, False, 1, 10)).way == "pread"
    assert choose(Facts((local,), 100, 100, None, False, 1, 70), cores=8).threads == 4


def test_on_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["shard", str(base / "a.npz"), "--out", str(out), "--shards", "2", "--workers", "1"]
    assert run([*words, "--compression", "snappy"]) != 0
    assert "unknown compression 'snappy'" in capsys.readouterr().err
    assert run([*words, "--compression", "zstd", "--chunk-samples", "4"]) == 0
    assert open_dataset(out).manifest.shards[1].chunks["wide"].samples == 4
    assert run(["data", "show", str(out)]) == 0
    assert "zstd-3, 4 a" in " ".join(capsys.readouterr().out.split())
    assert run(["data", "verify", str(out)]) == 0
    for way in WAYS:
        assert run(["data", "explain", str(out), "--read", way]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "chunks of 4 samples (272000 bytes) of wide, zstd-3" in said
        assert ("limited by memory" in said) == (way == "memory")


def test_a_dataset_is_the_same_value(base: Path) -> None:
    dataset = open_dataset(base / "gzip-1")
    assert isinstance(dataset, Dataset)
    assert dataset[3]["wide"].shape == (17_000,)
    assert [len(part["label"]) for part in dataset.batches(40)] == [40, 20]


@pytest.mark.parametrize("way", ["map", "pread"])
def test_an_addition_that_is_not_compressed_leaves_the_pool_to_the_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    old = open_dataset(base / "bitshuffle-lz4")
    first = old.batch(np.arange(len(old)))
    shutil.copytree(base / "bitshuffle-lz4", tmp_path / "d")
    with ShardWriter(tmp_path / "d", append="more", compression=None) as writer:
        writer.write_batch({name: values[:20] for name, values in first.items()})
    dataset = open_dataset(tmp_path / "d")
    wide = [name for name in dataset.fields if name not in ("label", "odd")]
    chunks = sum(-(-s.samples // s.chunks[name].samples) for s in old.manifest.shards for name in wide)
    dataset.whole("label"), dataset.whole("odd")
    decoded = count_decoded(monkeypatch)
    plan = [epoch_ids("global", 80, 0, 0, low, low + 10) for low in range(0, 80, 10)]
    with Loader(dataset, plan, read=way, unit_bytes=1, threads=1) as loader:
        for ids, batch in loader:
            same(batch, {name: values[np.where(ids < 60, ids, ids - 60)] for name, values in first.items()})
    assert sum(decoded) == chunks
