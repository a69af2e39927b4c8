"""A gateway's connections to one replica: kept alive, one request at a time on each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

import httptools

from hpcmass.serve.gateway_stats import Window

MOST_LINKS = 768  # to one replica, which takes 1024 connections and has 512 requests wait
_KEPT = {b"content-type", b"inference-header-content-length", b"retry-after", b"allow"}
_CONNECT_S, _REST_S = 5.0, 30.0
_clock = itertools.count()


class Call(Protocol):
    """A request on its way to a replica. Exactly one of `answered` and `failed` follows each `send`."""

    backend: Backend | None
    link: Link | None
    attempt: int

    def words(self) -> Sequence[bytes]:
        """What is sent: head and body."""

    def answered(self, status: int, headers: dict[bytes, bytes], parts: list[bytes]) -> None:
        """The whole answer is here."""

    def failed(self, why: str) -> None:
        """The replica, or the connection to it, went before a whole answer was here."""


class Backend:
    """One replica as the gateway sees it.

    Attributes:
        rid: Its number in the deployment.
        track: `stable`, `canary` or `old`: whose requests it gets.
        version: The model version's, as in addresses.
        weight: Its measured capacity in relation to others'.
        in_flight: Requests that it has not answered.
        used: When it was chosen last, by a counter: of equals the one that rested longest is next.
    """

    def __init__(self, rid: str, host: str, port: int, *, version: str, model: str) -> None:
        self.rid, self.host, self.port, self.version, self.model = rid, host, port, version, model
        self.track = "stable"
        self.weight = 1.0
        self.in_flight = 0
        self.used = 0
        self.heard = monotonic()  # when it answered last
        self.window = Window()
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, call: Call) -> None:
        """Send a request over a connection that is free, or a new one."""
        self.in_flight += 1
        self.used = next(_clock)
        call.backend = self
        while self._idle:
            link = self._idle.pop()
            if not link.closing:
                link.send(call)
                return
        task = asyncio.get_running_loop().create_task(self._connect(call, call.attempt))
        self._connecting.add(task)
        attempt = call.attempt

        def over(task: asyncio.Task[None]) -> None:
            self._connecting.discard(task)
            error = None if task.cancelled() else task.exception()
            if (task.cancelled() or error is not None) and call.backend is self and call.attempt == attempt:
                call.failed("cannot connect" + (f" ({type(error).__name__})" if error else ""))

        task.add_done_callback(over)

    def done(self, call: Call) -> None:
        """It has answered, or will not."""
        self.in_flight -= 1
        call.backend = call.link = None

    def cut(self) -> None:
        """End all connections: what is under way on them has failed."""
        for task in list(self._connecting):
            task.cancel()
        for link in list(self._links):
            link.abort()

    def move(self, host: str, port: int) -> None:
        """It is elsewhere now: what was under way where it was has failed."""
        self.host, self.port = host, port
        self._idle.clear()
        self.cut()

    def let_go(self) -> None:
        """End connections on which nothing is under way: a program that is to end may wait for them."""
        while self._idle:
            self._idle.pop().abort()

    def sweep(self, now: float) -> None:
        """End connections that were not used for a while, before the replica does."""
        while self._idle and self._idle[0].rested < now - _REST_S:
            self._idle.pop(0).abort()

    async def _connect(self, call: Call, attempt: int) -> None:
        loop = asyncio.get_running_loop()
        made = loop.create_connection(lambda: Link(self), self.host, self.port)
        _, link = await asyncio.wait_for(made, _CONNECT_S)
        if call.backend is not self or call.attempt != attempt:  # its client has left meanwhile
            link.rest()
        elif link.closing:
            raise ConnectionResetError
        else:
            link.send(call)


class Link(asyncio.Protocol):
    """One connection to a replica."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._transport: Any = None
        self._call: Call | None = None
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._parser: Any = None
        self.closing = False
        self.rested = 0.0

    def connection_made(self, transport: Any) -> None:
        """Join the replica's connections."""
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._backend._links.add(self)

    def send(self, call: Call) -> None:
        """Send a request."""
        self._call = call
        call.link = self
        self._headers, self._parts = {}, []
        words = call.words()
        if sum(map(len, words)) < 65536:
            self._transport.write(b"".join(words))
        else:
            self._transport.writelines(words)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """What was under way has failed."""
        self.closing = True
        self._backend._links.discard(self)
        call, self._call, self._parser = self._call, None, None
        if call is not None:
            call.failed("the connection was lost")

    def abort(self) -> None:
        """Cut it."""
        self.closing = True
        self._transport.abort()

    def rest(self) -> None:
        """Be there for the next request."""
        self.rested = monotonic()
        self._backend._idle.append(self)

    def leave(self) -> None:
        """The client of the request under way has gone: the replica sees it by the connection's end."""
        self._call = None
        self.abort()

    # -- httptools ----------------------------------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the answer's head."""
        name = name.lower()
        if name in _KEPT:
            self._headers[name] = value

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._parts = {}, []
            return
        call, self._call = self._call, None
        if self._parser.should_keep_alive() and call is not None and not self.closing:
            self.rest()
        else:
            self.closing = True
            self._transport.close()
        if call is not None:
            call.answered(status, self._headers, self._parts)
