"""The tables of the index: one wide row a version, a column for each key that metrics or jobs have."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping

from hpcmass.catalogue.evaluations import EvaluationRecord, label_of, searched
from hpcmass.catalogue.journal import Pointer, Position
from hpcmass.catalogue.rows import FIXED, Row, clean, row_of
from hpcmass.catalogue.version import Version

LAYOUT = 3

COLUMNS = 1000
"""Keys that have a column of their own; further ones lie in a table `more` (SQLite takes 2,000 columns)."""

_SORTED = 24  # metrics with an index, for the best of them
_AT_ONCE = 5000

# No column of a fact has a type: SQLite would turn a text into a number, and could not join by an index.
_TABLES = f"""
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE journals (name TEXT PRIMARY KEY, offset INTEGER, torn TEXT, last INTEGER, sum TEXT) WITHOUT ROWID;
CREATE TABLE pending (model TEXT, number INTEGER, alias TEXT, evaluation INTEGER,
    PRIMARY KEY (model, number, alias, evaluation)) WITHOUT ROWID;
CREATE TABLE evaluations (id INTEGER, label TEXT, number INTEGER, PRIMARY KEY (id, label)) WITHOUT ROWID;
CREATE TABLE keys (key TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID;
CREATE TABLE versions (id INTEGER PRIMARY KEY, {", ".join(f'"{name}"' for name in FIXED)}, lists);
CREATE TABLE datasets (id INTEGER, split, dataset);
CREATE TABLE splits (split PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE tags (id INTEGER, tag);
CREATE TABLE more (id INTEGER, key, value, PRIMARY KEY (id, key)) WITHOUT ROWID;
CREATE TABLE aliases (name, alias, number, version, PRIMARY KEY (name, alias)) WITHOUT ROWID;
CREATE INDEX by_alias ON aliases (alias);
"""

# Made after a build: all at once they cost a fraction of what they cost row by row.
_INDEXES = """
CREATE UNIQUE INDEX by_name ON versions (name, version);
CREATE INDEX by_created ON versions (created);
CREATE INDEX by_dataset ON datasets (dataset);
CREATE INDEX of_version ON datasets (id);
CREATE INDEX by_tag ON tags (tag);
CREATE INDEX by_parent ON versions (parent) WHERE parent IS NOT NULL;
"""


class IndexRows:
    """The rows of an index that is open, for reading or for a change."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._waiting: list[Row] = []
        self._taken: set[tuple[str, int]] = set()
        self._building = False
        self._model = ""
        self._keys: dict[str, int | None] = dict(connection.execute("SELECT key, number FROM keys").fetchall())

    @classmethod
    def create(cls, connection: sqlite3.Connection) -> IndexRows:
        """The tables of an empty index, to be filled model by model and ended by `finish`."""
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        rows = cls(connection)
        rows._building = True
        return rows

    # -- what is known ---------------------------------------------------------------------------------
    def positions(self) -> dict[str, Position]:
        """How far each journal was read."""
        rows = self.connection.execute("SELECT name, offset, torn, last, sum FROM journals")
        return {
            name: Position(offset, tuple((a, b) for a, b in json.loads(torn)), (last, checksum))
            for name, offset, torn, last, checksum in rows
        }

    def pending(self) -> list[Pointer]:
        """Claims that a journal names and that were not there."""
        rows = self.connection.execute("SELECT model, number, alias, evaluation FROM pending")
        return [
            Pointer(model, number, alias or None, evaluation or None)
            for model, number, alias, evaluation in rows
        ]

    def has(self, name: str, number: int) -> bool:
        """Whether a version is known."""
        if (name, number) in self._taken:
            return True
        if self._building:  # no index yet, but what was taken in of this model is remembered
            return False
        found = self.connection.execute("SELECT 1 FROM versions WHERE name = ? AND version = ?", (name, number))
        return found.fetchone() is not None

    # -- changes ---------------------------------------------------------------------------------------
    def keep_facts(self, facts: Mapping[str, str]) -> None:
        """What the index is of."""
        self.connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    def keep_positions(self, positions: Mapping[str, Position]) -> None:
        """How far each journal was read."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO journals VALUES (?, ?, ?, ?, ?)",
            [(name, at.offset, json.dumps(at.torn), *at.last) for name, at in positions.items()],
        )

    def set_pending(self, pointer: Pointer, pending: bool) -> None:
        """Note a claim that is not there yet, or that it is there."""
        if self._building and not pending:
            return
        statement = (
            "INSERT OR IGNORE INTO pending VALUES (?, ?, ?, ?)"
            if pending
            else "DELETE FROM pending WHERE model = ? AND number = ? AND alias = ? AND evaluation = ?"
        )
        what = (pointer.model, pointer.number, pointer.alias or "", pointer.evaluation or 0)
        self.connection.execute(statement, what)

    def move_alias(self, name: str, alias: str, number: int, version: int) -> None:
        """Where an alias points since its move `number`, unless a later one is known."""
        self.connection.execute(
            "INSERT INTO aliases VALUES (?, ?, ?, ?) ON CONFLICT (name, alias) DO UPDATE"
            " SET number = excluded.number, version = excluded.version WHERE excluded.number > number",
            (name, alias, number, version),
        )

    def measured(self, record: EvaluationRecord) -> bool:
        """Take in what was measured of a version; of the evaluations on one data set the newest counts.

        Returns:
            Whether the version is known.
        """
        found = self.connection.execute(
            "SELECT id FROM versions WHERE name = ? AND version = ?", (record.name, record.version)
        ).fetchone()
        if found is None:
            return False
        (place,) = found
        splits = self.connection.execute("SELECT split, dataset FROM datasets WHERE id = ?", found)
        label = clean(label_of(record, dict(splits.fetchall())))
        known = self.connection.execute(
            "SELECT number FROM evaluations WHERE id = ? AND label = ?", (place, label)
        ).fetchone()
        if known is not None and known[0] >= record.number:
            return True
        self.connection.execute(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?)", (place, label, record.number)
        )
        facts: dict[str, float | int | None] = {}
        if known is not None:  # nothing of an earlier one is left among the newer one's
            start = f"eval.{label}."
            labels = self.connection.execute("SELECT label FROM evaluations WHERE id = ?", (place,))
            others = tuple(f"eval.{one}." for (one,) in labels.fetchall())
            longer = tuple(one for one in others if one != start and one.startswith(start))  # `mnist.v2`
            facts.update(
                dict.fromkeys(k for k in self._keys if k.startswith(start) and not k.startswith(longer))
            )
        facts.update((clean(key), value) for key, value in searched(record, label).items())
        for key in facts:
            if key not in self._keys:
                self._new_key(key)
        columns = [key for key in facts if self._keys[key] is not None]
        if columns:
            text = ", ".join(f"c{self._keys[key]} = ?" for key in columns)
            values = [*(facts[key] for key in columns), place]
            self.connection.execute(f"UPDATE versions SET {text} WHERE id = ?", values)
        more = [(place, key, value) for key, value in facts.items() if self._keys[key] is None]
        self.connection.executemany("DELETE FROM more WHERE id = ? AND key = ?", [one[:2] for one in more])
        more = [one for one in more if one[2] is not None]
        self.connection.executemany("INSERT INTO more VALUES (?, ?, ?)", more)
        return True

    def add(self, versions: Iterable[Version]) -> None:
        """Take versions in; they are written by `flush` at the latest."""
        for version in versions:
            if self._building and version.name != self._model:
                self._model = version.name
                self._taken.clear()
            if self.has(version.name, version.version):
                continue
            self._waiting.append(row_of(version))
            self._taken.add((version.name, version.version))
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in."""
        rows, self._waiting = self._waiting, []
        if not self._building:
            self._taken.clear()
        if not rows:
            return
        for row in rows:
            for key in row.scalars:
                if key not in self._keys:
                    self._new_key(key)
        first = self.connection.execute("SELECT coalesce(max(id), 0) + 1 FROM versions").fetchone()[0]
        columns: dict[tuple[str, ...], list[tuple[object, ...]]] = {}
        more, datasets, tags = [], [], []
        for place, row in enumerate(rows, first):
            keys = tuple(key for key in row.scalars if self._keys[key] is not None)
            values = (row.scalars[key] for key in keys)
            lists = json.dumps(row.lists) if row.lists else None
            columns.setdefault(keys, []).append((place, *row.fixed, lists, *values))
            more += [(place, key, value) for key, value in row.scalars.items() if self._keys[key] is None]
            datasets += [(place, split, one) for split, one in row.datasets.items()]
            tags += [(place, tag) for tag in row.tags]
        for keys, values_of in columns.items():
            names = ["id", *(f'"{name}"' for name in FIXED), "lists", *(f"c{self._keys[key]}" for key in keys)]
            marks = ", ".join("?" * len(names))
            self.connection.executemany(
                f"INSERT INTO versions ({', '.join(names)}) VALUES ({marks})", values_of
            )
        self.connection.executemany("INSERT INTO more VALUES (?, ?, ?)", more)
        self.connection.executemany("INSERT INTO datasets VALUES (?, ?, ?)", datasets)
        self.connection.executemany("INSERT INTO tags VALUES (?, ?)", tags)
        splits = {(split,) for _, split, _ in datasets}
        self.connection.executemany("INSERT OR IGNORE INTO splits VALUES (?)", splits)

    def finish(self) -> None:
        """End a build: write what is waiting, and make the indexes."""
        self.known()
        self.sort()

    def known(self) -> None:
        """All versions of a build are in: what was measured of them may follow, before `sort`."""
        self.flush()
        self._building = False
        self._taken.clear()
        for statement in _INDEXES.split(";"):
            self.connection.execute(statement)

    def sort(self) -> None:
        """Make the indexes of metrics; until then facts are written for less."""
        for key in sorted(self._keys, key=lambda key: (not key.startswith("metrics."), key)):
            self._sort(key)

    def _new_key(self, key: str) -> None:
        taken = sum(number is not None for number in self._keys.values())
        number = taken if taken < COLUMNS else None
        self._keys[key] = number
        self.connection.execute("INSERT INTO keys VALUES (?, ?)", (key, number))
        if number is not None:
            self.connection.execute(f"ALTER TABLE versions ADD COLUMN c{number}")
            if self.connection.execute("SELECT 1 FROM sqlite_master WHERE name LIKE 'best%'").fetchone():
                self._sort(key)

    def _sort(self, key: str) -> None:
        count = self.connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'best%'").fetchone()
        number = self._keys[key]
        metric = key.startswith(("metrics.", "eval.")) and not key.endswith(("_low", "_high"))
        if number is not None and metric and count[0] < _SORTED:
            self.connection.execute(f"CREATE INDEX best{number} ON versions (c{number})")
