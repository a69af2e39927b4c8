"""Blocks of a study's earlier drivers: those that still run trials are left until these end.

A driver that was killed leaves blocks whose workers go on with what they had (`worker_pool.py`) and take
nothing new. Which trials these are, their folders say: a lease that is alive, and the block's Slurm job in
`slots.jsonl`.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import read_records
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.sweep.attempts import place_of
from hpcmass.sweep.watch import is_running
from hpcmass.workflow.blocks import BlockBook
from hpcmass.workflow.blocks_left import end_blocks, journaled, live_blocks, past_drivers
from hpcmass.workflow.ledger import Ledger

# What a worker takes at most from its first word on a trial to the trial's lease, torch's import between them.
_STARTING_S = 180.0
# So long accounting is waited for.
_ACCOUNTED_S = 60.0
_OVER = (State.COMPLETED, State.FAILED)


class LeftBlocks:
    """What earlier drivers of a study left in Slurm.

    Attributes:
        drivers: The earlier drivers, oldest first, that may have blocks left.
    """

    def __init__(self, journal: Path, slurm: Slurm | None = None) -> None:
        """Make one; before this driver has a block of its own in the journal.

        Args:
            journal: `blocks.jsonl`.
            slurm: How Slurm is asked.
        """
        self._slurm = slurm or Slurm(patience_s=5.0)
        self.drivers = past_drivers(journal)
        self._jobs = {driver: set(journaled(journal, driver)) for driver in self.drivers}
        self._lock = threading.Lock()
        self._busy: dict[str, set[Path]] = {}
        self._held: dict[Path, str] = {}  # by a trial's folder its block, as it was found last
        self._idle: dict[str, set[str]] = {}
        self._over_since: dict[str, float] = {}
        self._alive: dict[str, set[str]] = {}
        self._labels = {
            str(one["job_id"]): str(one.get("executor", ""))
            for one in read_records(journal)
            if one.get("job_id")
        }

    # -- trials ---------------------------------------------------------------------------------------
    def has(self, run: RunFolder) -> bool:
        """Whether a worker in one of the blocks is at work on a trial; the block is left alone then."""
        job_id = self._holder(run)
        if not job_id:
            return False
        self._busy.setdefault(job_id, set()).add(run.path)
        return True

    def _holder(self, run: RunFolder) -> str:
        """The block whose worker took a trial and has not given it back, or nothing."""
        try:
            found = self._held[run.path] = self._holder_now(run)
        except OSError:  # a file system that hesitates ends no block, and no thread that looks at blocks
            return self._held.get(run.path, "")
        return found

    def _holder_now(self, run: RunFolder) -> str:
        place = place_of(run)
        if not self.drivers or not place.job_id or place.ended is not None:
            return ""
        with contextlib.suppress(HpcmassError):
            if is_running(run):
                return place.job_id
            young = place.started is not None and time.time() - place.started < _STARTING_S
            if young and run.status().state not in _OVER:  # It is just about to take the lease.
                return (
                    place.job_id if self._slurm.jobs([place.job_id])[place.job_id].state.ended is False else ""
                )
        return ""

    # -- blocks ---------------------------------------------------------------------------------------
    def on(self, target: str) -> int:
        """How many blocks are left on a target, as the last look found it."""
        label = re.compile(re.escape(target) + r"(-nodes)?(-v\d+)?")
        left = [one for alive in self._alive.copy().values() for one in alive]
        return sum(label.fullmatch(self._labels.get(one, "")) is not None for one in left)

    def look(self, ledger: Ledger) -> None:
        """End the blocks in which nothing runs any more, and settle in the ledger those that are over."""
        with self._lock:
            for driver in list(self.drivers):
                self._look(driver, ledger)

    def _look(self, driver: str, ledger: Ledger) -> None:
        alive, sure = live_blocks(self._slurm, driver, self._unsettled(driver, ledger))
        if sure or alive:
            self._alive[driver] = set(alive)
        idle = {one for one in alive if not self._in_use(one)}
        # One look may be wrong, where a file system hesitates: what had a trial has to be idle at two.
        before, self._idle[driver] = self._idle.get(driver, set()), idle
        idle = {one for one in idle if one not in self._busy or one in before}
        if idle:
            with contextlib.suppress(SlurmError):
                self._slurm.cancel(sorted(idle))
        if mine := self._unsettled(driver, ledger):
            ledger.look(self._slurm.jobs(mine), patient=True)
        if not sure or alive:
            self._over_since.pop(driver, None)
        elif not self._unsettled(driver, ledger) or self._over_for_s(driver) > _ACCOUNTED_S:
            self._done_with(driver, ledger)

    def _unsettled(self, driver: str, ledger: Ledger) -> list[str]:
        return sorted(set(ledger.unsettled()) & self._jobs[driver])

    def _in_use(self, job_id: str) -> bool:
        return any(self._holder(RunFolder(path)) == job_id for path in self._busy.get(job_id, set()).copy())

    def _over_for_s(self, driver: str) -> float:
        return time.monotonic() - self._over_since.setdefault(driver, time.monotonic())

    def _done_with(self, driver: str, ledger: Ledger) -> None:
        ledger.forget(driver)  # what it asked for without ever hearing of a job, and what nobody accounts
        self.drivers.remove(driver)
        self._alive.pop(driver, None)

    def watch(self, ledger: Ledger, closing: threading.Event, every_s: float) -> None:
        """Look again and again, as long as there is something."""
        while self.drivers and not closing.wait(every_s):
            self.look(ledger)

    def end(self, book: BlockBook, *, within_s: float) -> None:
        """End all of them, in order."""
        with self._lock:
            for driver in list(self.drivers):
                mine = self._unsettled(driver, book.ledger)
                over = end_blocks(self._slurm, driver, mine, within_s=within_s)
                book.settle(self._unsettled(driver, book.ledger))
                if over:
                    self._done_with(driver, book.ledger)


__all__ = ["LeftBlocks"]
