"""What a driver says: while it works (`Event`), and at its end (`StudyResult`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.config.sweep import SweepTable
from hpcmass.sweep.records import BestTrial, best_trials, beyond
from hpcmass.sweep.trials import Trials


@dataclass(frozen=True)
class Event:
    """Something that a watcher of the study may show.

    Attributes:
        kind: `opened` | `started` | `value` | `attached` | `retried` | `paused` | `complete` | `pruned` |
            `failed` | `ended`.
        number: The trial, None for `opened` and `ended`.
        attempt: The attempt's record in `attempts.jsonl`, of one that has ended: `target`, `node`, `cause`,
            `started`, `ended`, `node_s` and so on.
        finished: Trials counted so far; `trials`: how many there are to be.
    """

    kind: str
    number: int | None
    finished: int
    trials: int
    step: int | None = None
    value: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    attempt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """What stands in a study's folder when its driver ends.

    Attributes:
        metric: The (first) objective; `direction`: its direction.
        best: The best trial, of one objective.
        front: The best trials: of several objectives the Pareto front, of one the best alone.
        counts: Trials by outcome (`complete`, `pruned`, `failed`), and `unfinished`.
        signal: The signal that interrupted the driver, or None.
        ran: Trials that this driver counted.
        beyond: Complete trials that do not keep to the constraints.
        ended: Why the study is at its end; None where its driver was interrupted.
    """

    folder: Path
    metric: str
    direction: str
    best: BestTrial | None
    counts: dict[str, int]
    signal: int | None = None
    ran: int = 0
    front: list[BestTrial] = field(default_factory=list)
    beyond: int = 0
    ended: str | None = None


def result_of(
    folder: Path, table: SweepTable, trials: Trials, *, signal: int | None, ran: int, ended: str | None
) -> StudyResult:
    """What stands in a study's folder, and how its driver ended.

    Args:
        folder: The study's folder.
        table: `[sweep]`.
        trials: What is known of its trials.
        signal: As `StudyResult` has it, as `ran` and `ended`.
        ran: Trials that this driver counted.
        ended: Why the study is at its end.
    """
    pairs = trials.pairs()
    first, *others = table.objectives
    front = best_trials(table, pairs)
    return StudyResult(
        folder,
        first.name,
        first.direction,
        front[0] if front and not others else None,
        trials.counts(),
        signal,
        ran,
        front,
        beyond(table, pairs),
        ended,
    )
