"""Versions side by side: metrics with intervals, parameters that differ, data, and learning curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Evaluations, Measured, Version
from hpcmass.catalogue.graph import datasets_of
from hpcmass.errors import CatalogueError, HpcmassError
from hpcmass.evaluate.picture import curves_of
from hpcmass.runs import RunFolder
from hpcmass.workflow.projects import ProjectRef
from hpcmass.workflow.registry import open_catalogue

Curve = list[tuple[float, float]]
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24  # signs of a curve in a table


@dataclass
class Comparison:
    """Several versions side by side; in every list one entry a version, None where it has none.

    Attributes:
        versions: In the order given.
        metrics: By name; those of evaluations as `accuracy on data/mnist/test`.
        params: Keys of the job that differ (all with `everything`), such as `train.lr`.
        data: Data sets by split, as `name (id)`.
        facts: When, by whom, size, parent, commit, packages that differ.
        curves: Of each version `valid loss` … by step, out of its run; None where the run is gone.
        notes: Why something is not there.
    """

    versions: list[Version]
    metrics: dict[str, list[Measured | None]] = field(default_factory=dict)
    params: dict[str, list[Any]] = field(default_factory=dict)
    data: dict[str, list[str | None]] = field(default_factory=dict)
    facts: dict[str, list[Any]] = field(default_factory=dict)
    curves: list[dict[str, Curve] | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tables(self) -> list[tuple[str, list[str], list[list[Any]]]]:
        """Title, header and rows of each part that has any."""
        header = [version.ref for version in self.versions]
        parts: list[tuple[str, Mapping[str, Sequence[Any]]]] = [
            ("metrics, 95 % intervals", {k: [v and str(v) for v in row] for k, row in self.metrics.items()}),
            ("parameters", self.params),
            ("data", self.data),
            ("versions", self.facts),
            ("learning curves", self._curve_rows()),
        ]
        return [(title, ["", *header], [[k, *row] for k, row in rows.items()]) for title, rows in parts if rows]

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a line, for a table of comma-separated values: `part`, `key`, and a value a version."""
        made = []
        ends = ("value", "low", "high")
        for name, row in self.metrics.items():
            for end in ends:
                values = [None if one is None else getattr(one, end) for one in row]
                if end == "value" or any(value is not None for value in values):
                    made.append(self._row("metrics", name if end == "value" else f"{name} {end}", values))
        for part, rows in (("params", self.params), ("data", self.data), ("version", self.facts)):
            made += [self._row(part, key, row) for key, row in rows.items()]
        for name in self._curve_names():
            steps = sorted({step for curves in self.curves if curves for step, _ in curves.get(name, ())})
            known = [dict(curves.get(name, ())) if curves else {} for curves in self.curves]
            made += [
                self._row(f"curve {name}", f"{step:g}", [one.get(step) for one in known]) for step in steps
            ]
        return made

    def to_json(self) -> dict[str, Any]:
        """As JSON, the points of all curves included."""
        return {
            "versions": [version.ref for version in self.versions],
            "metrics": {k: [v and v.to_json() for v in row] for k, row in self.metrics.items()},
            "params": self.params,
            "data": self.data,
            "facts": self.facts,
            "curves": self.curves,
            "notes": self.notes,
        }

    def _row(self, part: str, key: str, values: Sequence[Any]) -> dict[str, Any]:
        found = {version.ref: value for version, value in zip(self.versions, values, strict=True)}
        return {"part": part, "key": key, **found}

    def _curve_names(self) -> list[str]:
        return list(dict.fromkeys(name for curves in self.curves if curves for name in curves))

    def _curve_rows(self) -> dict[str, list[str | None]]:
        made: dict[str, list[str | None]] = {}
        for name in self._curve_names():
            known = [curves.get(name) if curves else None for curves in self.curves]
            values = [value for curve in known if curve for _, value in curve]
            made[name] = [drawn(curve, min(values), max(values)) if curve else None for curve in known]
            lower = "accuracy" not in name
            made[f"{name}, best (step)"] = [_best(curve, lower) if curve else None for curve in known]
        return made


def compare(refs: Sequence[str], project: ProjectRef = None, *, everything: bool = False) -> Comparison:
    """Put versions side by side.

    Args:
        refs: Two or more references.
        project: The project.
        everything: Also the parameters that are the same in all.

    Raises:
        CatalogueError: There are fewer than two.
        NotFound: There is no such version.
    """
    catalogue = open_catalogue(project)
    versions = list({version.ref: version for version in map(catalogue.get, refs)}.values())
    if len(versions) < 2:
        raise CatalogueError(
            "a comparison needs two versions or more",
            hint=f"{', '.join(refs)} {'is one version' if len(refs) > 1 else 'is one'}",
        )
    made = Comparison(versions)
    _fill(made.metrics, [registered_metrics(version) for version in versions])
    for name, row in _evaluated(Evaluations(catalogue.path), versions, made.notes).items():
        made.metrics[name] = row
    _fill(made.params, [dict(_flat(version.lineage.get("job"))) for version in versions])
    if not everything:
        made.params = {key: row for key, row in made.params.items() if _differs(row)}
    _fill(made.data, [_data(version) for version in versions])
    _fill(made.facts, [_facts(version) for version in versions])
    always = ("created", "by", "bytes")
    made.facts = {key: row for key, row in made.facts.items() if key in always or _differs(row)}
    for version in versions:
        curves, note = curves_from(version)
        made.curves.append(curves)
        if note:
            made.notes.append(f"{version.ref}: {note}")
    return made


def curves_from(version: Version) -> tuple[dict[str, Curve] | None, str]:
    """The learning curves of the run that a version is of; None, and why, where they are not to be had."""
    path = version.lineage.get("run")
    if not isinstance(path, str) or not path:
        return None, "no run is known"
    run = RunFolder(Path(path))
    if not run.metrics_file.is_file():
        return None, f"its run is gone, or out of reach ({path})"
    try:
        if (run.status().started or 0.0) > version.created:
            return None, f"its run was begun anew since ({path})"
        return curves_of(run.records()), ""
    except (HpcmassError, ValueError, TypeError, AttributeError) as error:
        return None, f"its run cannot be read: {error}"


def drawn(curve: Curve, low: float, high: float) -> str:
    """A curve as a row of bars between two values, and its last value."""
    places = [round(i * (len(curve) - 1) / max(1, _WIDTH - 1)) for i in range(min(_WIDTH, len(curve)))]
    values = [curve[place][1] for place in places] if len(curve) > _WIDTH else [value for _, value in curve]
    span = (high - low) or 1.0
    bars = "".join(_BARS[min(7, int((value - low) / span * 8))] for value in values)
    return f"{bars} {curve[-1][1]:.4g}"


def _best(curve: Curve, lower: bool) -> str:
    step, value = (min if lower else max)(curve, key=lambda point: point[1])
    return f"{value:.4g} ({step:g})"


def _fill(target: dict[str, list[Any]], columns: Sequence[Mapping[str, Any]]) -> None:
    for key in dict.fromkeys(key for column in columns for key in column):
        target[key] = [column.get(key) for column in columns]


def _differs(row: Sequence[Any]) -> bool:
    return any(value != row[0] for value in row)


def registered_metrics(version: Version) -> dict[str, Measured]:
    """The metrics of a version's record, with the ends `NAME_low` and `NAME_high` as intervals."""
    numbers = {
        name: float(value)
        for name, value in version.metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    found = {}
    for name, value in numbers.items():
        stem, _, end = name.rpartition("_")
        if end in ("low", "high") and stem in numbers:
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        found[name] = Measured(value, low, high) if low is not None and high is not None else Measured(value)
    return found


def _evaluated(
    evaluations: Evaluations, versions: Sequence[Version], notes: list[str]
) -> dict[str, list[Measured | None]]:
    """The metrics of the newest evaluation of each version on each data set."""
    names: dict[str, str] = {}
    columns: list[dict[tuple[str, str], Measured]] = []
    for version in versions:
        try:
            latest = evaluations.latest(version)
        except HpcmassError as error:
            notes.append(f"{version.ref}: {error.message}")
            latest = {}
        for identity, record in latest.items():
            names.setdefault(identity, record.data)
        columns.append({(k, m): v for k, record in latest.items() for m, v in record.metrics.items()})
    shown = {
        key: name if list(names.values()).count(name) == 1 else f"{name} ({key[:8]})"
        for key, name in names.items()
    }
    keys = dict.fromkeys(key for column in columns for key in column)
    return {
        f"{metric} on {shown[key]}": [column.get((key, metric)) for column in columns] for key, metric in keys
    }


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif prefix and prefix != "name":
        yield prefix, value


def _data(version: Version) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for split, identity, name in datasets_of(version):
        found.setdefault(split, []).append(f"{name} ({identity[:12]})" if name else identity[:12])
    return {split: ", ".join(parts) for split, parts in found.items()}


def _facts(version: Version) -> dict[str, Any]:
    environment = version.lineage.get("environment")
    known = environment if isinstance(environment, Mapping) else {}
    packages = known.get("packages")
    return {
        "created": version.created,
        "by": version.by,
        "bytes": version.bytes,
        "description": version.description or None,
        "parent": version.lineage.get("parent"),
        "commit": version.lineage.get("commit"),
        "python": known.get("python"),
        **(dict(packages) if isinstance(packages, Mapping) else {}),
    }
