"""Who may read: a token, exchanged once for a cookie that no other page and no other port can use.

A cookie knows no ports: a browser would show one of 127.0.0.1 to any server of this machine, another user's
too. Ours therefore belongs to a path that nobody can guess, and is of no use outside of it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

COOKIE = "hpcmass"


class Access:
    """The secrets of one dashboard; they end with its process.

    Attributes:
        token: What is in the address that is printed.
        room: The first part of the path below which everything lies that the cookie opens.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        """Make them.

        Args:
            names: Names of this machine by which a browser may call it, besides `localhost` and addresses.
        """
        self.token = secrets.token_urlsafe(32)
        self.room = secrets.token_urlsafe(16)
        self._session = secrets.token_urlsafe(32)
        self._names = {"localhost", *(name.lower() for name in names)}

    def knows_host(self, host: str | None) -> bool:
        """Whether a `Host` header names this machine: a foreign page that has its name point here does not.

        An address is no name, so nobody can have it point here; and a forwarded port may be any.
        """
        if not host:
            return False
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower().rstrip(".") in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def has_token(self, headers: Mapping[str, str]) -> bool:
        """Whether a request bears the token."""
        kind, _, given = (headers.get("Authorization") or "").partition(" ")
        return kind.lower() == "bearer" and _same(given.strip(), self.token)

    def has_session(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has the cookie."""
        try:
            found = SimpleCookie(headers.get("Cookie") or "").get(COOKIE)
        except CookieError:
            return False
        return found is not None and _same(found.value, self._session)

    def cookie(self) -> str:
        """The header that gives the cookie to who has shown the token."""
        return f"{COOKIE}={self._session}; Path=/{self.room}/; HttpOnly; SameSite=Strict"


def from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that another page asks; one that says nothing is believed."""
    return (headers.get("Sec-Fetch-Site") or "none").lower() not in ("none", "same-origin")


def own_names() -> tuple[str, ...]:
    """This machine's names, for a dashboard that other machines may reach."""
    return tuple({socket.gethostname(), socket.getfqdn()})


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is one that no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _same(given: str, right: str) -> bool:
    # Of digests, since compare_digest refuses text that is not ASCII.
    one, other = (hashlib.sha256(text.encode(errors="surrogateescape")).digest() for text in (given, right))
    return hmac.compare_digest(one, other)
