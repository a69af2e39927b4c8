"""How long a model takes for a batch, and the memory of the process that holds it, by batch size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.evaluate.interfaces import Model, for_model, take_inputs
from hpcmass.train.interfaces import DatasetLike

BATCHES = (1, 8, 64, 256)
_WARM_UP = 3
_MOST = 2000  # calls of one size
_LEAST = 20


@dataclass(frozen=True)
class Latency:
    """Calls of one batch size, in this process, without a server around it.

    Attributes:
        batch: Samples a call.
        calls: How many were timed.
        p50_ms: Half of them took at most so long.
        p99_ms: 99 % of them did (of fewer than 100 the longest).
        samples_per_s: Samples over the time of all calls.
        peak_rss_mb: Most memory that the process had meanwhile, 10^6 bytes; None where the system does not say.
    """

    batch: int
    calls: int
    p50_ms: float
    p99_ms: float
    samples_per_s: float
    peak_rss_mb: float | None

    def to_json(self) -> dict[str, Any]:
        """As in a JSON file."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Latency:
        """From a JSON file."""
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__})


def latencies(
    model: Model, dataset: DatasetLike, batches: Sequence[int] = BATCHES, *, seconds: float = 1.0
) -> tuple[Latency, ...]:
    """Time a model on samples of a dataset, read beforehand.

    Args:
        model: A loaded model.
        dataset: Whose first samples are taken; sizes above its own are left out.
        batches: Samples a call.
        seconds: For each size, about; but 20 calls at least.
    """
    shaped = for_model(model, dataset)
    made = []
    for size in batches:
        if size > len(shaped):
            continue
        given = take_inputs(shaped.batch(np.arange(size, dtype=np.int64)), model.signature)
        for _ in range(_WARM_UP):
            model(given)
        _forget_peak()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() < end):
            begun = time.perf_counter()
            model(given)
            times.append(time.perf_counter() - begun)
        p50, p99 = np.percentile(times, [50, 99], method="higher") * 1e3
        made.append(
            Latency(size, len(times), float(p50), float(p99), size * len(times) / sum(times), _peak_mb())
        )
    return tuple(made)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then it is the peak since the process began
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None
