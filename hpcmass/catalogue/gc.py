"""Removing versions that no rule keeps, and content that no version uses, beside writers at work.

Nothing is locked against writers. What goes is renamed into `trash/` first, then the tree is read again: what a
version or an alias that came meanwhile uses is brought back. A writer in turn looks for its content again after
it has claimed its version (`BlobStore.hold`), and whoever moves an alias for the version. So of two that do not
know of each other the later one finds the other. What lies in the trash readers still find; it is deleted when
it has lain there for the grace, and not while a version is announced in a journal and not there yet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.catalogue.aside import DONE, TRASH, Aside, lease, log_removal, runs
from hpcmass.catalogue.blobs import BlobStore, make_durable_dir
from hpcmass.catalogue.claims import claim_json
from hpcmass.catalogue.leftovers import age_s, file_system_now, left_behind, temporaries
from hpcmass.catalogue.moved import blob_files, moved_file, moved_packs, pack_files, write_moved
from hpcmass.catalogue.packs import PACK_BYTES
from hpcmass.catalogue.removing import STALLED_S, gravestone, gravestones, revive, take_out
from hpcmass.catalogue.reserve import with_room
from hpcmass.catalogue.retention import Decision, Rules, decide
from hpcmass.catalogue.survey import Content, Survey, content_of, pending, survey
from hpcmass.catalogue.version import FileEntry, who
from hpcmass.errors import AlreadyExists, CatalogueError, HpcmassError, StorageError
from hpcmass.files import publishing, settle, storage_errors

DAY_S = 86400.0
_MOSTLY_DEAD = 0.5  # a pack of which less is used is written anew


@dataclass
class GcReport:
    """What was done, or would be.

    Attributes:
        decisions: What became of every version, and why.
        dry_run: Nothing was changed.
        unused: Blobs, packs and temporaries that no version uses, set aside now.
        unused_bytes: Their size.
        rewritten: Packs that were mostly dead, written anew.
        purged: Files deleted for good.
        purged_bytes: Their size.
        waiting: Why something that could go lies in the trash still.
        brought_back: What was set aside and is used after all.
        refused: Files that could not be touched, and why.
        nowhere: Aliases that point at a version that is not there.
    """

    decisions: list[Decision] = field(default_factory=list)
    dry_run: bool = False
    unused: int = 0
    unused_bytes: int = 0
    rewritten: int = 0
    purged: int = 0
    purged_bytes: int = 0
    waiting: list[str] = field(default_factory=list)
    brought_back: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    nowhere: list[str] = field(default_factory=list)

    @property
    def gone(self) -> list[Decision]:
        """The versions that went, or would go."""
        return [one for one in self.decisions if one.goes]


def collect(
    root: Path,
    rules: Rules | None = None,
    *,
    why: str = "",
    grace_s: float = DAY_S,
    dry_run: bool = False,
) -> GcReport:
    """Remove what no rule keeps and nothing uses.

    Args:
        root: The catalogue's folder.
        rules: What is kept; without any every version is.
        why: The reason, kept in the record of what was removed.
        grace_s: How long what goes lies in the trash, and how old content must be that no version uses, since
            its writer may be about to claim one; seconds. 0 deletes at once what nothing can be about to use.
        dry_run: Change nothing.

    Raises:
        CatalogueError: Some of the catalogue cannot be read, so what is used is not known.
        LeaseHeld: Another `gc` or `fsck --repair` is at work.
        StorageError: The file system refused.
    """
    rules = rules or Rules()
    if dry_run:
        return _would(Path(root), rules, grace_s)

    def run() -> GcReport:
        with lease(Path(root)):
            return _Run(Path(root), rules, why, grace_s).all()

    return with_room(Path(root), run)


def sound(root: Path) -> Survey:
    """The tree, if all of it can be read.

    Raises:
        CatalogueError: Some of it cannot.
    """
    tree = survey(root)
    if tree.damaged:
        path, error = next(iter(tree.damaged.items()))
        raise CatalogueError(
            f"is one of {len(tree.damaged)} claims that cannot be read, so what they use is not known:"
            f" {error.message}",
            where=path,
            hint="run `hpcmass catalogue fsck`, and with --repair, before anything is removed",
        )
    return tree


def _would(root: Path, rules: Rules, grace_s: float) -> GcReport:
    tree = sound(root)
    report = GcReport(decide(tree, rules, time.time()), dry_run=True)
    gone = {one.version.ref for one in report.gone}
    content = content_of(root, [version for version in tree.versions if version.ref not in gone])
    now = time.time()
    for path, size, _ in _unused(root, content):
        used = content_of(root, tree.versions) if gone else content
        if grace_s == 0 or age_s(path, now) >= grace_s or _named(path, used):
            report.unused += 1
            report.unused_bytes += size
    report.nowhere = [f"{name}@{alias}" for name, alias, _ in tree.nowhere()]
    for aside in runs(root, TRASH):
        if aside.age_s >= grace_s:
            for path, _ in aside.files():
                report.purged += 1
                report.purged_bytes += path.stat().st_size
    return report


def _named(path: Path, content: Content) -> bool:
    """Whether versions use a blob or pack now, so that no writer is about to."""
    return path.name in content.blobs or path.name in content.packs


def _unused(root: Path, content: Content) -> list[tuple[Path, int, bool]]:
    """Files that hold nothing that is used: path, bytes, whether it is content (or a note of where it went)."""
    store = BlobStore(root / "cas")
    found = [
        (store.path(one), size, True)
        for one, size in blob_files(store.folder).items()
        if one not in content.blobs
    ]
    found += [
        (store.pack_path(one), size, True)
        for one, size in pack_files(store.folder).items()
        if one not in content.packs
    ]
    notes = [moved_file(store.folder, one) for one in moved_packs(store.folder) if one not in content.moved]
    return found + [(path, 0, False) for path in notes]


class _Run:
    """One collection; what it holds is the lease."""

    def __init__(self, root: Path, rules: Rules, why: str, grace_s: float) -> None:
        self.root = root
        self.rules = rules
        self.why = why
        self.grace_s = grace_s
        self.store = BlobStore(root / "cas")
        self.aside = Aside(root, TRASH)
        self.report = GcReport()

    def all(self) -> GcReport:
        report = self.report
        finish(self.root)
        sound(self.root)
        for path in gravestones(self.root):
            self._begin([])
            with self._permitted():
                self.aside.take(path)
        tree = sound(self.root)  # which also finds an alias whose version was brought back there just then
        if self._point_somewhere(tree):
            tree = sound(self.root)
        report.decisions = decide(tree, self.rules, time.time())
        self._remove(report.gone)
        used = content_of(self.root, tree.versions)  # what was used till now no writer is about to use first
        tree = sound(self.root)
        self._set_aside(content_of(self.root, tree.versions), used)
        self._pack_anew(content_of(self.root, tree.versions))
        self.aside.settle()
        self._purge()
        report.refused.update(self.aside.refused)
        report.nowhere = [f"{name}@{alias}" for name, alias, _ in survey(self.root).nowhere()]
        return report

    def _point_somewhere(self, tree: Survey) -> bool:
        """Bring back versions that an alias came to point at while they were taken away."""
        brought = False
        for name, _, move in tree.nowhere():
            with contextlib.suppress(CatalogueError):
                if revive(self.root, name, move.version):
                    self.report.brought_back.append(f"{name}@{move.version}")
                    brought = True
        return brought

    @contextlib.contextmanager
    def _permitted(self) -> Iterator[None]:
        """Note what may not be changed, and go on with the rest."""
        try:
            yield
        except StorageError as error:
            if error.data.get("errno") not in (errno.EPERM, errno.EACCES):
                raise
            self.report.refused[str(error.where)] = error.message

    def _begin(self, versions: list[str]) -> None:
        if not self.aside.folder.exists():
            said = {"why": self.why, "rules": self.rules.to_json(), "versions": versions}
            self.aside.begin(said)

    def _remove(self, gone: list[Decision]) -> None:
        if not gone:
            return
        self._begin([one.version.ref for one in gone])
        by, now = who(), time.time()
        starts = survey(self.root).claims
        stones: dict[tuple[str, int], dict[int, dict[str, object]]] = defaultdict(dict)
        claim_of = {version.ref: claim for claim, found in starts.items() for version in found}
        for one in gone:
            version = one.version
            stones[claim_of[version.ref]][version.version] = gravestone(
                version.name, version.version, by, now, self.why
            )
        for (name, start), mine in sorted(stones.items()):
            with self._permitted():
                take_out(self.aside, name, start, mine)
        self.aside.settle()
        self._point_somewhere(survey(self.root))
        finish(self.root)
        there = {version.ref for version in survey(self.root).versions}
        self.report.decisions = [
            Decision(one.version, False, ("came to be used meanwhile, or may not be removed",))
            if one.goes and one.version.ref in there
            else one
            for one in self.report.decisions
        ]

    def _set_aside(self, content: Content, used: Content) -> None:
        now = file_system_now(self.root / "care")
        left = [(path, 0, False) for path in temporaries(self.root) if left_behind(path, now)]
        for path, size, is_content in [*_unused(self.root, content), *left]:
            if is_content and self.grace_s > 0 and not _named(path, used) and age_s(path, now) < self.grace_s:
                continue  # its writer may be about to claim a version; it would only have to put it there again
            self._begin([])
            if self.aside.take(path):
                self.report.unused += 1
                self.report.unused_bytes += size

    def _pack_anew(self, content: Content) -> None:
        """Put what is used of packs that are mostly dead into new ones, and say where it went."""
        there = pack_files(self.store.folder)
        old = {
            pack: live
            for pack, live in content.packs.items()
            if pack in there and sum(entry.bytes for entry in live) < _MOSTLY_DEAD * there[pack]
        }
        old = {pack: live for pack, live in old.items() if not any(map(self.store.check, live))}
        if not old:
            return
        self._begin([])
        where = write_packs(
            self.store, [entry for pack in sorted(old) for entry in sorted(old[pack], key=_offset)]
        )
        for pack, live in old.items():
            with self._permitted():
                write_moved(self.store.folder, pack, {entry.sha256: where[entry.sha256] for entry in live})
                self.report.rewritten += self.aside.take(self.store.pack_path(pack))

    def _purge(self) -> None:
        """Look at the claims again, bring back what came to be used, delete what lies there for long enough."""
        waiting = pending(self.root)
        tree = survey(self.root)  # all of it: a version may have come back into a claim that was read before
        if tree.damaged:
            self.report.waiting.append("a claim that came meanwhile cannot be read: nothing is deleted")
            return
        content = content_of(self.root, tree.versions)
        for aside in runs(self.root, TRASH):
            self.report.brought_back += bring_back_used(aside, self.store, content)
            if aside.age_s < self.grace_s:
                continue
            if waiting and aside.age_s < STALLED_S:
                ref = min(pointer.ref for pointer in waiting)
                self.report.waiting.append(
                    f"{ref} is announced and not there: its writer may be about to claim it and use what"
                    f" lies in {aside.folder}; after an hour it is held for dead"
                )
                continue
            files, size = aside.remove()
            self.report.purged += files
            self.report.purged_bytes += size
            self.report.refused.update(aside.refused)


def _offset(entry: FileEntry) -> int:
    return entry.offset


def bring_back_used(aside: Aside, store: BlobStore, content: Content) -> list[str]:
    """Put blobs and packs back that versions use and that are nowhere else; gives their names."""
    brought = []
    for path, original in aside.files():
        folder = original.parent.parent
        blob = folder == store.folder and original.name in content.blobs
        pack = folder == store.folder / "packs" and original.name in content.packs
        note = original.suffix == ".json" and original.stem in content.moved
        if (blob or pack or note) and not original.exists() and aside.bring_back(path, original):
            brought.append(original.name)
    return brought


def write_packs(store: BlobStore, entries: list[FileEntry]) -> dict[str, tuple[str, int]]:
    """Write the content of entries into new packs; gives pack and offset by digest.

    Raises:
        CorruptError: The content of an entry does not fit its digest.
        StorageError: The file system refused.
    """
    where: dict[str, tuple[str, int]] = {}
    parts: dict[str, bytes] = {}

    def close() -> None:
        if not parts:
            return
        data = b"".join(parts.values())
        pack, at = hashlib.sha256(data).hexdigest(), 0
        target = store.pack_path(pack)
        make_durable_dir(target.parent)
        try:
            with publishing(target, same=True) as temporary, storage_errors(target, "write the pack"):
                temporary.write_bytes(data)
                settle(temporary, 0o444)
        except AlreadyExists:
            store.need_pack(pack, len(data))
        for digest, part in parts.items():
            where[digest] = (pack, at)
            at += len(part)
        parts.clear()

    for entry in entries:
        if entry.sha256 in parts or entry.sha256 in where:
            continue
        if parts and sum(map(len, parts.values())) + entry.bytes > PACK_BYTES:
            close()
        with store.open(entry) as file:
            parts[entry.sha256] = file.read()
    close()
    return where


def finish(root: Path) -> None:
    """Record what runs removed that were killed before they could; by the record readers' indices learn of it.

    Raises:
        StorageError: The file system refused.
    """
    open_runs = [aside for aside in runs(root, TRASH) if not (aside.folder / DONE).exists()]
    if not open_runs:
        return
    there = {version.ref for version in survey(root).versions}
    for aside in open_runs:
        record = aside.record
        gone = [ref for ref in record.get("versions", []) if isinstance(ref, str) and ref not in there]
        if gone:
            said = {"why": record.get("why", ""), "rules": record.get("rules", {}), "run": aside.run}
            log_removal(root, {**said, "versions": gone})
        with contextlib.suppress(HpcmassError):
            claim_json(aside.folder / DONE, {"format": 1})
