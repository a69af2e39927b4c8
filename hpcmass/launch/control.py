"""A way to the ranks for a caller that owns the signals of its process."""

from __future__ import annotations

import signal


class Control:
    """What `supervise` is to pass on to the ranks; safe to call from a signal handler or another thread.

    With one, `supervise` leaves this process's handlers alone and ends the ranks only where one has failed, or
    where `kill` was called: how long they have after SIGTERM is the caller's affair.
    """

    def __init__(self) -> None:
        self._sent: list[int] = []
        self._kill = False

    def send(self, number: int) -> None:
        """Send a signal to the ranks of this node, now or as soon as they have begun."""
        self._sent.append(int(number))

    def kill(self) -> None:
        """End the ranks at once."""
        self._kill = True

    @property
    def sent(self) -> list[int]:
        """All signals so far, in order."""
        return list(self._sent)

    @property
    def killing(self) -> bool:
        """Whether `kill` was called."""
        return self._kill

    @property
    def stopping(self) -> bool:
        """Whether the ranks were asked to end."""
        asking = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        return self._kill or any(number in asking for number in self._sent)
