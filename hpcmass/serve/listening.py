"""The socket that a replica listens at, and closing it so that nobody who got through is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import time

from hpcmass.errors import HpcmassError

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux
_UNACKED = 24  # offset of tcpi_unacked in struct tcp_info: of a listening socket, connections not accepted yet
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at the first address that the name has.

    Raises:
        HpcmassError: There is no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError, IndexError) as error:
        raise HpcmassError(
            f"cannot listen at {host} port {port}: {error}", hint="--port 0 takes a port that is free"
        ) from error
    made.setblocking(False)
    return made


async def stop_listening(listener: socket.socket, limit_s: float = 2.0) -> None:
    """Let no new connection begin, and wait until those that have begun are accepted.

    Closing at once would reset connections that the kernel holds and the loop has not seen: their clients
    may have sent requests. A filter that passes nothing makes the kernel drop what would begin one; a client
    tries again after a second and is refused then, which it knows to be safe.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    with contextlib.suppress(OSError):
        at = ctypes.addressof(program)
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 1, at))
    end = time.monotonic() + limit_s
    while _waiting(listener) and time.monotonic() < end:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)


def _waiting(listener: socket.socket) -> bool:
    try:
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        return bool(struct.unpack_from("I", found, _UNACKED)[0])
    except (OSError, struct.error):
        return False
