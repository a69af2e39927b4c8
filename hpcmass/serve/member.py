"""One replica in the controller's hands: starting, ready, draining, stopping."""

from __future__ import annotations

import re
from time import monotonic
from typing import Any

from hpcmass.serve.deployment import Known
from hpcmass.serve.probing import JobView
from hpcmass.serve.rollout import Piece
from hpcmass.serve.upstream import Backend

_PATH = re.compile(r"/[!-~]*")


class Member:
    """What is known of a replica beside its folder.

    Attributes:
        state: `starting`, `ready`, `suspect` (was ready; a connection to it was lost, or it does not
            answer), `draining` (gets no requests, has some), `stopping` (asked to end).
        since: When that began.
        missed: Probes without an answer, in a row.
        busy: Share of its time that it computed lately.
        queued: Requests that wait in it.
        capacity: Rows a second, by its own measure; None where it tells none.
    """

    def __init__(self, known: Known) -> None:
        self.known = known
        self.view = JobView(None)
        self.backend: Backend | None = None
        self.state = "starting"
        self.since = self.began = monotonic()
        self.missed = 0
        self.leaving = False
        self.killed = False
        self.busy = self.queued = 0.0
        self.capacity: float | None = None
        self._last: tuple[float, float, float] | None = None

    def turn(self, state: str) -> None:
        """Be in another state from now."""
        self.state, self.since = state, monotonic()

    @property
    def serving(self) -> bool:
        """Whether it counts among those that answer."""
        return self.state in ("ready", "suspect")

    def piece(self) -> Piece:
        """As the rollout sees it."""
        return Piece(self.known.rid, self.known.model, self.serving, self.leaving or self.view.leaving)

    def address(self) -> tuple[str, int] | None:
        """Where it listens, as far as it has said so."""
        told = self.known.endpoint
        if told is None or not isinstance(told.get("port"), int) or not told["port"]:
            return None
        host = str(told.get("host"))
        # One that listens at all addresses is asked at the one that its node goes by.
        if host in ("0.0.0.0", "::"):
            host = self.view.address or str(told.get("node"))
        return host, told["port"]

    @property
    def threads(self) -> int:
        """Cores of its computation, as it was told."""
        words = self.known.command
        said = words[words.index("--threads") + 1 :][:1] if "--threads" in words else ()
        return int(said[0]) if said and said[0].isdecimal() and int(said[0]) else 1

    @property
    def health(self) -> str:
        """Where it says that it is ready; a replica that is another program's has its own address for that."""
        said = (self.known.endpoint or {}).get("health")
        return said if isinstance(said, str) and _PATH.fullmatch(said) else "/v2/health/ready"

    def measured(self, found: dict[str, float]) -> None:
        """Learn from the replica's own metrics."""
        self.capacity = found.get("hpcmass_capacity_rows_per_second")
        self.queued = found.get("hpcmass_queue_requests", 0.0)
        now = (monotonic(), found.get("process_cpu_seconds_total", 0.0), found.get("hpcmass_rows_total", 0.0))
        last, self._last = self._last, now
        if last is None or now[0] - last[0] < 0.1 or now[1] < last[1]:
            return
        took = now[0] - last[0]
        shares = [(now[1] - last[1]) / took / self.threads]
        if self.capacity:
            shares.append((now[2] - last[2]) / took / self.capacity)
        self.busy = min(1.0, max(shares))

    def told(self) -> dict[str, Any]:
        """As `gateway/status.json` has it."""
        backend, endpoint = self.backend, self.known.endpoint or {}
        summary = backend.window.summary() if backend is not None else None
        return {
            "id": self.known.rid,
            "model": self.known.model,
            "version": backend.version if backend is not None else None,
            "track": backend.track if backend is not None else None,
            "state": "leaving" if self.state == "ready" and self.piece().leaving else self.state,
            "since_s": round(monotonic() - self.since, 1),
            "url": endpoint.get("url"),
            "weight": round(backend.weight, 3) if backend is not None else None,
            "in_flight": backend.in_flight if backend is not None else 0,
            "rate": summary.rate if summary is not None else 0.0,
            "p99_ms": summary.p99_ms if summary is not None else None,
            "busy": round(self.busy, 3),
            "queue": self.queued,
            "node": self.view.node or endpoint.get("node"),
            "job": self.view.job,
            "target": self.known.target,
            "told": self.view.told,
        }
