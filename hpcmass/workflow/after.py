"""`--after`: what a submit waits for, as Slurm's dependencies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpcmass.config import Project
from hpcmass.errors import ConfigError, NotFound
from hpcmass.runs import State
from hpcmass.slurm import records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.workflow.projects import find_run

_KINDS = ("afterok", "afterany", "afternotok")
_JOB_ID = re.compile(r"\d+(?:[_+]\d+)?")


def dependencies(
    after: Sequence[str], project: Project, slurm: Slurm | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Dependencies such as `afterok:12` for names of runs and job ids, and what the user should know.

    Slurm starts a job at once whose dependency names a job that it does not know, so that is refused here.

    Args:
        after: Names of runs or job ids, each perhaps with a kind before it (`afterany:first`); else `afterok`.
        project: Where runs are looked for.
        slurm: Who knows the jobs; None takes the ids as they stand.

    Raises:
        NotFound: There is no such run or job, or the run was never submitted.
        ConfigError: It has failed, so that the job would wait for ever.
    """
    found: list[tuple[str, records.SubmissionRecord, str]] = []  # kind, the job, as written
    notes: list[str] = []
    for text in after:
        kind, colon, rest = text.partition(":")
        if colon and kind not in _KINDS:
            raise ConfigError(
                f"'{kind}' is no kind of dependency", where="--after", hint=f"one of {', '.join(_KINDS)}"
            )
        kind, name = (kind, rest) if colon else ("afterok", text)
        if _JOB_ID.fullmatch(name):
            found.append((kind, records.SubmissionRecord(0, name), text))
            continue
        run = find_run(name, project)
        if run.status().state is State.COMPLETED and kind != "afternotok":
            notes.append(f"'{name}' has completed already: there is nothing to wait for")
            continue
        submissions = records.read_submissions(run.path)
        if not submissions:
            raise NotFound(f"'{name}' was never submitted to Slurm", where="--after")
        found.append((kind, submissions[-1], text))
    if slurm is None:
        return tuple(f"{kind}:{record.slurm_id}" for kind, record, _ in found), tuple(notes)
    infos = slurm.jobs([record.slurm_id for _, record, _ in found])
    waits = []
    for kind, record, text in found:
        info = record.job_in(infos)
        job_id, state = info.job_id, info.state
        if state is JobState.UNKNOWN:
            raise NotFound(
                f"nothing is known of Slurm job {job_id} ({info.reason or 'Slurm does not know it'})",
                where=f"--after {text}",
                hint="leave it out if it has ended; Slurm would start the job at once",
            )
        if not state.ended:
            waits.append(f"{kind}:{job_id}")
        elif kind == "afterany" or (kind == "afterok") == (state is JobState.COMPLETED):
            notes.append(f"job {job_id} has ended already ({state.value}): there is nothing to wait for")
        else:
            raise ConfigError(
                f"Slurm job {job_id} has ended as {state.value}: this one would never start",
                where=f"--after {text}",
                hint=f"run it again first, or write --after afterany:{text.partition(':')[2] or text}",
            )
    return tuple(waits), tuple(notes)
