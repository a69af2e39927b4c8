"""Who may read what: the token, the cookie and its path, foreign pages, foreign names, and nothing but reading."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from made_project import Client

from hpcmass.config import Project
from hpcmass.dashboard.server import _CONNECTIONS


def sign_in(client: Client) -> dict[str, str]:
    """The header with the cookie that the token is good for."""
    code, head, body = client.ask("/sign-in", "POST", authorization=f"Bearer {client.access.token}")
    assert code == 200
    assert json.loads(body) == {"room": client.access.room}
    return {"cookie": head["Set-Cookie"].partition(";")[0]}


def test_the_token_opens_and_nothing_else_does(client: Client) -> None:
    path = f"/{client.access.room}/api/overview"
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {client.access.token}"},
                    {"authorization": f"Bearer {client.access.token[:-1]}"}, {"cookie": "hpcmass=x"},
                    {"cookie": f"hpcmass={client.access.token}"}, {"cookie": "a b=\x7f;;="}):  # fmt: skip
        for where in (path, "/api/overview"):
            code, head, body = client.ask(where, **headers)
            assert code == 401, (where, headers)
            assert head["Www-Authenticate"] == "Bearer"
            assert b"made" not in body
    assert client.ask("/sign-in", "POST", authorization="Bearer x")[0] == 401
    assert client.ask("/api/overview", authorization=f"Bearer {client.access.token}")[0] == 200
    assert client.ask(path, **sign_in(client))[0] == 200


def test_the_cookie_is_for_this_page_alone(client: Client) -> None:
    _, head, _ = client.ask("/sign-in", "POST", authorization=f"Bearer {client.access.token}")
    assert head["Set-Cookie"].partition("; ")[2] == f"Path=/{client.access.room}/; HttpOnly; SameSite=Strict"
    assert client.access.token not in head["Set-Cookie"]
    # Outside of its path the cookie opens nothing: a browser would not send it there either.
    assert client.ask("/api/overview", **sign_in(client))[0] == 401


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:1234", 200), ("localhost", 200), ("LOCALHOST:9", 200), ("[::1]:80", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("127.0.0.1.evil.example", 421), ("", 421),
    ],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_refused(client: Client, host: str, code: int) -> None:
    assert client.ask("/api/project", host=host, authorization=f"Bearer {client.access.token}")[0] == code


@pytest.mark.parametrize(
    ("site", "code"), [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)]
)
def test_a_foreign_page_may_not_ask(client: Client, site: str, code: int) -> None:
    cookie = sign_in(client)
    assert client.ask(f"/{client.access.room}/api/project", sec_fetch_site=site, **cookie)[0] == code


def test_no_header_lets_a_foreign_page_read(client: Client) -> None:
    _, head, _ = client.ask(
        "/api/project", authorization=f"Bearer {client.access.token}", origin="http://evil.example"
    )
    assert not [name for name in head if name.startswith("Access-Control")]
    policy = head["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert head["X-Content-Type-Options"] == "nosniff"
    assert head["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "BREW"])
def test_there_is_only_reading(client: Client, method: str) -> None:
    assert client.ask("/api/runs", method, authorization=f"Bearer {client.access.token}")[0] in (405, 501)
    assert client.ask("/api/runs", "POST", authorization=f"Bearer {client.access.token}")[0] == 405


def test_a_body_does_not_pass_for_the_next_request(client: Client) -> None:
    inner = b"GET /api/project HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n"
    with socket.create_connection(client.server.server_address[:2]) as connection:
        head = f"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(inner)}\r\n\r\n"
        connection.sendall(head.encode() + inner)
        connection.settimeout(10)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
    assert found.count(b"HTTP/1.1 ") == 1
    assert found.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/x", "/etc/passwd",
     "/api/runs/..", "/api/runs/..%2f..", "/api/runs/%2fetc", "/api/studies/..%2f..", "/api/studies/x/../..", "/api/deployments/..",
     "/api/models/..%2f..", "/api/card/..%2fx@1", "/api/runs/a%00b", "/api/nothing", "/api/", "/api/overview/x", "/%ff%fe"],
)  # fmt: skip
def test_no_address_leads_out_of_the_project(client: Client, path: str) -> None:
    code, _, body = client.ask(path, authorization=f"Bearer {client.access.token}")
    assert 400 <= code < 500, (code, body)
    assert "root:" not in body.decode()


def test_what_has_not_changed_is_not_sent_again(client: Client) -> None:
    code, head, body = client.ask("/api/runs", authorization=f"Bearer {client.access.token}")
    assert (code, json.loads(body)["total"]) == (200, 4)
    again = client.ask("/api/runs", authorization=f"Bearer {client.access.token}", if_none_match=head["Etag"])
    assert (again[0], again[2]) == (304, b"")


def test_who_says_nothing_keeps_nobody_out(client: Client) -> None:
    address = client.server.server_address[:2]
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(3 * _CONNECTIONS)]
        for half in silent[::2]:
            half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert client.get("project")["project"] == "made"


def test_the_command_prints_its_address_once_and_ends_with_ctrl_c(project: Project) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "hpcmass", "dashboard", "--project", str(project.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert started.stdout is not None
    found = re.search(r"(http://127\.0\.0\.1:\d+/)#(\S+)", started.stdout.readline())
    assert found is not None
    url, token = found.groups()
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}api/project", headers={"Authorization": f"Bearer {token}"})
    ) as answer:
        assert json.load(answer)["project"] == "made"
    held = urllib.request.urlopen(url)  # a connection that a browser keeps
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=30)
    held.close()
    assert (started.returncode, err) == (0, "")
    assert token not in out


def test_a_port_that_is_taken_is_told(project: Project, client: Client) -> None:
    port = str(client.server.server_address[1])
    done = subprocess.run(
        [sys.executable, "-m", "hpcmass", "dashboard", "--project", str(project.root), "--port", port],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot listen at 127.0.0.1 port" in done.stderr
    assert "--port 0" in done.stderr
    assert "Traceback" not in done.stderr
