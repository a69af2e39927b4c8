"""How ranks ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hpcmass.errors import HpcmassError


@dataclass(frozen=True)
class RankExit:
    """How one rank ended.

    Attributes:
        exit_code: Its exit code, or None when a signal ended it.
        signal: The signal that ended it, or None.
        time: When, in seconds since the epoch.
        ended_by_us: Whether the supervisor had begun to end the ranks by then.
    """

    rank: int
    exit_code: int | None
    signal: int | None
    time: float = 0.0
    host: str = ""
    ended_by_us: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.exit_code == 0

    def text(self) -> str:
        """Such as `rank 3 on cn2 was killed by signal 9 (SIGKILL)`; this machine is not named."""
        who = f"rank {self.rank}"
        if self.host and self.host != socket.gethostname():
            who += f" on {self.host}"
        if self.signal is None:
            return f"{who} ended with exit code {self.exit_code}"
        with contextlib.suppress(ValueError):
            return f"{who} was killed by signal {self.signal} ({signal.Signals(self.signal).name})"
        return f"{who} was killed by signal {self.signal}"


@dataclass(frozen=True)
class LostNode:
    """A node that was there and is no more, with its ranks.

    Attributes:
        time: When that was seen, in seconds since the epoch.
    """

    node: str
    ranks: tuple[int, ...]
    time: float

    def text(self) -> str:
        """Such as `node cn2 was lost with rank 1: …`."""
        many = "s" if len(self.ranks) != 1 else ""
        some = ", ".join(str(rank) for rank in self.ranks[:8]) + (" …" if len(self.ranks) > 8 else "")
        return (
            f"node {self.node} was lost with rank{many} {some}: it failed, or all of its processes were killed"
        )


def unheard_node(begun: Mapping[int, tuple[str, str]], heard: Collection[int]) -> LostNode | None:
    """The first other node with ranks of which nobody heard how they ended, as when it fails.

    The ranks of this node may be without a last word too: their launcher ends them when it loses another node.
    It blames no rank then, and may even end with exit code 0 (Open MPI 5).

    Args:
        begun: Host and node of every rank that began.
        heard: The ranks of whose end something is known.
    """
    here = socket.gethostname()
    gone = sorted(rank for rank, (host, _) in begun.items() if rank not in heard and host != here)
    if not gone:
        return None
    host, node = begun[gone[0]]
    return LostNode(node or host, tuple(rank for rank in gone if begun[rank] == (host, node)), time.time())


@dataclass(frozen=True)
class Outcome:
    """How all ranks ended.

    Attributes:
        exits: By rank; a rank is missing where nothing is known of its end.
        first_failure: The first rank that ended badly, before the supervisor or mpiexec ended the others.
        launcher_exit: The exit code of mpiexec (negative: a signal); of spawned ranks the first bad one.
        launcher_tail: The last of what mpiexec itself said, or a rank before it had its log.
        signalled: The first signal that was passed on to the ranks, or None.
        words: Errors that ranks left by `leave_word`, by rank, the earliest first.
        lost: The node that was lost before any rank ended badly, or of which nothing was heard; or None.
    """

    ranks: int
    exits: dict[int, RankExit] = field(default_factory=dict)
    first_failure: RankExit | None = None
    launcher_exit: int = 0
    launcher_tail: str = ""
    signalled: int | None = None
    words: dict[int, HpcmassError] = field(default_factory=dict)
    lost: LostNode | None = None

    @property
    def unknown(self) -> str | None:
        """That nothing is known of the end of some ranks, or None where all of them said it."""
        missing = [rank for rank in range(self.ranks) if rank not in self.exits]
        if not missing:
            return None
        who = (
            f"rank {missing[0]}"
            if len(missing) == 1
            else f"{len(missing)} ranks, the first of them rank {missing[0]}"
        )
        return f"nothing is known of the end of {who}; the launcher ended with exit code {self.launcher_exit}"

    @property
    def ok(self) -> bool:
        """Whether every rank is known to have ended with exit code 0."""
        known = len(self.exits) == self.ranks and all(end.ok for end in self.exits.values())
        return known and self.launcher_exit == 0
