"""The reader's own index of a catalogue: SQLite in the user's cache folder, refreshed from the journals.

Many processes may use one cache folder, see `index_file`. What is broken, of another layout or of another
catalogue is made anew from the tree.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcmass.catalogue.aliases import read_move
from hpcmass.catalogue.claims import listdir, numbers, read_claim
from hpcmass.catalogue.evaluations import parse_evaluation
from hpcmass.catalogue.index_file import CopiedIndex, IndexFile, LiveIndex, MemoryIndex, index_file
from hpcmass.catalogue.index_rows import LAYOUT, IndexRows
from hpcmass.catalogue.journal import Pointer, Position, journals, read_new
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.errors import CorruptError, HpcmassError, NameNotAllowed, NotFound
from hpcmass.files import cache_folder, check_name, read_json, sha256_bytes


class Index:
    """The index of one catalogue for this user.

    Args:
        root: The catalogue's folder.
        folder: Where the index lies; default: in the user's cache.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self.root = root
        name = sha256_bytes(os.fsencode(os.path.realpath(root)))[:16]
        place = (folder or cache_folder("catalogues")) / name
        self._file: IndexFile = index_file(place, f"index-{LAYOUT}", self._fits)
        self._lock = threading.RLock()

    @property
    def path(self) -> Path:
        """The file of the index."""
        return self._file.path

    def fresh(self) -> sqlite3.Connection:
        """The index after a look at the journals, for reading only.

        Where the cache cannot be written, the index is made in memory.

        Raises:
            StorageError: The catalogue cannot be read.
        """
        with self._lock:
            for _ in range(2):
                try:
                    found = self._refreshed()
                except sqlite3.Error:  # broken where its head did not show it, or made anew by another process
                    self._file.close()
                    continue
                except OSError:  # the cache is full
                    break
                if found is None:
                    break
                return found
            return self.rebuild()

    def _refreshed(self) -> sqlite3.Connection | None:
        """The stored index with what is new; None where it must be made anew."""
        connection = self._file.reader()
        if connection is None or self._identity() != _fact(connection, "identity"):
            return None
        rows = IndexRows(connection)
        new = self._news(rows)
        if new is None:
            return None
        pointers, positions = new
        if not pointers and positions == rows.positions() and not self._came(rows):
            return connection
        with self._file.changing() as changing:
            # Looked at again, for another process may have been faster.
            changed = IndexRows(changing)
            new = self._news(changed)
            if new is None or self._identity() != _fact(changing, "identity"):
                return None
            self._apply(changed, {*new[0], *changed.pending()})
            changed.keep_positions(new[1])
            turn = _turn(changing) + 1
            changed.keep_facts({"turn": str(turn)})
        if _turn(self._file.current) < turn:
            # Another process makes the index anew, and has removed this one's log from under the reader.
            raise sqlite3.OperationalError("the index was removed")
        return self._file.current

    def _came(self, rows: IndexRows) -> bool:
        """Whether some of what was waited for is there; an evaluation waits for its version's line too."""
        return any(
            self._exists(one) and (one.evaluation is None or rows.has(one.model, one.number))
            for one in rows.pending()
        )

    def rebuild(self) -> sqlite3.Connection:
        """The index made anew from the tree, for reading only.

        Raises:
            StorageError: The catalogue cannot be read.
        """
        with self._lock:
            self._file.close()
            try:
                return self._made()
            except (OSError, sqlite3.Error):
                if not isinstance(self._file, LiveIndex):
                    self._file = MemoryIndex(self._file.folder, self._file.stem, self._fits)
                    return self._made()
            self._file = CopiedIndex(self._file.folder, self._file.stem, self._fits)
            return self.rebuild()

    def _made(self) -> sqlite3.Connection:
        # A build makes millions of objects that are no garbage, which the collector would walk again and again.
        enabled = gc.isenabled()
        gc.disable()
        try:
            with self._file.making() as connection:
                self._build(connection)
        finally:
            if enabled:
                gc.enable()
        return self._file.current

    def close(self) -> None:
        """Close the file; the next look opens it again."""
        with self._lock:
            self._file.close()

    def _fits(self, connection: sqlite3.Connection) -> bool:
        return _fact(connection, "layout") == str(LAYOUT) and _fact(connection, "root") == self._root()

    def _root(self) -> str:
        return os.path.realpath(self.root)

    def _identity(self) -> str:
        """What the catalogue is, and how often versions were removed from it: no journal says that."""
        found, removals = None, numbers(self.root / "removals")[-1:]
        with contextlib.suppress(NotFound, CorruptError):
            found = read_json(self.root / "catalogue.json")
        return (str(found.get("id", "")) if isinstance(found, dict) else "") + (
            f".{removals[0]}" if removals else ""
        )

    def _news(self, rows: IndexRows) -> tuple[set[Pointer], dict[str, Position]] | None:
        """What the journals have since the index was made; None where one is gone or became shorter."""
        known = rows.positions()
        names = journals(self.root / "journals")
        found: set[Pointer] = set()
        positions: dict[str, Position] = {}
        for name in {*names, *known}:
            try:
                new = read_new(self.root / "journals" / name, known.get(name, Position()))
            except NotFound:
                new = None
            if new is None:
                return None
            found.update(new[0])
            positions[name] = new[1]
        return found, positions

    def _build(self, connection: sqlite3.Connection) -> None:
        rows = IndexRows.create(connection)
        rows.keep_facts(
            {"layout": str(LAYOUT), "root": self._root(), "identity": self._identity(), "turn": "0"}
        )
        # Before the tree is walked, so that what comes meanwhile is found afterwards.
        new = self._news(rows)
        pointers, positions = new if new is not None else (set(), {})
        self._apply(rows, self.tree())
        rows.known()
        self._apply(rows, self.measured())
        rows.sort()
        self._apply(rows, pointers)
        rows.keep_positions(positions)

    def tree(self) -> Iterator[Pointer]:
        """Every claim of versions there is, and the last move of every alias."""
        for model in listdir(self.root / "models"):
            folder = self.root / "models" / model
            for number in numbers(folder / "versions"):
                yield Pointer(model, number)
            for alias in listdir(folder / "aliases"):
                for number in numbers(folder / "aliases" / alias)[-1:]:
                    yield Pointer(model, number, alias)

    def measured(self) -> Iterator[Pointer]:
        """Every evaluation there is, the newest of a version first."""
        for model in listdir(self.root / "models"):
            folder = self.root / "models" / model / "evaluations"
            for version in listdir(folder):
                if version.isdecimal() and version.isascii() and int(version):
                    for number in reversed(numbers(folder / version)):
                        yield Pointer(model, int(version), None, number)

    def _exists(self, pointer: Pointer) -> bool:
        try:
            return _named(pointer) and pointer.path(self.root).stat().st_size > 0
        except OSError:
            return False

    def _apply(self, rows: IndexRows, pointers: Iterable[Pointer]) -> None:
        """Take in what pointers name; what is not there yet is kept as pending, what is damaged is left out."""
        last: dict[Path, int] = {}
        measured: list[Pointer] = []
        for pointer in pointers:
            if pointer.evaluation is not None:
                measured.append(pointer)
            elif _named(pointer):
                self._apply_one(rows, pointer, last)
        rows.flush()
        for pointer in measured:  # of versions that may have come just now
            if _named(pointer):
                self._apply_one(rows, pointer, last)

    def _apply_one(self, rows: IndexRows, pointer: Pointer, last: dict[Path, int]) -> None:
        is_version = pointer.alias is None and pointer.evaluation is None
        try:
            known = is_version and rows.has(pointer.model, pointer.number)
            there = known or self._take(rows, pointer)
        except HpcmassError:
            there = True  # `verify` names it
        rows.set_pending(pointer, not there and not self._removed(pointer, last))

    def _take(self, rows: IndexRows, pointer: Pointer) -> bool:
        path = pointer.path(self.root)
        if pointer.evaluation is not None:
            raw = read_claim(path, 0.0)
            what = pointer.model, pointer.number, pointer.evaluation
            return raw is not None and rows.measured(parse_evaluation(raw, *what, path))
        if pointer.alias is not None:
            move = read_move(path.parent, pointer.number, wait_s=0)
            if move is not None:
                rows.move_alias(pointer.model, pointer.alias, move.number, move.version)
            return move is not None
        there = self._exists(pointer)  # asked first: it may come while it is read
        versions = VersionClaims(path.parent, pointer.model, {}, wait_s=0).versions(pointer.number)
        rows.add(versions)
        return bool(versions) or there  # there may be nothing in it but what was removed

    def _removed(self, pointer: Pointer, last: dict[Path, int]) -> bool:
        """Whether a claim that is not there will not come: numbers behind it are taken."""
        path = pointer.path(self.root)
        if path.parent not in last:
            last[path.parent] = max(numbers(path.parent), default=0)
        return (pointer.evaluation or pointer.number) < last[path.parent] and not path.exists()


def _named(pointer: Pointer) -> bool:
    """Whether what a journal names are names, so that no path leads elsewhere."""
    try:
        check_name(pointer.model)
        if pointer.alias is not None:
            check_name(pointer.alias)
    except NameNotAllowed:
        return False
    return True


def _turn(connection: sqlite3.Connection) -> int:
    """How often the index was changed since it was made."""
    return int(_fact(connection, "turn") or 0)


def _fact(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])
