"""Open Inference Protocol v2: a request's bytes into arrays held against the model's interface, and back.

JSON, and the extension for binary tensors: the JSON comes first, `Inference-Header-Content-Length` bytes of
it, then the bytes of each tensor whose `parameters` say `binary_data_size`, in the order of the JSON. Pure:
no input and no output here.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from hpcmass.serve.interfaces import ANY, Array, Field, Interface, Refused

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_CODES = {
    "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "uint64": "Q", "int64": "q",
}  # fmt: skip
_WRITE = orjson.OPT_SERIALIZE_NUMPY
_AXES = 32


class Wanted(NamedTuple):
    """An output that is to be sent, as raw bytes or in the JSON."""

    name: str
    binary: bool


class Request(NamedTuple):
    """A request that fits the model.

    Attributes:
        id: The client's own, or None.
        rows: Samples, 1 or more.
        arrays: By input name, (rows, *shape); they may be read-only.
        outputs: What is to be sent back.
        key: Requests with the same key may be computed together.
    """

    id: str | None
    rows: int
    arrays: dict[str, Array]
    outputs: tuple[Wanted, ...]
    key: tuple[tuple[int, ...], ...]


class _Input:
    def __init__(self, field: Field) -> None:
        self.name = field.name
        self.shape = field.shape
        self.dtype = np.dtype(field.dtype).newbyteorder("<")
        self.datatype = datatype_of(field)
        self.free = ANY in field.shape


def datatype_of(field: Field) -> str:
    """The protocol's word for a field's type.

    Raises:
        Refused: It has none.
    """
    try:
        return DATATYPES[field.dtype]
    except KeyError:
        raise Refused(500, f"{field.name!r} is {field.dtype}, which the protocol has no word for") from None


class Schema:
    """One model's side of the protocol.

    Args:
        name: The model's.
        version: The version's, as text.
        interface: What it takes and gives.
        rows: Samples in one request, at most.
    """

    def __init__(self, name: str, version: str, interface: Interface, rows: int) -> None:
        self.name, self.version, self.rows = name, version, rows
        self.interface = interface
        self._inputs = {field.name: _Input(field) for field in interface.inputs}
        self._outputs = {field.name: datatype_of(field) for field in interface.outputs}
        self._all = {binary: tuple(Wanted(name, binary) for name in self._outputs) for binary in (False, True)}
        self._free = any(spec.free for spec in self._inputs.values())

    def metadata(self, platform: str, runtime: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What `v2/models/NAME` says."""
        sides = (("inputs", self.interface.inputs), ("outputs", self.interface.outputs))
        listed = {
            side: [{"name": f.name, "datatype": datatype_of(f), "shape": [ANY, *f.shape]} for f in fields]
            for side, fields in sides
        }
        said: dict[str, Any] = {"name": self.name, "versions": [self.version], "platform": platform, **listed}
        parameters: dict[str, Any] = {"runtime": dict(runtime)} if runtime else {}
        if self.interface.classes is not None:
            parameters["classes"] = list(self.interface.classes)
        return {**said, "parameters": parameters} if parameters else said

    # -- a request --------------------------------------------------------------------------------------
    def parse(self, body: bytes, json_bytes: int | None) -> Request:
        """Read a request.

        Args:
            body: All of it.
            json_bytes: How many bytes of it are JSON, where the header says so; the rest are tensors.

        Raises:
            Refused: It is not what the protocol or the model asks for; the message says where.
        """
        text: Any = body
        if json_bytes is not None:
            if not 0 < json_bytes <= len(body):
                raise Refused(400, f"Inference-Header-Content-Length is not 1 to {len(body)}")
            text = memoryview(body)[:json_bytes]
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
            raise Refused(400, "the body is not an object with a list 'inputs'")
        identity = value.get("id")
        if identity is not None and (not isinstance(identity, str) or len(identity) > 200):
            raise Refused(400, "'id' is not a text of at most 200 characters")
        arrays, rows = self._arrays(value["inputs"], body, json_bytes)
        key = tuple(array.shape[1:] for array in arrays.values()) if self._free else ()
        return Request(identity, rows, arrays, self._wanted(value), key)

    def _arrays(self, listed: list[Any], body: bytes, json_bytes: int | None) -> tuple[dict[str, Array], int]:
        found: dict[str, Array] = {}
        at = len(body) if json_bytes is None else json_bytes
        rows: int | None = None
        for one in listed:
            spec = self._spec(one, found)
            shape = self._shape(one, spec)
            if rows is None:
                rows = shape[0]
            elif shape[0] != rows:
                raise Refused(400, f"input {spec.name!r} has {shape[0]} rows, another one {rows}")
            size = _parameters(one, spec.name).get("binary_data_size")
            if size is None:
                found[spec.name] = _from_json(one.get("data"), spec, shape)
                continue
            if "data" in one:
                raise Refused(400, f"input {spec.name!r} has both 'data' and 'binary_data_size'")
            wanted = math.prod(shape) * spec.dtype.itemsize
            if type(size) is not int or size != wanted:
                text = f"{wanted} bytes for {spec.datatype} {list(shape)}"
                raise Refused(400, f"input {spec.name!r} has a binary_data_size other than {text}")
            if at + size > len(body):
                raise Refused(400, f"the body ends within input {spec.name!r}")
            found[spec.name] = np.frombuffer(body, spec.dtype, math.prod(shape), at).reshape(shape)
            at += size
        if at != len(body):
            raise Refused(400, f"{len(body) - at} bytes follow the last tensor")
        if rows is None or len(found) != len(self._inputs):
            missing = ", ".join(name for name in self._inputs if name not in found)
            raise Refused(400, f"the model also takes input {missing}")
        return {name: found[name] for name in self._inputs}, rows

    def _spec(self, one: Any, found: Mapping[str, Array]) -> _Input:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise Refused(400, "an input is not an object with a 'name'")
        spec = self._inputs.get(one["name"])
        if spec is None:
            known = ", ".join(self._inputs)
            raise Refused(400, f"the model has no input {one['name'][:100]!r}; it takes {known}")
        if spec.name in found:
            raise Refused(400, f"input {spec.name!r} is there twice")
        if one.get("datatype") != spec.datatype:
            raise Refused(400, f"input {spec.name!r} has a datatype other than {spec.datatype}")
        return spec

    def _shape(self, one: dict[str, Any], spec: _Input) -> tuple[int, ...]:
        shape = one.get("shape")
        if not isinstance(shape, list) or len(shape) > _AXES or any(type(n) is not int or n < 0 for n in shape):
            raise Refused(400, f"input {spec.name!r} has no 'shape' that is a list of whole numbers")
        fits = len(shape) == len(spec.shape) + 1 and all(
            want in (ANY, size) for want, size in zip(spec.shape, shape[1:], strict=True)
        )
        if not fits:
            raise Refused(
                400, f"input {spec.name!r} has shape {shape}; the model takes {[ANY, *spec.shape]} (-1: any)"
            )
        if not 1 <= shape[0] <= self.rows:
            raise Refused(400, f"input {spec.name!r} has {shape[0]} rows; a request has 1 to {self.rows}")
        return tuple(shape)

    def _wanted(self, value: dict[str, Any]) -> tuple[Wanted, ...]:
        binary = _flag(_parameters(value, "the request"), "binary_data_output", False)
        listed = value.get("outputs")
        if listed is None or listed == []:
            return self._all[binary]
        if not isinstance(listed, list):
            raise Refused(400, "'outputs' is not a list")
        made: dict[str, Wanted] = {}
        for one in listed:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(name, str) or name not in self._outputs:
                raise Refused(400, f"an output is none of the model's; it gives {', '.join(self._outputs)}")
            parameters = _parameters(one, name)
            if parameters.get("classification"):
                raise Refused(400, f"output {name!r}: 'classification' is not offered here")
            if name in made:
                raise Refused(400, f"output {name!r} is there twice")
            made[name] = Wanted(name, _flag(parameters, "binary_data", binary))
        return tuple(made.values())

    # -- an answer --------------------------------------------------------------------------------------
    def answer(self, request: Request, outputs: Mapping[str, Array]) -> tuple[list[bytes], int | None]:
        """Write the answer: its parts, and how many bytes of it are JSON where tensors follow."""
        listed: list[dict[str, Any]] = []
        raw: list[bytes] = []
        for name, binary in request.outputs:
            array = np.ascontiguousarray(outputs[name])
            one: dict[str, Any] = {"name": name, "datatype": self._outputs[name], "shape": array.shape}
            if binary:
                raw.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
                one["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                one["data"] = array.reshape(-1)
            listed.append(one)
        said: dict[str, Any] = {"model_name": self.name, "model_version": self.version, "outputs": listed}
        if request.id is not None:
            said["id"] = request.id
        head = orjson.dumps(said, option=_WRITE)
        return [head, *raw], len(head) if raw else None


def _parameters(one: dict[str, Any], where: str) -> dict[str, Any]:
    said = one.get("parameters")
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise Refused(400, f"'parameters' of {where} is not an object")
    if "shared_memory_region" in said:
        raise Refused(400, f"{where}: shared memory is not offered here")
    return said


def _flag(said: dict[str, Any], key: str, default: bool) -> bool:
    value = said.get(key, default)
    if not isinstance(value, bool):
        raise Refused(400, f"{key!r} is not true or false")
    return value


def _flat(data: list[Any], spec: _Input) -> Array | None:
    """Numbers without nesting, four times quicker than numpy reads them; None: look more closely.

    `bytes` and `array` take no texts, no nulls, and for whole numbers no fractions, nor what is out of range.
    """
    if not data or type(data[0]) not in (int, float):
        return None
    try:
        if spec.dtype.kind == "f":
            found: Array = np.frombuffer(array("d", data), np.float64)
            with np.errstate(over="ignore"):
                made = found.astype(spec.dtype, copy=False)
            return made if np.isfinite(made).all() else None
        if spec.dtype == np.uint8:
            return np.frombuffer(bytes(data), np.uint8)
        code = _CODES.get(spec.dtype.name)
        return None if code is None else np.frombuffer(array(code, data), spec.dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def _from_json(data: Any, spec: _Input, shape: tuple[int, ...]) -> Array:
    """An array of the input's type out of numbers, nested or flat; nothing is made of texts or nulls."""
    where = f"input {spec.name!r}"
    if not isinstance(data, list):
        raise Refused(400, f"{where} has no 'data' that is a list")
    elements = math.prod(shape)
    if len(data) == elements and (quick := _flat(data, spec)) is not None:
        return quick.reshape(shape)
    try:
        found = np.array(data)
    except (ValueError, OverflowError):  # rows that differ in length, or too deep
        raise Refused(400, f"{where}: 'data' is not evenly nested") from None
    if found.size != elements or (found.ndim != 1 and found.shape != shape):
        raise Refused(
            400, f"{where}: 'data' has shape {list(found.shape)}, not {list(shape)} or {elements} numbers"
        )
    have, want = found.dtype.kind, spec.dtype.kind
    if not elements:
        return found.astype(spec.dtype).reshape(shape)
    if have not in "biuf" or (have == "b") != (want == "b"):
        raise Refused(400, f"{where}: 'data' holds what is no {spec.datatype}")
    if want in "iu":
        info = np.iinfo(spec.dtype)
        whole = have != "f" or bool((found == np.floor(found)).all())
        if not whole or found.min() < info.min or found.max() > info.max:
            raise Refused(400, f"{where}: 'data' holds what is no {spec.datatype}")
    with np.errstate(over="ignore"):
        made: Array = found.astype(spec.dtype, copy=False).reshape(shape)
    if want == "f" and not np.isfinite(made).all():
        raise Refused(400, f"{where}: 'data' holds a number too large for {spec.datatype}")
    return made
