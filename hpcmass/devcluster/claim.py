"""A place on this machine for a cluster: free ports and a free subnet, for one cluster only.

A claim is an abstract Unix socket: the kernel gives a name to one process at a time, on the whole machine
and to all users, and takes it back when the last holder ends. So nothing stale is ever left, and two clusters
started at the same moment cannot meet. The holder is a process of the cluster that does nothing else
(`sleep infinity`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcmass.devcluster.settings import FIRST_PORT, PORTS_EACH, SLOTS
from hpcmass.errors import LaunchError, LeaseHeld

PREFIX = "hpcmass-devcluster"


def _bind(name: str) -> socket.socket | None:
    handle = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        handle.bind(f"\0{PREFIX}/{name}")
    except OSError as error:
        handle.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return handle


@contextlib.contextmanager
def only_one(folder: Path, patience_s: float = 180.0) -> Iterator[None]:
    """One command at a time changes the cluster of a folder; others wait.

    Raises:
        LeaseHeld: Another one has been at work all the time.
    """
    name = "folder/" + hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    end = time.monotonic() + patience_s
    while not (handle := _bind(name)):
        if time.monotonic() > end:
            raise LeaseHeld("another command is starting or ending this cluster", where=folder, transient=True)
        time.sleep(0.1)
    with handle:
        yield


@contextlib.contextmanager
def abandoned(slot: int) -> Iterator[bool]:
    """Whether nobody holds a slot; nobody gets it during the body then."""
    handle = _bind(f"slot/{slot}")
    try:
        yield handle is not None
    finally:
        if handle is not None:
            handle.close()


def claim_slot(usable: Callable[[int], bool]) -> tuple[int, socket.socket]:
    """The first free slot, and the socket that holds it as long as some process keeps it open.

    Args:
        usable: Says whether a slot that was free serves, for reasons of the caller's.

    Raises:
        LaunchError: Every slot is taken.
    """
    for slot in range(SLOTS):
        handle = _bind(f"slot/{slot}")
        if handle is None:
            continue
        if _ports_free(slot) and usable(slot):
            return slot, handle
        handle.close()
    raise LaunchError(
        f"no free ports from {FIRST_PORT} on for one more cluster",
        hint="end clusters that are not needed: hpcmass slurm down --folder FOLDER",
    )


def _ports_free(slot: int) -> bool:
    for port in range(FIRST_PORT + slot * PORTS_EACH, FIRST_PORT + (slot + 1) * PORTS_EACH):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True
