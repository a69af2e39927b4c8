"""What a study knows from elsewhere: `warm-start.json`, written once, for a resumed study to know the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.config.sweep import SweepTable
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import claim, read_json
from hpcmass.sweep.points import fitted
from hpcmass.sweep.space import Params, Space

FORMAT = 1


@dataclass(frozen=True)
class Known:
    """A result from elsewhere, as a trial of this study would have it.

    Attributes:
        source: Where it is from, for people: `studies/earlier trial 3`, `mnist@2`.
        measured: Every name that the study looks at.
    """

    source: str
    params: Params
    measured: dict[str, float]


@dataclass(frozen=True)
class WarmStart:
    """What was taken, and by source how many results were left out."""

    taken: list[Known] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def told(self) -> str:
        """One sentence, or nothing where there is nothing to tell."""
        out = sum(self.left_out.values())
        if not self.taken and not self.left_out:
            return ""
        said = f"warm start: {len(self.taken)} earlier result{'s' * (len(self.taken) != 1)} taken"
        return f"{said}, {out} left out (another space, or not measured)" if out else said

    def keep(self, study: Path) -> bool:
        """Write it down; False where the study has its warm start already."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        return claim(study / "warm-start.json", text + "\n")


def read_warm_start(study: Path) -> WarmStart | None:
    """The warm start of a study, or None where it has none.

    Raises:
        CorruptError: The record is damaged.
    """
    file = study / "warm-start.json"
    try:
        raw = read_json(file)
    except NotFound:
        return None
    try:
        if raw["format"] > FORMAT:
            raise CorruptError(f"has format {raw['format']}, this hpcmass knows {FORMAT}", where=file)
        return WarmStart([Known(**one) for one in raw["taken"]], dict(raw["left_out"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"is no warm start ({error})", where=file) from error


def as_known(
    table: SweepTable, source: str, job: Mapping[str, Any], measured: Mapping[str, Any]
) -> Known | None:
    """A result of a run, where all dimensions of the space are known and in range, and all names measured.

    Args:
        table: This study's.
        source: Where the result is from.
        job: The run's whole job, nested.
        measured: What is known of the run, by name.
    """
    space = Space(table.space)
    values = {name: _at(job, name if "." in name else f"params.{name}") for name in table.space}
    params = fitted(space, values)
    found = {name: measured.get(name) for name in table.names}
    if params is None or not all(_is_number(value) for value in found.values()):
        return None
    return Known(source, params, {name: float(value) for name, value in found.items() if value is not None})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _at(job: Mapping[str, Any], dotted: str) -> Any:
    value: Any = job
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
