"""Looking at runs again and again: at their folders often, at Slurm ever more rarely while nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmass.runs import RunFolder
from hpcmass.slurm.judge import Phase
from hpcmass.workflow.state import Answer, Reading, RunView, ask, read_run, view

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm


class BackOff:
    """When to ask again: `first_s` after something changed, ever later while nothing does.

    Args:
        first_s: Seconds to the second look.
        most_s: Seconds between two looks at most.
        factor: How much longer each wait is than the one before.
    """

    def __init__(self, first_s: float = 2.0, most_s: float = 60.0, factor: float = 1.5) -> None:
        self.first_s, self.most_s, self.factor = first_s, most_s, factor
        self.wait_s = 0.0
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time to ask."""
        return now >= self._next

    def asked(self, now: float, *, changed: bool) -> None:
        """Note that Slurm was asked, and whether its answer was a new one."""
        self.wait_s = (
            self.first_s if changed or not self.wait_s else min(self.most_s, self.wait_s * self.factor)
        )
        self._next = now + self.wait_s

    def hurry(self, now: float) -> None:
        """Something happened in a run folder: ask soon."""
        self._next = min(self._next, now + 0.5)
        self.wait_s = 0.0


class Follower:
    """Keeps looking at runs.

    Attributes:
        silent_since: Since when Slurm does not answer, or None.
        polls: How often Slurm was asked.
    """

    def __init__(
        self,
        runs: Sequence[RunFolder],
        slurm: Slurm | None,
        *,
        back_off: BackOff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = list(runs)
        self.slurm = slurm
        self.back_off = back_off or BackOff()
        self.silent_since: float | None = None
        self.polls = 0
        self._clock = clock
        self._answer = Answer()
        self._known: dict[str, RunView] = {}  # by path, from when Slurm still answered
        self._seen: list[object] = []

    def look(self) -> list[RunView]:
        """The runs as they are now.

        Raises:
            NotFound: A run is gone.
            CorruptError: A status cannot be read.
        """
        readings = [read_run(run) for run in self.runs]
        self._ask(readings)
        views = []
        for reading in readings:
            key = str(reading.run.path)
            found = view(reading, self._answer, last=self._known.get(key))
            if found.phase is Phase.UNKNOWN and self.silent_since is not None:
                since = time.strftime("%H:%M:%S", time.localtime(self.silent_since))
                text = f"{found.verdict.reason}, since {since}"
                found = replace(found, verdict=replace(found.verdict, reason=text))
            if not self._answer.silent:
                self._known[key] = found
            views.append(found)
        return views

    def _ask(self, readings: Sequence[Reading]) -> None:
        now = self._clock()
        seen: list[object] = [(r.jobs, r.status.state, r.status.attempt, len(r.hops)) for r in readings]
        if seen != self._seen:
            self._seen = seen
            self.back_off.hurry(now)
        if not any(reading.jobs for reading in readings):
            return
        # What was never asked about is asked about at once: a successor was submitted, say.
        new = not {job for reading in readings for job in reading.jobs} <= set(self._answer.jobs)
        if not (self.back_off.due(now) or (new and not self._answer.silent)):
            return
        answer = ask(readings, self.slurm)
        self.polls += 1
        states = {job: (info.state, info.reason) for job, info in answer.jobs.items()}
        before = {job: (info.state, info.reason) for job, info in self._answer.jobs.items()}
        self.back_off.asked(now, changed=states != before and not answer.silent)
        if answer.silent:
            self.silent_since = self.silent_since or answer.asked
        else:
            self.silent_since = None
        self._answer = answer


def until_over(
    follower: Follower,
    *,
    every_s: float = 0.5,
    timeout_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    grace_s: float = 5.0,
) -> Iterator[list[RunView]]:
    """Look again and again, until nothing more will come of any of the runs.

    The last views are those with which it ended: all `final`, or the time is up. That a run is over is
    believed when it is so for `grace_s` (files of another node may come late over a shared file system), but
    for success, which needs no second look.
    """
    started = time.monotonic()
    over_since: float | None = None
    while True:
        views = follower.look()
        yield views
        now = time.monotonic()
        if all(one.phase is Phase.COMPLETED for one in views):
            return
        if all(one.verdict.final for one in views):
            if over_since is None:
                follower.back_off.hurry(follower._clock())
            over_since = now if over_since is None else over_since
            if now - over_since >= grace_s:
                return
        else:
            over_since = None
        if timeout_s is not None and now - started >= timeout_s:
            return
        left = every_s if timeout_s is None else min(every_s, max(0.0, started + timeout_s - now))
        sleep(left)
