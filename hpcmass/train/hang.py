"""Ranks that hang: no step for a long time, and whose fault that is.

A rank knows where it is itself: within its own work, or waiting for the others in what the communicator does.
The one that is in its own work when time is up says so and ends. One that cannot even say so (stopped, out of
reach, or hanging with the interpreter's lock held) is known by its silence: the others write that they wait.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hpcmass.errors import HpcmassError
from hpcmass.files import read_json, replace_json

SILENCE_S = 20.0
"""How long a rank that waits gives the others to say the same, or that they are at work."""

_SLOWEST_TIMES = 10.0
_FIRST_TIMES = 3.0  # a first step compiles, and opens what is read
_TICK_S = 2.0
_BEAT_S = 3.0
_PACKAGE = Path(__file__).parents[1]
_WAITING = {str(_PACKAGE / "train" / name) for name in ("reducer.py", "ordered_reducer.py")}
_LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_NOT_THE_USERS = ("<", str(_PACKAGE), *(path for path in _LIBRARIES if path))
_COMM, _AGREE = str(_PACKAGE / "train" / "comm") + "/", str(_PACKAGE / "train" / "comm" / "agree.py")


class Clock:
    """How long nothing has happened, in time in which this process could have done something.

    A process that was stopped (a debugger, a job that Slurm suspends) has not hung meanwhile.
    """

    def __init__(self, limit_s: float) -> None:
        """Begin.

        Args:
            limit_s: Above this, and above ten times the longest time between two signs of life, it hangs.
        """
        self._limit_s = limit_s
        self._last_tick = time.monotonic()
        self._longest = 0.0
        self._alive = self._stepped = self._step = False
        self._stepless_s = self.idle_s = 0.0

    def alive(self, *, step: bool) -> None:
        """Something was done (called by the thread that trains)."""
        self._alive = True
        self._step = self._step or step
        self._stepped = self._stepped or step

    def tick(self) -> None:
        """Called every second or so, by the thread that watches."""
        now = time.monotonic()
        took, self._last_tick = min(now - self._last_tick, _TICK_S), now
        if self._alive:
            self._alive = False
            self._longest, self.idle_s = max(self._longest, self.idle_s), 0.0
        else:
            self.idle_s += took
        self._stepless_s = 0.0 if self._step else self._stepless_s + took
        self._step = False

    @property
    def waited_for(self) -> bool:
        """Whether no step was done for so long that others, who wait, may take this rank for one that hangs."""
        return self._stepless_s >= self._limit_s

    @property
    def limit_s(self) -> float:
        """Idle seconds from which on it hangs."""
        least = self._limit_s if self._stepped else _FIRST_TIMES * self._limit_s
        return max(least, _SLOWEST_TIMES * self._longest)


def main_place() -> tuple[bool, str, str]:
    """Where the main thread is.

    Returns:
        Whether it waits for other ranks; the line it is in, in words; and its whole stack.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = list(_outwards(frame))
    waits = False
    for one in frames:
        name = one.f_code.co_filename
        if name.startswith(str(_PACKAGE)):
            waits = name in _WAITING or (name.startswith(_COMM) and name != _AGREE)
            break
    theirs = (one for one in frames if not one.f_code.co_filename.startswith(_NOT_THE_USERS))
    shown = next(theirs, frames[0] if frames else None)
    where = "?" if shown is None else f"{shown.f_code.co_filename}:{shown.f_lineno}, {shown.f_code.co_name}"
    return waits, where, "".join(traceback.format_stack(frame))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Waiting:
    """Files of the run by which ranks tell each other what they do: `waiting/attempt-1-rank-3.json`.

    A rank that waits says so once. One that gets on without a step (a long validation, a checkpoint), and that
    others may be waiting for, counts on: who waits for it sees the number change.
    """

    def __init__(self, run: Path, attempt: int, rank: int, size: int) -> None:
        self._folder, self._attempt, self._rank, self._size = run / "waiting", attempt, rank, size
        self._said = ""
        self._count, self._counted_at = 0, -_BEAT_S
        self._seen: dict[int, int] = {}

    def say(self, step: int) -> None:
        """This rank waits for others, after so many steps."""
        if self._said != "waits" and self._write({"step": step, "time": time.time()}):
            self._said = "waits"

    def work(self, step: int) -> None:
        """This rank is at work, and may be waited for; said every few seconds."""
        now = time.monotonic()
        if now - self._counted_at >= _BEAT_S:
            self._counted_at, self._count = now, self._count + 1
            if self._write({"step": step, "time": time.time(), "at_work": self._count}):
                self._said = "works"

    def _write(self, value: dict[str, Any]) -> bool:
        with contextlib.suppress(HpcmassError, OSError):
            self._folder.mkdir(exist_ok=True)
            replace_json(self._file(self._rank), value, durable=False)
            return True
        return False

    def take_back(self) -> None:
        """It went on after all, or ends."""
        self._seen = {}
        if self._said:
            self._said = ""
            with contextlib.suppress(OSError):
                self._file(self._rank).unlink()
                self._folder.rmdir()

    def sweep(self) -> None:
        """Remove what earlier attempts left that were killed meanwhile."""
        with contextlib.suppress(OSError):
            for file in self._folder.iterdir():
                if not file.name.startswith(f"attempt-{self._attempt}-"):
                    file.unlink()
            self._folder.rmdir()

    def others_work(self) -> bool:
        """Whether another rank has counted on since the last look; as a rule one file is read."""
        for rank in dict.fromkeys((*self._seen, *range(self._size))):
            n = self._look(rank)
            if n and n != self._seen.get(rank):
                self._seen[rank] = n
                return True
        return False

    def silent(self) -> list[int]:
        """The ranks that do not say that they wait."""
        return [rank for rank in range(self._size) if self._look(rank) != 0]

    def _look(self, rank: int) -> int | None:
        """How far a rank has counted; 0: it waits; None: it says nothing."""
        try:
            return int(read_json(self._file(rank)).get("at_work", 0))
        except (HpcmassError, OSError, ValueError, AttributeError):
            return None

    def _file(self, rank: int) -> Path:
        return self._folder / f"attempt-{self._attempt}-rank-{rank}.json"
