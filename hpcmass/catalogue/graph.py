"""Lineage as a graph: data sets → run → version → what was made from it, its aliases, where it is deployed.

Every edge leads from what was there before to what was made of it. Records may name what is not there (another
catalogue's version, a run that was removed): that is a node too, which says so. Nothing in a record is believed
to be free of circles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.catalogue.catalogue import Catalogue
from hpcmass.catalogue.evaluations import Evaluations
from hpcmass.catalogue.version import Version
from hpcmass.errors import HpcmassError

MOST = 1000
"""Versions in one graph."""


@dataclass(frozen=True)
class Node:
    """A thing in a lineage.

    Attributes:
        key: Unique in the graph: its kind and what it is.
        kind: `dataset`, `run`, `weights`, `version`, `alias` or `deployment`.
        label: As a person calls it.
        note: What is odd about it, such as `unknown`; empty where nothing is.
        facts: More, as JSON.
    """

    key: str
    kind: str
    label: str
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """From what was there before to what was made of it, and as what it served."""

    source: str
    target: str
    label: str


@dataclass
class Graph:
    """A version's ancestors and descendants.

    Attributes:
        root: The key of the version that was asked for.
        nodes: By key.
        edges: Each once.
        complete: False where there were more than `MOST` versions.
    """

    root: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    complete: bool = True

    def before(self, key: str) -> list[tuple[str, Node]]:
        """What something was made of: the edges' labels and the nodes."""
        return [(edge.label, self.nodes[edge.source]) for edge in self.edges if edge.target == key]

    def after(self, key: str) -> list[tuple[str, Node]]:
        """What was made of something."""
        return [(edge.label, self.nodes[edge.target]) for edge in self.edges if edge.source == key]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": 1,
            "root": self.root,
            "complete": self.complete,
            "nodes": [
                {"key": n.key, "kind": n.kind, "label": n.label, "note": n.note, **n.facts}
                for n in self.nodes.values()
            ],
            "edges": [{"from": e.source, "to": e.target, "as": e.label} for e in self.edges],
        }

    def add(self, node: Node) -> str:
        """Put a node in, unless it is there; gives its key."""
        self.nodes.setdefault(node.key, node)
        return node.key

    def join(self, source: str, target: str, label: str) -> None:
        """Put an edge in, unless it is there."""
        edge = Edge(source, target, label)
        if edge not in self._seen:
            self._seen.add(edge)
            self.edges.append(edge)

    def __post_init__(self) -> None:
        self._seen: set[Edge] = set(self.edges)


def lineage_graph(
    catalogue: Catalogue, ref: str, *, deployments: Mapping[str, str] | None = None, most: int = MOST
) -> Graph:
    """The lineage of a version, up and down.

    Descendants are found by their record's `parent`, through the index of searches.

    Args:
        catalogue: The catalogue.
        ref: As for `Catalogue.get`.
        deployments: The reference that each deployment serves, by the deployment's name.
        most: Versions at most; further ones are left out, and `complete` is False.

    Raises:
        NotFound: There is no such version.
    """
    root = catalogue.get(ref)
    graph = Graph(_key(root.ref))
    _upwards(graph, catalogue, root, most)
    _downwards(graph, catalogue, root, most)
    evaluations = Evaluations(catalogue.path)
    try:
        latest = evaluations.latest(root)
    except HpcmassError as error:
        latest = {}
        graph.nodes[graph.root] = _version(root, f"its evaluations cannot be read: {error.message}")
    for record in latest.values():
        dataset = graph.add(_dataset(record.dataset, record.data))
        graph.join(dataset, graph.root, "evaluated on")
    for name, served in (deployments or {}).items():
        target = f"alias:{served}" if f"alias:{served}" in graph.nodes else _key(served)
        if target in graph.nodes:
            graph.join(target, graph.add(Node(f"deployment:{name}", "deployment", name)), "served by")
    return graph


def _upwards(graph: Graph, catalogue: Catalogue, root: Version, most: int) -> None:
    waiting, seen = [root], {root.ref}
    while waiting:
        version = waiting.pop()
        graph.add(_version(version))
        _origin(graph, version)
        for ref, label in _parents(version):
            found, node = _find(catalogue, ref)
            graph.join(graph.add(node), _key(version.ref), label)
            if found is not None and found.ref not in seen:
                if len(seen) >= most:
                    graph.complete = False
                    continue
                seen.add(found.ref)
                waiting.append(found)


def _downwards(graph: Graph, catalogue: Catalogue, root: Version, most: int) -> None:
    waiting, seen = [root.ref], {root.ref}
    while waiting:
        ref = waiting.pop()
        for found in catalogue.search(f"parent == {ref!r}", limit=most + 1):
            if found.ref not in seen and len(seen) >= most:
                graph.complete = False
                break
            try:
                child = catalogue.get(found.ref)
            except HpcmassError as error:
                node = Node(_key(found.ref), "version", found.ref, f"cannot be read: {error.message}")
                graph.join(_key(ref), graph.add(node), "parent of")
                continue
            if ref not in (one for one, _ in _parents(child)):
                continue  # the index is of another time
            graph.add(_version(child))
            graph.join(_key(ref), _key(child.ref), _label(child, ref))
            if child.ref not in seen:
                seen.add(child.ref)
                waiting.append(child.ref)
                _origin(graph, child)
    for ref in seen:
        name, _, number = ref.partition("@")
        for alias, at in catalogue.aliases(name).items():
            if str(at) == number:
                node = Node(f"alias:{name}@{alias}", "alias", f"{name}@{alias}")
                graph.join(_key(ref), graph.add(node), "named")


def _label(child: Version, ref: str) -> str:
    return next((label for one, label in _parents(child) if one == ref), "parent")


def _parents(version: Version) -> list[tuple[str, str]]:
    """References of what a version says it was made from, and as what."""
    said = version.lineage.get("parent")
    listed = said if isinstance(said, list) else [said]
    found = [(one, "parent") for one in listed if isinstance(one, str) and one]
    began = version.lineage.get("began_with")
    what = began.get("what") if isinstance(began, dict) else None
    if isinstance(what, str) and what not in (one for one, _ in found):
        found.append((what, "weights"))
    return found


def _find(catalogue: Catalogue, ref: str) -> tuple[Version | None, Node]:
    """The version of a reference, and its node, which says so where it is not known."""
    name, at, number = ref.partition("@")
    if at and "/" not in ref and not (number.isdecimal() and number.isascii()):
        # An alias has moved since, or may have: what it was then is not known.
        return None, Node(_key(ref), "version", ref, "unknown: an alias, which may have moved since")
    if not at or "/" in ref:
        return None, Node(f"weights:{ref}", "weights", ref, "unknown: no version of the catalogue")
    try:
        version = catalogue.get(f"{name}@{int(number)}" if len(number) <= 12 else ref)
    except HpcmassError as error:
        return None, Node(_key(ref), "version", ref, f"unknown: {error.message}")
    return version, _version(version)


def _origin(graph: Graph, version: Version) -> None:
    """The run that a version is of, and the data sets that it read."""
    target = _key(version.ref)
    run = version.lineage.get("run")
    if isinstance(run, str) and run:
        gone = "" if Path(run).is_dir() else "its folder is gone, or out of reach"
        key = graph.add(Node(f"run:{run}", "run", run, gone))
        graph.join(key, target, "trained")
        target = key
    for split, identity, name in datasets_of(version):
        used = "evaluated on" if split == "evaluated" else split
        to = _key(version.ref) if split == "evaluated" else target
        graph.join(graph.add(_dataset(identity, name)), to, used)


def datasets_of(version: Version) -> Iterator[tuple[str, str, str]]:
    """Split, id and name (empty where it is not known) of each data set in a version's lineage."""
    job = version.lineage.get("job")
    data = job.get("data") if isinstance(job, dict) else None
    named = data if isinstance(data, dict) else {}
    datasets = version.lineage.get("datasets")
    for split, ids in (datasets if isinstance(datasets, dict) else {}).items():
        if not isinstance(ids, str):
            continue
        paths = named.get(split)
        listed = [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []
        parts = ids.split("+")
        for place, identity in enumerate(parts):
            name = str(listed[place]) if len(listed) == len(parts) else ""
            yield str(split), identity, name


def _dataset(identity: str, name: str) -> Node:
    short = identity[:12]
    label = f"{name} ({short})" if name else short
    return Node(f"dataset:{identity}", "dataset", label, "", {"id": identity, "name": name})


def _key(ref: str) -> str:
    return f"version:{ref}"


def _version(version: Version, note: str = "") -> Node:
    facts = {"created": version.created, "by": version.by, "description": version.description}
    return Node(_key(version.ref), "version", version.ref, note, facts)
