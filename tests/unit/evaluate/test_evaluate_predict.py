"""Reading inputs from files, predicting, writing predictions."""

import csv
import json

import numpy as np
import pytest

from hpcmass.errors import DataError, HpcmassError, NotFound
from hpcmass.evaluate import Predictions, predict, predict_file, read_inputs


@pytest.fixture
def vector(make):
    return make.signature(("x", "float32", (4,)))


@pytest.fixture
def image(make):
    return make.signature(("image", "uint8", (6, 5)))


X = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_numpy_files(tmp_path, vector, image):
    np.save(tmp_path / "x.npy", X)
    assert (read_inputs(tmp_path / "x.npy", vector) == X).all()
    np.save(tmp_path / "one.npy", X[0])
    assert read_inputs(tmp_path / "one.npy", vector).shape == (1, 4)
    np.savez(tmp_path / "x.npz", x=X, label=[1, 2, 3])
    assert (read_inputs(tmp_path / "x.npz", vector) == X).all()
    np.savez(tmp_path / "only.npz", anything=X)
    assert (read_inputs(tmp_path / "only.npz", vector) == X).all()
    np.savez(tmp_path / "two.npz", a=X, b=X)
    with pytest.raises(DataError, match="no input 'x'"):
        read_inputs(tmp_path / "two.npz", vector)
    with pytest.raises(DataError, match=r"shape \(3, 4\), the model takes \(n, 6, 5\)"):
        read_inputs(tmp_path / "x.npy", image)


def test_nothing_is_unpickled(tmp_path, vector):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], dtype=object))
    for name in ("evil.npy", "evil.npz"):
        with pytest.raises(DataError):
            read_inputs(tmp_path / name, vector)
    assert not (tmp_path / "touched").exists()


def test_csv(tmp_path, vector, make):
    plain = "".join(",".join(map(str, row)) + "\n" for row in X.tolist())
    (tmp_path / "bare.csv").write_text(plain)
    (tmp_path / "head.csv").write_text("a,b,c,d\n" + plain)
    for name in ("bare.csv", "head.csv"):
        assert (read_inputs(tmp_path / name, vector) == X).all()
    named = make.signature(("d", "float64", ()), ("b", "int64", ()))
    found = read_inputs(tmp_path / "head.csv", named)
    assert found["d"].tolist() == [3, 7, 11]
    assert found["b"].tolist() == [1, 5, 9]
    assert found["b"].dtype == np.int64

    def refused(text, match, signature=vector):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=match):
            read_inputs(tmp_path / "bad.csv", signature)

    refused("a,b,c\n1,2,3\n", "exactly the 4 columns")
    refused("a,b,c,d\n1,2,3,4\n1,2,3\n", r"bad.csv:3: has 3 cells")
    refused("a,b,c,d\n1,2,3,4\n1,oh,3,4\n", r"bad.csv:3: input 'x': 'oh' is no number")
    refused("", "empty")
    refused("a,b,c,d\n1.5,2.5,3,4\n", "fractions", named)


def test_parquet(tmp_path, vector, make):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({f"c{i}": X[:, i] for i in range(4)}), tmp_path / "x.parquet")
    assert (read_inputs(tmp_path / "x.parquet", vector) == X).all()
    pq.write_table(pa.table({"x": X.tolist(), "label": [1, 2, 3]}), tmp_path / "list.parquet")
    assert (read_inputs(tmp_path / "list.parquet", vector) == X).all()
    pq.write_table(pa.table({"x": [1.0, None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError):
        read_inputs(tmp_path / "null.parquet", make.signature(("x", "float32", ())))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet"):
        read_inputs(tmp_path / "no.parquet", vector)


def test_json(tmp_path, vector, make):
    def read(value, signature=vector):
        (tmp_path / "x.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return read_inputs(tmp_path / "x.json", signature)

    for value in (X.tolist(), {"x": X.tolist()}, {"inputs": X.tolist()}, {"inputs": {"x": X.tolist()}}):
        assert (read(value) == X).all()
    assert read([1, 2, 3, 4]).shape == (1, 4)
    two = make.signature(("a", "float32", ()), ("b", "float32", (2,)))
    assert read({"a": [1], "b": [[1, 2]]}, two)["b"].shape == (1, 2)
    for bad in ("{", [[1, 2], [3]], ["a", "b", "c", "d"], {"y": 1, "z": 2}, [[1, 2, 3]], None):
        with pytest.raises(DataError):
            read(bad)
    with pytest.raises(DataError, match="differ in their number"):
        read({"a": [1, 2], "b": [[1, 2]]}, two)


def test_images(tmp_path, image, make):
    Image = pytest.importorskip("PIL.Image")
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    assert (read_inputs(tmp_path / "grey.png", image)[0] == pixels).all()
    rgb = np.stack([pixels, pixels + 1, pixels + 2], axis=-1)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    last, first = make.signature(("i", "uint8", (6, 5, 3))), make.signature(("i", "uint8", (3, 6, 5)))
    assert (read_inputs(tmp_path / "rgb.png", last)[0] == rgb).all()
    assert (read_inputs(tmp_path / "rgb.png", first)[0] == rgb.transpose(2, 0, 1)).all()
    assert read_inputs(tmp_path / "grey.png", make.signature(("i", "uint8", (1, 6, 5)))).shape == (1, 1, 6, 5)
    with pytest.raises(DataError, match="5 x 6 pixels, the model takes 8 x 6"):
        read_inputs(tmp_path / "grey.png", make.signature(("i", "uint8", (6, 8))))
    with pytest.raises(DataError, match="is an image"):
        read_inputs(tmp_path / "grey.png", make.signature(("i", "float32", (4,))))
    data = (tmp_path / "rgb.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a whole image"):
        read_inputs(tmp_path / "cut.png", last)


def test_what_is_no_input(tmp_path, vector):
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(DataError, match=r"known: \.csv"):
        read_inputs(tmp_path / "x.txt", vector)
    with pytest.raises(NotFound):
        read_inputs(tmp_path / "no.npy", vector)


def test_predictions_and_their_files(tmp_path, table, linear):
    np.save(tmp_path / "x.npy", table["x"])
    found = predict_file(linear, tmp_path / "x.npy", batch_size=100)
    assert linear.seen == [100] * 6
    expected = table["x"][:, :3].argmax(1)
    assert found.labels == ["abc"[i] for i in expected]
    assert (found.indices == expected).all()
    header, rows = found.table(2)
    assert header == ["sample", "label", "probability"]
    assert [row[1] for row in rows] == found.labels[:2]
    for suffix in ("json", "csv", "npz"):
        found.write(tmp_path / f"out.{suffix}")
    raw = json.loads((tmp_path / "out.json").read_text())
    assert raw["labels"] == found.labels
    assert raw["n"] == 600
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["label"] for row in rows] == found.labels
    assert float(rows[3]["p(b)"]) == pytest.approx(found.outputs[3, 1])
    with np.load(tmp_path / "out.npz") as file:
        assert (file["indices"] == expected).all()
        assert file["labels"].tolist() == found.labels
        assert file["probabilities"].shape == (600, 3)
    with pytest.raises(DataError, match=r"use \.json"):
        found.write(tmp_path / "out.xlsx")
    with pytest.raises(HpcmassError):
        found.write(tmp_path / "x.npy" / "out.csv")


def test_values(tmp_path, make, table):
    model = make.model(lambda x: x[:, :2] * 2, ("x", "float32", (4,)), task="regression")
    found = predict(model, table["x"])
    assert found.labels is None
    assert found.table(1)[0] == ["sample", "0", "1"]
    found.write(tmp_path / "v.csv")
    assert (tmp_path / "v.csv").read_text().splitlines()[0] == "sample,value_0,value_1"
    Predictions("regression", np.array([[np.nan]])).write(tmp_path / "nan.npz")
    with pytest.raises(DataError, match="NaN"):
        Predictions("regression", np.array([[np.nan]])).write(tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()
    with pytest.raises(DataError, match="no samples"):
        predict(model, table["x"][:0])


def test_nan_is_no_class(make, table):
    def model_of(task):
        return make.model(
            lambda x: np.where(x[:, :2] > x[1, 0], np.nan, 0.5),
            ("x", "float32", (4,)),
            classes=["a", "b"],
            task=task,
        )

    with pytest.raises(DataError, match="NaN or infinity for sample 0 and 1 more"):
        predict(model_of("classification"), np.array([[9, 0, 0, 0], [1, 0, 0, 0], [9, 9, 0, 0]], np.float32))
