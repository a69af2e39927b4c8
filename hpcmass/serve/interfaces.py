"""What a replica is made of: the model behind it, its limits, and what it says no with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hpcmass.errors import HpcmassError

Array = np.ndarray[Any, Any]
ANY = -1
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Refused(HpcmassError):
    """A request that is answered with an error: `status` is HTTP's, `retry_after` in seconds."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message, transient=retry_after is not None)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Field:
    """One array of a model; `shape` is that of one sample, -1 where an axis has any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """What a model takes and gives, and the names of its classes."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    classes: tuple[str, ...] | None = None


class Runner(Protocol):
    """A loaded model. Used by one thread at a time, which need not be the one that loaded it."""

    @property
    def platform(self) -> str:
        """What computes, such as `torch` or `onnxruntime`."""

    @property
    def interface(self) -> Interface:
        """What it takes and gives."""

    def enter(self, threads: int) -> None:
        """Set what belongs to a thread, before the first `run` in it.

        Args:
            threads: How many cores one `run` may use.
        """

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs by name, (n, ...) each, of inputs by name, (n, ...) each; the inputs may be changed.

        Raises:
            DataError: The values are not what the model can take: the caller's fault.
            HpcmassError: The model failed.
        """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a replica takes on, at most.

    Attributes:
        latency_s: A batch is no larger than what half of this computes, so that a request waits for one
            batch and is in the next within about this time, as long as requests do not queue up.
        queue: Requests that wait.
        wait_s: A request is refused where those before it would take longer than this.
        rows: Samples in one request.
        batch_rows: Samples in one batch.
        body_bytes: Of one request.
        buffered_bytes: Of all requests that are being received or wait.
        connections: Open at once.
        head_s: For a request's head to arrive.
        body_s: For the rest of it.
        idle_s: A connection without a request.
        write_s: For a client to take what it is sent.
    """

    latency_s: float = 0.010
    queue: int = 1024
    wait_s: float = 0.100
    rows: int = 1024
    batch_rows: int = 64
    body_bytes: int = 8 << 20
    buffered_bytes: int = 256 << 20
    connections: int = 1024
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    write_s: float = 30.0
