"""The gateway before peers that do what real replicas hardly can be made to do: refuse, stall, break off, lie."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hpcmass.serve.gateway import Gateway
from hpcmass.serve.http import Server
from hpcmass.serve.interfaces import Limits
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.rate import Rate
from hpcmass.serve.tokens import new_token, read_tokens
from hpcmass.serve.upstream import Backend

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}"
INFER = "/v2/models/toy/infer"


class Peer:
    """A replica that answers every request with the same bytes, and then perhaps cuts the connection."""

    def __init__(self, rid: str, answer: bytes | None, *, cut: bool = False, wait_s: float = 0.0) -> None:
        self.rid, self.answer, self.cut, self.wait_s = rid, answer, cut, wait_s
        self.asked: list[bytes] = []
        self.left = 0

    async def start(self, version: str = "1") -> Backend:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return Backend(self.rid, "127.0.0.1", port, version=version, model=f"toy@{version}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
                )
                self.asked.append(head + await reader.readexactly(size))
                await asyncio.sleep(self.wait_s)
                if self.answer is None:
                    await reader.read()
                    self.left += 1
                    return
                writer.write(self.answer)
                if self.cut:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class House:
    """A gateway that listens."""

    def __init__(self, **options: Any) -> None:
        metrics = Metrics()
        tokens = options.pop("tokens", None)
        self.gateway = Gateway("toy", metrics, tokens, "secret", **options)
        self.server = Server(self.gateway, Limits(), metrics)
        self.suspects: list[str] = []
        self.gateway.suspected = lambda backend, why: self.suspects.append(backend.rid)

    async def open(self, *peers: Peer) -> list[Backend]:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server.connection, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        backends = [await peer.start() for peer in peers]
        for backend in backends:
            self.gateway.admit(backend)
        return backends

    async def ask(
        self, path: str = INFER, body: bytes = b"{}", *lines: str, method: str = "POST"
    ) -> tuple[int, str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *lines]
        if method == "POST":
            head.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*head, "", ""]).encode() + (body if method == "POST" else b""))
        found = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        top, _, rest = found.partition(b"\r\n\r\n")
        return int(top[9:12]), top.decode().lower(), rest


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 60))  # type: ignore[arg-type]


def test_what_is_asked_and_answered_passes_through_unchanged() -> None:
    async def go() -> None:
        house, peer = House(), Peer("a", OK + b"true")
        await house.open(peer)
        body = bytes(range(256)) * 2000
        status, _, found = await house.ask(
            INFER, body, "Inference-Header-Content-Length: 77", "Authorization: Bearer mine"
        )
        assert (status, found) == (200, b"true")
        head, _, sent = peer.asked[0].partition(b"\r\n\r\n")
        assert sent == body
        assert b"inference-header-content-length: 77" in head
        assert b"Bearer secret" in head  # the gateway's own
        assert b"mine" not in head

    run(go)


def test_one_that_is_busy_sends_nobody_away_while_another_is_free() -> None:
    async def go() -> None:
        house, busy, free = House(), Peer("a", BUSY), Peer("b", OK + b"true")
        await house.open(busy, free)
        assert [(await house.ask())[0] for _ in range(6)] == [200] * 6
        assert len(busy.asked) >= 2
        free.answer = BUSY
        status, head, _ = await house.ask()
        assert status == 429
        assert "retry-after: 3" in head

    run(go)


@pytest.mark.parametrize("answer", [b"", OK + b"tr", b"HTTP/1.1 200", b"no http\r\n\r\n", b"\x00" * 100])
def test_one_that_breaks_off_is_asked_no_more(answer: bytes) -> None:
    async def go() -> None:
        house, bad, good = House(), Peer("a", answer, cut=True), Peer("b", OK + b"true")
        await house.open(bad, good)
        assert [(await house.ask())[0] for _ in range(6)] == [200] * 6
        assert house.suspects == ["a"]
        assert len(bad.asked) == 1
        assert house.gateway.calls == set()
        assert all(one.in_flight == 0 for one in house.gateway.ready)

    run(go)


def test_nobody_is_asked_for_ever() -> None:
    async def go() -> None:
        house, peers = House(), [Peer(str(number), b"", cut=True) for number in range(5)]
        await house.open(*peers)
        status, _, body = await house.ask()
        assert status == 502
        assert "3 replicas" in json.loads(body)["error"]
        assert sum(len(one.asked) for one in peers) == 3

    run(go)


def test_one_that_does_not_answer_in_time() -> None:
    async def go() -> None:
        house, mute, good = House(attempt_s=0.2), Peer("a", None), Peer("b", OK + b"true")
        await house.open(mute, good)

        async def sweep() -> None:
            while True:
                house.gateway.sweep()
                await asyncio.sleep(0.05)

        sweeping = asyncio.ensure_future(sweep())
        assert [(await house.ask())[0] for _ in range(4)] == [200] * 4
        assert house.suspects == ["a"]
        sweeping.cancel()

    run(go)


def test_requests_wait_for_the_first_replica_up_to_a_limit() -> None:
    async def go() -> None:
        house, peer, wanted = House(hold=2, hold_s=0.3), Peer("a", OK + b"true"), []
        await house.open()
        house.gateway.wanted = lambda: wanted.append(1)
        waiting = [asyncio.ensure_future(house.ask()) for _ in range(2)]
        while len(house.gateway.held) < 2:
            await asyncio.sleep(0.01)
        assert (await house.ask())[0] == 429
        assert (await house.ask("/v2/health/ready", method="GET"))[0] == 503
        house.gateway.admit(await peer.start())
        assert [(await one)[0] for one in waiting] == [200, 200]
        assert len(wanted) == 2
        house.gateway.dismiss(house.gateway.ready[0])
        late = asyncio.ensure_future(house.ask())
        await asyncio.sleep(0.4)
        house.gateway.sweep()
        assert (await late)[0] == 503

    run(go)


def test_a_client_that_leaves_is_not_computed_for() -> None:
    async def go() -> None:
        house, mute = House(), Peer("a", None)
        (backend,) = await house.open(mute)
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        while not mute.asked:
            await asyncio.sleep(0.01)
        # A reset: one that closes its side alone may still wait for the answer.
        made = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        while not mute.left:
            await asyncio.sleep(0.01)
        assert (backend.in_flight, house.gateway.calls, house.suspects) == (0, set(), [])

    run(go)


def test_the_stronger_gets_more_and_none_is_left_out() -> None:
    async def go() -> None:
        house, weak, strong = House(), Peer("a", OK + b"true", wait_s=0.1), Peer("b", OK + b"true", wait_s=0.1)
        backends = await house.open(weak, strong)
        backends[1].weight = 3.0
        assert {one[0] for one in await asyncio.gather(*(house.ask() for _ in range(40)))} == {200}
        assert len(strong.asked) == 30
        assert len(weak.asked) == 10

    run(go)


def test_a_trial_gets_its_share_and_its_failures_are_answered_by_the_other() -> None:
    async def go() -> None:
        fails = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"
        house, stable, trial = House(), Peer("a", OK + b"true"), Peer("b", fails)
        backends = await house.open(stable, trial)
        backends[1].track, house.gateway.share = "canary", 0.25
        assert [(await house.ask())[0] for _ in range(40)] == [200] * 40
        assert len(trial.asked) == 10
        assert len(stable.asked) == 40
        assert backends[1].window.total_errors == 10

    run(go)


def test_who_may_ask_and_what(tmp_path: Any) -> None:
    token = new_token("ada", tmp_path / "tokens")

    async def go() -> None:
        house, peer = House(tokens=read_tokens(tmp_path / "tokens")), Peer("a", OK + b"true")
        await house.open(peer)
        bearer = f"Authorization: Bearer {token}"
        assert (await house.ask())[0] == 401
        assert (await house.ask(INFER, b"", "Authorization: Bearer secret"))[0] == 401
        assert (await house.ask("/metrics", method="GET"))[0] == 401
        assert peer.asked == []
        assert (await house.ask(INFER, b"", bearer))[0] == 200
        assert (await house.ask("/v2/models/toy/versions/1/infer", b"", bearer))[0] == 200
        for path in (
            "/v2/models/toy/versions/2/infer",
            "/v2/models/other/infer",
            "/v2/models/toyx/infer",
            "/",
            "/infer",
        ):
            assert (await house.ask(path, b"", bearer))[0] == 404
        assert (await house.ask(INFER, b"", bearer, method="GET"))[0] == 405
        assert (await house.ask("/v2/health/live", method="GET"))[0] == 200
        _, _, page = await house.ask("/metrics", b"", bearer, method="GET")
        assert b'hpcmass_gateway_answers_total{code="401"} 3' in page
        assert b"hpcmass_gateway_request_seconds_count 2" in page

    run(go)


def test_a_head_is_asked_as_get_and_answered_without_a_body() -> None:
    async def go() -> None:
        house, peer = House(), Peer("a", OK + b"true")
        await house.open(peer)
        status, head, body = await house.ask("/v2/models/toy", method="HEAD")
        assert (status, body) == (200, b"")
        assert "content-length: 4" in head
        # A replica answers HEAD without a body, for which the parser of answers would wait until the replica
        # is taken for dead.
        assert peer.asked[0].startswith(b"GET /v2/models/toy HTTP/1.1\r\n")
        assert house.suspects == []

    run(go)


def test_an_answer_with_a_status_that_http_has_no_word_for() -> None:
    async def go() -> None:
        house = House()
        await house.open(Peer("a", b"HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\n{}"))
        assert (await house.ask())[0] == 599
        assert house.gateway.calls == set()

    run(go)


def test_a_client_s_rate_is_kept_at_the_gateway(tmp_path: Any) -> None:
    tokens = [new_token(name, tmp_path / "tokens") for name in ("ada", "bob")]

    async def go() -> None:
        house, peer = (
            House(tokens=read_tokens(tmp_path / "tokens"), rate=Rate(0.01, 3)),
            Peer("a", OK + b"true"),
        )
        await house.open(peer)
        ada, bob = (f"Authorization: Bearer {token}" for token in tokens)
        assert [(await house.ask(INFER, b"{}", ada))[0] for _ in range(4)] == [200, 200, 200, 429]
        assert (await house.ask(INFER, b"{}", bob))[0] == 200
        assert (await house.ask("/v2/health/ready", method="GET"))[0] == 200
        assert len(peer.asked) == 4
        _, _, page = await house.ask("/metrics", b"", bob, method="GET")
        assert b"hpcmass_gateway_rate_limited_total 1" in page

    run(go)
