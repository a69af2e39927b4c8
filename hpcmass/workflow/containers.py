"""A target's container for one run: which program starts it, and which folders the run's ranks need inside."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from hpcmass import __version__
from hpcmass.config import Job, Project, Site, Target
from hpcmass.errors import LaunchError, NotFound
from hpcmass.launch import container_words, inside_container

_PROGRAMS = ("apptainer", "singularity")


def rank_prefix(
    target: Target,
    job: Job,
    project: Project,
    run_path: Path,
    *,
    cwd: Path | None = None,
    further: Iterable[Path] = (),
) -> list[str]:
    """The words in front of the command of each of a run's ranks; none without a container, or inside one.

    Args:
        target: Its container, binds and options count.
        job: The folders of its recipe, its data and what its command names are bound.
        project: All of its folders are bound.
        run_path: The run's folder; the folder around it is bound, where ranks keep their logs at first.
        cwd: The ranks' working folder; default: this process's.
        further: More files and folders that the ranks read.

    Raises:
        NotFound: The image does not exist.
        LaunchError: There is no Apptainer on PATH.
        ConfigError: A path cannot be bound.
    """
    if not needs_container(target):
        return []
    cwd = Path.cwd() if cwd is None else cwd
    return image_prefix(target, [*_wanted(job, project, run_path), cwd, *further], cwd)


def image_prefix(target: Target, places: Iterable[Path], cwd: Path) -> list[str]:
    """The words in front of a command in the target's image; none without a container, or inside one.

    Args:
        target: Its container, binds and options count.
        places: Files and folders that the command reads and writes.
        cwd: Its working folder, which is one of them.

    Raises:
        NotFound: The image does not exist.
        LaunchError: There is no Apptainer on PATH.
        ConfigError: A path cannot be bound.
    """
    if not needs_container(target):
        return []
    words = container_words(
        target,
        folders=_folders(places),
        cwd=str(cwd.absolute()),
        program=_program(),
        version=__version__,
        env={**os.environ, **target.env},
    )
    image = words[-1]
    if "://" not in image and not os.path.exists(image):
        raise NotFound(
            "the container image does not exist", where=image, hint="build one: containers/build.sh cpu"
        )
    return words


def with_container(site: Site, image: str | None) -> Site:
    """The site with an image of the user's choice on every target; unchanged without one."""
    if image is None:
        return site
    place = image if "://" in image else str(Path(image).expanduser().absolute())
    targets = {name: each.model_copy(update={"container": place}) for name, each in site.targets.items()}
    return site.model_copy(update={"targets": targets})


def needs_container(target: Target) -> bool:
    """Whether a rank of this target has yet to be brought into its container."""
    return target.container is not None and not inside_container(os.environ)


def outside_error(target: Target) -> LaunchError:
    """The refusal of ranks that somebody started outside the container of their target."""
    return LaunchError(
        "these ranks were started outside the target's container",
        where=target.container,
        hint="start hpcmass train once, without mpiexec or srun: it starts its ranks inside the container; "
        "or put 'apptainer exec IMAGE' between mpiexec and hpcmass",
    )


def _program() -> str:
    for name in _PROGRAMS:
        if found := shutil.which(name):
            return found
    raise LaunchError(
        "the target has a container, and neither apptainer nor singularity is on PATH",
        hint="load the site's module (targets.NAME.modules), or see docs/containers.md",
    )


def _wanted(job: Job, project: Project, run_path: Path) -> list[Path]:
    """What a run's ranks read and write."""
    data = [job.data.train, job.data.valid, job.data.test]
    names = [name for each in data if each is not None for name in ([each] if isinstance(each, str) else each)]
    words = shlex.split(job.command) if isinstance(job.command, str) else job.command or []
    files = [Path(word) for word in words if word.startswith("/") and os.path.isfile(word)]
    return [
        project.root,
        *(project.data, project.runs, project.studies, project.catalogue),
        *(project.root / name for name in names),
        *([Path(job.recipe).parent] if job.recipe and os.path.isabs(job.recipe) else []),
        *(file.parent for file in files if not str(file).startswith(_OF_THE_IMAGE)),
        run_path.parent,
    ]


def _folders(places: Iterable[Path]) -> list[str]:
    """Their folders, under the names they are called by and their real ones."""
    found: set[str] = set()
    for place in places:
        place = place.absolute()
        for name in (place, place.resolve()):
            folder = name if name.is_dir() else _nearest_folder(name)
            if folder != Path("/"):
                found.add(str(folder))
    return sorted(found)


# A command may name a program of the image by its path; the host's own is not to be put over it.
_OF_THE_IMAGE = ("/usr/", "/bin/", "/sbin/", "/lib", "/opt/conda/")


def _nearest_folder(place: Path) -> Path:
    return next(folder for folder in place.parents if folder.is_dir())
