"""Many models in one call: few large files instead of many small ones, few waits for the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.catalogue.blobs import BlobStore, make_durable_dir, walk_files
from hpcmass.catalogue.packs import Packer
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.catalogue.version import MOST, FileEntry, Version, check_tags, plain, who
from hpcmass.errors import CatalogueError, HpcmassError
from hpcmass.files import NoLinks, check_name


@dataclass(frozen=True)
class Registration:
    """A model to be registered with others.

    Attributes:
        name: The model's name.
        folder: Every regular file in it and below, `__pycache__` aside, becomes part of the version.
        metrics: What was measured of it.
        lineage: Where it came from.
        description: One or a few sentences.
        tags: Words to find it by, or words with what they say; see `check_tags`.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    tags: Mapping[str, Any] | Iterable[str] = ()


@dataclass
class Model:
    """A registration that was looked at: nothing in it can be refused any more but by the file system."""

    name: str
    facts: dict[str, Any]
    sources: list[tuple[str, Path]]
    files: dict[str, FileEntry] = field(default_factory=dict)

    def numbered(self, number: int, created: float, by: str) -> Version:
        """The version that it is under a number."""
        return Version(self.name, number, created, by, self.files, **self.facts)


def looked_at(one: Registration) -> Model:
    """Check a registration before anything is written.

    Raises:
        NameNotAllowed: The name is none.
        NotFound: There is no such folder.
        CatalogueError: The folder is empty or holds links or odd files, or a value is no JSON.
    """
    check_name(one.name, "model name")
    facts = {"metrics": plain(one.metrics, "metrics"), "lineage": plain(one.lineage, "lineage")}
    sources = list(walk_files(Path(one.folder)))
    if not sources:
        raise CatalogueError("has no files to register", where=one.folder)
    facts["tags"] = check_tags(one.tags)
    return Model(one.name, {**facts, "description": str(one.description)}, sources)


def register_all(
    models: Iterable[Registration],
    packer: Packer,
    claims: Callable[[str], VersionClaims],
    announce: Callable[[str, int], None],
) -> list[Version]:
    """Register models, in the order given; see `Catalogue.register_many`."""
    given = [looked_at(one) for one in models]
    packer.forget()
    taken = [{path: packer.add(source) for path, source in one.sources} for one in given]
    packer.flush()
    places: dict[str, list[int]] = {}
    for place, (one, files) in enumerate(zip(given, taken, strict=True)):
        one.files = {path: packer.entry(what) for path, what in files.items()}
        places.setdefault(one.name, []).append(place)
    made: dict[int, Version] = {}
    try:
        for name, mine in places.items():
            make_durable_dir(claims(name).folder)
            for first in range(0, len(mine), MOST):
                some = mine[first : first + MOST]
                made.update(
                    zip(
                        some,
                        claim_versions([given[place] for place in some], claims(name), announce, packer.blobs),
                        strict=False,
                    )
                )
    except HpcmassError as error:
        error.data["registered"] = [made[place].ref for place in sorted(made)]
        raise
    return [made[place] for place in range(len(given))]


def claim_versions(
    models: list[Model], claims: VersionClaims, announce: Callable[[str, int], None], blobs: BlobStore
) -> list[Version]:
    """Claim the next numbers of a name for some models; see `VersionClaims.claim`."""
    created, by = time.time(), who()

    def make(some: list[Model]) -> Callable[[int], list[Version]]:
        return lambda number: [one.numbered(number + place, created, by) for place, one in enumerate(some)]

    def told(number: int) -> None:
        announce(claims.name, number)
        hold(models, blobs)  # `gc` deletes nothing while what was announced has not come

    try:
        made = claims.claim(make(models), told)
    except NoLinks:  # then each on its own: a number that is taken and empty must not stand for many
        made = [version for one in models for version in claims.claim(make([one]), told)]
    hold(models, blobs)
    return made


def hold(models: list[Model], blobs: BlobStore) -> None:
    """Look that the content of some models is there still, each blob and pack once; see `BlobStore.hold`.

    Raises:
        StorageError: Some of it is gone, and cannot be put back.
    """
    sound: set[str] = set()
    for one in models:
        for path, source in one.sources:
            entry = one.files[path]
            file = entry.pack or entry.sha256
            if file in sound or blobs.where(entry).exists():
                sound.add(file)
            else:
                blobs.hold(entry, source)
