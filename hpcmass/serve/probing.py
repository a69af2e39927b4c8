"""Asking a replica how it is; and where replicas are started, as the controller sees it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcmass.serve.deployment import Asked, Known

PROBE_S = 2.0
_LINE = re.compile(r"^((?:hpcmass|process)_[a-z_]+) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class JobView:
    """A started replica's job.

    Attributes:
        alive: False: it is over; None: nobody can tell.
        leaving: Its time limit is near, or its node is to be taken away.
        waiting: It waits in a queue.
        node: Where it runs.
        job: Slurm's id, or None.
        told: In words, as the queue has it.
        address: Where a replica that listens at all addresses of its node is reached from here.
    """

    alive: bool | None
    leaving: bool = False
    waiting: bool = False
    node: str = ""
    job: str | None = None
    told: str = ""
    address: str = ""


class Launcher(Protocol):
    """Starts and ends replicas somewhere. Called in threads, one call at a time for each replica."""

    def target(self, running: Sequence[str | None]) -> str | None:
        """Which target the next replica goes to, given those of the others."""

    def command(self, asked: Asked, model: str, folder: Path, target: str | None) -> list[str]:
        """The words that start a replica."""

    def start(self, replica: Known, asked: Asked) -> dict[str, Any]:
        """Start it, and give what it is found by afterwards.

        Raises:
            HpcmassError: It cannot be started.
        """

    def find(self, replica: Known) -> dict[str, Any] | None:
        """What it was started as, where whoever started it could not write that down; None: it was not."""

    def look(self, replicas: Sequence[Known]) -> dict[str, JobView]:
        """How the jobs are, by number of replica; one that is left out is as it was."""

    def stop(self, replica: Known, *, kill: bool = False) -> None:
        """End it: it answers what it has, unless it is killed. One that is gone is no error."""


async def probe(host: str, port: int, path: str, token: str | None) -> tuple[int, bytes]:
    """Status and body of a GET; status 0 where no whole answer comes in time."""
    try:
        return await asyncio.wait_for(_get(host, port, path, token), PROBE_S)
    except (OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError):
        return 0, b""


async def _get(host: str, port: int, path: str, token: str | None) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: replica\r\n{bearer}Connection: close\r\n\r\n".encode())
        data = await reader.read(1 << 20)
        while not reader.at_eof() and len(data) < 1 << 20:
            data += await reader.read(1 << 20)
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head[9:12]), body
    finally:
        writer.close()


def numbers(body: bytes) -> dict[str, float]:
    """Plain counters and gauges of a page of metrics, by name."""
    found = {}
    for name, text in _LINE.findall(body.decode("utf-8", "replace")):
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found
