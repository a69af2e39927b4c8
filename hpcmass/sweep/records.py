"""What a study leaves on disk: `trials/000007/trial.json` and `outcome.json`, written once each."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hpcmass.config import SweepTable
from hpcmass.errors import AlreadyExists, CorruptError, NotFound
from hpcmass.files import publish_json, read_json
from hpcmass.runs import RunFolder
from hpcmass.sweep.front import pareto_front
from hpcmass.sweep.space import overrides_of

FORMAT = 1
STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class TrialSpec:
    """A trial as it was drawn.

    Attributes:
        params: Values by the names of the space.
        overrides: The same as dotted job keys.
        told: Outcomes that had been counted when it was drawn.
        path: Its run folder.
        twin: An earlier trial at the same point, where no other one was found.
        changes: What its next attempt has instead of what its job says (`sweep.remedy`); not in `trial.json`.
        avoid: Nodes that its next attempt is to keep away from; neither.
    """

    number: int
    params: dict[str, Any]
    overrides: dict[str, Any]
    told: int
    path: Path
    twin: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    avoid: tuple[str, ...] = ()

    @functools.cached_property
    def run(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.path)

    def publish(self) -> None:
        """Write `trial.json`; the trial exists from now on.

        Its run folder is laid down next, or its outcome written; the name is durable with that.

        Raises:
            AlreadyExists: There is a trial of this number.
        """
        publish_json(self.path / "trial.json", {"format": FORMAT, **self.raw()}, sync_folder=False, flat=True)

    def raw(self) -> dict[str, Any]:
        """What its record says."""
        return {
            "number": self.number,
            "params": self.params,
            "overrides": self.overrides,
            "told": self.told,
            **({} if self.twin is None else {"twin": self.twin}),
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        state: `complete`, `pruned` or `failed`.
        value: The metric's last value, or None; of several objectives the first.
        values: `[step, value]` of every evaluation.
        attempts: How often it was started.
        order: Its place among the study's outcomes, from 0.
        seconds: From its first start to its end.
        reason: Why it was pruned or failed.
        measured: Every objective, and every name that a constraint is about, with its last value.
        cause: Why its last attempt ended (`sweep.causes`); None in studies of an earlier hpcmass.
    """

    state: str
    value: float | None
    values: list[list[float]]
    attempts: int
    order: int
    seconds: float | None = None
    reason: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    cause: str | None = None

    def publish(self, folder: Path) -> bool:
        """Write `outcome.json`; False when the trial has been counted already."""
        try:
            publish_json(folder / "outcome.json", {"format": FORMAT, **vars(self)}, flat=True)
        except AlreadyExists:
            return False
        return True


@dataclass(frozen=True)
class BestTrial:
    """A trial with the best value, or one that no other is better than in every objective.

    Attributes:
        value: The objective's value; of several the first.
        measured: Every objective, and every name that a constraint is about.
    """

    number: int
    value: float
    params: dict[str, Any]
    overrides: dict[str, Any]
    path: Path
    measured: dict[str, float] = field(default_factory=dict)


Trials = Sequence[tuple[TrialSpec, Outcome | None]]


def objective_values(table: SweepTable, outcome: Outcome) -> list[float] | None:
    """The objectives of a complete trial, in their order."""
    if outcome.state != "complete" or outcome.value is None:
        return None
    if table.metrics is None:
        return [outcome.value]
    values = [outcome.measured.get(one.name) for one in table.objectives]
    return None if None in values else [value for value in values if value is not None]


def violations(table: SweepTable, measured: Mapping[str, float]) -> list[float]:
    """By how much a trial is beyond each constraint: 0 where it keeps to it, or nothing is known."""
    return [limit.violation(measured[limit.name]) if limit.name in measured else 0.0 for limit in table.limits]


def best_trials(table: SweepTable, trials: Trials) -> list[BestTrial]:
    """The best complete trial that keeps to all constraints, of equals the first; empty where there is none.

    Of several objectives the Pareto front, by number: the trials that no other one is as good as in all
    objectives and better in one.
    """
    found = []
    for spec, outcome in trials:
        values = None if outcome is None else objective_values(table, outcome)
        if outcome is not None and values is not None and not any(violations(table, outcome.measured)):
            losses = [one.sign * value for one, value in zip(table.objectives, values, strict=True)]
            found.append((losses, spec, values[0], outcome.measured))
    if len(table.objectives) == 1:
        front = [min(found, key=lambda one: (one[0][0], one[1].number))] if found else []
    else:
        front = [found[place] for place in pareto_front([losses for losses, *_ in found])]
    return [
        BestTrial(spec.number, value, spec.params, spec.overrides, spec.path, measured)
        for _, spec, value, measured in front
    ]


def beyond(table: SweepTable, trials: Trials) -> int:
    """How many complete trials do not keep to the constraints."""
    return sum(
        o is not None and o.state == "complete" and any(violations(table, o.measured)) for _, o in trials
    )


def trial_path(study: Path, number: int) -> Path:
    """The run folder of a trial."""
    return study / "trials" / f"{number:06d}"


def read_trials(study: Path) -> list[tuple[TrialSpec, Outcome | None]]:
    """The trials of a study that were drawn, by number, with what came of them.

    Raises:
        CorruptError: A record is not what it should be, or a trial is missing in between.
    """
    folder = study / "trials"
    found = []
    for name in sorted(trial_names(study), key=int):
        spec = read_spec(folder / name)
        if spec is not None:
            found.append((spec, read_outcome(folder / name)))
    for place, (spec, _) in enumerate(found):
        if spec.number != place:
            raise missing(study, place)
    return found


def trial_names(study: Path) -> list[str]:
    """The names of the trials' folders, in no order; in some there may be no trial yet."""
    try:
        return [name for name in os.listdir(study / "trials") if name.isdigit()]
    except FileNotFoundError:
        return []


def missing(study: Path, number: int) -> CorruptError:
    """The error where a trial is not there that has to be."""
    return CorruptError(f"trial {number} is missing", where=study / "trials", hint="was its folder removed?")


def read_spec(path: Path) -> TrialSpec | None:
    """The trial of a folder, or None where it was not drawn yet.

    Raises:
        CorruptError: The record is not what it should be.
    """
    try:
        raw = _read(path / "trial.json")
    except NotFound:
        return None  # The driver ended before the trial was drawn; the number is drawn again.
    return spec_of(raw, path)


def spec_of(raw: Mapping[str, Any], path: Path) -> TrialSpec:
    """The trial that a record tells of.

    Args:
        raw: As `TrialSpec.raw`; overrides that follow from the parameters may be left out.
        path: Its run folder.

    Raises:
        CorruptError: It is none.
    """
    try:
        return TrialSpec(
            number=int(raw["number"]),
            params=dict(raw["params"]),
            overrides=dict(raw.get("overrides") or overrides_of(raw["params"])),
            told=int(raw.get("told", 0)),
            path=path,
            twin=None if raw.get("twin") is None else int(raw["twin"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"is not a trial's record ({error})", where=path / "trial.json") from error


_OUTCOME_KEYS = tuple(one.name for one in fields(Outcome))


def read_outcome(path: Path) -> Outcome | None:
    """What came of the trial in this folder, or None when it was not counted yet.

    Raises:
        CorruptError: The record is not what it should be.
    """
    try:
        return outcome_of(_read(path / "outcome.json"), path)
    except NotFound:
        return None


def outcome_of(raw: Mapping[str, Any], path: Path) -> Outcome:
    """The outcome that a record tells of.

    Args:
        raw: Its attributes.
        path: The trial's run folder.

    Raises:
        CorruptError: It is none.
    """
    try:
        outcome = Outcome(**{name: raw[name] for name in _OUTCOME_KEYS if name in raw})
    except TypeError as error:
        raise CorruptError(f"is not an outcome ({error})", where=path / "outcome.json") from error
    if outcome.state not in STATES:
        raise CorruptError(f"the state {outcome.state!r} is unknown", where=path / "outcome.json")
    return outcome


def _read(file: Path) -> dict[str, Any]:
    raw = read_json(file)
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise CorruptError("is not a record of a study", where=file)
    if raw["format"] > FORMAT:
        raise CorruptError(f"has format {raw['format']}, this hpcmass knows {FORMAT}", where=file)
    return raw
