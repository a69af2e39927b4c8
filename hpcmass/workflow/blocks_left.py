"""Blocks that a driver left in Slurm: found, and ended. Loads no Parsl, so that a watchdog stays small."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import read_records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobInfo, JobState

_WAITING = (JobState.PENDING, JobState.REQUEUED)


def comment_of(driver: str, block: str = "") -> str:
    """What a block carries as `--comment`, to be found again; without its name, how those of all begin."""
    return f"hpcmass:{driver}:{block}" if block else f"hpcmass:{driver}"


def live_blocks(slurm: Slurm, driver: str, known: Sequence[str]) -> tuple[dict[str, JobInfo], bool]:
    """Blocks of a driver that are not over, by their ids and by their comment.

    One that the controller does not have any more is over, whether or not accounting knows how it ended.

    Returns:
        Those that are known to be alive, and whether these are all.
    """
    try:
        found = dict.fromkeys([*known, *slurm.find_comment(comment_of(driver))])
        infos = slurm.jobs(list(found))
    except SlurmError:
        return {}, False
    alive = {one: info for one, info in infos.items() if info.state.ended is False}
    return alive, all(info.state is not JobState.UNKNOWN or info.gone for info in infos.values())


def end_blocks(
    slurm: Slurm, driver: str, known: Sequence[str], *, within_s: float, waiting: bool = False
) -> bool:
    """Cancel the blocks of a driver, by their ids and by their comment, and wait until none is left.

    Args:
        slurm: How Slurm is asked.
        driver: Whose.
        known: Ids of its blocks, as far as they are known.
        within_s: How long that is tried, in seconds.
        waiting: Only those that have not begun.

    Returns:
        Whether Slurm confirmed it.
    """
    until = time.monotonic() + within_s
    while True:
        alive, all_known = live_blocks(slurm, driver, known)
        if waiting:
            alive = {one: info for one, info in alive.items() if info.state in _WAITING}
        if all_known and not alive:
            return True
        if alive:
            with contextlib.suppress(HpcmassError):
                slurm.cancel(list(alive))
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


def journaled(journal: Path, driver: str) -> list[str]:
    """Ids of the blocks that a driver wrote down."""
    records = read_records(journal)
    return [str(r["job_id"]) for r in records if r.get("driver") == driver and r.get("job_id")]


def past_drivers(journal: Path) -> list[str]:
    """The drivers that wrote into a journal, oldest first."""
    return list(dict.fromkeys(str(r["driver"]) for r in read_records(journal) if r.get("driver")))
