"""Everything that a catalogue's tree says: versions, aliases, what is damaged, and which content is in use."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.catalogue.aliases import AliasMove, read_moves
from hpcmass.catalogue.claims import listdir, numbered, numbers
from hpcmass.catalogue.journal import Pointer, named
from hpcmass.catalogue.moved import moved_packs, pack_files, read_moved
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.catalogue.version import FileEntry, Version
from hpcmass.errors import HpcmassError, NameNotAllowed
from hpcmass.files import check_name

Claim = tuple[str, int]
"""A model's name and the number of a claim of versions."""


@dataclass
class Survey:
    """The tree, read.

    Attributes:
        claims: Every claim with its versions; none where it has no content yet, or all were removed.
        aliases: Every alias with its moves, oldest first.
        damaged: Claims and moves that cannot be read, and why.
    """

    root: Path
    claims: dict[Claim, list[Version]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], list[AliasMove]] = field(default_factory=dict)
    damaged: dict[Path, HpcmassError] = field(default_factory=dict)

    @property
    def versions(self) -> list[Version]:
        """All versions there are."""
        return [version for found in self.claims.values() for version in found]

    def folder(self, name: str) -> Path:
        """Where the claims of a model lie."""
        return self.root / "models" / name / "versions"

    def more(self) -> list[Version]:
        """Read what was claimed since, aliases anew; gives the versions that came."""
        came = []
        for name in listdir(self.root / "models"):
            try:
                check_name(name)
            except NameNotAllowed:
                continue
            claims = VersionClaims(self.folder(name), name, {}, wait_s=0)
            for start in claims.starts():
                path = numbered(claims.folder, start)
                if self.claims.get((name, start)) or path in self.damaged:
                    continue
                try:
                    found = claims.versions(start)
                except HpcmassError as error:
                    self.damaged[path] = error
                    continue
                self.claims[name, start] = found
                came += found
            self._aliases_of(name)
        return came

    def _aliases_of(self, name: str) -> None:
        base = self.root / "models" / name / "aliases"
        for alias in listdir(base):
            folder = base / alias
            try:
                moves = read_moves(folder)
            except HpcmassError as error:
                last = max(numbers(folder), default=1)
                self.damaged[numbered(folder, last) if error.where is None else Path(error.where)] = error
                continue
            if moves:
                self.aliases[name, alias] = moves

    def nowhere(self) -> list[tuple[str, str, AliasMove]]:
        """Models, aliases and last moves of aliases that point at a version that is not there."""
        there = {version.ref for version in self.versions}
        found = []
        for (name, alias), moves in sorted(self.aliases.items()):
            if f"{name}@{moves[-1].version}" in there:
                continue
            with contextlib.suppress(HpcmassError):  # it may have come after its model's versions were read
                if VersionClaims(self.folder(name), name, {}, wait_s=0).read(moves[-1].version) is not None:
                    continue
            found.append((name, alias, moves[-1]))
        return found

    def now(self) -> dict[str, list[str]]:
        """The versions that aliases have now, as references, with the aliases."""
        found: dict[str, list[str]] = defaultdict(list)
        for (name, alias), moves in self.aliases.items():
            found[f"{name}@{moves[-1].version}"].append(alias)
        return dict(found)


def survey(root: Path) -> Survey:
    """Read a catalogue's tree.

    Raises:
        StorageError: A folder cannot be read.
    """
    found = Survey(root)
    found.more()
    return found


@dataclass
class Content:
    """The content that some versions use, by where it lies.

    Attributes:
        blobs: Digests that versions use, and that no pack holds.
        packs: Packs that hold some of it, with each entry as it lies there.
        moved: Packs of which something that is used was moved.
    """

    blobs: set[str] = field(default_factory=set)
    packs: dict[str, set[FileEntry]] = field(default_factory=lambda: defaultdict(set))
    moved: set[str] = field(default_factory=set)


def content_of(root: Path, versions: Iterable[Version]) -> Content:
    """Where the content of versions lies; of a pack that was written anew, in the new one.

    Raises:
        CorruptError: What says where a pack's content lies is damaged.
    """
    store = root / "cas"
    there, found = pack_files(store), Content()
    moved = {pack: read_moved(store, pack) for pack in moved_packs(store)}
    done: set[FileEntry] = set()
    for version in versions:
        for entry in version.files.values():
            if entry in done:
                continue
            done.add(entry)
            pack, offset, chain = entry.pack, entry.offset, []
            while pack is not None and entry.sha256 in moved.get(pack, {}) and pack not in chain:
                chain.append(pack)
                pack, offset = moved[pack][entry.sha256]
            if pack is not None and pack not in there and entry.pack in there:
                pack, offset, chain = entry.pack, entry.offset, []  # the new one never came
            if pack is None or pack not in there:
                found.blobs.add(entry.sha256)
            if pack is not None:
                found.packs[pack].add(FileEntry(entry.sha256, entry.bytes, pack, offset))
            found.moved.update(chain)
    return found


def pending(root: Path) -> set[Pointer]:
    """What journals name and what is not there, and may come yet: a claim of a number that is not passed."""
    waiting: set[Pointer] = set()
    last: dict[Path, int] = {}
    for pointer in named(root / "journals"):
        try:
            check_name(pointer.model)
            check_name(pointer.alias or "none")
        except NameNotAllowed:
            continue
        if pointer.evaluation is not None:  # it uses no content
            continue
        path = pointer.path(root)
        folder = path.parent
        try:
            if path.stat().st_size:
                continue
            waiting.add(pointer)  # claimed, and without content yet
        except OSError:
            if folder not in last:
                last[folder] = max(numbers(folder), default=0)
            if pointer.number > last[folder]:
                waiting.add(pointer)
    return waiting


def parents(version: Version) -> list[str]:
    """The references of the versions that a version was made from, or began with the weights of."""
    said: Any = version.lineage.get("parent")
    found = list(said) if isinstance(said, list) else [said]
    began: Any = version.lineage.get("began_with")
    if isinstance(began, dict):
        found.append(began.get("what"))
    return [one for one in found if isinstance(one, str)]
