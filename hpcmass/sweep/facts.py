"""What a run's folder says of a trial beside its metrics: how large the model is, and what training took."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

from hpcmass.errors import HpcmassError
from hpcmass.files import matching, read_json, read_records
from hpcmass.runs import RunFolder

_HEADER_LIMIT_BYTES = 100_000_000  # as safetensors itself has it


def parameters(run: RunFolder) -> float | None:
    """Numbers in the model's weights: parameters, and buffers such as batch norm's."""
    file = run.model / "weights.safetensors"
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _HEADER_LIMIT_BYTES:
                return None
            header = json.loads(handle.read(length))
        return float(sum(math.prod(e["shape"]) for name, e in header.items() if name != "__metadata__"))
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None


def model_bytes(run: RunFolder) -> float | None:
    """Bytes of the model's folder."""
    total = sum(_sizes(run.model)) if run.model.is_dir() else 0
    return float(total) or None


def train_seconds(run: RunFolder) -> float | None:
    """Seconds from each start to its last record, summed: what lies between two attempts does not count."""
    try:
        began = run.status().started
        ended = run.status().ended
    except HpcmassError:
        return None
    total, last = 0.0, began
    for record in read_records(run.metrics_file):
        time = record.get("time")
        if not isinstance(time, (int, float)) or last is None or began is None:
            continue
        if record.get("kind") == "resume":
            total, began = total + last - began, time
        last = time
    if began is None or last is None:
        return None
    return round(total + max(last, ended or last) - began, 3)


def node_seconds(run: RunFolder) -> float | None:
    """`train_seconds` times the nodes that the last attempt ran on; a part of a node counts whole."""
    seconds = train_seconds(run)
    return None if seconds is None else round(seconds * max(len(_hosts(run)), 1), 3)


FACTS: dict[str, Callable[[RunFolder], float | None]] = {
    "params": parameters,
    "bytes": model_bytes,
    "model_mb": lambda run: None if (size := model_bytes(run)) is None else size / 1e6,
    "train_s": train_seconds,
    "node_s": node_seconds,
}


def _sizes(folder: Path) -> list[int]:
    return [os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names]


def _hosts(run: RunFolder) -> set[str]:
    attempt, hosts = run.status().attempt, set()
    for file in matching(run.path / "ranks", f"attempt-{attempt}-rank-*.json"):
        try:
            place = read_json(file)
            hosts.add(str(place.get("node") or place.get("host")))
        except (HpcmassError, AttributeError):
            continue
    return hosts
