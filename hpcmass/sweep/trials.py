"""What is known of a study's trials, in memory: a trial is made of its record when somebody asks for it."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpcmass.errors import CorruptError
from hpcmass.sweep.columns import CHUNK, Columns, Raw, row_of, rows_of, to_columns
from hpcmass.sweep.records import STATES, Outcome, TrialSpec, outcome_of, spec_of, trial_path
from hpcmass.sweep.space import Params

_T = TypeVar("_T")


class Trials:
    """The trials of a study by number, without a gap, fed by the records of its log.

    The records are lists: `["study", header]`, `["drawn", trial]`, `["ended", number, outcome]`, both of a
    trial as `["trial", trial, outcome or null]`, and in a snapshot `["trials", first, trials, outcomes]`, as
    columns.

    Attributes:
        study: The study's folder.
        header: What the log says of the study itself; empty where there is none yet.
        counted: Trials with an outcome.
    """

    def __init__(self, study: Path) -> None:
        self.study = study
        self.header: Raw = {}
        self.counted = 0
        self._chunks: list[tuple[Columns, Columns]] = []  # of the first `_base` trials
        self._base = 0
        self._late: dict[int, Raw] = {}  # outcomes of those that had none in their chunk
        self._drawn: list[Raw] = []  # the others
        self._ended: list[Raw | None] = []

    def __len__(self) -> int:
        return self._base + len(self._drawn)

    # -- feeding --------------------------------------------------------------------------------------
    def apply(self, records: Iterable[Any]) -> None:
        """Take in records of the log; of a trial that is known, or counted, the first word stays.

        Raises:
            CorruptError: They do not tell of a study.
        """
        try:
            for record in records:
                kind = record[0]
                if kind in ("trial", "drawn"):
                    number = record[1]["number"]
                    if number > len(self):
                        raise self._corrupt(f"trial {len(self)} is missing")
                    if number == len(self):
                        self._drawn.append(record[1])
                        self._ended.append(None)
                    if kind == "trial" and record[2] is not None:
                        self._end(number, record[2])
                elif kind == "ended":
                    self._end(record[1], record[2])
                elif kind == "trials":
                    self._chunk(record[1], record[2], record[3])
                elif kind == "study":
                    self.header = dict(record[1])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._corrupt(f"has a record that is none of a study ({error})") from error

    def _corrupt(self, message: str) -> CorruptError:
        return CorruptError(message, where=self.study / "log")

    def _chunk(self, first: int, drawn: Columns, ended: Columns) -> None:
        count = len(drawn["number"])
        if drawn["number"] != list(range(len(self), len(self) + count)) or first % CHUNK or self._drawn:
            raise self._corrupt(f"trial {len(self)} is missing")
        states = ended.get("state") or [None] * count
        if not {*states} <= {None, *STATES}:
            raise self._corrupt(f"a state of {sorted(map(str, {*states}))} is unknown")
        self._chunks.append((drawn, ended))
        self._base += count
        self.counted += count - states.count(None)

    def _end(self, number: int, outcome: Raw) -> None:
        if self.ended(number) is not None:
            return
        if outcome["state"] not in STATES:
            raise self._corrupt(f"the state {outcome['state']!r} is unknown")
        if number < self._base:
            self._late[number] = outcome
        else:
            self._ended[number - self._base] = outcome
        self.counted += 1

    def records(self) -> Iterator[list[Any]]:
        """What a snapshot says."""
        yield ["study", self.header]
        for first in range(0, len(self), CHUNK):
            last = min(first + CHUNK, len(self))
            if (
                last <= self._base
                and last - first == CHUNK
                and not any(n in self._late for n in range(first, last))
            ):
                yield ["trials", first, *self._chunks[first // CHUNK]]
                continue
            drawn = to_columns([self.drawn(number) for number in range(first, last)])
            yield ["trials", first, drawn, to_columns([self.ended(number) for number in range(first, last)])]

    def rows(self) -> Iterator[list[Any]]:
        """The same, a record each."""
        yield ["study", self.header]
        for number in range(len(self)):
            yield ["trial", self.drawn(number), self.ended(number)]

    # -- asking ---------------------------------------------------------------------------------------
    def drawn(self, number: int) -> Raw:
        """The record of a trial."""
        if number >= self._base:
            return self._drawn[number - self._base]
        return row_of(self._chunks[number // CHUNK][0], number % CHUNK)

    def ended(self, number: int) -> Raw | None:
        """The record of what came of it, or None."""
        if number >= self._base:
            return self._ended[number - self._base]
        row = row_of(self._chunks[number // CHUNK][1], number % CHUNK)
        return {"value": None, **row} if "state" in row else self._late.get(number)

    def column(self, key: str, inner: str | None = None) -> list[Any]:
        """A value of the outcomes of all trials, or one of a table there; None where there is none."""
        found: list[Any] = []
        for drawn, ended in self._chunks:
            column = ended.get(key)
            if inner is not None and column is not None:
                column = column.get(inner)
            found += column or [None] * len(drawn["number"])
        found += [None] * len(self._ended)
        tail = enumerate(self._ended, start=self._base)
        for number, row in (*self._late.items(), *tail):
            value = None if row is None else row.get(key)
            found[number] = value.get(inner) if inner is not None and value is not None else value
        return found

    def points(self) -> list[Params]:
        """The parameters of all trials."""
        names, found = list(self.header.get("space", ())), []
        for drawn, _ in self._chunks:
            found += rows_of(drawn["params"], names, len(drawn["number"]))
        return found + [one["params"] for one in self._drawn]

    def spec(self, number: int) -> TrialSpec:
        """A trial."""
        return spec_of(self.drawn(number), trial_path(self.study, number))

    def outcome(self, number: int) -> Outcome | None:
        """What came of a trial, or None."""
        raw = self.ended(number)
        if raw is None:
            return None
        return outcome_of({**raw, "values": json.loads(raw["values"])}, trial_path(self.study, number))

    def unfinished(self) -> list[int]:
        """The trials without an outcome."""
        return [number for number, state in enumerate(self.column("state")) if state is None]

    def in_order(self) -> list[int]:
        """The trials with an outcome, in the order in which they were counted."""
        orders = self.column("order")
        return sorted(
            (number for number, order in enumerate(orders) if order is not None), key=orders.__getitem__
        )

    def counts(self) -> dict[str, int]:
        """Trials by outcome, and `unfinished`."""
        states = self.column("state")
        return {**{state: states.count(state) for state in STATES}, "unfinished": states.count(None)}

    def pairs(self) -> list[tuple[TrialSpec, Outcome | None]]:
        """All trials with what came of them."""
        return [(self.spec(number), self.outcome(number)) for number in range(len(self))]

    @property
    def specs(self) -> Mapping[int, TrialSpec]:
        """The trials by number, each made when it is looked up."""
        return _Specs(self)

    @property
    def outcomes(self) -> Mapping[int, Outcome]:
        """The outcomes by number, likewise."""
        return _Outcomes(self)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection, which looks through a hundred thousand new trials again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _View(Mapping[int, _T]):
    def __init__(self, trials: Trials) -> None:
        self._trials = trials


class _Specs(_View[TrialSpec]):
    def __getitem__(self, number: int) -> TrialSpec:
        if not 0 <= number < len(self._trials):
            raise KeyError(number)
        return self._trials.spec(number)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._trials)))

    def __len__(self) -> int:
        return len(self._trials)


class _Outcomes(_View[Outcome]):
    def __getitem__(self, number: int) -> Outcome:
        found = self._trials.outcome(number) if 0 <= number < len(self._trials) else None
        if found is None:
            raise KeyError(number)
        return found

    def __iter__(self) -> Iterator[int]:
        states = self._trials.column("state")
        return (number for number, state in enumerate(states) if state is not None)

    def __len__(self) -> int:
        return self._trials.counted
