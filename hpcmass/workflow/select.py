"""Runs by what people write: names, globs, paths, studies, trials, Slurm job ids."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcmass.config import Project
from hpcmass.errors import CorruptError, HpcmassError, NotFound
from hpcmass.runs import RunFolder
from hpcmass.slurm.records import read_hops, read_submissions
from hpcmass.workflow.projects import find_run, find_study

_MAGIC = frozenset("*?[")


def select_runs(words: Sequence[str], project: Project | None) -> list[RunFolder]:
    """The runs that words name, each once, in the order of the words.

    A word is a run's name, `STUDY/NUMBER`, a study (all of its trials), a folder, a pattern (`lr-*`,
    `study/*`), or the id of a Slurm job (`123`, `123_4`).

    Raises:
        NotFound: A word names nothing; the message says what there is.
    """
    found: dict[Path, RunFolder] = {}
    for word in words:
        for run in _of_word(word, project):
            found.setdefault(run.path.absolute(), run)
    return list(found.values())


def all_runs(project: Project) -> list[RunFolder]:
    """All runs of a project but the trials of studies, newest first."""
    runs = list(_below(project.runs))
    return sorted(runs, key=lambda run: (-_newest(run), run.path.name))


def _of_word(word: str, project: Project | None) -> list[RunFolder]:
    if not _MAGIC.isdisjoint(word) and not Path(word).exists():
        matched = _matching(word, project)
        if not matched:
            raise NotFound(f"no run matches '{word}'", where=project.runs if project else None)
        return matched
    try:
        return [find_run(word, project)]
    except NotFound as missing:
        if project is not None:
            trials = _trials(word, project)
            if trials:
                return trials
            if word.replace("_", "").isdigit():
                jobs = [run for run in _everywhere(project) if word in job_ids(run)]
                if jobs:
                    return jobs
                raise NotFound(f"there is no run, and no Slurm job of a run, called '{word}'") from missing
        raise


def job_ids(run: RunFolder) -> set[str]:
    """All ids by which people may know the Slurm jobs of a run; an array's id names all of its elements."""
    try:
        submissions = read_submissions(run.path)
    except CorruptError:
        submissions = []
    ids = {one.slurm_id for one in submissions} | {one.job_id for one in submissions}
    return ids | {hop.job_id for hop in read_hops(run.path) if hop.job_id}


def _matching(pattern: str, project: Project | None) -> list[RunFolder]:
    if project is None:
        return []
    study, slash, numbers = pattern.rpartition("/")
    if not slash:
        return [run for run in _below(project.runs) if fnmatch.fnmatchcase(run.path.name, pattern)]
    found = []
    for folder in _folders(project.studies):
        if fnmatch.fnmatchcase(folder.name, study):
            found += [run for run in _trials_of(folder) if fnmatch.fnmatchcase(_number(run), numbers)]
    return found


def _trials(word: str, project: Project) -> list[RunFolder]:
    try:
        return list(_trials_of(find_study(word, project)))
    except HpcmassError:
        return []


def _trials_of(study: Path) -> Iterator[RunFolder]:
    """The trials of a study; a folder of another name (`000001.old-1`) was set aside."""
    return (run for run in _below(study / "trials") if run.path.name.isdigit())


def _number(trial: RunFolder) -> str:
    return str(int(trial.path.name))


def _everywhere(project: Project) -> Iterator[RunFolder]:
    yield from _below(project.runs)
    for folder in _folders(project.studies):
        yield from _trials_of(folder)


def _below(parent: Path) -> Iterator[RunFolder]:
    for folder in _folders(parent):
        if (folder / "job.toml").is_file() and (folder / "status.json").is_file():
            yield RunFolder(folder)


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [parent / name for name in sorted(names)]


def _newest(run: RunFolder) -> float:
    """When something was last heard of a run, for sorting only."""
    try:
        status = run.status()
        if status.updated:
            return status.updated
        # Laid down and never started: the file was written when that was done.
        return (run.path / "status.json").stat().st_mtime
    except (HpcmassError, OSError):
        return 0.0
