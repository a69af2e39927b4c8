"""The HTTP of the dashboard: the standard library's server, a few requests at a time, and only reading ones.

One person looks at it, so a thread a connection is enough; what it costs is in the readers behind it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hpcmass.dashboard.access import Access, from_elsewhere
from hpcmass.dashboard.plain import plain
from hpcmass.errors import HpcmassError, NotFound

log = logging.getLogger("hpcmass.dashboard")

_CONNECTIONS = 32
_IDLE_S = 20.0
_PLACE_S = 1.0
_BACKLOG = 32
_GZIP_FROM = 1400
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Question = dict[str, str]
Answerer = Callable[[str, Question], Any]
"""From the path below `api/` and the query to JSON, or to a `Page`."""


class Page:
    """An answer that is a page of its own, with its own policy in it."""

    def __init__(self, html: str, policy: str) -> None:
        self.html, self.policy = html, policy


class Server(ThreadingHTTPServer):
    """A dashboard at a port.

    Attributes:
        access: Its secrets.
        answer: What answers.
    """

    daemon_threads = True
    request_queue_size = _BACKLOG
    allow_reuse_address = True

    def __init__(self, host: str, port: int, access: Access, answer: Answerer) -> None:
        """Listen.

        Raises:
            HpcmassError: There is no such address here, or the port is taken.
        """
        self.access, self.answer = access, answer
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self.resting: dict[socket.socket, float] = {}  # connections that ask nothing, and since when
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = found[0]
            super().__init__(found[4][:2], _Handler)  # type: ignore[arg-type]
        except (OSError, OverflowError, UnicodeError) as error:
            raise HpcmassError(
                f"cannot listen at {host} port {port}: {error}", hint="--port 0 takes a port that is free"
            ) from error

    @property
    def url(self) -> str:
        """Where it is, without the token."""
        host, port = str(self.server_address[0]), self.server_address[1]
        host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def server_bind(self) -> None:
        """As HTTPServer, without asking the name service who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread; where there are too many, in place of the one that rests for longest."""
        if not self._free.acquire(blocking=False):
            longest = min(list(self.resting.items()), key=lambda one: one[1], default=None)
            if longest is not None:
                with contextlib.suppress(OSError):
                    longest[0].shutdown(socket.SHUT_RDWR)
            if not self._free.acquire(timeout=_PLACE_S):
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.resting.pop(request, None)
            self._free.release()

    def end(self) -> None:
        """Take no more connections, and end those that rest; `serve_forever` returns."""
        self.shutdown()
        self.socket.close()
        for one in list(self.resting):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to speak of."""
        log.debug("a connection ended", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "hpcmass"
    sys_version = ""
    timeout = _IDLE_S

    def handle_one_request(self) -> None:
        """One request, before and after which the connection rests."""
        self.server.resting[self.connection] = time.monotonic()
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the head; from its first line on the connection rests no more."""
        whole = super().parse_request()
        if whole:
            self.server.resting.pop(self.connection, None)
        return whole

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer()

    def do_POST(self) -> None:
        """Exchange the token for the cookie; nothing else is ever sent here."""
        self.close_connection = True  # What a body it may have holds is not read.
        if not self._welcome():
            return
        if urlsplit(self.path).path != "/sign-in":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "there is only reading here")
        elif not self.server.access.has_token(self._fields):
            self._refuse(HTTPStatus.UNAUTHORIZED, "this is not the token that was printed")
        else:
            body = json.dumps({"room": self.server.access.room}).encode()
            self._send(200, body, "application/json", {"Set-Cookie": self.server.access.cookie()})

    def _answer(self) -> None:
        if not self._welcome():
            return
        try:
            url = urlsplit(self.path)
            path = unquote(url.path, errors="strict").lstrip("/")
            query = parse_qs(url.query, max_num_fields=20, errors="strict")
        except (ValueError, UnicodeError):
            self._refuse(HTTPStatus.BAD_REQUEST, "this address cannot be read")
            return
        access = self.server.access
        inside = path.removeprefix(f"{access.room}/")
        if inside == path:
            if path in ("", "index.html", "favicon.ico") or path.startswith("static/"):
                self._static("sign-in.html" if path in ("", "index.html") else path.removeprefix("static/"))
                return
            allowed = path.startswith("api/") and access.has_token(self._fields)
        else:
            allowed = access.has_session(self._fields) or access.has_token(self._fields)
        if not allowed:
            self._refuse(HTTPStatus.UNAUTHORIZED, "open the address that hpcmass dashboard has printed")
        elif inside == "":
            self._static("index.html")
        elif inside.startswith("static/"):
            self._static(inside.removeprefix("static/"))
        elif inside.startswith("api/"):
            self._api(inside.removeprefix("api/"), {name: values[-1] for name, values in query.items()})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _welcome(self) -> bool:
        """Whether the request may be looked at, whoever sends it."""
        self._fields = {name.title(): value for name, value in self.headers.items()}
        if self._fields.keys() & {"Content-Length", "Transfer-Encoding"}:
            self.close_connection = True  # A body is not read, and must not pass for the next request.
        if len(self.headers.get_all("Host") or ()) != 1 or not self.server.access.knows_host(
            self.headers["Host"]
        ):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this is not a name of this machine")
            return False
        if from_elsewhere(self._fields) and self.path.split("#")[0] != "/":
            self._refuse(HTTPStatus.FORBIDDEN, "another page asks")
            return False
        return True

    def _api(self, path: str, query: Question) -> None:
        try:
            found = self.server.answer(path, query)
        except NotFound as error:
            self._refuse(HTTPStatus.NOT_FOUND, error.message, error.hint)
            return
        except HpcmassError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, error.message, error.hint)
            return
        except OSError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"cannot be read: {error.strerror or error}")
            return
        except Exception as error:
            log.exception("the dashboard failed at %s", path)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the dashboard failed: {type(error).__name__}")
            return
        if isinstance(found, Page):
            self._send(200, found.html.encode(errors="replace"), "text/html", policy=found.policy)
            return
        body = json.dumps(plain(found), separators=(",", ":"), allow_nan=False).encode(errors="replace")
        # The same answer as before is not sent again, and the page then changes nothing.
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        if tag in (self.headers.get("If-None-Match") or ""):
            self._send(304, b"", "", {"ETag": tag})
        else:
            self._send(200, body, "application/json", {"ETag": tag})

    def _static(self, name: str) -> None:
        base = "hpcmass.sweep.report" if name == "report.css" else "hpcmass.dashboard"
        kind = _TYPES.get(PurePosixPath(name).suffix)
        file = files(base) / "static" / name
        if kind is None or "/" in name or "\\" in name or name.startswith(".") or not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        self._send(200, file.read_bytes(), kind)

    def _refuse(self, status: HTTPStatus, message: str, hint: str | None = None) -> None:
        body = json.dumps({"error": message, "hint": hint}).encode(errors="replace")
        extra = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
        self._send(int(status), body, "application/json", extra)

    def _send(
        self, status: int, body: bytes, kind: str, extra: dict[str, str] | None = None, policy: str = POLICY
    ) -> None:
        head = {**_ALWAYS, "Content-Security-Policy": policy, "Cache-Control": "no-store", **(extra or {})}
        if kind:
            head["Content-Type"] = f"{kind}; charset=utf-8"
        if len(body) > _GZIP_FROM and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            body = gzip.compress(body, 3)
            head["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
        log.debug(format, *args)
