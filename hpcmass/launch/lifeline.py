"""A connection from every node of a run to its supervisor: a node that is gone is known at once, and by name.

Launchers learn of a dead node late (srun from Slurm, after minutes), or end everything with a text that blames
a survivor. The first keeper of each node holds a TCP connection open and says good-bye when its rank has ended;
a connection that ends without is a node that is no more, or all of whose processes were killed. Where nodes may
not connect to each other so, nothing is known and nothing is lost.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import selectors
import socket
import threading
import time

# A node without power closes no connection: it is asked after 30 s of silence, and given up after 60 s.
_IDLE_S, _EVERY_S, _TIMES = 30, 10, 3
_MOST_BYTES = 512


class Lifelines:
    """The supervisor's end. Thread-safe; `close` it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0), backlog=128)
        self._token = secrets.token_hex(16)
        self._lost: dict[str, float] = {}
        self._open: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, waked = socket.socketpair()
        self._waked = waked
        self._selector.register(waked, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="hpcmass-lifelines")
        self._thread.start()

    def settings(self, host: str) -> dict[str, object]:
        """What the keepers are told, in a file that only this user can read.

        Args:
            host: The name by which other nodes reach this machine.
        """
        return {"host": host, "port": self._listener.getsockname()[1], "token": self._token}

    @property
    def lost(self) -> dict[str, float]:
        """Nodes whose connection ended without a good-bye, and when, in seconds since the epoch."""
        return dict(self._lost)

    def close(self) -> None:
        """Hang up."""
        self._wake.close()
        self._thread.join()
        for each in (*self._open, self._listener, self._waked):
            each.close()
        self._selector.close()

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._waked:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            line, _ = self._listener.accept()
            line.setblocking(False)
            keep_alive(line)
            self._open[line] = b""
            self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: socket.socket) -> None:
        try:
            new = line.recv(_MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            new = b""
        said = self._open[line] + new
        self._open[line] = said[:_MOST_BYTES]
        if new and len(said) < _MOST_BYTES:
            return
        self._selector.unregister(line)
        del self._open[line]
        line.close()
        token, _, rest = said.decode(errors="replace").partition(" ")
        node, end, bye = rest.partition("\n")
        if hmac.compare_digest(token.encode(), self._token.encode()) and end and not bye:
            self._lost.setdefault(node, time.time())


def keep_alive(line: socket.socket) -> None:
    """Have the kernel find out that the other end is no more."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _IDLE_S),
        (socket.TCP_KEEPINTVL, _EVERY_S),
        (socket.TCP_KEEPCNT, _TIMES),
    ):
        line.setsockopt(socket.IPPROTO_TCP, option, value)
