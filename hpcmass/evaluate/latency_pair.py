"""Latency of two models side by side, so that what else the machine does hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmass.train.model import Model

_ROUNDS, _SECONDS = 5, 2.0  # a batch size, at most
_CALLS, _WARM = 10, 2  # of one model in a round: threads of the other one spin for a while after its last call


@dataclass(frozen=True)
class LatencyPair:
    """Median milliseconds of a call by batch size, of the first model and of the second."""

    by_batch: dict[int, tuple[float, float]]

    def flat(self) -> dict[str, float]:
        """As metrics of the second model: its milliseconds, and how many times as quick as the first it is."""
        found: dict[str, float] = {}
        for size, (before, after) in self.by_batch.items():
            found |= {f"latency_ms_{size}": after, f"speedup_{size}": before / after}
        return found

    def to_json(self) -> dict[str, Any]:
        """By batch size."""
        return {
            str(size): {"parent_ms": before, "ms": after} for size, (before, after) in self.by_batch.items()
        }


def compare_latency(first: Model, second: Model, samples: Mapping[str, np.ndarray[Any, Any]]) -> LatencyPair:
    """Measure both in turn, some calls each, for one sample and for all of them at once.

    Args:
        first: What is compared with.
        second: Takes the same inputs.
        samples: By input name, (n, *shape).
    """
    n = len(next(iter(samples.values())))
    found: dict[int, tuple[float, float]] = {}
    for size in sorted({1, n}):
        given = {name: np.ascontiguousarray(array[:size]) for name, array in samples.items()}
        times: tuple[list[float], list[float]] = ([], [])
        end = time.perf_counter() + _SECONDS
        for _ in range(_ROUNDS):
            for model, kept in zip((first, second), times, strict=True):
                for call in range(_WARM + _CALLS):
                    start = time.perf_counter()
                    model(given, batch_size=size)
                    if call >= _WARM:
                        kept.append(1000 * (time.perf_counter() - start))
            if time.perf_counter() > end:
                break
        found[size] = (statistics.median(times[0]), statistics.median(times[1]))
    return LatencyPair(found)
