"""A difference between a site file and Slurm, and the words in which it is told. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from hpcmass.config import nearest


@dataclass(frozen=True)
class Finding:
    """One difference between a site file and Slurm.

    Attributes:
        target: The target's name, or empty for a key of the site itself.
        key: The key of the site file.
        value: What the file says, or `-` where it says nothing.
        slurm: What Slurm says.
        wrong: Whether jobs would be refused, or wait for ever, or run where the file says they do not;
            otherwise it is worth knowing and no error.
        write: The line of the site file that would be right, as TOML; or what else to do; or empty.
    """

    target: str
    key: str
    value: str
    slurm: str
    wrong: bool = True
    write: str = ""

    @property
    def shown(self) -> str:
        """Table, key and value as a person reads them."""
        table = f"[targets.{self.target}] " if self.target else ""
        return f"{table}no {self.key}" if self.value == "-" else f"{table}{self.key} = {self.value}"


# Key, value, what Slurm says, whether it is wrong, what to write.
Found = tuple[str, str, str, bool, str]


def line(key: str, value: object) -> str:
    """A line of a site file."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def one_of(key: str, value: str | None, options: Iterable[str]) -> str:
    """The line with the only option, or with the one most like the value; else to choose."""
    known = list(options)
    like = nearest(value, known) if value else None
    if like is None and len(known) == 1:
        like = known[0]
    if like is not None:
        return line(key, like)
    return f'{key} = "…", one of those' if known else f"remove {key}"
