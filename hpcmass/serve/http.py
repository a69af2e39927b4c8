"""HTTP/1.1 by hand on httptools' parser (llhttp) and asyncio's transports: what all connections share.

A framework between parser and model would cost more than the parser does (docs/serving.md has the figures).
`connection` reads and writes, `exchange` is one request and its answer.
"""

from __future__ import annotations

from email.utils import formatdate
from time import monotonic

from hpcmass.serve.connection import Connection
from hpcmass.serve.exchange import BINARY, JSON, TEXT, Exchange, Handler
from hpcmass.serve.interfaces import Limits
from hpcmass.serve.metrics import Metrics

__all__ = ["BINARY", "JSON", "TEXT", "Connection", "Exchange", "Handler", "Server"]


class Server:
    """What all connections share.

    Attributes:
        open: Connections.
        buffered: Bytes of requests that are in memory.
        draining: Every answer ends its connection.
    """

    def __init__(self, handler: Handler, limits: Limits, metrics: Metrics) -> None:
        self.handler, self.limits, self.metrics = handler, limits, metrics
        self.open: set[Connection] = set()
        self.buffered = 0
        self.draining = False
        self.date = b""
        self.sweep()

    def connection(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self)

    def sweep(self) -> None:
        """End what is late; called about once a second."""
        now = monotonic()
        self.date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        for connection in [one for one in self.open if one.deadline < now]:
            connection.expire()
