"""Who has a run: whether its lease can be taken for a hop's ranks, or is another one's to keep."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcmass.errors import LeaseHeld
from hpcmass.files import Lease, Owner
from hpcmass.runs import RunFolder
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.workflow.hopbook import HopBook
from hpcmass.workflow.warden import Place, say

_POLL_S, _TELL_EVERY_S = 1.0, 60.0
# A lease that is not renewed runs out after one of its lifetimes: whoever has it after so many lives.
_LIFETIMES = 2.0


class Holder:
    """What a hop finds out about the process that has its run."""

    def __init__(self, run: RunFolder, book: HopBook, place: Place, slurm: Slurm) -> None:
        self.run, self.book, self.place, self.slurm = run, book, place, slurm

    def free_the_lease(self, stopped: Callable[[], object]) -> None:
        """See to it that the ranks can take the run's lease: its holder is dead, or proved dead by Slurm.

        Where nobody can say, the lease has to run out.

        Args:
            stopped: Whether the wait is to end.

        Raises:
            LeaseHeld: Its holder lives, or another job's hop has the run.
        """
        for rival in self.book.rivals():
            if self._lives(rival):
                raise LeaseHeld(
                    f"is being run by job {rival.slurm_job_id} already",
                    where=self.run.path,
                    hint="two jobs were started for one run; this one does nothing",
                )
        lease, since, told = self.run.lease(), time.monotonic(), float("-inf")
        while not stopped():
            try:
                lease.acquire(dead=self._dead, watch=False)
                lease.release()
                return
            except LeaseHeld as error:
                waited_s = time.monotonic() - since
                owner = error.data.get("owner")
                if isinstance(owner, Owner) and self._keeps_it(owner, lease, waited_s):
                    raise
                if waited_s - told > _TELL_EVERY_S:
                    told = waited_s
                    say(f"{error.message}; waiting until it is known to be gone")
                time.sleep(_POLL_S)

    def _keeps_it(self, owner: Owner, lease: Lease, waited_s: float) -> bool:
        """Whether waiting is in vain."""
        if self._lives(owner):
            return True
        if not lease.renewal_seen and waited_s < _LIFETIMES * lease.ttl_s:
            return False
        # It is at work, with no job that will end it; a job on its way out is waited for.
        return self._state(owner) is not JobState.COMPLETING

    def _dead(self, owner: Owner) -> bool:
        """Whether Slurm proves the holder dead: an earlier life of this job, or a job that has ended."""
        if owner.slurm_job_id is None:
            return False
        if owner.slurm_job_id == self.place.job_id:
            return owner.slurm_restart < self.place.restart
        return self._state(owner).ended is True

    def _lives(self, owner: Owner) -> bool:
        if owner.alive() is not None:
            return owner.alive() is True
        return owner.slurm_job_id != self.place.job_id and self._state(owner) is JobState.RUNNING

    def _state(self, owner: Owner) -> JobState:
        if owner.slurm_job_id is None:
            return JobState.UNKNOWN
        return self.slurm.jobs([owner.slurm_job_id])[owner.slurm_job_id].state
