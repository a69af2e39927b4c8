"""Logs that grow: of several ranks, over several attempts, read as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 16
_RANK_LOG = re.compile(r"attempt-(\d+)-rank-(\d+)\.log")
_JOB_LOG = re.compile(r"out-(\d+)(?:_(\d+))?\.log")


@dataclass(frozen=True, order=True)
class LogName:
    """Which log a file is; sorted as they were written.

    Attributes:
        attempt: The start of the run, or the Slurm job of a batch script's output.
        rank: The rank, or the element of a job array.
    """

    attempt: int
    rank: int
    batch: bool = False

    @property
    def title(self) -> str:
        """Such as `attempt 2, rank 0`."""
        if self.batch:
            return f"job {self.attempt}" + (f"_{self.rank}" if self.rank >= 0 else "")
        return f"attempt {self.attempt}, rank {self.rank}"


def rank_logs(run_path: Path) -> dict[LogName, Path]:
    """The ranks' logs of a run, in order."""
    return _named(run_path / "logs", _RANK_LOG, batch=False)


def batch_logs(run_path: Path) -> dict[LogName, Path]:
    """The outputs of a run's batch scripts, in order."""
    return _named(run_path / "slurm", _JOB_LOG, batch=True)


def _named(folder: Path, pattern: re.Pattern[str], *, batch: bool) -> dict[LogName, Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {}
    for name in names:
        if match := pattern.fullmatch(name):
            found[LogName(int(match[1]), int(match[2]) if match[2] else -1, batch)] = folder / name
    return dict(sorted(found.items()))


class Tail:
    """One file that grows. It may not be there yet, be cut, or be replaced.

    Attributes:
        cut: How often the file was found shorter than what had been read, or another file.
    """

    def __init__(self, path: Path, *, last: int | None = None) -> None:
        """Begin.

        Args:
            path: The file.
            last: Begin with so many of its last lines; None: with its first line.
        """
        self.path = path
        self.cut = 0
        self._last = last
        self._at = 0
        self._inode: int | None = None
        self._rest = b""

    def lines(self) -> list[str]:
        """The whole lines that came since the last call; of a line drawn over itself what was drawn last."""
        try:
            with open(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                if self._inode is not None and (facts.st_ino != self._inode or facts.st_size < self._at):
                    self.cut += 1
                    self._at, self._rest = 0, b""
                if self._inode is None and self._last is not None:
                    self._at = _start_of_last(file.fileno(), facts.st_size, self._last)
                self._inode = facts.st_ino
                file.seek(self._at)
                data = file.read()
        except OSError:
            return []
        self._at += len(data)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        return [_drawn(line) for line in whole.split(b"\n")] if newline else []

    def rest(self) -> list[str]:
        """The last line, where it has no end (yet)."""
        rest, self._rest = self._rest, b""
        return [_drawn(rest)] if rest.strip() else []


def _drawn(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _start_of_last(handle: int, size: int, lines: int) -> int:
    """Where the last so many lines begin."""
    if lines <= 0:
        return size
    at, found = size, 0
    while at > 0:
        start = max(0, at - _BLOCK)
        block = os.pread(handle, at - start, start)
        if at == size and block.endswith(b"\n"):
            found = -1  # The end of the last line begins no other.
        for index in range(len(block) - 1, -1, -1):
            if block[index] == 0x0A:
                found += 1
                if found == lines:
                    return start + index + 1
        at = start
    return 0


class LogFollower:
    """Reads several logs together, and those of later attempts or jobs as they appear."""

    def __init__(
        self,
        find: Callable[[], dict[LogName, Path]],
        *,
        ranks: Collection[int] | None = None,
        attempt: int | None = None,
        last: int | None = None,
    ) -> None:
        """Begin with the newest attempt.

        Args:
            find: Lists the logs.
            ranks: Only those of these ranks; None: all.
            attempt: Only this attempt; None: the newest one, and every later one.
            last: So many last lines of each log that is there already; None: all of it.
        """
        self._find, self._ranks, self._attempt, self._last = find, ranks, attempt, last
        self._tails: dict[LogName, Tail] = {}
        self._from: int | None = attempt

    def read(self) -> list[tuple[LogName, str]]:
        """New lines, each with its log; a log that was cut is said to be."""
        found = self._find()
        chosen = {
            name: path
            for name, path in found.items()
            if (self._ranks is None or name.rank in self._ranks) and self._attempt in (None, name.attempt)
        }
        begun = bool(self._tails)
        if self._from is None and chosen:
            self._from = max(name.attempt for name in chosen)
        lines: list[tuple[LogName, str]] = []
        for name, path in chosen.items():
            if self._from is not None and name.attempt < self._from:
                continue
            if name not in self._tails:
                self._tails[name] = Tail(path, last=None if begun else self._last)
            tail = self._tails[name]
            before = tail.cut
            new = tail.lines()
            if tail.cut != before:
                lines.append((name, "(the log was cut; here it begins again)"))
            lines += [(name, line) for line in new]
        return lines

    def rest(self) -> list[tuple[LogName, str]]:
        """What is left without a line's end."""
        return [(name, line) for name, tail in self._tails.items() for line in tail.rest()]
