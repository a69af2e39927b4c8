"""Why an attempt at a trial ended, in one word: by its run folder first, by Slurm where that does not say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from hpcmass.errors import BlockLost, HpcmassError
from hpcmass.runs import RankError, RunFolder, State, first_error, log_tail

# What a rank, or a program that it called, says when memory ran out.
_OOM = re.compile(
    r"out of memory|\bMemoryError\b|OutOfMemory|bad_alloc|can(?:no|')t allocate memory|oom[-_ ]?kill"
    r"|Exceeded job memory limit|Unable to allocate",
    re.IGNORECASE,
)
# What training itself says when there is nothing left to go on from (`train.soundness`, `train.keeping`).
_DIVERGED = re.compile(r"\b(?:is|are) NaN or infinite\b|\bthe loss diverges\b")


class Cause(str, Enum):
    """Why an attempt ended."""

    COMPLETED = "COMPLETED"
    PRUNED = "PRUNED"
    PAUSED = "PAUSED"  # at a rung of successive halving
    DIVERGED = "DIVERGED"  # its loss or its weights are no numbers any more
    USER = "USER"  # an error of the recipe, the script or the job
    OOM = "OOM"
    TIMEOUT = "TIMEOUT"  # its block came to the end of its time
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    CANCELLED = "CANCELLED"  # somebody cancelled its block
    LOST = "LOST"  # its block or node is silent, and Slurm does not say why
    DRIVER = "DRIVER"  # the study's driver ended under it
    MACHINE = "MACHINE"  # a full disk, a rank killed from outside, a worker that died

    @property
    def free(self) -> bool:
        """Whether it is nobody's fault that could be the trial's: it costs none of its retries."""
        return self in _FREE

    @property
    def of_node(self) -> bool:
        """Whether the node is one to avoid."""
        return self in (Cause.NODE_FAIL, Cause.PREEMPTED, Cause.LOST)


_FREE = {
    Cause.TIMEOUT,
    Cause.NODE_FAIL,
    Cause.PREEMPTED,
    Cause.CANCELLED,
    Cause.LOST,
    Cause.DRIVER,
}
# Slurm's words for what became of a job.
_BY_SLURM = {
    "NODE_FAIL": Cause.NODE_FAIL,
    "BOOT_FAIL": Cause.NODE_FAIL,
    "PREEMPTED": Cause.PREEMPTED,
    "TIMEOUT": Cause.TIMEOUT,
    "DEADLINE": Cause.TIMEOUT,
    "OUT_OF_MEMORY": Cause.OOM,
    "CANCELLED": Cause.CANCELLED,
    # Its end is under way, or was the pilot's own.
    "COMPLETING": Cause.LOST,
    "FAILED": Cause.LOST,
    "COMPLETED": Cause.LOST,
}


@dataclass(frozen=True)
class Ended:
    """What an attempt's end was, and one sentence on it."""

    cause: Cause
    reason: str = ""


def cause_of(run: RunFolder, error: BaseException | None, ask: Callable[[], str] | None = None) -> Ended | None:
    """Why the last attempt ended, where that is more than a verdict says; None where nothing tells.

    Args:
        run: The trial's run folder.
        error: What its worker's future held.
        ask: Gives the state of its block as Slurm has it (`NODE_FAIL`, …), empty where it does not know; asked
            only where the folder does not say.
    """
    try:
        status = run.status()
    except HpcmassError:
        return None
    first = first_error(run.errors(status.attempt)) if status.state is not State.COMPLETED else None
    if first is not None and status.state is State.FAILED:
        said = _by_words(run, first)
        if said is not None:
            return said
    if not isinstance(error, BlockLost):
        # Its worker was told to end in time to say so: by whom, its block's job tells.
        told = status.state is State.STOPPED and (status.reason or "").startswith("stopped by SIG")
        state = ask() if told and ask is not None else ""
        cause = _BY_SLURM.get(state)
        return Ended(cause, f"{status.reason}; Slurm calls its job {state}") if cause is not None else None
    if error.data.get("cause"):  # the worker itself said why it gave the trial back
        return Ended(Cause(error.data["cause"]), error.message)
    state = ask() if ask is not None else ""
    cause = _BY_SLURM.get(state, Cause.LOST)
    return Ended(cause, f"{error.message}; Slurm calls its job {state}" if state else error.message)


def _by_words(run: RunFolder, first: RankError) -> Ended | None:
    """What the first rank to fail said, or the end of its log where it was killed."""
    words = f"{first.error}: {first.message}"
    if first.kind == "signal" and not _OOM.search(words):
        tail = log_tail(run.log_file(first.attempt, first.rank))
        found = _OOM.search(tail)
        return Ended(Cause.OOM, f"memory ran out: its log says '{found[0]}'") if found else None
    if _OOM.search(words):
        return Ended(Cause.OOM, f"memory ran out: {words}")
    if first.error == "TrainError" and _DIVERGED.search(first.message):
        return Ended(Cause.DIVERGED, first.message)
    return None
