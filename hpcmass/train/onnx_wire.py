"""What an ONNX file says of itself, read off its bytes: operators, opsets, and whether data lies elsewhere.

Protocol buffers are read here by hand, which needs neither the package `onnx` nor memory for a second copy of
the weights. Nothing is believed: lengths are held against what there is, nesting against a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_DEEPEST = 50
_MOST_BYTES = (1 << 31) - 1  # of a protocol buffer

# Fields by number, as in onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION, _MODEL_IR, _MODEL_TRAINING = 7, 8, 25, 1, 20
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_OPSET, _FUNCTION_DOMAIN = 1, 7, 9, 10


@dataclass
class OnnxFacts:
    """What is in an ONNX file.

    Attributes:
        ir_version: Of the format.
        opsets: Version of each domain of operators; ONNX's own domain is the empty text.
        operators: Domain and name of every operator, also of those in branches and loops.
        external: Whether a tensor's data lie in another file.
    """

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    external: bool = False


def read_onnx(data: bytes) -> OnnxFacts:
    """Read what an ONNX file says of itself.

    Raises:
        ValueError: It is none.
    """
    if len(data) > _MOST_BYTES:
        raise ValueError("more than 2 GB")
    facts = OnnxFacts()
    local: set[tuple[str, str]] = set()
    for number, value in _fields(memoryview(data)):
        if number == _MODEL_IR and isinstance(value, int):
            facts.ir_version = value
        elif number == _MODEL_OPSET:
            _opset(_bytes(value), facts)
        elif number == _MODEL_GRAPH:
            _graph(_bytes(value), facts, 0)
        elif number == _MODEL_FUNCTION:
            local.add(_function(_bytes(value), facts))
        elif number == _MODEL_TRAINING:
            raise ValueError("it holds instructions for training")
    if not facts.operators or not facts.opsets:
        raise ValueError("no operators in it")
    facts.operators -= local
    return facts


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(view, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("not a protocol buffer")
        if not number or length > end - at:
            raise ValueError("cut short, or not a protocol buffer")
        yield number, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise ValueError("cut short")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("not a protocol buffer")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")


def _opset(view: memoryview, facts: OnnxFacts) -> None:
    domain, version = "", 1
    for number, value in _fields(view):
        if number == 1:
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    domain = "" if domain == "ai.onnx" else domain
    facts.opsets[domain] = max(version, facts.opsets.get(domain, 0))


def _graph(view: memoryview, facts: OnnxFacts, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("graphs nested too deep")
    for number, value in _fields(view):
        if number == _GRAPH_NODE:
            _node(_bytes(value), facts, depth)
        elif number == _GRAPH_TENSOR:
            _tensor(_bytes(value), facts)
        elif number == _GRAPH_SPARSE:
            _sparse(_bytes(value), facts)


def _node(view: memoryview, facts: OnnxFacts, depth: int) -> None:
    domain = operator = ""
    for number, value in _fields(view):
        if number == _NODE_OP:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            for key, inner in _fields(_bytes(value)):
                if key in _ATTRIBUTE_TENSORS:
                    _tensor(_bytes(inner), facts)
                elif key in _ATTRIBUTE_GRAPHS:
                    _graph(_bytes(inner), facts, depth + 1)
                elif key in _ATTRIBUTE_SPARSE:
                    _sparse(_bytes(inner), facts)
    facts.operators.add(("" if domain == "ai.onnx" else domain, operator))


def _tensor(view: memoryview, facts: OnnxFacts) -> None:
    for number, value in _fields(view):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            facts.external = True


def _sparse(view: memoryview, facts: OnnxFacts) -> None:
    for number, value in _fields(view):
        if number in (1, 2):
            _tensor(_bytes(value), facts)


def _function(view: memoryview, facts: OnnxFacts) -> tuple[str, str]:
    name = domain = ""
    for number, value in _fields(view):
        if number == _FUNCTION_NAME:
            name = _text(value)
        elif number == _FUNCTION_DOMAIN:
            domain = _text(value)
        elif number == _FUNCTION_OPSET:
            _opset(_bytes(value), facts)
        elif number == _FUNCTION_NODE:
            _node(_bytes(value), facts, 0)
    return domain, name
