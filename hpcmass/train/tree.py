"""One fixed binary tree over micro-batches, along which their gradients are added up, whoever computed them.

A node is the interval of the micro-batches below it, and its sum is that of its left half plus that of its
right half. Floating-point addition is not associative, so a sum is the same bit for bit only where it is
added up in the same order; the tree is that order, and depends on the number of micro-batches alone. A rank
with micro-batches `low` … `high` adds up the largest nodes that it holds wholly; what is left of the tree is
added up of these, by `across`.
"""

from __future__ import annotations

from dataclasses import dataclass

Node = tuple[int, int]
"""Micro-batches from … to (without)."""


def whole_nodes(many: int, low: int, high: int) -> list[Node]:
    """The largest nodes of the tree over `many` micro-batches that lie within `low` … `high`, from the left."""

    def below(a: int, b: int) -> list[Node]:
        if low <= a and b <= high:
            return [(a, b)]
        if b <= low or high <= a or b - a < 2:
            return []
        middle = (a + b) // 2
        return below(a, middle) + below(middle, b)

    return below(0, many) if high > low else []


def across(many: int, held: list[list[Node]], rows: int) -> list[tuple[int, int]]:
    """How the ranks' sums are added up to the root's, which comes to lie in row 0.

    Args:
        many: Micro-batches.
        held: The nodes of each rank, as `whole_nodes` gives them; together they are all micro-batches, of
            which rank 0 has the first.
        rows: Rows that each rank has room for; the n-th node of rank r is in row r * rows + n.

    Returns:
        Pairs (to, of) of rows, in order: row `of` is added to row `to`.
    """
    place = {node: rank * rows + n for rank, nodes in enumerate(held) for n, node in enumerate(nodes)}
    steps: list[tuple[int, int]] = []

    def add(a: int, b: int) -> int:
        if (a, b) in place:
            return place[a, b]
        middle = (a + b) // 2
        left, right = add(a, middle), add(middle, b)
        steps.append((left, right))
        return left

    add(0, many)
    return steps


@dataclass(frozen=True)
class Leaf:
    """What is done with the gradient of one micro-batch.

    Attributes:
        row: Where it is put.
        adds: Pairs (to, of) of rows, in order: row `of` is added to row `to` then.
    """

    row: int
    adds: tuple[tuple[int, int], ...]


def within(nodes: list[Node], rows: int) -> tuple[dict[int, Leaf], int]:
    """How a rank adds up its nodes; the n-th comes to lie in row n, and rows from `rows` on are scratch.

    Returns:
        What to do with each micro-batch, which are to come in ascending order; and the number of all rows.
    """
    leaves: dict[int, Leaf] = {}
    most = rows

    def walk(a: int, b: int, row: int, spare: int) -> None:
        nonlocal most
        if b - a == 1:
            leaves[a] = Leaf(row, ())
            return
        middle = (a + b) // 2
        most = max(most, spare + 1)
        walk(a, middle, row, spare)
        walk(middle, b, spare, spare + 1)
        last = leaves[b - 1]
        leaves[b - 1] = Leaf(last.row, (*last.adds, (row, spare)))

    for number, (a, b) in enumerate(nodes):
        walk(a, b, number, rows)
    return leaves, most
