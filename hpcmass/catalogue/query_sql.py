"""A search's tree as SQL over the index's tables; every value, and every name that a user gave, is bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcmass.catalogue.query import Field, Joined, Node, Not, Test
from hpcmass.catalogue.rows import FIXED, stand_ins

_SQL = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_INDEXED = ("name", "version")
_MANY = ("dataset", "tag", "ancestor")


@dataclass
class Names:
    """The facts that an index has.

    Attributes:
        keys: Number of the column of each key, None where it has none.
        splits: Splits that datasets were used for.
        empty: There is no version at all, so that no name can be called wrong.
    """

    keys: Mapping[str, int | None]
    splits: frozenset[str] = frozenset()
    empty: bool = False

    def resolve(self, name: str) -> Field | None:
        """The field that a name means: a fixed one, else a metric, of the job, a tag, of the lineage."""
        if name in FIXED:
            return Field(name)
        if name in ("alias", "aliases"):
            return Field("alias", many=True)
        for one in _MANY:
            if name in (one, one + "s"):
                return Field(one, many=True)
        if name.startswith("datasets.") and name.removeprefix("datasets.") in self.splits:
            return Field(name, many=True)
        for prefix in ("", "metrics.", "job.", "tags.", "lineage."):
            if (key := prefix + name) in self.keys:
                return Field(key, others=tuple(one for one in stand_ins(key) if one in self.keys))
        found = [one for prefix in ("", "job.") for one in stand_ins(prefix + name) if one in self.keys]
        if found:
            return Field(found[0], others=tuple(found[1:]))
        return Field(name, known=False) if self.empty else None

    def all(self) -> list[str]:
        """Every name."""
        return [*FIXED, "alias", *_MANY, *(f"datasets.{split}" for split in self.splits), *self.keys]


@dataclass
class Sql:
    """A condition being written.

    Attributes:
        names: The facts.
        values: What is bound, in order.
    """

    names: Names
    values: list[object] = field(default_factory=list)

    def condition(self, node: Node, negated: bool = False) -> str:
        """A condition that is true exactly where the tree holds; NULL counts as false."""
        if isinstance(node, Not):
            return self.condition(node.item, not negated)
        if isinstance(node, Joined):
            op = " AND " if (node.op == "and") is not negated else " OR "
            return "(" + op.join(self.condition(item, negated) for item in node.items) + ")"
        test = self._many(node) if node.field.many else self._single(node)
        return f"NOT ifnull({test}, 0)" if negated else test

    def column(self, one: Field, *, plain: bool = False) -> str:
        """The value of a fact. An index of it is used only where `plain`: most tests hold for many rows."""
        if not one.known:
            return "NULL"
        if one.name in FIXED:
            return f'v."{one.name}"' if plain or one.name in _INDEXED else f'+v."{one.name}"'
        if one.others:
            return f"coalesce({', '.join(self._key(name) for name in (one.name, *one.others))})"
        return self._key(one.name) if plain else f"+{self._key(one.name)}"

    def _key(self, name: str) -> str:
        number = self.names.keys[name]
        if number is not None:
            return f"v.c{number:d}"
        self.values.append(name)
        return "(SELECT value FROM more WHERE more.id = v.id AND more.key = ?)"

    def _single(self, test: Test) -> str:
        if test.op == "missing":
            return f"({self.column(test.field)} IS NULL)"
        if test.op in ("in", "not in"):
            assert isinstance(test.value, tuple)
            if not test.value:
                return "0" if test.op == "in" else f"({self.column(test.field)} IS NOT NULL)"
            return f"({self.column(test.field)} {test.op.upper()} ({self._marks(test.value)}))"
        if test.op in ("has", "has not"):
            return self._has(test)
        if isinstance(test.value, Field):
            return self._fields(test, test.value)
        compared = f"{self.column(test.field)} {_SQL[test.op]} ?"
        self.values.append(test.value)
        # SQLite orders every number before every text; here neither is before the other.
        if test.op in (">", ">=") and not isinstance(test.value, str):
            return f"({compared} AND typeof({self.column(test.field)}) <> 'text')"
        if test.op in ("<", "<=") and isinstance(test.value, str):
            return f"({compared} AND typeof({self.column(test.field)}) = 'text')"
        return f"({compared})"

    def _has(self, test: Test) -> str:
        has = f"(typeof({self.column(test.field)}) = 'text' AND instr({self.column(test.field)}, ?) > 0)"
        self.values.append(test.value)
        return has if test.op == "has" else f"(NOT {has} AND {self.column(test.field)} IS NOT NULL)"

    def _fields(self, test: Test, other: Field) -> str:
        compared = f"{self.column(test.field)} {_SQL[test.op]} {self.column(other)}"
        if test.op in ("==", "!="):
            return f"({compared})"
        kinds = f"(typeof({self.column(test.field)}) = 'text') = (typeof({self.column(other)}) = 'text')"
        return f"({compared} AND {kinds})"

    def _many(self, test: Test) -> str:
        if test.field.name == "ancestor":
            return self._ancestor(test)
        if test.field.name == "alias":
            rows = (
                "SELECT w.id FROM aliases a JOIN versions w ON w.name = a.name AND w.version = a.version"
                " WHERE a.alias"
            )
        elif test.field.name in ("dataset", "tag"):
            rows = f"SELECT id FROM {test.field.name}s WHERE {test.field.name}"
        else:
            rows = "SELECT id FROM datasets WHERE split = ? AND dataset"
            self.values.append(test.field.name.removeprefix("datasets."))
        if test.op == "missing":
            return f"(v.id NOT IN ({rows} IS NOT NULL))"
        values = test.value if isinstance(test.value, tuple) else (test.value,)
        some = "IN" if test.op in ("==", "in") else "NOT IN"
        return f"(v.id {some} ({rows} IN ({self._marks(values)})))"

    def _ancestor(self, test: Test) -> str:
        """Whether a version came from others, at however many removes."""
        if test.op == "missing":
            return "(v.parent IS NULL)"
        values = test.value if isinstance(test.value, tuple) else (test.value,)
        some = "IN" if test.op in ("==", "in") else "NOT IN"
        return (
            f"(v.id {some} (WITH RECURSIVE down (id, ref) AS (SELECT id, name || '@' || version FROM versions"
            f" WHERE parent IN ({self._marks(values)}) UNION SELECT w.id, w.name || '@' || w.version"
            " FROM versions w JOIN down ON w.parent = down.ref) SELECT id FROM down))"
        )

    def _marks(self, values: tuple[object, ...]) -> str:
        self.values += values
        return ", ".join("?" * len(values))
