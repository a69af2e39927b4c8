"""What a sampler and a pruner are told of the trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hpcmass.config.sweep import SweepTable
from hpcmass.sweep.records import Outcome, TrialSpec, objective_values, violations
from hpcmass.sweep.space import Params
from hpcmass.sweep.warm import Known

OutcomeState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """A trial as the study's folder tells it.

    Attributes:
        told: How many outcomes had been counted when it was drawn.
        state: None while it has no outcome.
        value: The objective's value, or a list where there are several.
        values: `[evaluation's step, value]` in order; the study counts evaluations, not steps.
        order: Its place among the outcomes, in the order in which they were counted.
        violations: By how much it is beyond each constraint; 0 where it keeps to it.
    """

    number: int
    params: Params
    told: int = 0
    state: OutcomeState | None = None
    value: float | Sequence[float] | None = None
    values: list[list[float]] = field(default_factory=list)
    order: int = 0
    violations: Sequence[float] = ()

    @property
    def all_values(self) -> tuple[float, ...] | None:
        """The objectives' values, where the trial has them."""
        if self.value is None:
            return None
        return (self.value,) if isinstance(self.value, (int, float)) else tuple(self.value)


def record_of(table: SweepTable, spec: TrialSpec, outcome: Outcome | None) -> Record:
    """A trial as its folder tells it, for the sampler."""
    if outcome is None:
        return Record(spec.number, spec.params, spec.told)
    return Record(
        spec.number,
        spec.params,
        spec.told,
        outcome.state,  # type: ignore[arg-type]
        objective_values(table, outcome),
        outcome.values,
        outcome.order,
        violations(table, outcome.measured),
    )


def learnt(table: SweepTable, number: int, known: Known) -> Record:
    """A result from elsewhere, under a number that no trial has."""
    values = [known.measured[one.name] for one in table.objectives]
    beyond_each = violations(table, known.measured)
    return Record(number, known.params, state="complete", value=values, violations=beyond_each)
