"""A model card: what is known of a version, as Markdown with YAML in front, as Hugging Face reads it. Pure.

What nobody knows is said to be unknown; what only a person can say (intended use, risks) is left to be filled
in, and says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcmass.catalogue.evaluations import EvaluationRecord, Measured
from hpcmass.catalogue.markup import markdown, rows, yaml
from hpcmass.catalogue.version import Version

UNKNOWN = "UNKNOWN"
_MOST_CLASSES = 200


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        version: The version.
        aliases: Its aliases now, each with the requirements that it was held against when it got there.
        model: The bundle's `model.json`, as far as it is what it should be.
        parameters: Numbers in its weights; None where nobody can say.
        data: Split, name, id, and samples (None: not known) of each data set.
        metrics: Metrics of its record.
        evaluations: The newest evaluation on each data set.
        cost: `wall_hours`, `node_hours`, `cpu_hours`, `gpu_hours`, `energy_joules`; None is not known.
        cost_source: Who says so.
        graph: Its lineage for Mermaid.
    """

    version: Version
    aliases: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    data: Sequence[tuple[str, str, str, int | None]] = ()
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    evaluations: Sequence[EvaluationRecord] = ()
    cost: Mapping[str, float | None] = field(default_factory=dict)
    cost_source: str = ""
    graph: str = ""

    @property
    def task(self) -> str:
        """`classification`, `regression`, `other`, or UNKNOWN."""
        signature = self.model.get("signature")
        task = signature.get("task") if isinstance(signature, Mapping) else None
        return task if isinstance(task, str) else UNKNOWN


def render(card: Card) -> str:
    """The card's text."""
    version = card.version
    parts = [
        "---",
        yaml(front_matter(card)).rstrip("\n"),
        "---",
        "",
        f"# {markdown(version.ref)}",
        "",
        markdown(version.description) if version.description else "_No description was given._",
        "",
        *_details(card),
        *_use(),
        *_data(card),
        *_evaluation(card),
        *_cost(card),
        *_gates(card),
        *_lineage(card),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def front_matter(card: Card) -> dict[str, Any]:
    """The metadata in front: the library, tags, and the results as a `model-index`."""
    task = card.task if card.task != UNKNOWN else "other"
    results = [
        {
            "task": {"type": task, "name": task},
            "dataset": {"type": record.dataset[:16] or "unknown", "name": record.data or record.dataset[:16]},
            "metrics": [
                {"type": name, "name": name, "value": one.value} for name, one in record.metrics.items()
            ],
        }
        for record in card.evaluations
        if record.metrics
    ]
    made: dict[str, Any] = {"library_name": "hpcmass", "tags": ["hpcmass", task]}
    if results:
        made["model-index"] = [{"name": card.version.ref, "results": results}]
    return made


def _details(card: Card) -> list[str]:
    version, environment = card.version, card.version.lineage.get("environment")
    known = environment if isinstance(environment, Mapping) else {}
    job = version.lineage.get("job")
    params = job.get("params") if isinstance(job, Mapping) else None
    lines: list[tuple[str, object]] = [
        ("version", version.ref),
        ("aliases", ", ".join(card.aliases) or "none"),
        ("registered", f"{_when(version.created)} by {version.by or UNKNOWN}"),
        ("kind", card.model.get("kind", UNKNOWN)),
        ("task", card.task),
        ("parameters", UNKNOWN if card.parameters is None else f"{card.parameters:,}"),
        ("size", f"{version.bytes:,} bytes in {len(version.files)} files"),
        ("recipe", job.get("recipe") or UNKNOWN if isinstance(job, Mapping) else UNKNOWN),
        ("settings", _pairs(params) if isinstance(params, Mapping) and params else "none"),
        ("code", version.lineage.get("commit") or UNKNOWN),
        ("python", known.get("python") or UNKNOWN),
    ]
    packages = known.get("packages")
    if isinstance(packages, Mapping):
        lines.append(("packages", _pairs(packages)))
    lines += [(name, _fields(card.model, name)) for name in ("inputs", "outputs")]
    load = ["```python", "import hpcmass", "", f'model = hpcmass.load("{version.ref}")', "```", ""]
    return ["## The model", "", *rows(["", ""], lines), *load]


def _fields(model: Mapping[str, Any], name: str) -> str:
    signature = model.get("signature")
    listed = signature.get(name) if isinstance(signature, Mapping) else None
    ones = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    return ", ".join(f"{one.get('name')} {one.get('dtype')} {one.get('shape')}" for one in ones) or UNKNOWN


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _use() -> list[str]:
    asked = [
        "Intended use",
        "Out of scope",
        "Risks and limitations",
        "Licence, and who to ask",
    ]
    return ["## Use", "", *(f"- **{one}**: _to be filled in by a person_" for one in asked), ""]


def _data(card: Card) -> list[str]:
    lines = [
        (split, name or UNKNOWN, identity, UNKNOWN if samples is None else f"{samples:,}")
        for split, name, identity, samples in card.data
    ]
    return ["## Data", "", *(rows(["used as", "data set", "id", "samples"], lines) or [f"{UNKNOWN}.", ""])]


def _evaluation(card: Card) -> list[str]:
    made = ["## Evaluation", "", "Intervals are 95 %.", ""]
    if not card.evaluations and not card.metrics:
        return [*made, f"{UNKNOWN}: it was not evaluated.", ""]
    for record in card.evaluations:
        on = f"On {markdown(record.data or record.dataset[:12])}, n = {record.n}"
        made += [f"### {on}", "", f"Data set {markdown(record.dataset)}, evaluated {_when(record.created)} by "]
        made[-1] += f"{markdown(record.by)}."
        made += ["", *_metrics(record.metrics)]
        classes = list(record.classes.items())
        scores = ("precision", "recall", "f1")
        lines = [(name, *(found.get(one, "-") for one in scores)) for name, found in classes[:_MOST_CLASSES]]
        made += rows(["class", *scores], lines)
        if len(classes) > _MOST_CLASSES:
            made += [f"… and {len(classes) - _MOST_CLASSES} more classes.", ""]
        names = list(record.metrics)
        cut = [
            (f"{field} == {value}", n, *(found.get(name, "-") for name in names))
            for field, value, n, found in record.slices
        ]
        made += rows(["slice", "n", *map(markdown, names)], cut)
    if card.metrics:
        made += ["### As registered", "", *_metrics(card.metrics)]
    return made


def _metrics(metrics: Mapping[str, Measured]) -> list[str]:
    lines = [
        (name, f"{one.value:.4f}", "-" if one.low is None else f"{one.low:.4f} to {one.high:.4f}")
        for name, one in metrics.items()
    ]
    return rows(["metric", "value", "95 % interval"], lines)


def _cost(card: Card) -> list[str]:
    energy = card.cost.get("energy_joules")
    units = {"wall_hours": "wall time", "node_hours": "node-hours", "cpu_hours": "processor time"}
    lines = [
        (title, UNKNOWN if card.cost.get(key) is None else f"{card.cost[key]:.4g} h")
        for key, title in units.items()
    ]
    if card.cost.get("gpu_hours") is not None:
        lines.append(("GPU time", f"{card.cost['gpu_hours']:.4g} h"))
    lines.append(("energy", UNKNOWN if energy is None else f"{energy / 3.6e6:.4g} kWh"))
    source = f"From {markdown(card.cost_source)}." if card.cost_source else "Nobody wrote down more."
    return ["## Cost of training", "", *rows(["", ""], lines), source, ""]


def _gates(card: Card) -> list[str]:
    lines = []
    for alias, gates in card.aliases.items():
        for gate in gates:
            found = gate.get("found")
            value = found.get("value") if isinstance(found, Mapping) else None
            lines.append((alias, gate.get("require", ""), UNKNOWN if value is None else value))
    made = rows(["alias", "required", "found"], lines)
    return ["## Gates that it passed", "", *made] if made else []


def _lineage(card: Card) -> list[str]:
    return ["## Lineage", "", "```mermaid", card.graph, "```", ""] if card.graph else []


def _when(seconds: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return UNKNOWN
