"""The moves of an alias: numbered claims, so that comparing and setting is one step, and all are kept."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcmass.catalogue.claims import claim_json, numbered, numbers, read_claim
from hpcmass.catalogue.version import FORMAT, check_format, plain, who
from hpcmass.errors import CatalogueError, CorruptError


class Anything:
    """The type of `ANY`."""


ANY: Final = Anything()
"""For `expect`: whatever the alias has now."""


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
        gates: The requirements that it was held against before it moved, each with what was found.
    """

    number: int
    version: int
    previous: int | None
    by: str
    created: float
    why: str
    gates: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of the move's file."""
        gates = {"gates": list(self.gates)} if self.gates else {}
        return {
            **gates,
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


def move(
    folder: Path,
    version: int,
    *,
    what: str,
    why: str,
    expect: int | Anything | None,
    announce: Callable[[int], None],
    gates: Sequence[Mapping[str, Any]] = (),
) -> AliasMove:
    """Claim the next move of the alias of a folder; comparing and setting are one step.

    Args:
        folder: The alias's, which is there.
        version: Where it is to point.
        what: The alias in words, for the error.
        why: The reason.
        expect: The version that it is believed to have; None: none yet; `ANY`: whatever.
        announce: Called with the number before each attempt.
        gates: Kept with the move.

    Raises:
        CatalogueError: It has another version than expected; says who moved it, and when.
    """
    kept = tuple(plain(dict(one), "gates") for one in gates)
    while True:
        number = max(numbers(folder), default=0)
        last = last_move(folder)
        now = last.version if last else None
        if not isinstance(expect, Anything) and now != expect:
            raise CatalogueError(
                f"{what} has {_at(now)}, not {_at(expect)}" + (f": {last.told()}" if last else ""),
                hint=f"look at its history, then say again, expecting {_at(now)}",
                alias=folder.name,
                actual=now,
                expected=expect,
            )
        made = AliasMove(number + 1, int(version), now, who(), time.time(), str(why), kept)
        announce(made.number)
        if claim_json(numbered(folder, made.number), made.to_json()):
            return made


def _at(version: object) -> str:
    return "no version" if version is None else f"version {version}"


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
        gates = tuple(dict(one) for one in raw.get("gates", ()))
        return AliasMove(number, int(raw["version"]), previous, str(raw.get("by", "")), created, why, gates)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"is not a move of an alias ({error})", where=path) from error
