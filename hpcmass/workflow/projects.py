"""Finding things by the names that people use: the project, a run, a trial, a study."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from hpcmass.config import Project, nearest
from hpcmass.errors import NotFound
from hpcmass.runs import RunFolder

ProjectRef = Project | Path | str | None


def open_project(root: Path | str | None = None, *, beside: Path | str | None = None) -> Project:
    """The project at `root`, or found from the working folder, else from the folder of the file `beside`."""
    if root is not None:
        return Project(Path(root))
    try:
        return Project.find()
    except NotFound:
        if beside is None or os.environ.get("HPCMASS_PROJECT"):
            raise
        with contextlib.suppress(NotFound):
            return Project.find(Path(beside).resolve().parent)
        raise


def make_project(root: Path | str, name: str | None = None) -> Project:
    """The project at `root`, made where there is none yet; `name` is the new one's, default the folder's."""
    try:
        return Project(Path(root))
    except NotFound:
        return Project.create(Path(root), name)


def project_of(project: ProjectRef) -> Project:
    """The project itself, the one at a folder, or the one found from the working folder."""
    return project if isinstance(project, Project) else open_project(project)


def maybe_project(project: ProjectRef) -> Project | None:
    """As `project_of`, but None where none is found: a folder needs no project."""
    try:
        return project_of(project)
    except NotFound:
        if project is not None or os.environ.get("HPCMASS_PROJECT"):
            raise
        return None


def find_run(name: str, project: Project | None) -> RunFolder:
    """The run of a name, of `STUDY/NUMBER`, or in a folder.

    Args:
        name: What the user wrote.
        project: The project to look in; None: only folders are known.

    Raises:
        NotFound: There is no such run; the hint has the nearest names.
    """
    if (Path(name) / "job.toml").is_file() and (Path(name) / "status.json").is_file():
        return RunFolder(Path(name))
    if project is None:
        raise NotFound(
            f"there is no run in the folder '{name}'", hint="name a project with --project to find it by name"
        )
    study, slash, number = name.rpartition("/")
    if slash and number.isdigit() and ".." not in study:
        trial = RunFolder(project.studies / study / "trials" / f"{int(number):06d}")
        if trial.exists():
            return trial
        raise NotFound(f"study '{study}' has no trial {number}", where=project.studies)
    run = RunFolder(project.run_path(name))
    if not run.exists():
        raise NotFound(
            f"there is no run '{name}'", where=project.runs, hint=_known(name, _folders(project.runs), "run")
        )
    return run


def find_study(name: str, project: Project) -> Path:
    """The folder of a study by its name, or the folder itself.

    A name means the project's study before any folder here, and a folder counts only with trials in it:
    one with a job file alone is where a job is kept (`workflows/mnist`), not a study.

    Raises:
        NotFound: There is no such study.
    """
    if os.sep not in name and name not in (".", ".."):
        folder = project.study_path(name)
        if (folder / "job.toml").is_file():
            return folder
    if (Path(name) / "job.toml").is_file() and (Path(name) / "trials").is_dir():
        return Path(name)
    raise NotFound(
        f"there is no study '{name}'",
        where=project.studies,
        hint=_known(name, _folders(project.studies), "study"),
    )


def _folders(parent: Path) -> list[str]:
    entries = parent.iterdir() if parent.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _known(name: str, names: Iterable[str], what: str) -> str:
    listed = list(names)
    like = nearest(name, listed)
    if like:
        return f"did you mean '{like}'?"
    if not listed:
        return f"there is no {what} yet"
    return f"known: {', '.join(listed[:10])}{', …' * (len(listed) > 10)}"
