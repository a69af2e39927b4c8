"""How many requests a second one client may send: one number a client, none for those who have been quiet."""

from __future__ import annotations

import ipaddress
import math
from time import monotonic
from typing import TYPE_CHECKING, Any

from hpcmass.serve.interfaces import Refused

if TYPE_CHECKING:
    from hpcmass.serve.exchange import Exchange
    from hpcmass.serve.tokens import Tokens

_CLIENTS = 10_000


class Rate:
    """A bucket of tokens for each client, filled evenly; what one second brings fits in it.

    Kept as the time at which the bucket would be full again (GCRA): a client is forgotten after that.

    Args:
        per_s: Requests a second.
        burst: Requests at once, after a pause; default: those of a second, at least one.
        clients: Remembered at once, at most; beyond that those that were seen first are forgiven.

    Attributes:
        refused: Requests that were too many.
    """

    def __init__(self, per_s: float, burst: float | None = None, clients: int = _CLIENTS) -> None:
        self.per_s = per_s
        self.refused = 0
        self._each_s = 1.0 / per_s
        self._ahead_s = (max(1.0, per_s if burst is None else burst) - 1.0) * self._each_s
        self._most = clients
        self._full: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full)

    def take(self, client: str, now: float | None = None) -> None:
        """Let one request of a client through.

        Args:
            client: Whoever it is.
            now: Seconds of a clock that never goes back.

        Raises:
            Refused: It sends too many; `retry_after` says when the next one will be let through.
        """
        now = monotonic() if now is None else now
        known = self._full.get(client)
        full = now if known is None else max(known, now)
        if full - now > self._ahead_s + 1e-9:
            self.refused += 1
            wait_s = full - now - self._ahead_s
            raise Refused(
                429,
                f"you send more than {self.per_s:g} requests a second",
                retry_after=max(1, math.ceil(wait_s)),
            )
        if known is None and len(self._full) >= self._most:
            self._forget(now)
        self._full[client] = full + self._each_s

    def _forget(self, now: float) -> None:
        self._full = {client: full for client, full in self._full.items() if full > now}
        if len(self._full) > 0.9 * self._most:  # many at once: a tenth goes, so that this is done seldom
            for client in list(self._full)[: max(1, self._most // 10)]:
                del self._full[client]


def address_of(peer: Any) -> str:
    """Who a socket's other end is: an IPv4 address, or the /64 of an IPv6 one, which is one subscriber's.

    Args:
        peer: As `getpeername` gives it.
    """
    try:
        found = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def turned_away(exchange: Exchange, tokens: Tokens | None, rate: Rate | None, what: str) -> Refused | None:
    """Whether nobody known asks, or one who asks too often: a token's owner, else an address.

    Args:
        exchange: The request, of which the head is here.
        tokens: Who is let in; None: everybody.
        rate: How many requests one of them may send; None: any number.
        what: Asks for the token, in words.
    """
    whose = None if tokens is None else tokens.whose(exchange.headers.get(b"authorization"))
    if rate is not None:
        try:
            rate.take(f"address {exchange.connection.client}" if whose is None else f"token {whose}")
        except Refused as error:
            return error
    if tokens is not None and whose is None:
        return Refused(401, f"{what} asks for a token: Authorization: Bearer TOKEN")
    return None
