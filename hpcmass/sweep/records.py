"""What a study leaves on disk: `trials/000007/trial.json` and `outcome.json`, written once each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists, CorruptError, NotFound
from hpcmass.files import publish_json, read_json
from hpcmass.runs import RunFolder

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
    """

    number: int
    params: dict[str, Any]
    overrides: dict[str, Any]
    told: int
    path: Path

    @property
    def run(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.path)

    def publish(self) -> None:
        """Write `trial.json`; the trial exists from now on.

        Raises:
            AlreadyExists: There is a trial of this number.
        """
        publish_json(
            self.path / "trial.json",
            {
                "format": FORMAT,
                "number": self.number,
                "params": self.params,
                "overrides": self.overrides,
                "told": self.told,
            },
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        state: `complete`, `pruned` or `failed`.
        value: The metric's last value, or None.
        values: `[step, value]` of every evaluation.
        attempts: How often it was started.
        order: Its place among the study's outcomes, from 0.
        seconds: From its first start to its end.
        reason: Why it was pruned or failed.
    """

    state: str
    value: float | None
    values: list[list[float]]
    attempts: int
    order: int
    seconds: float | None = None
    reason: str | None = None

    def publish(self, folder: Path) -> bool:
        """Write `outcome.json`; False when the trial has been counted already."""
        try:
            publish_json(folder / "outcome.json", {"format": FORMAT, **vars(self)})
        except AlreadyExists:
            return False
        return True


@dataclass(frozen=True)
class BestTrial:
    """The trial with the best value."""

    number: int
    value: float
    params: dict[str, Any]
    overrides: dict[str, Any]
    path: Path


def best_trial(direction: str, trials: list[tuple[TrialSpec, Outcome | None]]) -> BestTrial | None:
    """The complete trial with the best value; of equals the first."""
    done = [(s, o.value) for s, o in trials if o is not None and o.state == "complete" and o.value is not None]
    if not done:
        return None
    sign = 1.0 if direction == "minimize" else -1.0
    spec, value = min(done, key=lambda pair: (sign * pair[1], pair[0].number))
    return BestTrial(spec.number, value, spec.params, spec.overrides, spec.path)


def trial_path(study: Path, number: int) -> Path:
    """The run folder of a trial."""
    return study / "trials" / f"{number:06d}"


def read_trials(study: Path) -> list[tuple[TrialSpec, Outcome | None]]:
    """The trials of a study that were drawn, by number, with what came of them.

    Raises:
        CorruptError: A record is not what it should be, or a trial is missing in between.
    """
    folder = study / "trials"
    names = sorted(name for name in os.listdir(folder) if name.isdigit()) if folder.is_dir() else []
    found = []
    for name in names:
        spec = _read_spec(folder / name)
        if spec is not None:
            found.append((spec, read_outcome(folder / name)))
    for place, (spec, _) in enumerate(found):
        if spec.number != place:
            raise CorruptError(f"trial {place} is missing", where=folder, hint="was its folder removed?")
    return found


def _read_spec(path: Path) -> TrialSpec | None:
    try:
        raw = _read(path / "trial.json")
    except NotFound:
        return None  # The driver ended before the trial was drawn; the number is drawn again.
    try:
        return TrialSpec(
            number=int(raw["number"]),
            params=dict(raw["params"]),
            overrides=dict(raw["overrides"]),
            told=int(raw.get("told", 0)),
            path=path,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"is not a trial's record ({error})", where=path / "trial.json") from error


def read_outcome(path: Path) -> Outcome | None:
    """What came of the trial in this folder, or None when it was not counted yet.

    Raises:
        CorruptError: The record is not what it should be.
    """
    try:
        raw = _read(path / "outcome.json")
    except NotFound:
        return None
    raw.pop("format")
    try:
        outcome = Outcome(**raw)
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
