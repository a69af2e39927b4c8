"""Find what is wrong with a catalogue; it is safe beside writers, and changes nothing.

`mending.py` repairs what is found, or sets it aside.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.catalogue.aside import DONE, TRASH, runs
from hpcmass.catalogue.blobs import BlobStore
from hpcmass.catalogue.claims import listdir, numbered, numbers
from hpcmass.catalogue.evaluations import Evaluations
from hpcmass.catalogue.journal import Pointer, Position, journals, named, read_new
from hpcmass.catalogue.leftovers import file_system_now, left_behind, temporaries
from hpcmass.catalogue.modes import WrongMode, wrong_modes
from hpcmass.catalogue.moved import moved_file, moved_packs, read_moved
from hpcmass.catalogue.survey import Survey, survey
from hpcmass.catalogue.version import FileEntry
from hpcmass.errors import CatalogueError, CorruptError, HpcmassError, NotFound, StorageError

DAMAGE = {"claim", "move", "evaluation", "overlap", "content", "moved", "nowhere", "mode", "unreadable"}
"""Kinds of findings that are faults; the others are what killed writers leave, which hurts nobody."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or left over.

    Attributes:
        kind: `claim`, `move` or `evaluation` (cannot be read), `overlap`, `content` (missing or corrupt),
            `moved`, `nowhere` (an alias), `mode`, `unreadable` (no permission, or of a newer hpcmass), `empty`
            (a number without content), `temporary`, `unlisted` (in no journal), `torn` (lines of a journal),
            `unfinished` (a gc that was killed).
        where: The file concerned.
        message: What is wrong with it.
        refs: References that are hit by it.
        entry: The content concerned.
        pointer: What is in no journal.
        mode: What is wrong with a mode.
    """

    kind: str
    where: Path
    message: str
    refs: tuple[str, ...] = ()
    entry: FileEntry | None = None
    pointer: Pointer | None = None
    mode: WrongMode | None = None

    @property
    def is_damage(self) -> bool:
        """Whether it is a fault, and not only left over."""
        return self.kind in DAMAGE

    def told(self) -> str:
        """All of it in a line."""
        some = ", ".join(self.refs[:5]) + (f" and {len(self.refs) - 5} more" if len(self.refs) > 5 else "")
        return f"{self.where}: {self.message}" + (f" (hits {some})" if some else "")


@dataclass
class FsckReport:
    """What was read, found and done.

    Attributes:
        versions: Versions there are.
        contents: Distinct files of theirs that were held against their digests, or their sizes.
        bytes: Their bytes.
        findings: What was found.
        done: What was done about it, a line each.
        left: What is wrong still, after a repair; the findings themselves without one.
        aside: The folder of what was set aside, or None.
    """

    versions: int = 0
    contents: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)
    aside: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, or nothing any more."""
        return not any(one.is_damage for one in self.left)


def scan(root: Path, *, quick: bool = False) -> FsckReport:
    """Read a catalogue and name what is wrong.

    Args:
        root: The catalogue's folder.
        quick: Hold contents against their sizes only, not against their digests.

    Raises:
        CatalogueError: There is no catalogue.
        StorageError: A folder cannot be read.
    """
    if not (root / "models").is_dir():
        raise CatalogueError("has no models: it is no catalogue, or an empty one", where=root)
    report, tree = FsckReport(), survey(root)
    found = report.findings
    found += [_damaged(path, error) for path, error in tree.damaged.items()]
    found += _claims(tree)
    found += _evaluations(tree)
    found += _moved(root)
    found += _still_there(root, list(_contents(tree, report, quick)))
    found += _aliases(tree)
    found += [Finding("mode", one.path, one.told(), mode=one) for one in wrong_modes(root)]
    found += _left_over(root, tree)
    report.versions = len(tree.versions)
    report.left = list(found)
    return report


def _damaged(path: Path, error: HpcmassError) -> Finding:
    name = path.parts[-3]
    if not isinstance(error, CorruptError):
        return Finding("unreadable", path, f"{error.message}" + (f"; {error.hint}" if error.hint else ""))
    if path.parent.name == "versions":
        return Finding("claim", path, f"corrupt: {error.message}", (f"{name}@{int(path.stem)}",))
    ref = f"{path.parts[-4]}@{path.parent.name}"
    return Finding("move", path, f"corrupt: {error.message}", (ref,))


def _claims(tree: Survey) -> Iterator[Finding]:
    """Claims without content, and such as lie within another."""
    for name in listdir(tree.root / "models"):
        folder, free = tree.folder(name), 1
        for start in numbers(folder):
            path = numbered(folder, start)
            versions = tree.claims.get((name, start), [])
            if start < free:
                yield Finding("overlap", path, "lies within the claim before it", (f"{name}@{start}",))
            free = max([free, start + 1, *(version.version + 1 for version in versions)])
            if not versions and path not in tree.damaged:
                yield from _empty(path)
        aliases = tree.root / "models" / name / "aliases"
        for alias in listdir(aliases):
            for number in numbers(aliases / alias):
                yield from _empty(numbered(aliases / alias, number))


def _evaluations(tree: Survey) -> Iterator[Finding]:
    """Evaluations that cannot be read, of versions that there are."""
    records = Evaluations(tree.root)
    known = {(version.name, f"{version.version:06d}"): version for version in tree.versions}
    for name in listdir(tree.root / "models"):
        for part in listdir(tree.root / "models" / name / "evaluations"):
            version = known.get((name, part))
            if version is None:
                continue
            for number in records.numbers(version):
                try:
                    records.read(version, number)
                except HpcmassError as error:
                    kind = "evaluation" if isinstance(error, CorruptError) else "unreadable"
                    path, ref = records.path(version, number), f"{version.ref}/{number}"
                    yield Finding(kind, path, f"corrupt: {error.message}", (ref,))


def _empty(path: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            yield Finding(
                "empty", path, "is a number that was taken and has no content: its writer died, or is at it"
            )


def _moved(root: Path) -> Iterator[Finding]:
    for pack in moved_packs(root / "cas"):
        try:
            read_moved(root / "cas", pack)
        except CorruptError as error:
            yield Finding("moved", moved_file(root / "cas", pack), f"corrupt: {error.message}")


def _contents(tree: Survey, report: FsckReport, quick: bool) -> Iterator[Finding]:
    store, users = BlobStore(tree.root / "cas"), users_of(tree)
    for entry, refs in sorted(users.items(), key=lambda item: (item[0].pack or "", item[0].offset)):
        report.contents += 1
        report.bytes += entry.bytes
        try:
            wrong = _opened(store, entry) if quick else store.check(entry)
        except StorageError as error:
            yield Finding("unreadable", store.where(entry), error.message, tuple(refs))
            continue
        if wrong:
            yield Finding("content", store.where(entry), wrong, tuple(refs), entry=entry)


def _still_there(root: Path, found: list[Finding]) -> list[Finding]:
    """Without what is missing because a `gc` beside us removed the versions that used it."""
    if not found:
        return found
    there = {version.ref for version in survey(root).versions}
    return [one for one in found if there & set(one.refs)]


def users_of(tree: Survey) -> dict[FileEntry, list[str]]:
    """The versions that use each content, by reference."""
    users: dict[FileEntry, list[str]] = {}
    for version in tree.versions:
        for entry in set(version.files.values()):
            users.setdefault(entry, []).append(version.ref)
    return users


def _opened(store: BlobStore, entry: FileEntry) -> str | None:
    try:
        store.open(entry).close()
    except NotFound:
        return "missing: there is no such blob"
    except CorruptError as error:
        return f"corrupt: {error.message}"
    return None


def _aliases(tree: Survey) -> Iterator[Finding]:
    for name, alias, move in tree.nowhere():
        path = numbered(tree.root / "models" / name / "aliases" / alias, move.number)
        told = f"points at {name}@{move.version}, which is not there"
        yield Finding("nowhere", path, told, (f"{name}@{alias}",))


def _left_over(root: Path, tree: Survey) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        now = file_system_now(root) if os.access(root, os.W_OK) else time.time()
        for path in temporaries(root):
            if left_behind(path, now):
                yield Finding("temporary", path, "was left by a writer that is gone")
    for aside in runs(root, TRASH):
        if aside.record.get("versions") and not (aside.folder / DONE).exists():
            yield Finding("unfinished", aside.folder, "a gc was killed before it recorded what it removed")
    known = named(root / "journals")
    for (name, start), versions in tree.claims.items():
        if versions and (pointer := Pointer(name, start)) not in known:
            told = "is in no journal: searches by an older index do not find it"
            yield Finding("unlisted", numbered(tree.folder(name), start), told, (pointer.ref,), pointer=pointer)
    for (name, alias), moves in tree.aliases.items():
        pointer = Pointer(name, moves[-1].number, alias)
        if pointer not in known:
            path = tree.root / "models" / name / "aliases" / alias
            yield Finding("unlisted", path, "is in no journal", (pointer.ref,), pointer=pointer)
    yield from _unlisted_evaluations(tree, known)
    for name in journals(root / "journals"):
        read = read_new(root / "journals" / name, Position())
        if read is not None and read[1].torn:
            told = f"{len(read[1].torn)} torn lines, of writers that were killed; readers pass over them"
            yield Finding("torn", root / "journals" / name, told)


def _unlisted_evaluations(tree: Survey, known: set[Pointer]) -> Iterator[Finding]:
    records = Evaluations(tree.root)
    for version in tree.versions:
        for number in records.numbers(version):
            pointer = Pointer(version.name, version.version, None, number)
            if pointer not in known:
                path = records.path(version, number)
                yield Finding("unlisted", path, "is in no journal", (pointer.ref,), pointer=pointer)
