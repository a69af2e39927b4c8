"""Clients that mean harm, all at once, while others are served: each of those gets its own answers."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .conftest import Replica, request

INFER = b"/v2/models/toy/infer"
SECONDS = 6.0
# Times short enough to be seen in a test, and as many connections as the hostile ones together want.
START = (
    "import sys; from hpcmass.serve import interfaces as i; d = i.Limits.__init__.__kwdefaults__;"
    "d.update(head_s=1.0, body_s=1.0, idle_s=3.0, write_s=1.0, connections=300);"
    "from hpcmass.__main__ import main; sys.argv = ['hpcmass', *sys.argv[1:]]; main()"
)


def post(body: bytes, *lines: bytes) -> bytes:
    head = b"\r\n".join(
        [b"POST " + INFER + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *lines]
    )
    return head + b"\r\n\r\n" + body


def a_request(k: int = 1, **more: object) -> bytes:
    return json.dumps({**more, **request([[0, 0, 0, 0]], [k])}).encode()


def read_answer(client: socket.socket, kept: bytes) -> tuple[bytes, bytes, bytes]:
    """Head and body of the next answer, and what came behind it."""
    while b"\r\n\r\n" not in kept:
        part = client.recv(65536)
        assert part, (kept, "the connection ended")
        kept += part
    head, _, rest = kept.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(rest) < size:
        part = client.recv(65536)
        assert part, (kept, "the connection ended")
        rest += part
    return head, rest[:size], rest[size:]


# -- who means harm: each is called again and again, with a seeded source of chance -------------------------
def trickle(port: int, draw: random.Random) -> None:
    """A head or a body, a byte at a time, until it is cut off."""
    whole = post(a_request())
    at = draw.choice([0, whole.index(b"\r\n\r\n") + 4])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(whole[:at])
        for byte in whole[at:-1]:
            one.sendall(bytes([byte]))
            time.sleep(0.05)


def never_read(port: int, draw: random.Random) -> None:
    """Many requests, and none of their answers is taken."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(4)
        one.connect(("127.0.0.1", port))
        x = [[0, 0, 0, 0]] * 500
        many = post(json.dumps(request(x, [1] * 500)).encode())
        while True:
            one.sendall(many)


def flood(port: int, draw: random.Random) -> None:
    """Connections by the dozen, left open or reset."""
    ones = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(40)]
    for one in ones:
        with contextlib.suppress(OSError):
            one.sendall(post(a_request())[: draw.randrange(120)])
    time.sleep(0.2)
    for one in ones:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        one.close()


def noise(port: int, draw: random.Random) -> None:
    """Requests with bytes exchanged, left out and put in."""
    whole = bytearray(post(a_request(id="noise")) * 3)
    for _ in range(draw.randrange(1, 12)):
        at = draw.randrange(len(whole))
        whole[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(4))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(whole)
        one.shutdown(socket.SHUT_WR)
        while one.recv(65536):
            pass


def bombs(port: int, draw: random.Random) -> None:
    """Bodies that are costly to read, or to compute."""
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    nested = a_request().replace(b"[[0, 0, 0, 0]]", b"[" * 40 + b"0" + b"]" * 40)
    digits = a_request().replace(b"[1]", b"[1" + b"0" * 200_000 + b"]")
    wide = b'{"inputs":[' + b'{"name":"x"},' * 50_000 + b'{"name":"x"}]}'
    unlucky, odd = a_request(13), json.dumps({"id": "\ud800"}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        for body in draw.sample([deep, nested, digits, wide, unlucky, odd], 3):
            one.sendall(post(body))
            head, _, _ = read_answer(one, b"")
            assert head.split()[1] in (b"400", b"500", b"429", b"503"), head


def run_ahead(port: int, draw: random.Random) -> None:
    """Pipelined requests, one of them wrong, and away before the answers come."""
    parts = [post(a_request(draw.choice([2, 13]), id="ahead")) for _ in range(30)]
    parts.insert(draw.randrange(30), b"GET /\x00 HTTP/1.1\r\nContent-Length: 3, 4\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(b"".join(parts))
        time.sleep(draw.random() * 0.05)


HARM = [trickle, never_read, flood, noise, bombs, run_ahead]


def serve_one(port: int, seed: int, end: float, weights: np.ndarray, wrong: list[object]) -> int:
    """A client that means well: every answer is held against what it alone has asked."""
    draw, answered, kept = random.Random(seed), 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        while time.monotonic() < end:
            x = [[round(draw.uniform(-9, 9), 3) for _ in range(4)] for _ in range(draw.choice([1, 1, 2, 5]))]
            k = [seed * 1000 + draw.randrange(20, 999) for _ in x]
            one.sendall(post(json.dumps({"id": f"{seed}-{answered}", **request(x, k)}).encode()))
            head, body, kept = read_answer(one, kept)
            if head.split()[1] in (
                b"429",
                b"503",
            ):  # too many wait, or it has waited too long: no answer, so no wrong one
                time.sleep(0.05)
                continue
            found = json.loads(body)
            right = np.array(x) @ (weights[:4] - weights[4]) + weights[4] + np.array(k)[:, None]
            values = np.array(found["outputs"][0]["data"]).reshape(-1, 3) if "outputs" in found else None
            if (
                values is None
                or found["id"] != f"{seed}-{answered}"
                or not np.allclose(values, right, atol=0.01)
            ):
                wrong.append((head, body[:300]))
            answered += 1
    return answered


@pytest.mark.parametrize("inline", [True, False], ids=["on the loop", "in a thread"])
def test_each_gets_its_own_answer_whatever_others_do(tmp_path: Path, bundle: Path, inline: bool) -> None:
    from hpcmass.train.model import load_bundle

    start = START if inline else "from hpcmass.serve import replica as r; r.INLINE_S = 0.0;" + START
    replica = Replica(tmp_path, str(bundle), "--notice", "0", "--runtime", "torch", start=["-c", start])
    try:
        port = replica.until("ready")["port"]
        eye = np.concatenate([np.eye(4), np.zeros((1, 4))]).astype(np.float32)
        weights = np.asarray(load_bundle(bundle)({"x": eye, "k": np.zeros(5, np.int64)}), np.float64)
        end = time.monotonic() + SECONDS
        wrong: list[object] = []
        answered: dict[int, int] = {}
        done: dict[str, int] = {}

        def good(seed: int) -> None:
            try:
                answered[seed] = serve_one(port, seed, end, weights, wrong)
            except Exception as error:
                wrong.append(repr(error))

        def harm(what: Callable[[int, random.Random], None], seed: int) -> None:
            draw = random.Random(seed)
            while time.monotonic() < end:
                try:
                    what(port, draw)
                except OSError:
                    pass
                except AssertionError as error:
                    if "the connection ended" not in str(error):
                        wrong.append((what.__name__, str(error)[:300]))
                done[what.__name__] = done.get(what.__name__, 0) + 1

        threads = [threading.Thread(target=good, args=(seed,)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # they have their connections, of which the flood takes all that are left
        threads += [threading.Thread(target=harm, args=(what, 7 * n)) for what in HARM for n in range(2)]
        for thread in threads[8:]:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(answered) == 8
        assert min(answered.values()) > 5, answered
        assert set(done) == {one.__name__ for one in HARM}
        assert replica.process.poll() is None
        gone = time.monotonic() + 30
        while True:  # nothing of theirs is left
            page = replica.ask("GET", "/metrics")[2].decode()
            left = {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if line[0] != "#"}
            if (
                left["hpcmass_connections"] == 1
                and not left["hpcmass_buffered_bytes"] + left["hpcmass_queue_rows"]
            ):
                break
            assert time.monotonic() < gone, left
            time.sleep(0.1)
        log = replica.log.read_text()
        for said in ("a request failed", "was not understood", "not be written", "Exception in", "Fatal"):
            assert said not in log, log[-3000:]
    finally:
        assert replica.stop() == 0


SMUGGLED = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: identity", b"Content-Length: 5"],
        [b"Transfer-Encoding : chunked"],
        [b"Transfer-Encoding:\x0bchunked"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: +5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 5\r\n 5"],
        [b"X: a\rTransfer-Encoding: chunked"],
        [b"X: a\x00b"],
    ],
    ids=range(14),
)
def test_no_request_hides_in_another(replica: Replica, lines: list[bytes]) -> None:
    head = b"\r\n".join([b"POST " + INFER + b" HTTP/1.1", b"Host: x", *lines, b"", b""])
    with socket.create_connection(("127.0.0.1", replica.port), timeout=20) as one:
        with contextlib.suppress(OSError):
            one.sendall(head + b"0\r\n\r\n" + SMUGGLED + SMUGGLED)
            one.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(65536):
                found += part
    assert found.count(b"\r\nDate: ") == 1, found
    assert found.startswith(b"HTTP/1.1 400"), found
    assert b"Connection: close" in found
