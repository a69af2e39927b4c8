"""Each kind of source with small real files; what cannot be read is refused with the place named."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcmass.data import append, open_dataset, shard
from hpcmass.data.reader import Dataset
from hpcmass.errors import CorruptError, DataError, NameNotAllowed, NotFound

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


def sharded(source: object, out: Path, **arguments: object) -> Dataset:
    """The source's samples in their own order."""
    shard(source, out, strategy="contiguous", shards=2, workers=1, **arguments)  # type: ignore[arg-type]
    return open_dataset(out, verify=True)


def everything(dataset: Dataset) -> dict[str, np.ndarray]:
    return dataset.batch(np.arange(len(dataset)))


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<u2", ">i4", "?", "<f2", "|i1"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(60).reshape(20, 3) % 5).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    got = everything(sharded(tmp_path / "x.npy", tmp_path / "out"))["x"]
    assert (got == values).all()
    assert got.dtype == np.dtype(dtype).newbyteorder("<")


def test_npy_in_fortran_order(tmp_path: Path) -> None:
    values = np.arange(120.0).reshape(20, 3, 2)
    np.save(tmp_path / "x.npy", np.asfortranarray(values))
    assert (everything(sharded(tmp_path / "x.npy", tmp_path / "out"))["x"] == values).all()


def test_several_npy_with_names(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(10.0))
    np.save(tmp_path / "two.npy", np.arange(10) % 2)
    dataset = sharded([f"signal={tmp_path}/one.npy", f"label={tmp_path}/two.npy"], tmp_path / "out")
    assert (dataset.inputs, dataset.targets) == (["signal"], ["label"])
    with pytest.raises(NameNotAllowed):
        shard([f"$(ls)={tmp_path}/one.npy"], tmp_path / "o")
    np.save(tmp_path / "short.npy", np.arange(9))
    with pytest.raises(DataError, match=r"short: 9"):
        shard([tmp_path / "one.npy", tmp_path / "short.npy"], tmp_path / "o")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: object) -> None:
    x = np.random.default_rng(0).random((50, 4, 4))
    save(tmp_path / "a.npz", x=x, y=np.arange(50) % 3)  # type: ignore[operator]
    dataset = sharded(tmp_path / "a.npz", tmp_path / "out")
    got = everything(dataset)
    assert (got["x"] == x).all()
    assert (got["y"] == np.arange(50) % 3).all()
    assert dataset.manifest.source["files"][0]["path"] == "a.npz"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest-000001.json",
        "shard-00000.h5",
        "shard-00001.h5",
    ]


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}, None], dtype=object))
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}, None], dtype=object))
    np.savez_compressed(tmp_path / "z.npz", x=np.array([{"a": 1}, None], dtype=object))
    for name in ("x.npy", "x.npz", "z.npz"):
        with pytest.raises(DataError, match="Python objects"):
            shard(tmp_path / name, tmp_path / "out")


def test_arrays_that_are_no_samples(tmp_path: Path) -> None:
    for number, (values, message) in enumerate(
        [
            (np.float64(3), "single value"),
            (np.array(["a", "b"]), "x holds text"),
            (np.ones(3, complex), "complex"),
            (np.ones((0, 3)), "no samples"),
            (np.ones((3, 0)), "length 0"),
        ]
    ):
        np.save(tmp_path / f"{number}.npy", values)
        with pytest.raises(DataError, match=message):
            shard([f"x={tmp_path / f'{number}.npy'}"], tmp_path / "out")


def test_damaged_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1000))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-10])
    with pytest.raises(CorruptError, match="truncated"):
        shard(tmp_path / "x.npy", tmp_path / "out")
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(CorruptError, match="not a valid"):
        shard(tmp_path / "x.npy", tmp_path / "out")
    np.savez_compressed(tmp_path / "z.npz", x=np.random.default_rng(0).random(5000))
    packed = bytearray((tmp_path / "z.npz").read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "z.npz").write_bytes(packed)
    with pytest.raises(CorruptError):
        shard(tmp_path / "z.npz", tmp_path / "out")
    (tmp_path / "z.npz").write_bytes(b"PK no zip")
    with pytest.raises(CorruptError, match="npz"):
        shard(tmp_path / "z.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hdf5_with_groups_chunks_and_compression(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, (40, 6, 5))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("scan/x", data=x.astype(">i2"), chunks=(7, 6, 5), compression="gzip", shuffle=True)
        file.create_dataset("label", data=np.arange(40) % 4)
        file["version"] = 3
    dataset = sharded(tmp_path / "a.h5", tmp_path / "out")
    assert (dataset.inputs, dataset.targets) == (["scan.x"], ["label"])
    assert (everything(dataset)["scan.x"] == x).all()
    shard(tmp_path / "a.h5", tmp_path / "two", strategy="contiguous", shards=2, workers=2)
    assert open_dataset(tmp_path / "two").id == dataset.id


def test_of_an_hdf5_file_only_what_is_named_has_to_fit(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["t"] = np.arange(40, dtype=np.float32).reshape(10, 4)
        file["y"] = np.arange(4)
        file["y"].make_scale()
        file["latitude"] = np.zeros(3)
    (manifest,) = shard(tmp_path / "a.nc", tmp_path / "one", inputs=["t"], workers=1)
    assert [(one.name, one.role) for one in manifest.fields] == [("t", "input")]
    with h5py.File(tmp_path / "a.nc", "a") as file:
        file["label"] = np.arange(10)
    (manifest,) = shard(tmp_path / "a.nc", tmp_path / "two", inputs=["t"], workers=1)
    assert [(one.name, one.role) for one in manifest.fields] == [("t", "input"), ("label", "target")]


def test_columns_of_words_are_inputs_where_they_are_categories(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("city,heat,y\nOslo,1.5,0\nRome,30,1\nOslo,2,0\nAthens,33,1\n")
    with pytest.raises(DataError, match="--category"):
        shard(tmp_path / "a.csv", tmp_path / "out", workers=1)
    for named in ({}, {"inputs": ["heat"]}):
        (manifest,) = shard(
            tmp_path / "a.csv", tmp_path / f"out{len(named)}", categories=["city"], **named, workers=1
        )
        fields = {one.name: one for one in manifest.fields}
        assert {name: one.role for name, one in fields.items()} == {
            "city": "input",
            "heat": "input",
            "y": "target",
        }
        assert fields["city"].classes == ["Athens", "Oslo", "Rome"]
    got = everything(open_dataset(tmp_path / "out0"))
    assert got["city"][np.argsort(got["heat"])].tolist() == [1, 1, 2, 0]


def test_hdf5_that_cannot_be_sharded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(5)
        file["z"] = np.arange(6)
        file["text"] = ["a", "b", "c", "d", "e"]
        lists = file.create_dataset("lists", 5, h5py.vlen_dtype(np.int64))
        lists[0] = [1, 2]
    with pytest.raises(DataError, match="variable length"):
        shard(tmp_path / "a.h5", tmp_path / "out")
    with pytest.raises(DataError, match="x: 5, z: 6"):
        shard(tmp_path / "a.h5", tmp_path / "out", inputs=["x", "z"], targets=[])
    with pytest.raises(DataError, match="text holds text \\('a', 'b', 'c', …\\), which is no input"):
        shard(tmp_path / "a.h5", tmp_path / "out", inputs=["x", "text"], targets=[])
    (manifest,) = shard(tmp_path / "a.h5", tmp_path / "out", inputs=["x"], targets=[])
    assert manifest.samples == 5
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(CorruptError, match="HDF5"):
        shard(tmp_path / "b.h5", tmp_path / "o")


def words_in(path: Path, x: np.ndarray, words: list[str]) -> list[Path]:
    """The same samples in files of every kind that holds arrays."""
    encoded = np.char.encode(np.array(words), "utf-8")
    np.savez(path / "a.npz", x=x, label=np.array(words))
    np.savez(path / "bytes.npz", x=x, label=encoded)
    np.savez_compressed(path / "packed.npz", x=x, label=np.array(words, ">U9"))
    for name, values in (("fixed.h5", encoded), ("variable.h5", words)):
        with h5py.File(path / name, "w") as file:
            file["x"], file["label"] = x, values
    return [path / name for name in ("a.npz", "bytes.npz", "packed.npz", "fixed.h5", "variable.h5")]


def test_words_in_arrays_are_classes(tmp_path: Path) -> None:
    words = [["dog", "öre", "ant"][n % 3] for n in range(30)]
    x = np.arange(30, dtype=np.float32)
    for number, path in enumerate(words_in(tmp_path, x, words)):
        (manifest,) = shard(path, tmp_path / f"out{number}", strategy="stratified", shards=2)
        label = {one.name: one for one in manifest.fields}["label"]
        assert (label.role, label.dtype, label.classes) == ("target", "int64", ["ant", "dog", "öre"])
        got = everything(open_dataset(tmp_path / f"out{number}"))
        assert [label.classes[one] for one in got["label"]] == [words[int(one)] for one in got["x"]]
    np.savez(tmp_path / "more.npz", x=x[:2], label=np.array(["öre", "dog"]))
    append(tmp_path / "out0", tmp_path / "more.npz")
    assert open_dataset(tmp_path / "out0").batch([30, 31])["label"].tolist() == [2, 1]
    np.savez(tmp_path / "new.npz", x=x[:2], label=np.array(["öre", "eel"]))
    with pytest.raises(DataError, match="has no class 'eel'"):
        append(tmp_path / "out0", tmp_path / "new.npz")


def test_an_hdf5_set_whose_values_are_another_files_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"a key of nobody else's")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros((4, 2), np.float32)
        file.create_dataset("y", (4,), "u1", external=[(str(tmp_path / "private"), 0, 4)])
    with pytest.raises(DataError, match="y has its values outside of HDF5, in "):
        shard(tmp_path / "a.h5", tmp_path / "out")
    (manifest,) = shard(tmp_path / "a.h5", tmp_path / "out", inputs=["x"], targets=[])
    assert manifest.samples == 4


def test_long_texts_are_no_words(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros((3, 2), np.float32)
        file["abstract"] = ["a", "b" * 100_000, "c"]  # 65,536 of them at once would be 32 GB
    with pytest.raises(DataError, match="holds texts of up to 100000 bytes") as caught:
        shard(tmp_path / "a.h5", tmp_path / "out", inputs=["x"], targets=["abstract"])
    assert "--input" in str(caught.value.hint)
    (manifest,) = shard(tmp_path / "a.h5", tmp_path / "out2", inputs=["x"], targets=[])
    assert manifest.samples == 3


def test_words_that_are_no_classes(tmp_path: Path) -> None:
    x = np.zeros((4, 2), np.float32)
    for label, message in (
        (np.array(["a", "", "b", "c"]), "field label, sample 1: the text is missing"),
        (np.array([b"a", b"\xff", b"b", b"c"]), "no UTF-8"),
        (np.array([["a", "b"]] * 4), "has type <U1"),
    ):
        np.savez(tmp_path / "a.npz", x=x, label=label)
        with pytest.raises(DataError, match=message):
            shard(tmp_path / "a.npz", tmp_path / "out")
    np.savez(
        tmp_path / "a.npz", x=x, y=np.zeros(4), notes=np.array([["a", "b"]] * 4), city=np.array(list("abab"))
    )
    (manifest,) = shard(tmp_path / "a.npz", tmp_path / "out", inputs=["x"])  # what is not named may be anything
    assert [(one.name, one.role) for one in manifest.fields] == [("x", "input"), ("y", "target")]
    with pytest.raises(DataError, match="city holds text"):
        shard(tmp_path / "a.npz", tmp_path / "b", inputs=["x", "city"])
    (manifest,) = shard(tmp_path / "a.npz", tmp_path / "b", inputs=["x"], categories=["city"])
    assert {one.name: one.classes for one in manifest.fields}["city"] == ["a", "b"]


def test_hdf5_links_are_followed_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    layout = h5py.VirtualLayout((6, 2), "f4")
    layout[:] = h5py.VirtualSource("part.h5", "deep/x", (6, 2))
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "part.h5", "w") as file:
        file["deep/x"] = x
    with h5py.File(tmp_path / "in" / "linked.h5", "w") as file:
        file["a"], file["y"] = h5py.ExternalLink("part.h5", "/deep/x"), np.arange(6)
        file["loop"], file["soft"] = file["/"], h5py.SoftLink("/y")
    with h5py.File(tmp_path / "in" / "virtual.h5", "w") as file:
        file["y"] = np.arange(6)
        file.create_virtual_dataset("a", layout)
    monkeypatch.chdir(tmp_path)
    for name in ("linked", "virtual"):
        (manifest,) = shard(f"in/{name}.h5", tmp_path / name, shards=1)
        assert [one["path"] for one in manifest.source["files"]] == [f"{name}.h5", "part.h5"]
        got = everything(open_dataset(tmp_path / name))
        assert sorted(got) == ["a", "y"]
        np.testing.assert_array_equal(got["a"], x[got["y"]])
    (manifest,) = shard("in/linked.h5", tmp_path / "named", inputs=["soft"])
    assert [one.name for one in manifest.fields] == ["soft", "y"]
    (tmp_path / "in" / "part.h5").unlink()
    with pytest.raises(DataError, match=r"data set a leads to /deep/x in part\.h5, which cannot be opened"):
        shard("in/linked.h5", tmp_path / "out")
    with pytest.raises(DataError, match=r"data set a is made of part\.h5, which is missing"):
        shard("in/virtual.h5", tmp_path / "out")
    shard("in/virtual.h5", tmp_path / "out", inputs=["y"], targets=[])


CSV = "width,height,colour,label\n1,1.5,red,cat\n2,2.5,blue,dog\n3,3.5,red,cat\n4,4.5,green,ant\n"


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(DataError, match="column colour holds text"):
        sharded(tmp_path / "a.csv", tmp_path / "no")
    dataset = sharded(tmp_path / "a.csv", tmp_path / "out", inputs=["width", "height"], meta=["colour"])
    got = everything(dataset)
    assert got["width"].tolist() == [1, 2, 3, 4]
    assert got["height"].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert dataset.classes("label") == ["ant", "cat", "dog"]
    assert got["label"].tolist() == [1, 2, 1, 0]
    assert dataset.classes("colour") == ["blue", "green", "red"]
    assert dataset.fields["label"].stats == {"count": 4, "class_counts": [1, 2, 1]}


def test_csv_columns_stacked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace("colour", "colour (of all)"))
    dataset = sharded(tmp_path / "a.csv", tmp_path / "out", stack=["height", "width"])
    got = everything(dataset)
    assert (dataset.inputs, dataset.targets) == (["x"], ["label"])
    assert got["x"].tolist() == [[1.5, 1.0], [2.5, 2.0], [3.5, 3.0], [4.5, 4.0]]
    dataset = sharded(tmp_path / "a.csv", tmp_path / "o2", stack=["height"], targets=["width"])
    assert (dataset.inputs, dataset.targets) == (["x"], ["width"])
    with pytest.raises(DataError, match="no column 'depth'"):
        shard(tmp_path / "a.csv", tmp_path / "o", stack=["depth"])
    with pytest.raises(DataError, match=r"colour .of all. holds string"):
        shard(tmp_path / "a.csv", tmp_path / "o", stack=["colour (of all)"])
    with pytest.raises(NameNotAllowed):
        shard(tmp_path / "a.csv", tmp_path / "o")


@pytest.mark.parametrize("bad", ["", "NaN", "NA"])
def test_missing_value_names_row_and_column(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace("3.5", bad))
    with pytest.raises(DataError, match=r"column height, row 3 \(line 4\): the value is missing") as caught:
        shard(tmp_path / "a.csv", tmp_path / "out")
    assert (caught.value.data["row"], caught.value.data["column"]) == (3, "height")
    (tmp_path / "a.csv").write_text(CSV.replace("green,ant", "green,"))
    with pytest.raises(DataError, match="column label, row 4"):
        shard(tmp_path / "a.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_csv_over_many_blocks(tmp_path: Path) -> None:
    # Whole numbers for longer than the first block of 4 MiB, then decimals; a new class at the very end.
    rows = [f"{number},{number % 7},c{number % 3}" for number in range(500_000)] + ["7,0.5,a"]
    (tmp_path / "a.csv").write_text("n,v,label\n" + "\n".join(rows) + "\n")
    got = everything(sharded(tmp_path / "a.csv", tmp_path / "out"))
    assert got["v"].dtype == np.float64
    assert got["v"][-1] == 0.5
    assert (got["n"][:-1] == np.arange(500_000)).all()
    assert got["label"].tolist()[-4:] == [1, 2, 3, 0] or got["label"][-1] == 0
    (tmp_path / "a.csv").write_text("n,v,label\n" + "\n".join(rows) + "\n8,oops,a\n")
    with pytest.raises(DataError, match=r"column v, line 500003: .*oops"):
        shard(tmp_path / "a.csv", tmp_path / "o")


def test_csv_that_is_no_table(tmp_path: Path) -> None:
    for text, message in [
        ("", "empty"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "CSV"),
        ("a,a\n1,2\n", "two columns"),
    ]:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            shard(tmp_path / "a.csv", tmp_path / "out")


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "label": ["x", "y", "x"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    dataset = sharded(tmp_path / "a.parquet", tmp_path / "out", stack=["b", "a"])
    got = everything(dataset)
    assert got["x"].tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]
    assert got["label"].tolist() == [0, 1, 0]
    pq.write_table(pa.table({"a": [1, None, 3]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column a, row 2: the value is missing"):
        shard(tmp_path / "b.parquet", tmp_path / "o")
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptError, match="Parquet"):
        shard(tmp_path / "c.parquet", tmp_path / "o")


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_image_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {}
    for number in range(6):
        name = f"{'cat' if number % 2 else 'ant'}/{number}.png"
        pixels[name] = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        write_image(tmp_path / "pictures" / name, pixels[name])
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("x")
    dataset = sharded(tmp_path / "pictures", tmp_path / "out")
    got = everything(dataset)
    assert dataset.classes("label") == ["ant", "cat"]
    assert got["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert got["image"].shape == (6, 3, 5, 7)
    for row, name in enumerate(sorted(pixels)):
        assert (got["image"][row] == np.moveaxis(pixels[name], 2, 0)).all()
    assert dataset.manifest.source["files"][0]["count"] == 6
    write_image(tmp_path / "pictures" / "cat" / "9.png", rng.integers(0, 255, (5, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="5x8") as caught:
        shard(tmp_path / "pictures", tmp_path / "o")
    assert str(caught.value.where).endswith("cat/9.png")
    (manifest,) = shard(tmp_path / "pictures", tmp_path / "small", resize=(4, 6), workers=2)
    assert manifest.fields[0].shape == (3, 4, 6)


def test_grey_and_damaged_images(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_image(folder / "a" / "1.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    got = everything_of_one(folder, tmp_path / "out")
    assert (got["image"][0, 0] == np.arange(64).reshape(8, 8)).all()
    (folder / "a" / "2.png").write_bytes(b"no image")
    with pytest.raises(CorruptError, match="not a readable image"):
        shard(folder, tmp_path / "o")
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "2.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(CorruptError, match="damaged image"):
        shard(folder, tmp_path / "o")
    write_image(folder / "a" / "2.png", np.zeros((8, 8), np.uint16))
    with pytest.raises(DataError, match="more than 8 bits"):
        shard(folder, tmp_path / "o")


def everything_of_one(source: Path, out: Path) -> dict[str, np.ndarray]:
    shard(source, out)
    return everything(open_dataset(out))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        shard(tmp_path / "a.npz", tmp_path / "out")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="not known"):
        shard(tmp_path / "a.txt", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        shard(tmp_path / "empty", tmp_path / "out")


def test_an_hdf5_file_can_be_written_again_after_it_was_sharded(tmp_path: Path) -> None:
    for number in range(2):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["x"] = np.full((4, 2), number, np.int64)
        (manifest,) = shard(tmp_path / "a.h5", tmp_path / f"d{number}", workers=1)
        assert manifest.fields[0].stats["max"] == number
