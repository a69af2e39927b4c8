"""One client's connection: bytes to requests by httptools' parser (llhttp), answers back in their order.

Limits, time-outs, pipelining and lingering closes are kept here. Whatever a client sends, it is answered with
an error or its connection ends; nothing of it is seen by another connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import httptools

from hpcmass.serve.exchange import Exchange
from hpcmass.serve.interfaces import Refused
from hpcmass.serve.rate import address_of

if TYPE_CHECKING:
    from hpcmass.serve.http import Server

log = logging.getLogger("hpcmass.serve")

_HEAD_BYTES, _HEADERS, _URL_BYTES = 32768, 100, 4096
_PIPELINE = 8  # requests of one connection under way, before no more is read
_LINGER_S = 2.0
_KEPT = {
    b"authorization", b"content-length", b"content-encoding", b"expect", b"inference-header-content-length",
}  # fmt: skip
_NO_UPGRADE = "only HTTP/1.1 is spoken here, no Upgrade and no CONNECT"


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.limits = server.limits
        self.deadline = monotonic() + self.limits.head_s
        self._rested = monotonic()  # since when no request is under way
        self._transport: Any = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._pipeline: deque[Exchange] = deque()
        self._phase = "idle"  # head, body; closing: nothing more is read of what comes
        self._begun = False
        self._raw = self._head = self._fields = 0
        self._paused = False
        self._writable = True
        self._client: str | None = None
        self._over = False  # the client will send no more

    @property
    def client(self) -> str:
        """The address of the other end, as `rate.address_of` has it."""
        if self._client is None:
            self._client = address_of(self._transport.get_extra_info("peername"))
        return self._client

    # -- asyncio ------------------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        """Begin, or say that there are too many."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self.server.metrics.events += 1
        self.server.open.add(self)
        if len(self.server.open) > self.limits.connections:
            self._reject(Refused(503, "too many connections", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back what was asked for."""
        self.server.open.discard(self)
        self._phase = "closing"
        if self._exchange is not None:
            self._exchange.abandon()
        for exchange in self._pipeline:
            exchange.abandon()
        self._pipeline.clear()
        self._exchange = self._parser = None

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self.server.metrics.events += 1
        if self._phase == "closing":
            return
        phase, self._begun = self._phase, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._reject(Refused(501, _NO_UPGRADE))
            return
        except httptools.HttpParserCallbackError as error:
            log.error("a request was not understood", exc_info=error)
            self._reject(Refused(500, "the replica failed at this request"))
            return
        except httptools.HttpParserError as error:
            if self._phase != "closing":
                self.server.metrics.broken += 1
                self._reject(Refused(400, f"this is no HTTP/1.1 request ({type(error).__name__})"))
            return
        # A header is handed over when it is whole: what came of it so far is bounded here.
        if self._begun or self._phase != phase:
            self._raw = 0
            return
        self._raw += len(data)
        if self._phase == "head" and self._raw > _HEAD_BYTES:
            self._reject(Refused(431, f"the head has more than {_HEAD_BYTES} bytes"))
        elif self._phase == "body" and self._raw > 2 * self.limits.body_bytes + _HEAD_BYTES:
            self._reject(Refused(413, f"the body has more than {self.limits.body_bytes} bytes"))

    def eof_received(self) -> bool:
        """Go on where answers are outstanding."""
        # A client that has sent its last request may close its side and still wait for the answers.
        tls = self._transport.get_extra_info("ssl_object") is not None
        if tls or self._phase == "closing" or not self._pipeline or self._exchange is not None:
            return False
        self._phase = "closing"
        self._over = True
        self.deadline = float("inf")
        self._pipeline[-1].keep = False
        return True

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        self._writable = False
        self.deadline = monotonic() + self.limits.write_s
        self._balance()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable = True
        self._await()
        self._balance()

    # -- httptools ----------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """A request begins."""
        if self._phase == "closing":
            return
        self._begun = True
        self._phase = "head"
        self._head = self._fields = 0
        self._exchange = Exchange(self)
        self.deadline = monotonic() + self.limits.head_s

    def on_url(self, url: bytes) -> None:
        """A part of its address."""
        if self._exchange is not None:
            self._exchange.path += url
            if len(self._exchange.path) > _URL_BYTES:
                self._reject(Refused(414, f"the address has more than {_URL_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of its head."""
        exchange = self._exchange
        if exchange is None:
            return
        self._head += len(name) + len(value)
        self._fields += 1
        if self._head > _HEAD_BYTES or self._fields > _HEADERS:
            self._reject(Refused(431, f"the head has more than {_HEADERS} lines or {_HEAD_BYTES} bytes"))
            return
        name = name.lower()
        if name in _KEPT and self._phase == "head":
            if name in exchange.headers:
                self._reject(Refused(400, f"{name.decode('ascii')} is there twice"))
            else:
                exchange.headers[name] = value

    def on_headers_complete(self) -> None:
        """Its head is here: say no, where that can be seen from it."""
        exchange = self._exchange
        if exchange is None:
            return
        self._phase = "body"
        self.deadline = monotonic() + self.limits.body_s
        exchange.method = self._parser.get_method()
        exchange.keep = self._parser.should_keep_alive()
        exchange.old = self._parser.get_http_version() == "1.0"
        said = exchange.headers.get(b"content-length", b"0")
        if self._parser.should_upgrade():
            self._reject(Refused(501, _NO_UPGRADE))
        elif not said.isdigit() or len(said) > 18:
            self._reject(Refused(400, "Content-Length is no number"))
        elif int(said) > self.limits.body_bytes:
            self._reject(Refused(413, f"the body has more than {self.limits.body_bytes} bytes"))
        elif self.server.buffered + int(said) > self.limits.buffered_bytes:
            self._reject(Refused(429, "too much is being received", retry_after=1))
        else:
            exchange.refused = self.server.handler.check(exchange)
            if exchange.headers.get(b"expect", b"").lower() == b"100-continue":
                if exchange.refused is not None:
                    self._reject(exchange.refused)
                elif not self._pipeline:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.size += len(body)
        self.server.buffered += len(body)
        if exchange.size > self.limits.body_bytes:
            self._reject(Refused(413, f"the body has more than {self.limits.body_bytes} bytes"))
        elif self.server.buffered > self.limits.buffered_bytes:
            self._reject(Refused(429, "too much is being received", retry_after=1))
        elif exchange.refused is None:
            exchange.body.append(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        self._phase = "idle"
        self._pipeline.append(exchange)
        self._await()
        if exchange.refused is not None:
            exchange.refuse(exchange.refused)
        else:
            self.server.handler.handle(exchange)
        if len(self._pipeline) >= _PIPELINE:
            self._balance()

    # -- answers ------------------------------------------------------------------------------------------
    def flush(self) -> None:
        """Write the answers that are there, in the order of their requests."""
        pipeline, parts = self._pipeline, []
        last = False
        while pipeline and (reply := pipeline[0].reply) is not None and not last:
            parts += reply
            last = not pipeline.popleft().keep
        if parts:
            self._transport.write(b"".join(parts) if len(parts) > 1 else parts[0])
        if last:
            self._end()
        elif self._paused:
            self._balance()
        if self._phase == "idle" and not pipeline:
            self._rested = monotonic()
            self._await()

    def expire(self) -> None:
        """The time for what is awaited is over."""
        if not self._writable or self._phase == "closing":
            self._transport.abort()
        elif self._phase in ("head", "body"):
            self.server.metrics.broken += 1
            self._reject(Refused(408, "the request came too slowly"))
        else:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def close_idle(self, longer_s: float) -> None:
        """Close, where no request is under way, and has not been for longer than this."""
        if self._phase == "idle" and not self._pipeline and monotonic() - self._rested > longer_s:
            self._transport.close()

    def _await(self) -> None:
        """Set the deadline of a connection between requests."""
        if not self._writable:
            return
        if self._phase == "idle":
            self.deadline = float("inf") if self._pipeline else monotonic() + self.limits.idle_s
        elif self._phase == "closing" and self._pipeline:
            self.deadline = float("inf")

    def _balance(self) -> None:
        """Read on only while the client takes its answers and does not run ahead of them."""
        stop = not self._writable or len(self._pipeline) >= _PIPELINE
        if stop == self._paused or self._transport.is_closing():
            return
        self._paused = stop
        if stop:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _reject(self, error: Refused) -> None:
        """Answer with an error after all earlier answers, and read no more requests."""
        if self._phase == "closing":
            return
        exchange = self._exchange or Exchange(self)
        self._exchange = None
        self._phase = "closing"
        exchange.keep = False
        self._pipeline.append(exchange)
        self.deadline = float("inf")
        exchange.refuse(error)

    def _end(self) -> None:
        """Close, so that the last answer arrives although the client may still be sending.

        Closing with unread bytes resets the connection, and the client may lose what it was told.
        """
        self._phase = "closing"
        for exchange in self._pipeline:  # sent after the one that was to be the last
            exchange.abandon()
        self._pipeline.clear()
        if self._transport.is_closing():
            return
        self.deadline = monotonic() + (_LINGER_S if self._writable else self.limits.write_s)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof() and not self._over:
            self._transport.write_eof()
        else:
            self._transport.close()
