"""Searches over the index: a condition, an order, and what is found as rows, JSON or a pandas table."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from hpcmass.catalogue.frame import frame
from hpcmass.catalogue.index_file import keep_open
from hpcmass.catalogue.query import Field, nearest, parse
from hpcmass.catalogue.query_sql import Names, Sql
from hpcmass.catalogue.rows import FIXED, stand_ins
from hpcmass.errors import CatalogueError

_AT_ONCE = 500


@dataclass(frozen=True)
class Found:
    """A version that a search found, as the index has it.

    Attributes:
        name: The model's name.
        version: The version's number.
        created: Seconds since the epoch.
        by: Who registered it.
        description: One or a few sentences, or empty.
        bytes: Bytes of all its files.
        files: Their number.
        recipe: The recipe's name, see `recipe_of`, or None.
        run: The folder of its run, or None.
        parent: The version that it was made from, or None.
        commit: The git commit, or None.
        aliases: Aliases that point at it.
        datasets: Dataset id by split.
        facts: Everything else, flat: `metrics.accuracy`, `job.params.lr`, `tags.team`, `environment.python`.
    """

    name: str
    version: int
    created: float
    by: str
    description: str
    bytes: int
    files: int
    recipe: str | None
    run: str | None
    parent: str | None
    commit: str | None
    aliases: tuple[str, ...] = ()
    datasets: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """The reference that always means this version, `name@3`."""
        return f"{self.name}@{self.version}"

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured, flat."""
        return self._below("metrics.")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of its job, flat."""
        return self._below("job.params.")

    @property
    def tags(self) -> dict[str, Any]:
        """Its tags and what they say."""
        return self._below("tags.")

    @property
    def evaluations(self) -> dict[str, Any]:
        """What its newest evaluation on each data set measured, flat: `test.accuracy`."""
        return self._below("eval.")

    def get(self, name: str) -> Any:
        """A fact by its whole name, or what stands for it (of `job.params.lr` `job.train.lr`), or None."""
        flat = self.to_json()
        return next((flat[one] for one in (name, *stand_ins(name)) if flat.get(one) is not None), None)

    def to_json(self) -> dict[str, Any]:
        """All of it, flat."""
        fixed = {name: getattr(self, name) for name in FIXED}
        datasets = {f"datasets.{split}": one for split, one in self.datasets.items()}
        return {**fixed, "aliases": list(self.aliases), **datasets, **self.facts}

    def _below(self, prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): one for key, one in self.facts.items() if key.startswith(prefix)}


class SearchResult(Sequence[Found]):
    """The versions that a search found, in its order.

    Attributes:
        fields: Names of the facts that the expression and the order speak of, as the index has them.
    """

    def __init__(self, found: list[Found], fields: list[str]) -> None:
        self._found = found
        self.fields = fields

    @overload
    def __getitem__(self, place: int) -> Found: ...

    @overload
    def __getitem__(self, place: slice) -> list[Found]: ...

    def __getitem__(self, place: int | slice) -> Found | list[Found]:
        return self._found[place]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self._found)

    def to_pandas(self) -> Any:
        """A table with a row a version, and a column a fact; see `hpcmass.catalogue.frame`.

        Raises:
            MissingDependency: pandas is not installed.
        """
        return frame(self._found)


@dataclass
class Stream:
    """What a search finds, read while it is gone through.

    Attributes:
        fields: Names of the facts that the expression and the order speak of, as the index has them.
        count: How many versions it found.
    """

    fields: list[str]
    count: int
    _connection: sqlite3.Connection
    _names: Names
    _ids: list[int]

    def __post_init__(self) -> None:
        keep_open(self._connection, self)

    def __iter__(self) -> Iterator[Found]:
        for first in range(0, len(self._ids), _AT_ONCE):
            yield from _rows(self._connection, self._names, self._ids[first : first + _AT_ONCE])

    def page(self, first: int, count: int) -> list[Found]:
        """Some of them, by their place; what was removed since the search is left out."""
        ids = self._ids[max(0, first) : max(0, first) + min(count, _AT_ONCE)]
        there = _there(self._connection, ids)
        return _rows(self._connection, self._names, [one for one in ids if one in there])

    def by_name(self) -> Stream:
        """The same in the order of names and numbers."""
        place: dict[int, tuple[str, int]] = {}
        for first in range(0, len(self._ids), _AT_ONCE):
            some = self._ids[first : first + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            text = f"SELECT id, name, version FROM versions WHERE id IN ({marks})"
            place.update((one, (name, number)) for one, name, number in self._connection.execute(text, some))
        return replace(self, _ids=sorted(self._ids, key=place.__getitem__))


def names_of(connection: sqlite3.Connection) -> Names:
    """The facts that an index has."""
    splits = frozenset(split for (split,) in connection.execute("SELECT split FROM splits"))
    empty = connection.execute("SELECT 1 FROM versions LIMIT 1").fetchone() is None
    return Names(dict(connection.execute("SELECT key, number FROM keys").fetchall()), splits, empty)


def search(
    connection: sqlite3.Connection,
    expression: str | None,
    sort: Sequence[str],
    limit: int | None,
) -> SearchResult:
    """Search an index; see `Catalogue.search`.

    Raises:
        CatalogueError: The expression or the order is wrong.
    """
    found = stream(connection, expression, sort, limit)
    return SearchResult(list(found), found.fields)


def stream(
    connection: sqlite3.Connection,
    expression: str | None,
    sort: Sequence[str],
    limit: int | None,
) -> Stream:
    """Search an index for what may be more than memory should hold at once.

    Raises:
        CatalogueError: The expression or the order is wrong.
    """
    names = names_of(connection)
    fields: list[str] = []

    def resolve(name: str) -> Field | None:
        found = names.resolve(name)
        if found is not None and found.name not in fields:
            fields.append(found.name)
        return found

    sql = Sql(names)
    node = parse(expression, resolve, names.all()) if expression is not None else None
    where = sql.condition(node) if node is not None else "1"
    order = [_sorted_by(one, resolve, names) for one in sort]
    wanted = -1 if limit is None else min(max(0, limit), sys.maxsize)
    last = ["v.name", "v.version"]
    ids = None
    one, down = order[0] if order else (Field(""), False)
    if len(order) == 1 and wanted >= 0 and names.keys.get(one.name) is not None and not one.others:
        column = sql.column(one, plain=node is None)
        best = f"{where} AND {column} IS NOT NULL AND typeof({column}) <> 'text'"
        by = [column + (" DESC" if down else "")]
        ids = _ids(connection, best, [*by, *last], sql.values, wanted)
    if ids is None or len(ids) < wanted:
        by = [part for one, down in order for part in _order(sql, one, down)]
        ids = _ids(connection, where, [*by, *last], sql.values, wanted)
    return Stream(fields, len(ids), connection, names, ids)


def _sorted_by(text: str, resolve: Any, names: Names) -> tuple[Field, bool]:
    name = text.strip().removeprefix("-")
    found = resolve(name)
    if found is None:
        raise CatalogueError(
            f"no version has {name!r} to sort by", where="--sort", hint=nearest(name, names.all())
        )
    if found.many:
        raise CatalogueError(f"{name!r} may have several values, which have no order", where="--sort")
    return found, text.strip().startswith("-")


def _order(sql: Sql, one: Field, down: bool) -> list[str]:
    """Numbers first, then texts, then what lacks the fact."""
    direction = " DESC" if down else ""
    if one.name in ("name", "version", "created"):
        return [sql.column(one, plain=True) + direction]
    kind = f"CASE typeof({sql.column(one)}) WHEN 'text' THEN 1 WHEN 'null' THEN 2 ELSE 0 END"
    return [kind, sql.column(one) + direction]


def _ids(
    connection: sqlite3.Connection, where: str, by: list[str], values: list[object], limit: int
) -> list[int]:
    text = f"SELECT v.id FROM versions v WHERE {where} ORDER BY {', '.join(by)} LIMIT ?"
    return [one for (one,) in connection.execute(text, [*values, limit])]


def _rows(connection: sqlite3.Connection, names: Names, ids: list[int]) -> list[Found]:
    """The versions of up to `_AT_ONCE` rows, in the order given."""
    columns = {number: key for key, number in names.keys.items() if number is not None}
    marks = ", ".join("?" * len(ids))
    facts: dict[int, dict[str, Any]] = {one: {} for one in ids}
    for one, key, value in connection.execute(f"SELECT id, key, value FROM more WHERE id IN ({marks})", ids):
        facts[one][key] = value
    datasets: dict[int, dict[str, str]] = {}
    for one, split, dataset in connection.execute(
        f"SELECT id, split, dataset FROM datasets WHERE id IN ({marks})", ids
    ):
        datasets.setdefault(one, {})[split] = dataset
    aliases: dict[int, list[str]] = {}
    for one, alias in connection.execute(
        "SELECT v.id, a.alias FROM versions v JOIN aliases a ON a.name = v.name AND a.version = v.version"
        f" WHERE v.id IN ({marks}) ORDER BY a.alias",
        ids,
    ):
        aliases.setdefault(one, []).append(alias)
    cursor = connection.execute(f"SELECT * FROM versions WHERE id IN ({marks})", ids)
    keys = [columns.get(int(name[0][1:])) if _numbered(name[0]) else None for name in cursor.description]
    start = 2 + len(FIXED)
    found: dict[int, Found] = {}
    for row in cursor:
        mine = facts[row[0]]
        if row[start - 1]:
            mine.update(json.loads(row[start - 1]))
        rest = zip(keys[start:], row[start:], strict=True)
        mine.update((key, value) for key, value in rest if key and value is not None)
        found[row[0]] = Found(
            **dict(zip(FIXED, row[1 : start - 1], strict=True)),
            aliases=tuple(aliases.get(row[0], ())),
            datasets=datasets.get(row[0], {}),
            facts=mine,
        )
    return [found[one] for one in ids]


def _there(connection: sqlite3.Connection, ids: list[int]) -> set[int]:
    marks = ", ".join("?" * len(ids))
    return {one for (one,) in connection.execute(f"SELECT id FROM versions WHERE id IN ({marks})", ids)}


def _numbered(name: str) -> bool:
    return name[0] == "c" and name[1:].isdigit()
