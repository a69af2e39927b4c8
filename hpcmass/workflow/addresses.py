"""This machine's IPv4 addresses, and which of a driver's addresses a node should use. Loads no Parsl."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
LOOPBACK = "127.0.0.1"


def own_interfaces() -> list[ipaddress.IPv4Interface]:
    """This machine's IPv4 addresses with their networks, but the loopback's."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address, mask = (
                    socket.inet_ntoa(fcntl.ioctl(probe.fileno(), code, request)[20:24])
                    for code in (_SIOCGIFADDR, _SIOCGIFNETMASK)
                )
            except OSError:
                continue  # It has none.
            if not address.startswith("127."):
                found.append(ipaddress.IPv4Interface(f"{address}/{mask}"))
    return found


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses but the loopback's.

    Parsl's own look-up asks a server on the internet as well.
    """
    return [str(interface.ip) for interface in own_interfaces()] or [LOOPBACK]


def best_addresses(driver: Sequence[str], here: Sequence[ipaddress.IPv4Interface]) -> list[str]:
    """Which of a driver's addresses to use from a node; Parsl then tries these. Pure.

    Others may answer as well, over a bridge of the driver's machine that has nothing to do with this node and
    may be gone in the next minute.

    Args:
        driver: The driver's addresses.
        here: The node's own interfaces.
    """
    own = {str(interface.ip) for interface in here}
    if own and own >= set(driver):
        return [LOOPBACK]  # The same machine.
    # One that this node has itself is a bridge that machines have under the same address (libvirt's, Docker's).
    others = [one for one in driver if one not in own]
    near = [one for one in others if any(ipaddress.IPv4Address(one) in i.network for i in here)]
    return near or others
