"""The language of searches: comparisons of named facts, joined by `and`, `or`, `not`.

An expression is parsed by Python's own parser and held against a list of what may stand in it; it is never
evaluated as Python. What comes out is a tree of the classes here, which `query_sql` turns into SQL whose every
value is a bound parameter.

Values: numbers and texts. A comparison with a fact that a version lacks is false, `!=` and `not in` too (so
`not (x == 1)` holds where x is missing, and `x != 1` does not); `x == None` asks for that. Between a number
and a text `==` is false, `!=` true, and an order false. `True` and `False` are 1 and 0. Of a fact with several
values (aliases, datasets, tags, ancestors), `==` and `in` mean any of them, `!=` and `not in` none of them.
A date without a time of day is the whole day, month or year: `>` means after its end, `==` within it.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hpcmass.catalogue.dates import Span, read_date
from hpcmass.catalogue.rows import clean, scalar_int
from hpcmass.errors import CatalogueError

LONGEST = 4000
MOST_COMPARISONS = 300
MOST_VALUES = 1000

Value: TypeAlias = "int | float | str"


@dataclass(frozen=True)
class Field:
    """A fact by its name in the index.

    Attributes:
        name: `version`, `metrics.accuracy`, `job.params.lr`, `alias`, `datasets.train` …
        many: It may have several values: `alias`, `dataset`, `datasets.SPLIT`, `tag`, `ancestor`.
        known: Some version may have it.
        others: Names of the facts that stand for it in a version that lacks it, the first that is there.
    """

    name: str
    many: bool = False
    known: bool = True
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Test:
    """A comparison: `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`, `has`, `has not` (a text), `missing`.

    Attributes:
        field: What is compared.
        op: How.
        value: A value, a tuple of values for `in`, another field, or None for `missing`.
    """

    field: Field
    op: str
    value: Value | tuple[Value, ...] | Field | None = None


@dataclass(frozen=True)
class Not:
    """What does not hold."""

    item: Node


@dataclass(frozen=True)
class Joined:
    """`and` or `or` of several."""

    op: str
    items: tuple[Node, ...]


Node: TypeAlias = "Test | Not | Joined"

_OPS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
}
_TURNED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_HINT = (
    "comparisons such as accuracy > 0.95, recipe == 'mnist', name in ['a', 'b'], 'production' in aliases,"
    " params.lr == None, joined by and, or, not"
)


def parse(text: str, resolve: Callable[[str], Field | None], names: Iterable[str]) -> Node:
    """The tree of an expression.

    Args:
        text: Such as `recipe == 'mnist' and accuracy > 0.95 and params.lr < 0.1`.
        resolve: The field that a dotted name means, or None.
        names: All names, for the nearest of them.

    Raises:
        CatalogueError: It is none; the message shows the place.
    """
    return _Parser(" ".join(text.split("\n")).strip(), resolve, names).tree()


class _Parser:
    def __init__(self, text: str, resolve: Callable[[str], Field | None], names: Iterable[str]) -> None:
        self.text = text
        self.resolve = resolve
        self.names = names
        self.comparisons = 0

    def tree(self) -> Node:
        if not self.text:
            raise CatalogueError("the expression is empty", hint=_HINT)
        if len(self.text) > LONGEST:
            raise CatalogueError(f"the expression has more than {LONGEST} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in texts
                parsed = ast.parse(self.text, mode="eval")
            return self.node(parsed.body)
        except SyntaxError as error:
            raise self.unread(error) from error
        except (RecursionError, MemoryError, ValueError) as error:
            raise CatalogueError(f"the expression cannot be read ({error})", hint=_HINT) from error

    def node(self, node: ast.expr) -> Node:
        if isinstance(node, ast.BoolOp):
            op = "and" if isinstance(node.op, ast.And) else "or"
            return Joined(op, tuple(self.node(value) for value in node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Not(self.node(node.operand))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            tests = tuple(
                self.test(node, left, _OPS[type(op)], right)
                for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
            )
            return tests[0] if len(tests) == 1 else Joined("and", tests)
        raise self.wrong("is no comparison", node)

    def test(self, whole: ast.expr, left: ast.expr, op: str, right: ast.expr) -> Node:
        self.comparisons += 1
        if self.comparisons > MOST_COMPARISONS:
            raise CatalogueError(f"the expression has more than {MOST_COMPARISONS} comparisons")
        if not self._named(left):
            return self.turned(whole, left, op, right)
        field = self.field(left)
        if _is_none(right):
            return self.missing(whole, field, op)
        if op in ("is", "is not"):
            raise self.wrong("is for None only: use == or !=", whole)
        if op in ("in", "not in"):
            if self._named(right):
                raise self.wrong("needs a list or a text on one side", whole)
            return _compared(field, op, self.values(right, field))
        if field.many and op not in ("==", "!="):
            raise self.wrong(f"{field.name!r} may have several values, which have no order", whole)
        if self._named(right):
            other = self.field(right)
            if field.many or other.many:
                raise self.wrong("compares a fact with several values: give a text on one side", whole)
            return Test(field, op, other)
        return _compared(field, op, self.value(right, field))

    def turned(self, whole: ast.expr, left: ast.expr, op: str, right: ast.expr) -> Node:
        """A comparison whose left side is no name."""
        if not self._named(right):
            raise self.wrong("compares no fact of a version", whole)
        field = self.field(right)
        if _is_none(left):
            return self.missing(whole, field, op)
        if op in ("in", "not in"):
            value = self.value(left, field)
            if isinstance(value, Span):
                raise self.wrong("a time is in no other: use ==", whole)
            if field.many:
                return Test(field, "==" if op == "in" else "!=", value)
            if not isinstance(value, str):
                raise self.wrong("only a text can be in a text", left)
            return Test(field, "has" if op == "in" else "has not", value)
        if op not in _TURNED:
            raise self.wrong("is for None only: use == or !=", whole)
        if field.many and op not in ("==", "!="):
            raise self.wrong(f"{field.name!r} may have several values, which have no order", whole)
        return _compared(field, _TURNED[op], self.value(left, field))

    def missing(self, whole: ast.expr, field: Field, op: str) -> Node:
        if op in ("==", "is"):
            return Test(field, "missing")
        if op in ("!=", "is not"):
            return Not(Test(field, "missing"))
        raise self.wrong("compares with None: only == and != can", whole)

    def _named(self, node: ast.expr) -> bool:
        return isinstance(node, (ast.Name, ast.Attribute, ast.Subscript))

    def field(self, node: ast.expr) -> Field:
        name = self.dotted(node)
        found = self.resolve(name)
        if found is None:
            close = nearest(name, self.names)
            raise self.wrong(f"no version has {name!r}", node, hint=close)
        return found

    def dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        if isinstance(node, ast.Subscript):
            key = node.slice
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                return f"{self.dotted(node.value)}.{key.value}"
        raise self.wrong(
            "is no name of a fact", node, hint="such as accuracy, params.lr or metrics['val-loss']"
        )

    def values(self, node: ast.expr, field: Field) -> tuple[Value | Span, ...]:
        if not isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            raise self.wrong("is no list", node, hint="such as ['a', 'b']")
        if len(node.elts) > MOST_VALUES:
            raise self.wrong(f"has more than {MOST_VALUES} values", node)
        return tuple(self.value(one, field) for one in node.elts)

    def value(self, node: ast.expr, field: Field) -> Value | Span:
        sign = 1
        inner = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, inner = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        found = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(found, str) and inner is node:
            return self.date(found, node) if field.name == "created" else clean(found)
        if isinstance(found, (bool, int)):
            return scalar_int(sign * int(found))
        if isinstance(found, float):
            return sign * found
        raise self.wrong("is no value", node, hint="a number, or a text in quotes")

    def date(self, text: str, node: ast.expr) -> float | Span:
        """What a date means, in seconds since the epoch."""
        try:
            return read_date(text)
        except ValueError as error:
            hint = "such as '2026-12-01', '2026-12-01 14:30', '2026-12', 'yesterday' or '7 days ago'"
            raise self.wrong(f"{text!r} is no date", node, hint=hint) from error

    def unread(self, error: SyntaxError) -> CatalogueError:
        """What Python's parser says."""
        at = (error.offset or 0) - 1
        start = at if 0 <= at < len(self.text) else len(self.text)
        end = (error.end_offset or 0) - 1 if error.end_lineno == error.lineno else start
        hints = {"=": "write == for equality", "&": "write and", "|": "write or", "!": "write not, or !="}
        return self._wrong(error.msg, start, end, hints.get(self.text[start : start + 1]))

    def wrong(self, message: str, node: ast.expr, hint: str | None = None) -> CatalogueError:
        line = self.text.encode()
        start = len(line[: node.col_offset].decode(errors="replace"))
        end = len(line[: node.end_col_offset].decode(errors="replace"))
        return self._wrong(message, start, end, hint)

    def _wrong(self, message: str, start: int, end: int, hint: str | None = None) -> CatalogueError:
        marks = " " * start + "^" * max(1, end - start)
        return CatalogueError(
            f"{message}\n  {self.text}\n  {marks}",
            where=f"expression, column {start + 1}",
            hint=hint or _HINT,
            column=start + 1,
        )


def _compared(field: Field, op: str, value: Value | Span | tuple[Value | Span, ...]) -> Node:
    """A comparison with a value, or with a stretch of time as two of them."""
    if isinstance(value, tuple):
        plain = tuple(one for one in value if not isinstance(one, Span))
        if len(plain) == len(value):
            return Test(field, op, plain)
        one_by_one = (_compared(field, "==" if op == "in" else "!=", one) for one in value)
        return Joined("or" if op == "in" else "and", tuple(one_by_one))
    if not isinstance(value, Span):
        return Test(field, op, value)
    if op in ("==", "!="):
        ends = (Test(field, "<", value.start), Test(field, ">=", value.end))
        inside = (Test(field, ">=", value.start), Test(field, "<", value.end))
        return Joined("and", inside) if op == "==" else Joined("or", ends)
    return Test(field, {">": ">=", "<=": "<"}.get(op, op), value.end if op in (">", "<=") else value.start)


def short(name: str) -> str:
    """A fact's name as a user writes it: without `metrics.` or `job.`."""
    return name.removeprefix("metrics.").removeprefix("job.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that a wrong one may mean, in words."""
    known = {short(one): one for one in sorted(names)}
    last = name.rsplit(".", 1)[-1]
    # `params.lr` means `train.lr` rather than a name that looks like it.
    same = [one for one in known if one.rsplit(".", 1)[-1] == last]
    alike = difflib.get_close_matches(name, [*known, *known.values()], n=3, cutoff=0.6)
    close = list(dict.fromkeys([*same, *alike]))[:3]
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(list(known)[:15])}"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
