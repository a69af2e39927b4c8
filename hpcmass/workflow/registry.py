"""The catalogue of a project: open it, move an alias, verify. Apart from `models`, which loads torch."""

from __future__ import annotations

from hpcmass.catalogue import ANY, Catalogue
from hpcmass.catalogue.search import Stream
from hpcmass.errors import CatalogueError, ConfigError
from hpcmass.files import check_name
from hpcmass.workflow.projects import ProjectRef, project_of


def open_catalogue(project: ProjectRef = None) -> Catalogue:
    """The catalogue of a project."""
    return Catalogue(project_of(project).catalogue)


def newest(name: str | None, project: ProjectRef = None, limit: int | None = None) -> tuple[Stream, int]:
    """The newest versions of all models, or of one, sorted by name and number, and how many there are.

    Raises:
        NotFound: There is no model of that name.
    """
    catalogue = open_catalogue(project)
    total = catalogue.count(name)
    if name is not None and not total:
        catalogue.get(name.partition("@")[0])  # says the nearest name where there is none
    where = None if name is None else f"name == {check_name(name)!r}"
    found = catalogue.stream(where, sort=[] if limit is None else ["-created", "-version"], limit=limit)
    return (found if limit is None else found.by_name()), total


def set_alias(
    model: str, alias: str, project: ProjectRef = None, *, why: str = "", expect: str | None = None
) -> str:
    """Point an alias at a version; gives a line that says what moved.

    Args:
        model: `NAME@VERSION`, or any other reference.
        alias: The alias.
        project: The project.
        why: The reason, kept in the history.
        expect: The version that the alias must have now (a number), or `none`.

    Raises:
        CatalogueError: The alias is elsewhere than expected.
    """
    catalogue = open_catalogue(project)
    version = catalogue.get(model)
    if expect is not None and expect != "none" and not expect.isdecimal():
        raise ConfigError(f"'{expect}' is no version", where="--expect", hint="a number, or none")
    expected = ANY if expect is None else None if expect == "none" else int(expect)
    move = catalogue.alias(version.name, alias, version.version, why=why, expect=expected)
    before = f" (was {version.name}@{move.previous})" if move.previous else ""
    return f"{version.name}@{alias} → {version.ref}{before}"


def verify_catalogue(model: str | None, project: ProjectRef = None) -> str:
    """Check a version, or everything; gives a line that says what was read.

    Raises:
        CatalogueError: Something is missing or corrupt; the message names it and the versions hit.
    """
    report = open_catalogue(project).verify(model)
    if report.ok:
        told = (
            f"{report.versions} versions, {report.blobs} files, {report.bytes} bytes: all fit their checksums"
        )
        if report.unlisted:
            some = ", ".join(report.unlisted[:5]) + (" …" if len(report.unlisted) > 5 else "")
            told += (
                f"\n{len(report.unlisted)} that no journal names ({some}): searches"
                " may miss them until `hpcmass catalogue reindex`"
            )
        return told
    lines = [
        f"{p.where}: {p.message}" + (f" (hits {', '.join(p.refs)})" if p.refs else "") for p in report.problems
    ]
    raise CatalogueError(
        "\n".join([f"{len(report.problems)} problems", *lines]), hint="bring the files back from a copy"
    )
