"""The moves of an alias: numbered claims, so that comparing and setting is one step, and all are kept."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.catalogue.claims import numbered, numbers, read_claim
from hpcmass.catalogue.version import FORMAT, check_format
from hpcmass.errors import CorruptError


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias; the move with the highest number is where it points.

    Attributes:
        number: 1 for the first move.
        version: The version it points to since then.
        previous: The version before, or None for the first move.
        by: Who moved it, `user@host`.
        created: Seconds since the epoch.
        why: The reason that was given.
    """

    number: int
    version: int
    previous: int | None
    by: str
    created: float
    why: str

    def to_json(self) -> dict[str, Any]:
        """The content of the move's file."""
        return {
            "format": FORMAT,
            "version": self.version,
            "from": self.previous,
            "by": self.by,
            "created": self.created,
            "why": self.why,
        }

    def told(self) -> str:
        """Who moved it, when and why, in words."""
        when = datetime.datetime.fromtimestamp(self.created, datetime.timezone.utc)
        return f"{self.by} moved it there on {when:%Y-%m-%d %H:%M:%S} UTC ({self.why or 'no reason given'})"


def read_moves(folder: Path) -> list[AliasMove]:
    """Every move of the alias of a folder, oldest first.

    Raises:
        CorruptError: One of them is damaged.
    """
    moves = (read_move(folder, number) for number in numbers(folder))
    return [move for move in moves if move is not None]


def last_move(folder: Path) -> AliasMove | None:
    """Where the alias of a folder points, or None when there is none.

    Raises:
        CorruptError: The last move is damaged.
    """
    for number in reversed(numbers(folder)):
        move = read_move(folder, number)
        if move is not None:
            return move
    return None


def read_move(folder: Path, number: int, wait_s: float = 1.0) -> AliasMove | None:
    """A move of the alias of a folder, or None where there is none; see `read_claim`.

    Raises:
        CorruptError: It is damaged.
    """
    path = numbered(folder, number)
    raw = read_claim(path, wait_s)
    if raw is None:
        return None
    try:
        check_format(raw, path)
        previous = None if raw["from"] is None else int(raw["from"])
        created, why = float(raw["created"]), str(raw.get("why", ""))
        return AliasMove(number, int(raw["version"]), previous, str(raw.get("by", "")), created, why)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"is not a move of an alias ({error})", where=path) from error
