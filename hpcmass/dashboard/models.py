"""The catalogue: searches page by page through the user's index, one version in full, its lineage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue, Evaluations, Version, lineage_graph
from hpcmass.catalogue.query import short
from hpcmass.catalogue.search import Found, Stream
from hpcmass.config import Project
from hpcmass.dashboard.looks import Paced
from hpcmass.dashboard.plain import UNREADABLE, number, said
from hpcmass.dashboard.runs import bounds
from hpcmass.dashboard.server import Question
from hpcmass.errors import HpcmassError

_SEARCHES, _VERSIONS = 16, 64  # that are kept
_SEARCH_S, _VERSION_S, _CARD_S = 3.0, 5.0, 60.0
_MOST_FILES = 200
_IN_GRAPH = 60
_MOST_SHOWN = 6  # metrics in a list


class ModelsReader:
    """The catalogue of a project.

    Args:
        project: The project.
        deployments: What each deployment serves, by its name.
    """

    def __init__(self, project: Project, deployments: Callable[[], Mapping[str, str]]) -> None:
        self._project, self._deployments = project, deployments
        self._catalogue = Catalogue(project.catalogue)
        self._lock = threading.RLock()  # one index, one connection
        self._kept: dict[tuple[str, ...], Paced] = {}

    def page(self, query: Question) -> dict[str, Any]:
        """Some of the versions that an expression holds for.

        Args:
            query: `q` (see `hpcmass.catalogue.query`; empty for all), `sort`, `offset`, `limit`.

        Raises:
            CatalogueError: The expression or the order is wrong.
        """
        if not (self._project.catalogue / "models").is_dir():
            return {"total": 0, "offset": 0, "fields": [], "versions": []}
        expression, sort = query.get("q", "").strip(), query.get("sort", "").strip() or "-created"
        first, count = bounds(query)
        by = [one for one in sort.split(",") if one.strip()]

        def search() -> Stream:
            return self._catalogue.stream(expression or None, sort=by)

        with self._lock:
            found: Stream = self._paced(("search", expression, sort), search, _SEARCH_S, _SEARCHES)()
            rows = found.page(first, count)
        hidden = {"name", "version", "alias", "created", "bytes", "tag", "ancestor"}
        fields = [one for one in found.fields if one not in hidden and not one.startswith("dataset")]
        return {
            "total": found.count,
            "offset": first,
            "fields": [short(one) for one in fields],
            "versions": [_row(one, fields) for one in rows],
        }

    def version(self, ref: str) -> dict[str, Any]:
        """All of one version but its card.

        Raises:
            NotFound: There is none.
        """
        found: dict[str, Any] = self._paced(
            ("version", ref), lambda: self._version(ref), _VERSION_S, _VERSIONS
        )()
        return found

    def card(self, ref: str) -> dict[str, Any]:
        """The model card, in Markdown.

        Raises:
            NotFound: There is no such version.
        """
        from hpcmass.workflow.cards import card

        made = self._paced(("card", ref), lambda: card(ref, self._project), _CARD_S, _VERSIONS)()
        return {"markdown": made}

    # -- inside ---------------------------------------------------------------------------------------
    def _paced(self, key: tuple[str, ...], read: Callable[[], Any], every_s: float, most: int) -> Paced:
        with self._lock:
            found = self._kept.pop(key, None) or Paced(read, every_s)
            self._kept[key] = found
            same = [one for one in self._kept if one[0] == key[0]]
            for old in same[: max(0, len(same) - most)]:
                del self._kept[old]
        return found

    def _version(self, ref: str) -> dict[str, Any]:
        catalogue = self._catalogue
        version = catalogue.get(ref)
        aliases, problems = {}, []
        try:
            for alias in catalogue.aliases_of(version):
                last = catalogue.history(version.name, alias)[-1]
                aliases[alias] = {
                    "why": last.why,
                    "by": last.by,
                    "when": number(last.created),
                    "gates": last.gates,
                }
        except UNREADABLE as error:
            problems.append(f"its aliases cannot be read: {said(error)}")
        evaluations: list[dict[str, Any]] = []
        try:
            evaluations = [_evaluation(one) for one in Evaluations(catalogue.path).latest(version).values()]
        except UNREADABLE as error:
            problems.append(f"its evaluations cannot be read: {said(error)}")
        graph: dict[str, Any] = {}
        try:
            with self._lock:
                served = dict(self._deployments())
                graph = lineage_graph(catalogue, version.ref, deployments=served, most=_IN_GRAPH).to_json()
            for node in graph["nodes"]:
                if node["kind"] == "run":
                    node["at"] = self._at(node["label"])
        except UNREADABLE as error:
            problems.append(f"its lineage cannot be read: {said(error)}")
        run = version.lineage.get("run")
        at = self._at(run) if isinstance(run, str) else None
        return {
            **_described(version),
            "run_at": at,
            "aliases": aliases,
            "evaluations": evaluations,
            "lineage": graph,
            "problems": problems,
            "latest": self._latest(version.name),
        }

    def _at(self, run: str) -> list[str] | None:
        """Where the page shows a run, given its folder; None where it is not this project's."""
        path = Path(run)
        if path.parent == self._project.runs:
            return ["runs", path.name]
        if path.parent.name == "trials" and path.parents[2] == self._project.studies and path.name.isdigit():
            return ["studies", path.parents[1].name, str(int(path.name))]
        return None

    def _latest(self, name: str) -> int | None:
        try:
            return self._catalogue.get(name).version
        except HpcmassError:
            return None


def _row(one: Found, fields: list[str]) -> dict[str, Any]:
    flat = one.to_json()
    numbers = {name: value for name, value in one.metrics.items() if number(value) is not None}
    return {
        "ref": one.ref,
        "name": one.name,
        "version": one.version,
        "aliases": list(one.aliases),
        "created": one.created,
        "by": one.by,
        "bytes": one.bytes,
        "description": one.description[:300],
        "metrics": dict(list(numbers.items())[:_MOST_SHOWN]),
        "fields": [flat.get(name) for name in fields],
    }


def _described(version: Version) -> dict[str, Any]:
    files = [[name, entry.bytes, entry.sha256] for name, entry in sorted(version.files.items())]
    return {
        "ref": version.ref,
        "name": version.name,
        "version": version.version,
        "created": version.created,
        "by": version.by,
        "bytes": version.bytes,
        "description": version.description,
        "tags": version.tags,
        "metrics": version.metrics,
        "origin": {k: v for k, v in version.lineage.items() if k not in ("job", "environment")},
        "job": version.lineage.get("job"),
        "environment": version.lineage.get("environment"),
        "files": files[:_MOST_FILES],
        "files_count": len(files),
        "sha256": version.content_id,
    }


def _evaluation(one: Any) -> dict[str, Any]:
    return {
        "number": one.number,
        "created": one.created,
        "by": one.by,
        "data": one.data,
        "dataset": one.dataset,
        "why": one.why,
        "n": one.n,
        "metrics": {name: measured.to_json() for name, measured in one.metrics.items()},
    }
