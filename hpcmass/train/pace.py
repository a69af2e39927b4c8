"""Where the time of a rank's steps goes, and which rank and part made a step slow.

All ranks take a step together, so one slow rank makes the step of every rank slow: the others wait for its
gradients. Whose fault it was is therefore told by each rank's own time, without what it waits in the
reduction; only where no rank's own time explains it, the reduction itself (the network) was slow.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcmass.runs.pace import PARTS

INPUT, COMPUTE, REDUCTION, CHECKPOINT = range(4)

_USUAL_STEPS = 32  # whose median is the usual step
_ENOUGH_STEPS = 8
_SLOW_TIMES = 2.0
_SLOW_S = 0.1  # above the usual: less is of no interest to anybody
_BUSY_TIMES = 1.25
_BUSY_STEPS = 5
WIDTH = 4 + 1 + 3 + 4 + 2 + 1
"""Numbers of a rank's row: see `Pace.row`."""

Row = np.ndarray[Any, np.dtype[np.float64]]


class Pace:
    """A stopwatch of one rank's steps: `begin` a step, `lap` after each part, `row` at a log interval.

    A lap counts from the last one, so what lies between two steps (a checkpoint) belongs to the former.
    On a GPU a lap ends when the processor goes on, so what is still queued there shows in the next lap that
    waits for it.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._step: int | None = None
        self._parts, self._waited = [0.0] * 4, 0.0
        self._late: deque[tuple[float, ...]] = deque(maxlen=_USUAL_STEPS)
        self._clear()

    def _clear(self) -> None:
        self._total, self._steps = [0.0] * 4, 0
        self._slow: tuple[float, list[float]] | None = None  # the step's number, and each part's excess
        self._slow_s, self._usual_s = 0.0, 0.0
        self._own: list[float] = []  # seconds of input and compute, of each step
        self._kept = 0.0  # seconds of checkpoints, without those in which this rank waited for others
        self._samples = 0

    def begin(self, step: int) -> None:
        """The step of this number (from 1) begins; the former one is over."""
        self.end()
        self._step, self._last = step, time.perf_counter()

    def lap(self, part: int, own_s: float | None = None) -> None:
        """What was done since the last lap was this part.

        Args:
            part: Which one.
            own_s: Of these seconds those in which this rank did not wait for other ranks; default: all.
        """
        now = time.perf_counter()
        took = now - self._last
        self._parts[part] += took
        if own_s is not None:
            self._waited += max(0.0, took - own_s)
        self._last = now

    def count(self, samples: int) -> None:
        """This rank took so many samples in this step."""
        self._samples += samples

    def skip(self) -> None:
        """What was done since the last lap belongs to no step (validation)."""
        self._last = time.perf_counter()

    def end(self) -> None:
        """The step is over."""
        if self._step is None:
            return
        parts, self._parts = self._parts, [0.0] * 4
        self._total = [total + part for total, part in zip(self._total, parts, strict=True)]
        self._steps += 1
        self._own.append(parts[INPUT] + parts[COMPUTE])
        # While another rank writes a checkpoint this one waits, as it does in a reduction.
        waited, self._waited = self._waited, 0.0
        parts[CHECKPOINT] -= waited
        parts[REDUCTION] += waited
        self._kept += parts[CHECKPOINT]
        took = sum(parts)
        if len(self._late) >= _ENOUGH_STEPS and took > self._slow_s:
            usual = statistics.median(sum(one) for one in self._late)
            if took > max(_SLOW_TIMES * usual, usual + _SLOW_S):
                medians = [statistics.median(one[part] for one in self._late) for part in range(4)]
                self._slow = self._step, [part - median for part, median in zip(parts, medians, strict=True)]
                self._slow_s, self._usual_s = took, usual
        self._late.append(tuple(parts))
        self._step = None

    def row(self) -> Row:
        """What is known since the last row, as `WIDTH` numbers, which begin anew.

        Seconds of each part and the number of steps; of the slowest step that was slow its number (0: none),
        its seconds and the usual ones; of each part of it the seconds above the usual ones; and of the median
        step the seconds of input and compute, with the mean number of samples of a step; and the seconds of
        checkpoints in which this rank did not wait for others.
        """
        slow = (0.0, [0.0] * 4) if self._slow is None else self._slow
        own = statistics.median(self._own) if self._own else 0.0
        samples = self._samples / max(1, self._steps)
        row = np.array(
            [
                *self._total,
                self._steps,
                slow[0],
                self._slow_s,
                self._usual_s,
                *slow[1],
                own,
                samples,
                self._kept,
            ]
        )
        self._clear()
        return row


def usual_own_s(rows: Row) -> Row:
    """Each rank's seconds of input and compute in its median step, shape (ranks,)."""
    return rows[:, 12]


def samples_a_step(rows: Row) -> Row:
    """Each rank's samples of a step, shape (ranks,)."""
    return rows[:, 13]


def seconds_a_step(rows: Row) -> dict[str, float]:
    """The mean seconds of a step by part, over all ranks.

    Args:
        rows: Shape (ranks, `WIDTH`).
    """
    steps = max(1.0, float(rows[:, 4].sum()))
    return {f"{name}_s": float(rows[:, part].sum()) / steps for part, name in enumerate(PARTS)}


def slow_step(rows: Row, hosts: Sequence[str]) -> dict[str, Any] | None:
    """The slowest of the slow steps, and whose fault it was; None where there was none.

    Args:
        rows: Shape (ranks, `WIDTH`).
        hosts: Of each rank.

    Returns:
        `step`, `seconds`, `usual_s`, `part`, `part_s` (seconds of it above the usual ones), and, unless the
        reduction was slow by itself, `rank` and `host`.
    """
    if not rows[:, 5].any():
        return None
    first = int(rows[:, 6].argmax())
    number, took, usual = (float(value) for value in rows[first, 5:8])
    own = rows[:, 8:12].copy()
    # A rank that was slow at the end of a step lets the others wait in the next one.
    own[abs(rows[:, 5] - number) > 1] = 0.0
    waited = float(own[:, REDUCTION].max())
    own[:, REDUCTION] = 0.0
    rank, part = (int(index) for index in np.unravel_index(own.argmax(), own.shape))
    said = {"step": int(number), "seconds": took, "usual_s": usual}
    if float(own[rank, part]) < 0.5 * (took - usual):
        return {**said, "part": PARTS[REDUCTION], "part_s": waited}
    return {
        **said, "step": int(rows[rank, 5]), "part": PARTS[part], "part_s": float(own[rank, part]),
        "rank": rank, "host": hosts[rank],
    }  # fmt: skip


def slow_rank(rows: Row, hosts: Sequence[str]) -> dict[str, Any] | None:
    """The rank that all others wait for step after step, where there is one.

    Args:
        rows: Shape (ranks, `WIDTH`).
        hosts: Of each rank.

    Returns:
        `rank`, `host`, `times` (its own seconds against the median of the other ranks'), and the `part` in
        which it is behind.
    """
    if len(rows) < 2 or rows[:, 4].min() < _BUSY_STEPS:
        return None
    own = rows[:, [INPUT, COMPUTE, 14]]
    if not rows[:, 5].any():
        busy = own.sum(axis=1)
    else:  # One slow step is no slow rank.
        busy = own.sum(axis=1) - rows[:, [8 + INPUT, 8 + COMPUTE, 8 + CHECKPOINT]].clip(min=0.0).sum(axis=1)
    rank = int(busy.argmax())
    others = np.delete(busy, rank)
    times = float(busy[rank] / max(float(np.median(others)), 1e-9))
    if times < _BUSY_TIMES or (busy[rank] - np.median(others)) / rows[rank, 4] < 1e-3:
        return None
    behind = own[rank] - np.median(np.delete(own, rank, axis=0), axis=0)
    part = (INPUT, COMPUTE, CHECKPOINT)[int(behind.argmax())]
    return {"rank": rank, "host": hosts[rank], "times": times, "part": PARTS[part]}
