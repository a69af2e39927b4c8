"""Bytes to arrays and back, without a replica: what fits, what does not, and nothing else than `Refused`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.serve import protocol
from hpcmass.serve.interfaces import Field, Interface, Refused
from hpcmass.serve.protocol import DATATYPES, Schema

IMAGE = Schema(
    "m", "3", Interface((Field("x", "uint8", (2, 2)),), (Field("p", "float32", (3,)),), ("a", "b", "c")), rows=8
)
FREE = Schema("m", "1", Interface((Field("t", "int64", (-1,)),), (Field("y", "float32", ()),)), rows=4)


def body(**changes: object) -> bytes:
    one = {"name": "x", "datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3, 4], **changes}
    return json.dumps({"inputs": [{key: value for key, value in one.items() if value is not ...}]}).encode()


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[[1, 2], [3, 4]]], [1.0, 2.0, 3.0, 4.0]])
def test_numbers_flat_or_nested_become_the_inputs_type(data: list) -> None:
    request = IMAGE.parse(body(data=data), None)
    assert request.rows == 1
    assert request.arrays["x"].dtype == np.uint8
    assert request.arrays["x"].tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "y"}, "the model has no input 'y'; it takes x"),
        ({"name": 3}, "not an object with a 'name'"),
        ({"datatype": "FP32"}, "a datatype other than UINT8"),
        ({"shape": [1, 4]}, r"has shape \[1, 4\]; the model takes \[-1, 2, 2\]"),
        ({"shape": [True, 2, 2]}, "a list of whole numbers"),
        ({"shape": [-1, 2, 2]}, "a list of whole numbers"),
        ({"shape": [10**15, 2, 2]}, "rows; a request has 1 to 8"),
        ({"shape": [0, 2, 2], "data": []}, "0 rows; a request has 1 to 8"),
        ({"shape": [9, 2, 2]}, "9 rows; a request has 1 to 8"),
        ({"shape": [2, 2, 2]}, "or 8 numbers"),
        ({"data": [[1, 2], [3, 4]]}, "has shape"),
        ({"data": [1, 2, 3, 256]}, "no UINT8"),
        ({"data": [1, 2, 3, -1]}, "no UINT8"),
        ({"data": [1, 2, 3, 4.5]}, "no UINT8"),
        ({"data": [1, 2, 3, 1e300]}, "no UINT8"),
        ({"data": ["1", "2", "3", "4"]}, "no UINT8"),
        ({"data": [1, 2, 3, None]}, "no UINT8"),
        ({"data": [True, False, True, True]}, "no UINT8"),
        ({"data": [[1, 2], [3]]}, "not evenly nested"),
        ({"data": ...}, "no 'data'"),
        ({"parameters": []}, "not an object"),
        ({"parameters": {"binary_data_size": 4}}, "both 'data' and 'binary_data_size'"),
        ({"data": ..., "parameters": {"binary_data_size": 5}}, "4 bytes for UINT8"),
        ({"data": ..., "parameters": {"binary_data_size": 4}}, "the body ends within"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not offered"),
    ],
)
def test_what_does_not_fit_is_said_plainly(changes: dict, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        IMAGE.parse(body(**changes), None)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"inputs": {}}', b'{"inputs": []}', b"\xff\xfe", b"[" * 9000]
)
def test_no_request_at_all(text: bytes) -> None:
    with pytest.raises(Refused) as caught:
        IMAGE.parse(text, None)
    assert caught.value.status == 400


def test_twice_the_same_input_and_unknown_outputs() -> None:
    one = json.loads(body())["inputs"][0]
    for value, said in (
        ({"inputs": [one, one]}, "twice"),
        ({"inputs": [one], "outputs": [{"name": "q"}]}, "it gives p"),
        ({"inputs": [one], "outputs": [{"name": "p"}, {"name": "p"}]}, "twice"),
        ({"inputs": [one], "id": 3}, "'id'"),
        ({"inputs": [one], "parameters": {"binary_data_output": 1}}, "not true or false"),
        ({"inputs": [one], "outputs": [{"name": "p", "parameters": {"classification": 1}}]}, "not offered"),
    ):
        with pytest.raises(Refused, match=said):
            IMAGE.parse(json.dumps(value).encode(), None)


def test_a_binary_tensor_and_a_binary_answer() -> None:
    head = json.dumps({
        "id": "7",
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [2, 2, 2], "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    request = IMAGE.parse(head + bytes(range(8)), len(head))
    assert request.arrays["x"].ravel().tolist() == list(range(8))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts, size = IMAGE.answer(request, {"p": values})
    said = json.loads(parts[0])
    assert size == len(parts[0])
    assert said["id"] == "7"
    assert said["outputs"] == [
        {"name": "p", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    ]
    assert b"".join(parts[1:]) == values.tobytes()
    with pytest.raises(Refused, match="1 bytes follow"):
        IMAGE.parse(head + bytes(9), len(head))
    for wrong in (0, len(head) + 9):
        with pytest.raises(Refused, match="Inference-Header-Content-Length"):
            IMAGE.parse(head + bytes(8), wrong)


def test_an_answer_in_json() -> None:
    request = IMAGE.parse(body(), None)
    parts, size = IMAGE.answer(request, {"p": np.array([[0.5, 0.25, 0.25]], np.float32)})
    assert size is None
    assert json.loads(b"".join(parts)) == {
        "model_name": "m", "model_version": "3",
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.25, 0.25]}],
    }  # fmt: skip


def test_free_axes_are_computed_together_only_where_they_agree() -> None:
    def of(length: int) -> bytes:
        one = {"name": "t", "datatype": "INT64", "shape": [1, length], "data": [1] * length}
        return json.dumps({"inputs": [one]}).encode()

    assert FREE.parse(of(3), None).key == FREE.parse(of(3), None).key != FREE.parse(of(4), None).key
    assert FREE.parse(of(0), None).arrays["t"].shape == (1, 0)
    assert IMAGE.parse(body(), None).key == ()


@pytest.mark.parametrize("name", sorted(set(DATATYPES) - {"bool"}))
def test_every_type_goes_through_both_ways(name: str) -> None:
    schema = Schema("m", "1", Interface((Field("x", name, ()),), (Field("x", name, ()),)), rows=4)
    one = {"name": "x", "datatype": DATATYPES[name], "shape": [3], "data": [0, 1, 100]}
    request = schema.parse(json.dumps({"inputs": [one]}).encode(), None)
    assert request.arrays["x"].dtype == np.dtype(name)
    answer = json.loads(b"".join(schema.answer(request, request.arrays)[0]))
    assert answer["outputs"][0]["data"] == [0, 1, 100]


def test_bool_takes_true_and_false_only() -> None:
    schema = Schema("m", "1", Interface((Field("x", "bool", ()),), (Field("x", "bool", ()),)), rows=4)
    one = {"name": "x", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    request = schema.parse(json.dumps({"inputs": [one]}).encode(), None)
    assert json.loads(b"".join(schema.answer(request, request.arrays)[0]))["outputs"][0]["data"] == [
        True,
        False,
    ]
    with pytest.raises(Refused):
        schema.parse(json.dumps({"inputs": [{**one, "data": [1, 0]}]}).encode(), None)


def test_a_number_too_large_for_float32() -> None:
    schema = Schema("m", "1", Interface((Field("x", "float32", ()),), (Field("x", "float32", ()),)), rows=4)
    with pytest.raises(Refused, match="too large for FP32"):
        schema.parse(
            json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e300]}]}).encode(),
            None,
        )


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from(["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id"])
LIKE = st.fixed_dictionaries({
    "inputs": st.lists(
        st.fixed_dictionaries({
            "name": st.just("x") | JSONS, "datatype": st.just("UINT8") | JSONS,
            "shape": st.just([1, 2, 2]) | st.lists(st.integers(), max_size=5) | JSONS,
            "data": st.just([1, 2, 3, 4]) | st.lists(st.integers() | st.floats(), max_size=5) | JSONS,
        }) | st.dictionaries(KEYS, JSONS, max_size=5),
        max_size=2,
    ) | JSONS,
}, optional={"id": JSONS, "outputs": JSONS, "parameters": JSONS})  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(value=LIKE | JSONS, tail=st.binary(max_size=8), length=st.none() | st.integers(-5, 300))
def test_nothing_but_a_request_or_a_refusal_comes_of_any_body(
    value: object, tail: bytes, length: int | None
) -> None:
    text = json.dumps(value).encode("utf-8", "surrogatepass") + tail
    status = 400
    try:
        request = IMAGE.parse(text, length)
    except Refused as error:
        status = error.status
    else:
        assert request.arrays["x"].shape[1:] == (2, 2)
        assert request.arrays["x"].dtype == np.uint8
    assert status == 400


ODD = st.none() | st.booleans() | st.text(max_size=2) | st.floats() | st.integers(-(2**53), 2**53)


@given(name=st.sampled_from(sorted(set(DATATYPES) - {"bool"})), data=st.data())
@settings(max_examples=400, deadline=None)
def test_flat_numbers_read_quickly_are_those_read_slowly(name: str, data: st.DataObject) -> None:
    spec = protocol._Input(Field("x", name, ()))
    kind = np.dtype(name).kind
    plain = st.floats(-1e4, 1e4) if kind == "f" else st.integers(0, 130)
    values = data.draw(st.lists(plain, max_size=6)) + data.draw(st.lists(plain | ODD, max_size=3))
    found: list[object] = []
    for quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr(protocol, "_flat", lambda data, spec: None)
            try:
                made = protocol._from_json(values, spec, (len(values),))
                found.append((made.dtype.name, made.tobytes()))
            except Refused as error:
                found.append(error.message)
    assert found[0] == found[1], values
