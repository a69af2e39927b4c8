"""The catalogue of a project: open it, move an alias, verify. Apart from `models`, which loads torch."""

from __future__ import annotations

from hpcmass.catalogue import ANY, AliasMove, Catalogue
from hpcmass.catalogue.aliases import Anything
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
    move = catalogue.alias(version.name, alias, version.version, why=why, expect=expected(expect))
    before = f" (was {version.name}@{move.previous})" if move.previous else ""
    return f"{version.name}@{alias} → {version.ref}{before}"


def expected(text: str | None) -> Anything | int | None:
    """What `--expect` means: a version's number, None for `none`, `ANY` where it was not said.

    Raises:
        ConfigError: It is neither.
    """
    if text is None or text == "none":
        return ANY if text is None else None
    if not (text.isdecimal() and text.isascii()):
        raise ConfigError(f"'{text}' is no version", where="--expect", hint="a number, or none")
    return int(text)


def history_of(name: str, alias: str | None, project: ProjectRef = None) -> list[tuple[str, AliasMove]]:
    """The moves of one alias of a model, or of all of them by time, each with the alias's name.

    Raises:
        NotFound: There is no such model or alias.
    """
    catalogue = open_catalogue(project)
    names = catalogue.aliases(name) if alias is None else [alias]
    moves = [(called, move) for called in names for move in catalogue.history(name, called)]
    return moves if alias is not None else sorted(moves, key=lambda one: one[1].created)


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
        "\n".join([f"{len(report.problems)} problems", *lines]), hint="`hpcmass catalogue fsck --repair`"
    )
