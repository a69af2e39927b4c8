"""Nested state as tensors plus JSON, and safetensors files written piece by piece; nothing is pickled.

The library's own writer takes a second copy of everything in memory and hides the system's error codes.
Format: 8 bytes length of the header, the header as JSON, the tensors' bytes (safetensors, README).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmass.errors import TrainError

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Slot:
    """A tensor's place in the body of a file: bytes [start, end)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """The places of all tensors of a file.

    Attributes:
        nbytes: Bytes of the body.
    """

    slots: tuple[Slot, ...]
    nbytes: int

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """What stands before the body; a multiple of 8 bytes, so that every tensor lies aligned."""
        table: dict[str, Any] = {"__metadata__": dict(metadata)}
        for slot in self.slots:
            table[slot.name] = {
                "dtype": _DTYPES[slot.dtype], "shape": list(slot.shape), "data_offsets": [slot.start, slot.end],
            }  # fmt: skip
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def nbytes_of(tensor: Tensor) -> int:
    """Bytes that a tensor's values take in a file."""
    return tensor.numel() * tensor.element_size()


def lay_out(tensors: Mapping[str, Tensor]) -> Layout:
    """Give every tensor its place: the largest elements first, which keeps all aligned without gaps."""
    slots, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + nbytes_of(tensor)
        slots.append(Slot(name, tensor.dtype, tuple(tensor.shape), start, end))
    return Layout(tuple(slots), end)


def bodies(layout: Layout, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of the body out of the tensors themselves, one at a time."""
    for slot in layout.slots:
        flat = tensors[slot.name].detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file, and return its bytes and SHA-256. Both drop the interpreter's lock while they work.

    Raises:
        OSError: The file system refused.
    """
    digest, total = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        for piece in pieces:
            whole = memoryview(piece)
            for first in range(0, len(whole), _PIECE_BYTES):  # hashed and written while it is in the cache
                view = whole[first : first + _PIECE_BYTES]
                digest.update(view)
                done = 0
                while done < len(view):
                    done += file.write(view[done:])
                total += len(view)
    return total, digest.hexdigest()


def share_out(tensors: Mapping[str, Tensor], parts: int) -> list[list[str]]:
    """Deal tensors to `parts` files, balanced by bytes: the largest first, each to the smallest file so far.

    At most 4/3 of the best possible (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969); a tensor is
    never cut.
    """
    sizes, dealt = [0] * parts, [[] for _ in range(parts)]  # type: list[int], list[list[str]]
    for name, tensor in sorted(tensors.items(), key=lambda item: (-nbytes_of(item[1]), item[0])):
        part = sizes.index(min(sizes))
        sizes[part] += nbytes_of(tensor)
        dealt[part].append(name)
    return dealt


def signature(tensors: Mapping[str, Tensor]) -> str:
    """Equal for states of the same names, types and shapes."""
    lines = [f"{name} {tensor.dtype} {tuple(tensor.shape)}\n" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested state; tensors are put into `tensors` under their path.

    Raises:
        TrainError: Something is neither a tensor nor what JSON can say.
    """
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES:
            raise TrainError(f"a tensor of type {value.dtype} cannot be kept in a checkpoint", where=path)
        tensors[path] = value
        return {"t": path}
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise TrainError(
                    f"a key of type {type(key).__name__} cannot be kept in a checkpoint", where=path
                )
            items.append([key, encode(item, f"{path}/{key}" if path else str(key), tensors)])
        return {"d": items}
    if isinstance(value, (list, tuple)):
        kind = "l" if isinstance(value, list) else "u"
        return {kind: [encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TrainError(f"a {type(value).__name__} cannot be kept in a checkpoint", where=path)


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: It is not of `encode`'s making.
        KeyError: A tensor is missing.
    """
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "t":
        return tensors[inner]
    if kind == "d":
        return {key: decode(item, tensors) for key, item in inner}
    if kind in ("l", "u"):
        items = [decode(item, tensors) for item in inner]
        return items if kind == "l" else tuple(items)
    raise ValueError(f"unknown kind {kind!r}")


def spoilt(names_and_values: Sequence[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor (on the CPU) that holds NaN or infinity, or None.

    In small blocks, which torch works through in the calling thread alone: training goes on in the others.
    """
    for name, tensor in names_and_values:
        for block in torch.split(tensor.detach().reshape(-1), 1 << 15):  # type: ignore[no-untyped-call]
            # A sum is spoilt where a value is; it may also overflow, then the values are looked at.
            if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
                return name
    return None
