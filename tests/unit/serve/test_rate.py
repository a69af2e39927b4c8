"""How many requests one client may send, by its token or its address."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmass.serve.interfaces import Refused
from hpcmass.serve.rate import Rate, address_of

from .conftest import Replica, request

INFER = "/v2/models/toy/infer"


def let_through(rate: Rate, client: str, now: float) -> bool:
    try:
        rate.take(client, now)
    except Refused:
        return False
    return True


@pytest.mark.parametrize("per_s", [0.2, 1.0, 5.0, 333.0])
def test_over_a_long_time_a_client_has_its_rate_and_no_more(per_s: float) -> None:
    rate, draw, now, through, tries = Rate(per_s), random.Random(0), 0.0, 0, 4000
    for _ in range(tries):
        now += draw.expovariate(3 * per_s)
        through += let_through(rate, "a", now)
    assert through <= per_s * now + max(1, per_s) + 1
    assert through >= 0.7 * per_s * now  # a bucket for one loses what comes while it is full
    assert rate.refused == tries - through


def test_a_burst_of_a_second_passes_and_others_are_not_held() -> None:
    rate = Rate(10)
    assert [let_through(rate, "a", 5.0) for _ in range(13)] == [True] * 10 + [False] * 3
    assert let_through(rate, "b", 5.0)
    assert not let_through(rate, "a", 5.05)
    assert let_through(rate, "a", 5.11)
    slow = Rate(0.1)
    slow.take("c", 0.0)
    with pytest.raises(Refused) as told:
        slow.take("c", 2.0)
    assert (told.value.status, told.value.retry_after) == (429, 8)


def test_what_is_remembered_is_bounded() -> None:
    rate = Rate(1, clients=100)
    for number in range(1000):
        rate.take(f"client {number}", 0.0)
        assert len(rate) <= 100
    rate.take("later", 10.0)
    assert len(rate) <= 91
    assert not let_through(rate, "later", 10.1)


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (None, ""), ("", ""),
    ],
)  # fmt: skip
def test_who_an_address_is(peer: object, who: str) -> None:
    assert address_of(peer) == who


def metric(replica: Replica, name: str, headers: dict | None = None) -> float:
    lines = replica.ask("GET", "/metrics", headers=headers)[2].decode().splitlines()
    return next(float(one.split()[1]) for one in lines if one.startswith(name + " "))


def test_a_client_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path, bundle: Path) -> None:
    replica = Replica(tmp_path, str(bundle), "--notice", "0", "--rate", "4", "--runtime", "torch")
    try:
        replica.until("ready")
        found = [replica.ask("POST", INFER, request([[0, 0, 0, 0]], [1])) for _ in range(12)]
        refused = [(headers, body) for status, headers, body in found if status == 429]
        assert {status for status, _, _ in found} == {200, 429}
        assert all(headers["retry-after"] == "1" for headers, _ in refused)
        assert json.loads(refused[0][1])["error"] == "you send more than 4 requests a second"
        assert replica.ask("GET", "/v2/health/ready")[0] == 200  # whoever watches it is not turned away
        # Another address of this machine is another client.
        with socket.create_connection(("127.0.0.1", replica.port), source_address=("127.0.0.9", 0)) as other:
            other.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(1.1)
        assert replica.ask("POST", INFER, request([[0, 0, 0, 0]], [1]))[0] == 200
        assert metric(replica, "hpcmass_rate_limited_total") >= len(refused)
    finally:
        assert replica.stop() == 0


def test_a_token_has_a_rate_of_its_own_and_guesses_have_one_too(tmp_path: Path, bundle: Path) -> None:
    tokens = []
    for name in ("ada", "bob"):
        done = subprocess.run(
            [sys.executable, "-m", "hpcmass", "token", name, "--file", str(tmp_path / "tokens")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        tokens.append({"Authorization": f"Bearer {done.stdout.strip()}"})
    words = ["--tokens", "tokens", "--rate", "3", "--notice", "0", "--runtime", "torch"]
    replica = Replica(tmp_path, str(bundle), *words)
    try:
        replica.until("ready")
        guesses = [replica.ask("GET", "/v2", headers={"Authorization": "Bearer x"})[0] for _ in range(8)]
        assert set(guesses) == {401, 429}
        assert guesses[0] == 401
        ada = [replica.ask("GET", "/v2", headers=tokens[0])[0] for _ in range(8)]
        assert ada[:3] == [200] * 3
        assert 429 in ada
        assert replica.ask("GET", "/v2", headers=tokens[1])[0] == 200
    finally:
        assert replica.stop() == 0
