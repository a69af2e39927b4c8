"""The connection by which a supervisor knows that a node lives."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from hpcmass.launch.lifeline import Lifelines
from hpcmass.launch.outcome import LostNode, Outcome, RankExit


@pytest.fixture
def lines() -> Iterator[Lifelines]:
    made = Lifelines()
    yield made
    made.close()


def call(lines: Lifelines, said: bytes) -> socket.socket:
    told = lines.settings("localhost")
    line = socket.create_connection(("127.0.0.1", int(str(told["port"]))))
    line.sendall(said.replace(b"TOKEN", str(told["token"]).encode()))
    return line


def lost_soon(lines: Lifelines) -> set[str]:
    until = time.monotonic() + 240
    while not lines.lost and time.monotonic() < until:
        time.sleep(0.01)
    return set(lines.lost)


def test_a_node_that_hangs_up_without_a_good_bye_is_lost(lines: Lifelines) -> None:
    call(lines, b"TOKEN cn1\nbye").close()
    call(lines, b"another-token cn3\n").close()
    call(lines, b"x" * 5000).close()
    call(lines, b"TOKEN cn4").close()  # not even its name was said
    living = call(lines, b"TOKEN cn5\n")
    before = time.time()
    call(lines, b"TOKEN cn2\n").close()  # after all the others
    assert lost_soon(lines) == {"cn2"}
    assert before <= lines.lost["cn2"] <= time.time()
    living.sendall(b"bye")
    living.close()


def test_a_reset_connection_is_a_loss_too(lines: Lifelines) -> None:
    line = call(lines, b"TOKEN cn2\n")
    until = time.monotonic() + 240
    while not any(said.endswith(b"cn2\n") for said in list(lines._open.values())):  # a reset takes it back
        assert time.monotonic() < until
        time.sleep(0.01)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.close()
    assert lost_soon(lines) == {"cn2"}


def test_what_is_said_of_it() -> None:
    lost = LostNode("cn2", (2, 3), 1.0)
    assert lost.text() == "node cn2 was lost with ranks 2, 3: it failed, or all of its processes were killed"
    many = LostNode("cn2", tuple(range(10, 30)), 1.0)
    assert "with ranks 10, 11, 12, 13, 14, 15, 16, 17 …:" in many.text()


def test_an_outcome_says_what_nobody_knows() -> None:
    ended = RankExit(0, 0, None)
    assert Outcome(1, {0: ended}).unknown is None
    assert Outcome(2, {0: ended}).unknown == (
        "nothing is known of the end of rank 1; the launcher ended with exit code 0"
    )
    assert "2 ranks, the first of them rank 1" in str(Outcome(3, {0: ended}).unknown)
    assert not Outcome(2, {0: ended}).ok
