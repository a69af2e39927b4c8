"""Ending runs: the cancel file first, then Slurm, or the process that trains."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmass.errors import HpcmassError, LeaseHeld, SlurmError
from hpcmass.files import claim, make_dir
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.records import read_submissions
from hpcmass.slurm.send import pending, settle
from hpcmass.workflow.state import Answer, Reading, ask_jobs, name_of, read_run, view

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm


@dataclass(frozen=True)
class Cancelled:
    """What was done about one run.

    Attributes:
        text: One sentence.
        done: Whether it is over, or sure to end; else Slurm did not answer, or refused.
    """

    name: str
    text: str
    done: bool = True


def cancel_runs(runs: Sequence[RunFolder], slurm: Slurm | None, why: str = "") -> list[Cancelled]:
    """Cancel runs: waiting, held, running, or between two hops.

    The cancel file comes first, so that a hop which ends meanwhile does not go on; then the jobs are cancelled,
    all in one call. A run without Slurm is asked to stop, and writes a checkpoint before it ends.

    Args:
        runs: Which.
        slurm: None where no run was ever submitted.
        why: Kept with the run, for whoever asks later.

    Raises:
        StorageError: A cancel file cannot be written.
    """
    unsettled = {run.path: trouble for run in runs if (trouble := _settled(run, slurm))}
    readings = [read_run(run) for run in runs]
    answer = ask_jobs([job for reading in readings for job in reading.jobs], slurm)
    results: list[Cancelled] = []
    claimed: list[tuple[Reading, bool]] = []
    for reading in readings:
        said = None if reading.run.path in unsettled else _nothing_to_do(reading, answer)
        if said is not None:
            results.append(said)
        elif not reading.submissions and not reading.intent:
            results.append(_stop_here(reading, why))
        else:
            claimed.append((reading, _claim(reading, why)))
    results += _end_jobs(claimed, answer, slurm, unsettled)
    order = {name_of(run): number for number, run in enumerate(runs)}
    return sorted(results, key=lambda one: order.get(one.name, 0))


def _settled(run: RunFolder, slurm: Slurm | None) -> str:
    """Find the job of a submit that was cut off; why that was not done, or nothing."""
    if slurm is None or not pending(run.path):
        return ""
    try:
        settle(run.path, slurm)
    except LeaseHeld:
        return "a submit of it is under way"
    except SlurmError as error:
        return error.message
    return ""


def _nothing_to_do(reading: Reading, answer: Answer) -> Cancelled | None:
    name = name_of(reading.run)
    if reading.status.state is State.COMPLETED:
        return Cancelled(name, "is completed: there is nothing to cancel")
    found = view(reading, answer)
    if found.verdict.final and (not reading.submissions or not answer.silent):
        if reading.cancelled is not None:
            return Cancelled(name, f"is cancelled already: {reading.cancelled}")
        if found.phase.value in ("FAILED", "STOPPED", "CANCELLED"):
            return Cancelled(name, f"has ended already ({found.phase.value}): there is nothing to cancel")
        if not reading.submissions and reading.status.state is State.CREATED:
            return Cancelled(name, "was never started: there is nothing to cancel")
    return None


def _who(why: str) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"cancelled by {user} on {socket.gethostname()} at {when}" + (f": {why}" if why else "")


def _claim(reading: Reading, why: str) -> bool:
    """Put the cancel file into place; False where it was there already."""
    file = reading.run.path / "slurm" / "cancel"
    make_dir(file.parent)
    return claim(file, _who(why) + "\n")


def _end_jobs(
    claimed: Sequence[tuple[Reading, bool]],
    answer: Answer,
    slurm: Slurm | None,
    unsettled: Mapping[Path, str],
) -> list[Cancelled]:
    if not claimed:
        return []
    # After the claim: a hop may have submitted its successor while we looked.
    ids = {id(reading): _alive(reading, answer) for reading, _ in claimed}
    silent = ""
    try:
        if slurm is None:
            raise SlurmError("there is no Slurm on this machine")
        wanted = [job for reading, _ in claimed for job in ids[id(reading)]]
        if wanted:
            slurm.cancel(wanted)
        late = [job for reading, _ in claimed for job in _alive(reading, answer) if job not in wanted]
        if late:
            slurm.cancel(late)
    except SlurmError as error:
        silent = error.message
    results = []
    for reading, new in claimed:
        name, jobs = name_of(reading.run), ", ".join(ids[id(reading)])
        trouble = silent or unsettled.get(reading.run.path, "")
        if trouble:
            text = (
                f"Slurm did not take it ({trouble}). The cancel file is in place: its next hop ends at once, "
                "and no other follows. Run this again when Slurm answers, to end the job itself"
            )
            results.append(Cancelled(name, text, done=False))
        elif not new:
            again = f" (told Slurm again to end job {jobs})" if jobs else ""
            results.append(Cancelled(name, f"is cancelled already: {reading.cancelled}{again}"))
        else:
            results.append(Cancelled(name, f"cancelled job {jobs}" if jobs else "cancelled: no job was alive"))
    return results


def _alive(reading: Reading, answer: Answer) -> list[str]:
    """Jobs of a run that may still do something."""
    found = []
    for one in read_submissions(reading.run.path):
        known = answer.jobs.get(one.slurm_id)
        over = known is not None and (known.state.ended is True or one.job_in(answer.jobs) is not known)
        old = known is None and one.slurm_id not in reading.jobs and one in reading.submissions
        if not over and not old:
            found.append(one.slurm_id)
    return found


def _stop_here(reading: Reading, why: str) -> Cancelled:
    """A run that hpcmass gave to no Slurm: ask it to stop, and wake its owner where that is a process here."""
    run, name, owner = reading.run, name_of(reading.run), reading.owner
    if reading.cancelled is not None:
        return Cancelled(name, f"is being cancelled already: {reading.cancelled}")
    with contextlib.suppress(HpcmassError):
        run.ask_to_stop(_who(why))
    if owner is not None and owner.alive():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(owner.pid, signal.SIGTERM)
            return Cancelled(name, f"asked process {owner.pid} to stop: it writes a checkpoint and ends")
    where = f"process {owner.pid} on {owner.host}" if owner is not None else "it"
    text = f"asked {where} to stop, by its stop file: it ends when it looks at it next"
    if owner is not None and owner.slurm_job_id:
        text += f" (to end the whole job, which hpcmass did not submit: scancel {owner.slurm_job_id})"
    return Cancelled(name, text)
