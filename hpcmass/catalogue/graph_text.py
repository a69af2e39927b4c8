"""A lineage written down: as a tree of text, for Graphviz (DOT), and for Mermaid. Pure.

Labels come from records that others wrote, so each form gets them without what would end a label there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hpcmass.catalogue.graph import Graph, Node

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_SHAPES = {
    "dataset": ("cylinder", "[(", ")]"),
    "run": ("box", "[", "]"),
    "weights": ("note", "[/", "/]"),
    "version": ("box3d", "[[", "]]"),
    "alias": ("cds", "([", "])"),
    "deployment": ("component", "{{", "}}"),
}
_LONGEST = 200
_DEEPEST = 40  # deeper, a tree of text is of use to nobody


def plain_text(text: str) -> str:
    """A text on one line, without what a terminal or a reader's eye would take for something else."""
    clean = _CONTROL.sub(" ", text).strip()
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"


def to_text(graph: Graph) -> str:
    """Two trees: what the version was made of, and what was made of it."""
    root = graph.nodes[graph.root]
    lines = [_named(root)]
    for title, step in (("from", graph.before), ("to", graph.after)):
        lines += [f"{title}:", *(_tree(graph.root, step) or ["└─ nothing that is known"])]
    if not graph.complete:
        lines.append("… and more versions")
    return "\n".join(lines)


def _tree(root: str, step: Callable[[str], list[tuple[str, Node]]]) -> list[str]:
    lines: list[str] = []
    seen = {root}
    # Label, node, the columns before it, and whether it is the last of its siblings.
    waiting = list(_children(root, step, "", 0))
    while waiting:
        label, node, indent, last, depth = waiting.pop()
        again = node.key in seen
        told = " (above)" if again and (step(node.key) or node.key == root) else ""
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{plain_text(label)}: {_named(node)}{told}")
        if again:
            continue
        seen.add(node.key)
        below = indent + ("   " if last else "│  ")
        if depth >= _DEEPEST and step(node.key):
            lines.append(f"{below}└─ … (--format json has the rest)")
            continue
        waiting += _children(node.key, step, below, depth + 1)
    return lines


def _children(
    key: str, step: Callable[[str], list[tuple[str, Node]]], indent: str, depth: int
) -> Iterator[tuple[str, Node, str, bool, int]]:
    found = step(key)
    for place, (label, node) in reversed(list(enumerate(found))):
        yield label, node, indent, place == len(found) - 1, depth


def _named(node: Node) -> str:
    kind = "" if node.kind == "version" else f"{node.kind.replace('dataset', 'data set')} "
    note = f" ({plain_text(node.note)})" if node.note else ""
    return f"{kind}{plain_text(node.label)}{note}"


def to_dot(graph: Graph) -> str:
    """The graph in Graphviz's language: `dot -Tsvg`."""
    numbers = {key: f"n{place}" for place, key in enumerate(graph.nodes)}
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for key, node in graph.nodes.items():
        style = ' style="bold"' if key == graph.root else ' style="dashed"' if node.note else ""
        lines.append(f"  {numbers[key]} [label={_quoted(_named(node))} shape={_SHAPES[node.kind][0]}{style}];")
    lines += [f"  {numbers[e.source]} -> {numbers[e.target]} [label={_quoted(e.label)}];" for e in graph.edges]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + plain_text(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def to_mermaid(graph: Graph) -> str:
    """The graph in Mermaid's language, which Markdown readers draw."""
    numbers = {key: f"n{place}" for place, key in enumerate(graph.nodes)}
    lines = ["graph LR"]
    for key, node in graph.nodes.items():
        _, opening, closing = _SHAPES[node.kind]
        lines.append(f'  {numbers[key]}{opening}"{_entities(_named(node))}"{closing}')
    lines += [f'  {numbers[e.source]} -- "{_entities(e.label)}" --> {numbers[e.target]}' for e in graph.edges]
    lines += [f"  style {numbers[key]} stroke-dasharray: 4" for key, node in graph.nodes.items() if node.note]
    lines.append(f"  style {numbers[graph.root]} stroke-width:3px")
    return "\n".join(lines)


def _entities(text: str) -> str:
    """Mermaid ends a label at a quote, and reads HTML and Markdown in it: all but plain signs are numbers."""
    return re.sub(r"[^\w .,/:@-]", lambda found: f"#{ord(found[0])};", plain_text(text))
