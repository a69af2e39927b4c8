"""One request and its answer, as bytes of HTTP/1.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import orjson

from hpcmass.serve.interfaces import Refused

if TYPE_CHECKING:
    from hpcmass.serve.connection import Connection

_CLOSE = b"Connection: close\r\n"
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
JSON, TEXT, BINARY = (
    b"application/json",
    b"text/plain; version=0.0.4; charset=utf-8",
    b"application/octet-stream",
)


class Handler(Protocol):
    """What answers requests; it never raises."""

    def check(self, exchange: Exchange) -> Refused | None:
        """Say no when the head is here, before the body is taken in."""

    def handle(self, exchange: Exchange) -> None:
        """Answer a whole request, now or later, with `exchange.answer`."""


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "abandoned", "body", "connection", "headers", "job", "keep", "method", "old", "path",
        "refused", "reply", "size",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.size = 0
        self.keep = False
        self.old = False
        self.refused: Refused | None = None
        self.reply: list[bytes] | None = None
        self.abandoned = False
        self.job: Callable[[], None] | None = None  # takes the work for it back

    def misused(self, posts: bool) -> Refused | None:
        """Say no to another method than the address takes, and to a compressed body.

        Args:
            posts: Whether the address takes POST; else GET and HEAD.
        """
        if self.method not in ((b"POST",) if posts else (b"GET", b"HEAD")):
            error = Refused(405, "this address takes POST" if posts else "this address takes GET")
            error.data["allow"] = b"POST" if posts else b"GET, HEAD"
            return error
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return Refused(415, "a body must not be compressed here")
        return None

    def answer(self, status: int, parts: Sequence[bytes], kind: bytes = JSON, extra: bytes = b"") -> None:
        """Give the answer; the first call counts.

        Args:
            status: HTTP's.
            parts: The body.
            kind: Its type.
            extra: Header lines, each with its line end.
        """
        connection = self.connection
        if self.reply is not None:
            return
        # It leads back to here, and circles wait for the collector, for which then every request waits.
        self.job = None
        server = connection.server
        server.metrics.answered(status)
        server.buffered -= self.size
        self.size = 0
        self.body = []
        if self.abandoned:
            self.reply = []
            return
        self.keep = self.keep and not server.draining
        more = b"" if self.keep and not self.old else b"Connection: keep-alive\r\n" if self.keep else _CLOSE
        length = b"Content-Length: %d\r\n\r\n" % sum(map(len, parts))
        line = _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status  # another program's, behind a gateway
        head = b"".join((line, server.date, b"Content-Type: ", kind, b"\r\n", extra, more, length))
        self.reply = [head] if self.method == b"HEAD" else [head, *parts]
        connection.flush()

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        self.abandoned = True
        self.connection.server.buffered -= self.size
        self.size = 0
        self.body = []
        if self.job is not None and self.reply is None:
            self.job()
        self.job = None

    def refuse(self, error: Refused) -> None:
        """Answer with an error, as JSON."""
        extra = b"" if error.retry_after is None else b"Retry-After: %d\r\n" % error.retry_after
        if error.status == 401:
            extra += b"WWW-Authenticate: Bearer\r\n"
        elif error.status == 405:
            extra += b"Allow: " + error.data.get("allow", b"GET, HEAD") + b"\r\n"
        text = error.message.encode("utf-8", "replace").decode()
        self.answer(error.status, [orjson.dumps({"error": text})], extra=extra)
