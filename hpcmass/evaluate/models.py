"""From what a user calls a model to the loaded model."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

from hpcmass.catalogue import Catalogue, Version
from hpcmass.errors import AlreadyExists, NameNotAllowed, NotFound
from hpcmass.files import cache_folder as _cache_folder
from hpcmass.files import check_name
from hpcmass.train.model import Model, load_bundle


class ProjectLike(Protocol):
    """What is needed of a project."""

    @property
    def runs(self) -> Path:
        """Where runs lie."""

    @property
    def catalogue(self) -> Path:
        """Where the catalogue lies."""


class Resolved(NamedTuple):
    """What a reference means: the bundle's folder, what it turned out to be, and the run it is of, if any."""

    folder: Path
    told: str
    run: Path | None = None


def resolve_model(ref: str, project: ProjectLike | None) -> tuple[Model, str]:
    """Load the model that a reference means.

    Looked at in this order: a reference with `@` is the catalogue's; one with a `/`, or that is `.`, is a
    folder (a bundle, or a run with its `model/`); a bare name is a model of the catalogue, else a run of the
    project, else a folder here.

    Args:
        ref: Such as `mnist@production`, `mnist`, `runs/first`, `path/to/bundle`.
        project: Whose catalogue and runs are meant; None where there is no project.

    Returns:
        The model, and what it turned out to be: `mnist@3`, `run first`, or the folder.

    Raises:
        NotFound: There is nothing of that name, or the run has no model yet.
        CorruptError: A file does not fit its digest.
    """
    found = resolve_bundle(ref, project)
    return load_bundle(found.folder), found.told


def resolve_bundle(ref: str, project: ProjectLike | None) -> Resolved:
    """The bundle that a reference means, not loaded; see `resolve_model`."""
    if "@" in ref and os.sep not in ref:
        if project is None:
            raise NotFound(
                f"{ref!r} is in a catalogue, and there is no project here", hint="use --project FOLDER"
            )
        catalogue = Catalogue(project.catalogue)
        version = catalogue.get(ref)
        return Resolved(cached(catalogue, version), version.ref)
    if os.sep in ref or ref in (".", "..", ""):
        return _folder(Path(ref), ref)
    named = None
    with contextlib.suppress(NameNotAllowed):
        named = check_name(ref)
    hint: str | None = "name a model of the catalogue (NAME or NAME@ALIAS), a run, or a folder"
    if project is not None and named:
        catalogue = Catalogue(project.catalogue)
        try:
            version = catalogue.get(ref)
        except NotFound as error:
            hint = error.hint or hint
        else:
            return Resolved(cached(catalogue, version), version.ref)
        run = project.runs / named
        if (run / "job.toml").is_file():
            return _folder(run, f"run {named}")
    if Path(ref).is_dir():
        return _folder(Path(ref), ref)
    raise NotFound(f"there is no model, run or folder {ref!r}", hint=hint)


def cache_folder() -> Path:
    """The user's own folder for models taken from catalogues."""
    return _cache_folder("models")


def cached(catalogue: Catalogue, version: Version) -> Path:
    """A folder with the files of a version, from verified blobs; made once for each content.

    Raises:
        CorruptError: A blob does not fit its digest.
        StorageError: The cache cannot be written.
    """
    target = cache_folder() / version.content_id
    if target.is_dir():
        if _whole(target, version):
            return target
        shutil.rmtree(target, ignore_errors=True)  # cut short by a full disk or a clean-up: make it again
    try:
        return catalogue.materialise(version, target)
    except AlreadyExists:  # another process was faster
        return target


def _whole(folder: Path, version: Version) -> bool:
    try:
        return all((folder / name).stat().st_size == entry.bytes for name, entry in version.files.items())
    except OSError:
        return False


def _folder(path: Path, told: str) -> Resolved:
    if (path / "model.json").is_file():
        return Resolved(path, told)
    if (path / "model" / "model.json").is_file():
        return Resolved(path / "model", told, path if (path / "job.toml").is_file() else None)
    if not path.is_dir():
        raise NotFound("there is no such folder", where=path)
    if (path / "job.toml").is_file():
        raise NotFound("the run has no model yet", where=path, hint=f"see why: hpcmass why {path}")
    raise NotFound("is neither a run nor a model bundle", where=path)
