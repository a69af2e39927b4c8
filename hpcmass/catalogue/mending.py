"""Repair what `fsck` finds, or set it aside in `quarantine/`; nothing is deleted.

Content comes back from wherever the same bytes are: another blob or pack, the trash, the user's cache, or the
folder of the run that made it, always held against its digest. What is in production is not changed for the
user: a version that an alias has stays where it is, damaged, and an alias that points nowhere is reported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpcmass.catalogue.aliases import AliasMove, read_move
from hpcmass.catalogue.aside import QUARANTINE, Aside, lease, log_removal, runs
from hpcmass.catalogue.blobs import BlobStore, make_durable_dir, open_regular
from hpcmass.catalogue.claims import claim_json, numbered, numbers
from hpcmass.catalogue.fsck import Finding, FsckReport, scan, users_of
from hpcmass.catalogue.gc import finish, write_packs
from hpcmass.catalogue.journal import Pointer, append
from hpcmass.catalogue.moved import write_moved
from hpcmass.catalogue.removing import gravestone, revive, stand_in, take_out
from hpcmass.catalogue.reserve import with_room
from hpcmass.catalogue.survey import Survey, survey
from hpcmass.catalogue.version import FileEntry, Version, parse_version, who
from hpcmass.errors import AlreadyExists, HpcmassError
from hpcmass.files import cache_folder, claim, publishing, read_json, settle, sha256_file


def repair(root: Path, *, quick: bool = False, why: str = "fsck --repair") -> FsckReport:
    """Repair what can be repaired, set aside what cannot, and look again.

    Args:
        root: The catalogue's folder.
        quick: As for `scan`.
        why: Kept in the record of what was set aside.

    Raises:
        CatalogueError: There is no catalogue.
        LeaseHeld: Another `gc` or `fsck --repair` is at work.
        StorageError: The file system refused.
    """
    return with_room(root, lambda: _repair(root, quick, why))


def _repair(root: Path, quick: bool, why: str) -> FsckReport:
    with lease(root):
        report = scan(root, quick=quick)
        mender = _Mender(root, why)
        mender.all(report.findings)
        report.done = mender.done
        if mender.done or report.findings:
            report.left = scan(root, quick=quick).findings
        report.aside = mender.aside.folder if mender.aside.folder.exists() else None
    return report


class _Mender:
    """One repair; the caller holds the lease."""

    def __init__(self, root: Path, why: str) -> None:
        self.root = root
        self.why = why
        self.store = BlobStore(root / "cas")
        self.aside = Aside(root, QUARANTINE)
        self.done: list[str] = []
        self.gone: list[str] = []  # versions set aside
        self.unmeasured: list[str] = []  # evaluations set aside
        self.lost: list[str] = []  # aliases of which no move is left, whose moves count from 1 again

    def all(self, findings: list[Finding]) -> None:
        by_kind: dict[str, list[Finding]] = {}
        for one in findings:
            by_kind.setdefault(one.kind, []).append(one)
        steps: list[tuple[str, Callable[[list[Finding]], None]]] = [
            ("unfinished", lambda _: finish(self.root)),
            ("mode", self._modes),
            ("claim", self._claims),
            ("move", self._moves),
            ("empty", self._empty),
            ("evaluation", self._evaluations),
            ("moved", self._set_aside),
            ("temporary", self._set_aside),
            ("unlisted", self._unlisted),
        ]
        for kind, mend in steps:
            if kind in by_kind:
                mend(by_kind[kind])
        # A note of where a pack went that is set aside leaves its content missing, so look again.
        if "moved" in by_kind:
            by_kind["content"] = [one for one in scan(self.root).findings if one.kind == "content"]
        if "content" in by_kind:
            self._contents([one.entry for one in by_kind["content"] if one.entry is not None])
        self._bring_back()
        self.aside.settle()
        if self.lost or self.unmeasured:
            gone = {"aliases": self.lost, "evaluations": self.unmeasured}
            log_removal(self.root, {"why": self.why, "run": self.aside.run, **gone})
        if self.gone:
            self.aside.begin({"why": self.why, "versions": self.gone})
            log_removal(self.root, {"why": self.why, "run": self.aside.run, "versions": self.gone})

    def _modes(self, found: list[Finding]) -> None:
        mended = sum(one.mode.mend() for one in found if one.mode is not None)
        if mended:
            self.done.append(f"gave {mended} folders and files the mode of the catalogue's folder")

    def _claims(self, found: list[Finding]) -> None:
        for one in found:
            name, start = one.where.parts[-3], int(one.where.stem)
            if start == numbers(one.where.parent)[-1]:
                self.aside.keep_copy(one.where)
                stand_in(self.root, name, start, gravestone(name, start, who(), time.time(), self.why))
            elif not self.aside.take(one.where):
                continue
            self.gone.append(f"{name}@{start}")
            self.done.append(f"set aside the damaged claim {one.where}")

    def _moves(self, found: list[Finding]) -> None:
        """Move an alias whose last move is damaged to where it was before; set the damaged ones aside."""
        for one in found:
            folder, number = one.where.parent, int(one.where.stem)
            if not one.where.exists():
                continue
            before = None
            if number == numbers(folder)[-1]:
                before = self._before(folder, number)
                if before is None:
                    self.lost += one.refs
                else:
                    why = f"{self.why}: its move {number} is damaged, this is where it was before"
                    move = AliasMove(number + 1, before.version, before.version, who(), time.time(), why)
                    pointer = Pointer(folder.parent.parent.name, move.number, folder.name)
                    append(self.root / "journals", [pointer])
                    claim_json(numbered(folder, move.number), move.to_json())
                    self.done.append(f"moved the alias {one.refs[0]} back to version {before.version}")
            if self.aside.take(one.where):
                self.done.append(f"set aside the damaged move {one.where}")

    def _before(self, folder: Path, number: int) -> AliasMove | None:
        for earlier in reversed([one for one in numbers(folder) if one < number]):
            with contextlib.suppress(HpcmassError):
                if (move := read_move(folder, earlier, wait_s=0)) is not None:
                    return move
        return None

    def _empty(self, found: list[Finding]) -> None:
        """Set aside numbers without content that others follow; the last one keeps its number taken."""
        for one in found:
            if int(one.where.stem) != numbers(one.where.parent)[-1] and self.aside.take(one.where):
                self.done.append(f"set aside {one.where}, which has no content")

    def _set_aside(self, found: list[Finding]) -> None:
        for one in found:
            if self.aside.take(one.where):
                self.done.append(f"set aside {one.where}")

    def _evaluations(self, found: list[Finding]) -> None:
        """Set aside evaluations; a newest number stays taken, for the history of an alias may name it."""
        for one in found:
            newest = int(one.where.stem) == numbers(one.where.parent)[-1]
            if self.aside.take(one.where):
                self.unmeasured += one.refs
                if newest:
                    claim(one.where)
                self.done.append(f"set aside the damaged evaluation {one.where}")

    def _unlisted(self, found: list[Finding]) -> None:
        pointers = [one.pointer for one in found if one.pointer is not None]
        append(self.root / "journals", pointers)
        self.done.append(f"listed {len(pointers)} in a journal")

    # -- content ---------------------------------------------------------------------------------------
    def _contents(self, damaged: list[FileEntry]) -> None:
        tree = survey(self.root)
        users = users_of(tree)
        packs = {entry.pack for entry in damaged if entry.pack is not None}
        bad = {entry for entry in users if entry.pack in packs and self.store.check(entry)}
        bad |= {entry for entry in damaged if entry.pack is None and self.store.check(entry)}
        known = {version.ref: version for version in tree.versions}
        lost: set[FileEntry] = set()
        for entry in sorted(bad, key=lambda entry: entry.sha256):
            copy = self._copy_of(entry, users, [known[ref] for ref in users[entry]])
            if entry.pack is None:
                self._take_damaged(self.store.path(entry.sha256))
            if copy is None:
                lost.add(entry)
            elif isinstance(copy, Path):
                self.store.add(copy)
                self.done.append(f"restored {self.store.path(entry.sha256)} from {copy}")
            else:
                self._publish(entry, copy)
        for pack in packs:
            self._replace_pack(str(pack), [entry for entry in users if entry.pack == pack], bad)
        hit = {ref for entry in lost for ref in users[entry] if self.store.check(entry)}
        self._versions_aside(tree, hit)

    def _publish(self, entry: FileEntry, data: bytes) -> None:
        path = self.store.path(entry.sha256)
        make_durable_dir(path.parent)
        with contextlib.suppress(AlreadyExists):
            with publishing(path, same=True) as temporary:
                temporary.write_bytes(data)
                settle(temporary, 0o444)
            self.done.append(f"restored {path} from a copy")

    def _take_damaged(self, path: Path) -> None:
        if path.exists() and self.aside.take(path):
            self.done.append(f"set aside the damaged {path}")

    def _replace_pack(self, pack: str, entries: list[FileEntry], bad: set[FileEntry]) -> None:
        """Put what is sound of a damaged pack into a new one; what was restored lies as blobs by now."""
        path = self.store.pack_path(pack)
        if not path.exists():
            return
        sound = [entry for entry in entries if entry not in bad and self.store.check(entry) is None]
        if sound:
            where = write_packs(self.store, sound)
            write_moved(self.store.folder, pack, {entry.sha256: where[entry.sha256] for entry in sound})
        self._take_damaged(path)

    def _copy_of(
        self, entry: FileEntry, users: dict[FileEntry, list[str]], by: list[Version]
    ) -> bytes | Path | None:
        """Where else the bytes of an entry are, sound: a file, or of a packed file the bytes; None: nowhere."""
        for other in users:
            if other.sha256 == entry.sha256 and other != entry and self.store.check(other) is None:
                with self.store.open(other) as file:
                    return file.read()
        for path in self._places(entry, by):
            with contextlib.suppress(HpcmassError, OSError):
                open_regular(path).close()
                if path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256:
                    return path
        return None

    def _places(self, entry: FileEntry, by: list[Version]) -> Iterator[Path]:
        yield self.store.path(entry.sha256)
        yield cache_folder("files", entry.sha256[:2], entry.sha256)
        for kind in ("trash", QUARANTINE):
            for aside in runs(self.root, kind):
                yield from (path for path, original in aside.files() if original.name == entry.sha256)
        for version in by:
            run = version.lineage.get("run")
            if isinstance(run, str) and run:
                yield from (Path(run) / "model" / name for name, one in version.files.items() if one == entry)

    # -- versions --------------------------------------------------------------------------------------
    def _versions_aside(self, tree: Survey, hit: set[str]) -> None:
        """Set aside versions of which something is lost, but for those that an alias has."""
        in_use = tree.now()
        stones: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        for where, versions in tree.claims.items():
            for version in versions:
                if version.ref in hit and version.ref not in in_use:
                    why = f"{self.why}: some of its content is lost"
                    stone = gravestone(version.name, version.version, who(), time.time(), why)
                    stones.setdefault(where, {})[version.version] = stone
        for (name, start), mine in sorted(stones.items()):
            if take_out(self.aside, name, start, mine):
                gone = [f"{name}@{number}" for number in mine]
                self.gone += gone
                self.done.append(f"set aside {', '.join(gone)}, of which content is lost")

    def _bring_back(self) -> None:
        """Bring back versions set aside for lost content that is there again."""
        there = {version.ref for version in survey(self.root).versions}
        for aside in runs(self.root, QUARANTINE):
            wanted = set(aside.record.get("versions", [])) - there - set(self.gone)
            if not wanted:
                continue
            for path, original in list(aside.files()):
                for version in _versions_in(path, original):
                    if version.ref in wanted and not any(map(self.store.check, version.files.values())):
                        wanted.discard(version.ref)
                        if revive(self.root, version.name, version.version):
                            self.done.append(f"brought {version.ref} back: its content is there again")


def _versions_in(path: Path, original: Path) -> list[Version]:
    """The versions of a claim that was set aside; none where it is no claim, or damaged."""
    if original.parent.name != "versions" or not original.stem.isdigit():
        return []
    start, name, found = int(original.stem), original.parent.parent.name, []
    with contextlib.suppress(HpcmassError):
        raw = read_json(path)
        for place, one in enumerate(raw.get("versions", [raw]) if isinstance(raw, dict) else []):
            with contextlib.suppress(HpcmassError):
                found.append(parse_version(one, name, start + place, path))
    return found
