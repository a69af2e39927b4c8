"""What a sampler and a pruner are told of the trials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hpcmass.config.sweep import SweepTable
from hpcmass.sweep.records import Outcome, TrialSpec, objective_values, violations
from hpcmass.sweep.space import Params
from hpcmass.sweep.trials import Trials
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


class History(Protocol):
    """The trials of a study, numbered from 0 without a gap."""

    def points(self) -> list[Params]:
        """Where each is."""
        ...

    def unfinished(self) -> list[int]:
        """Those without an outcome."""
        ...

    def in_order(self) -> list[int]:
        """Those with an outcome, in the order in which they were counted."""
        ...

    def record(self, number: int) -> Record:
        """One of them."""
        ...

    def standings(self, numbers: Sequence[int]) -> Iterator[tuple[float, float, int]]:
        """Violation, first objective's value and number of those of some that are complete."""
        ...

    def curves(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[list[float]], bool]]:
        """Number, values and whether it ran to its end, of some."""
        ...


class RecordHistory:
    """A history of records that are there already."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = sorted(records, key=lambda record: record.number)

    def points(self) -> list[Params]:
        """As `History.points`."""
        return [record.params for record in self._records]

    def unfinished(self) -> list[int]:
        """As `History.unfinished`."""
        return [record.number for record in self._records if record.state is None]

    def in_order(self) -> list[int]:
        """As `History.in_order`."""
        ended = [record for record in self._records if record.state is not None]
        return [record.number for record in sorted(ended, key=lambda record: record.order)]

    def record(self, number: int) -> Record:
        """As `History.record`."""
        return self._records[number]

    def standings(self, numbers: Sequence[int]) -> Iterator[tuple[float, float, int]]:
        """As `History.standings`."""
        for number in numbers:
            record = self._records[number]
            if record.state == "complete" and record.all_values is not None:
                yield sum(record.violations), record.all_values[0], number

    def curves(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[list[float]], bool]]:
        """As `History.curves`."""
        for number in numbers:
            record = self._records[number]
            yield number, record.values, record.state == "complete"


class TrialHistory:
    """A history as the study's log tells it; a record is made when it is asked for."""

    def __init__(self, table: SweepTable, trials: Trials) -> None:
        self._table, self._trials = table, trials
        self.points, self.unfinished, self.in_order = trials.points, trials.unfinished, trials.in_order

    def record(self, number: int) -> Record:
        """As `History.record`."""
        return record_of(self._table, self._trials.spec(number), self._trials.outcome(number))

    def standings(self, numbers: Sequence[int]) -> Iterator[tuple[float, float, int]]:
        """As `History.standings`."""
        first, trials = self._table.objectives[0].name, self._trials
        several = self._table.metrics is not None
        values = trials.column("measured", first) if several else trials.column("value")
        limits = [(one, trials.column("measured", one.name)) for one in self._table.limits]
        states = trials.column("state")
        for number in numbers:
            if states[number] == "complete" and values[number] is not None:
                known = ((one, column[number]) for one, column in limits)
                beyond = sum(one.violation(value) for one, value in known if value is not None)
                yield beyond, values[number], number

    def curves(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[list[float]], bool]]:
        """As `History.curves`."""
        texts, states = self._trials.column("values"), self._trials.column("state")
        for number in numbers:
            yield number, json.loads(texts[number]), states[number] == "complete"


def record_of(table: SweepTable, spec: TrialSpec, outcome: Outcome | None) -> Record:
    """A trial as its folder tells it, for the sampler."""
    params = {name: spec.params[name] for name in table.space if name in spec.params}  # files may sort them
    if outcome is None:
        return Record(spec.number, params, spec.told)
    return Record(
        spec.number,
        params,
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
