"""One address before several replicas: the least loaded gets a request, and another one if it dies."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Literal

import orjson

from hpcmass import __version__
from hpcmass.serve.gateway_stats import Window, page
from hpcmass.serve.http import JSON, TEXT, Exchange
from hpcmass.serve.interfaces import Refused
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.rate import Rate, turned_away
from hpcmass.serve.tokens import Tokens
from hpcmass.serve.upstream import MOST_LINKS, Backend, Link

log = logging.getLogger("hpcmass.serve")

_OPEN = {b"/v2/health/live", b"/v2/health/ready"}
_SERVER = {"name": "hpcmass", "version": __version__, "extensions": ["binary_tensor_data"]}
_ATTEMPTS = 3
_FORWARDED = (b"inference-header-content-length",)


class Call:
    """One request of a client on its way to replicas."""

    __slots__ = (
        "_head", "attempt", "avoid", "backend", "begun", "deadline", "exchange", "gateway", "link", "moved",
        "sent", "version",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, exchange: Exchange, version: str | None) -> None:
        self.gateway, self.exchange, self.version = gateway, exchange, version
        self.begun = monotonic()
        self.deadline = self.begun + gateway.hold_s
        self.sent = self.begun
        self.attempt = 0
        self.moved = False
        self.avoid: Backend | None = None
        self.backend: Backend | None = None
        self.link: Link | None = None
        # HEAD is asked as GET: the parser of answers waits for a body, which `Exchange` drops.
        method = b"POST" if exchange.method == b"POST" else b"GET"
        lines = [b"%s %s HTTP/1.1\r\nHost: replica\r\n" % (method, exchange.path), gateway.credentials]
        lines += [
            b"%s: %s\r\n" % (name, exchange.headers[name]) for name in _FORWARDED if name in exchange.headers
        ]
        if exchange.method == b"POST":
            lines.append(b"Content-Length: %d\r\n" % exchange.size)
        self._head = b"".join((*lines, b"\r\n"))

    def words(self) -> Sequence[bytes]:
        """What is sent: head and body."""
        return (self._head, *self.exchange.body)

    def answered(self, status: int, headers: dict[bytes, bytes], parts: list[bytes]) -> None:
        """A replica has answered; another one is asked once where this one could not help."""
        gateway, backend = self.gateway, self.backend
        assert backend is not None
        backend.done(self)
        now = backend.heard = monotonic()
        if status >= 500:
            backend.window.error()
        elif status == 429:
            backend.window.refuse()
        else:
            backend.window.observe(now - self.sent)
        trial = backend.track == "canary" and status >= 500
        if (status in (429, 503) or trial) and not self.moved and gateway.others(self, backend):
            self.moved = True
            self.avoid = backend
            gateway.retries += 1
            gateway.dispatch(self)
            return
        gateway.finish(self, status)
        lines = [b"%s: %s\r\n" % (name, value) for name, value in headers.items() if name != b"content-type"]
        self.exchange.answer(status, parts, headers.get(b"content-type", JSON), b"".join(lines))

    def failed(self, why: str) -> None:
        """The replica went before it had answered: inference changes nothing, so another one is asked."""
        gateway, backend = self.gateway, self.backend
        assert backend is not None
        backend.done(self)
        backend.window.error()
        gateway.suspect(backend, why)
        self.attempt += 1
        self.avoid = backend
        if self.attempt >= _ATTEMPTS:
            gateway.refuse(self, Refused(502, f"{self.attempt} replicas went while they had this request"))
            return
        gateway.retries += 1
        gateway.dispatch(self)

    def abandon(self) -> None:
        """Its client has left."""
        self.gateway.calls.discard(self)
        link, backend = self.link, self.backend
        if backend is not None:
            backend.done(self)
        if link is not None:
            link.leave()


class Gateway:
    """What answers at the deployment's address.

    Args:
        model: The model's name in addresses.
        tokens: Who is let in; None: everybody.
        token: What replicas are asked with.
        rate: How many requests one client may send, by its token, else its address; None: any number.
        hold_s: How long a request waits for a replica where none is ready.
        attempt_s: How long one replica may take to answer.

    Attributes:
        ready: The replicas that get requests.
        share: Of requests that the canary gets.
        calls: Requests that are not answered yet.
        wanted: Called when a request waits and no replica is ready.
        suspected: Called with a replica that a connection was lost to; it gets requests no more.
    """

    def __init__(
        self, model: str, metrics: Metrics, tokens: Tokens | None, token: str | None, *,
        rate: Rate | None = None, hold_s: float = 60.0, attempt_s: float = 60.0, hold: int = 1024,
    ) -> None:  # fmt: skip
        self.model, self.metrics, self.tokens, self.rate = model, metrics, tokens, rate
        self.credentials = b"" if token is None else b"Authorization: Bearer %s\r\n" % token.encode("ascii")
        self.hold_s, self.attempt_s, self.hold = hold_s, attempt_s, hold
        self.ready: list[Backend] = []
        self.versions: set[str] = set()  # that are to be served, whether a replica is ready or not
        self.share = 0.0
        self.calls: set[Call] = set()
        self.held: deque[Call] = deque()
        self.window = Window()
        self.seconds = 0.0
        self.retries = 0
        self.last_request = monotonic()
        self.draining = False
        self.idle_ready = False  # ready without a replica: one starts when a request comes
        self.wanted: Callable[[], None] = lambda: None
        self.suspected: Callable[[Backend, str], None] = lambda backend, why: None
        self.gauges: Callable[[], list[tuple[str, str, float]]] = list
        self._due = 0.0
        self._base = f"/v2/models/{model}".encode()

    # -- a request ----------------------------------------------------------------------------------------
    def check(self, exchange: Exchange) -> Refused | None:
        """Say no to a head, where that can be seen from it."""
        path = exchange.path = exchange.path.partition(b"?")[0]
        if path not in _OPEN:
            error = turned_away(exchange, self.tokens, self.rate, "this deployment")
            if error is not None:
                return error
        posts = path.endswith((b"/infer", b"/labels"))
        if path not in _OWN and self._version(path) is False:
            said = path[:100].decode("ascii", "replace")
            return Refused(404, f"there is nothing at {said}; the model is /v2/models/{self.model}")
        return exchange.misused(posts)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, or send it to a replica."""
        try:
            if exchange.path in _OWN:
                _OWN[exchange.path](self, exchange)
                return
            version = self._version(exchange.path)
            if version is False:  # gone since the head was here
                raise Refused(404, "that version is served no more")
            call = Call(self, exchange, version)
        except Refused as error:
            exchange.refuse(error)
            return
        except Exception:
            log.exception("a request failed")
            exchange.refuse(Refused(500, "the gateway failed at this request"))
            return
        self.last_request = call.begun
        self.calls.add(call)
        exchange.job = call.abandon
        self.dispatch(call)

    def _version(self, path: bytes) -> str | Literal[False] | None:
        """The version that an address names, None for any; False: there is no such address."""
        if not path.startswith(self._base):
            return False
        rest = path[len(self._base) :]
        version: str | None = None
        if rest.startswith(b"/versions/"):
            named, slash, tail = rest[10:].partition(b"/")
            rest, version = slash + tail, named.decode("ascii", "replace")
            if version not in self.versions and all(one.version != version for one in self.ready):
                return False
        return version if rest in (b"", b"/infer", b"/labels", b"/ready") else False

    def dispatch(self, call: Call) -> None:
        """Send a request to the replica that has least to do, or have it wait for one."""
        found = self._choose(call)
        if found is not None and found.in_flight < MOST_LINKS:
            call.sent = monotonic()
            call.deadline = call.sent + self.attempt_s
            found.send(call)
        elif found is not None:
            self.window.refuse()
            self.refuse(call, Refused(429, "all replicas are busy", retry_after=1))
        elif len(self.held) >= self.hold:
            self.window.refuse()
            self.refuse(call, Refused(429, "no replica is ready, and others wait already", retry_after=1))
        else:
            call.deadline = call.begun + self.hold_s
            self.held.append(call)
            self.wanted()

    def others(self, call: Call, backend: Backend) -> bool:
        """Whether another replica could be asked."""
        return any(one is not backend and call.version in (None, one.version) for one in self.ready)

    def _choose(self, call: Call) -> Backend | None:
        ready = self.ready
        if call.version is not None:
            ready = [one for one in ready if one.version == call.version]
        elif self.share:
            trial = False
            if call.attempt == 0 and not call.moved:
                self._due += self.share
                trial = self._due >= 1.0
                self._due -= trial
            ready = [one for one in ready if (one.track == "canary") == trial] or ready
        best, least = None, 0.0
        for one in ready:
            load = (one.in_flight + 1) / one.weight
            if one is call.avoid:
                load += 1e9
            if best is None or load < least or (load == least and one.used < best.used):
                best, least = one, load
        return best

    def finish(self, call: Call, status: int) -> None:
        """Count what a client is answered."""
        self.calls.discard(call)
        took = monotonic() - call.begun
        self.seconds += took
        self.window.observe(took)
        if status >= 500:
            self.window.error()
        elif status == 429:
            self.window.refuse()

    def refuse(self, call: Call, error: Refused) -> None:
        """Answer a request with an error of the gateway's own."""
        self.finish(call, error.status if error.status != 429 else 200)
        call.exchange.refuse(error)

    # -- replicas -----------------------------------------------------------------------------------------
    def admit(self, backend: Backend) -> None:
        """A replica is ready: it gets requests, those that wait first."""
        if backend not in self.ready:
            self.ready.append(backend)
        waiting, self.held = self.held, deque()
        for call in waiting:
            if call in self.calls:
                self.dispatch(call)

    def dismiss(self, backend: Backend) -> None:
        """A replica gets no more requests; it answers what it has."""
        if backend in self.ready:
            self.ready.remove(backend)

    def suspect(self, backend: Backend, why: str) -> None:
        """A connection was lost: no more requests until it has been asked whether it is ready."""
        if backend in self.ready:
            self.ready.remove(backend)
            self.suspected(backend, why)

    def sweep(self) -> None:
        """End what is late; called several times a second."""
        now = monotonic()
        for call in [one for one in self.calls if one.deadline < now]:
            if (link := call.link) is not None:
                link.abort()  # and the call goes to another replica, or fails
            elif call.backend is None:
                self.refuse(call, Refused(503, "no replica is ready", retry_after=1))
        self.held = deque(one for one in self.held if one in self.calls)
        for backend in self.ready:
            backend.sweep(now)

    # -- the gateway's own addresses ----------------------------------------------------------------------
    def _about(self, exchange: Exchange) -> None:
        _say(exchange, _SERVER)

    def _live(self, exchange: Exchange) -> None:
        _say(exchange, {"live": True})

    def _is_ready(self, exchange: Exchange) -> None:
        if self.draining or not (self.ready or self.idle_ready):
            raise Refused(503, "not ready", retry_after=1)
        _say(exchange, {"name": self.model, "ready": True})

    def _metrics(self, exchange: Exchange) -> None:
        counters = [
            ("answers_total", f'{{code="{code}"}}', n) for code, n in sorted(self.metrics.answers.items())
        ]
        counters += [("retries_total", "", self.retries), ("abandoned_total", "", self.metrics.abandoned)]
        if self.rate is not None:
            counters.append(("rate_limited_total", "", self.rate.refused))
        gauges = [("held_requests", "", float(len(self.held))), ("calls", "", float(len(self.calls)))]
        for one in self.ready:
            labels = f'{{replica="{one.rid}",version="{one.version}",track="{one.track}"}}'
            gauges += [
                ("replica_in_flight", labels, float(one.in_flight)),
                ("replica_weight", labels, one.weight),
            ]
        text = page(counters, [*gauges, *self.gauges()], self.window, self.seconds)
        exchange.answer(200, [text.encode()], TEXT)


def _say(exchange: Exchange, value: Any) -> None:
    exchange.answer(200, [orjson.dumps(value)], JSON)


_OWN: dict[bytes, Callable[[Gateway, Exchange], None]] = {
    b"/v2": Gateway._about,
    b"/v2/": Gateway._about,
    b"/v2/health/live": Gateway._live,
    b"/v2/health/ready": Gateway._is_ready,
    b"/metrics": Gateway._metrics,
}
