"""What is known of a study's trials, in memory: a trial is made of its record when somebody asks for it."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpcmass.errors import CorruptError
from hpcmass.sweep.records import STATES, Outcome, TrialSpec, outcome_of, spec_of, trial_path
from hpcmass.sweep.space import Params

Raw = dict[str, Any]
_T = TypeVar("_T")


class Trials:
    """The trials of a study by number, without a gap, fed by the records of its log.

    The records are lists: `["study", header]`, `["drawn", trial]`, `["ended", number, outcome]`, and in a
    snapshot `["trial", trial, outcome or null]`.

    Attributes:
        study: The study's folder.
        header: What the log says of the study itself; empty where there is none yet.
        counted: Trials with an outcome.
    """

    def __init__(self, study: Path) -> None:
        self.study = study
        self.header: Raw = {}
        self.counted = 0
        self._drawn: list[Raw] = []
        self._ended: list[Raw | None] = []

    def __len__(self) -> int:
        return len(self._drawn)

    # -- feeding --------------------------------------------------------------------------------------
    def apply(self, records: Iterable[Any]) -> None:
        """Take in records of the log; of a trial that is known, or counted, the first word stays.

        Raises:
            CorruptError: They do not tell of a study.
        """
        drawn, ended = self._drawn, self._ended
        try:
            for record in records if drawn else self._first(list(records)):
                kind = record[0]
                if kind in ("trial", "drawn"):
                    number = record[1]["number"]
                    if number > len(drawn):
                        raise CorruptError(f"trial {len(drawn)} is missing", where=self.study / "log")
                    if number == len(drawn):
                        drawn.append(record[1])
                        ended.append(None)
                    if kind == "trial" and record[2] is not None:
                        self._end(number, record[2])
                elif kind == "ended":
                    self._end(record[1], record[2])
                elif kind == "study":
                    self.header = dict(record[1])
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptError(
                f"has a record that is none of a study ({error})", where=self.study / "log"
            ) from error

    def _first(self, records: list[Any]) -> list[Any]:
        """Take in what a snapshot begins with, which is long; gives what is left."""
        count = 0
        if records and records[0][0] == "study":
            self.header, count = dict(records[0][1]), 1
        whole = [record for record in records[count:] if record[0] == "trial"]
        drawn = [record[1] for record in whole]
        if [record[0] for record in records[count : count + len(whole)]] != ["trial"] * len(whole) or [
            one["number"] for one in drawn
        ] != list(range(len(drawn))):
            return records
        ended = [record[2] for record in whole]
        if not {one["state"] for one in ended if one is not None} <= set(STATES):
            return records
        self._drawn += drawn
        self._ended += ended
        self.counted = len(ended) - ended.count(None)
        return records[count + len(whole) :]

    def _end(self, number: int, outcome: Raw) -> None:
        if self._ended[number] is None:
            if outcome["state"] not in STATES:
                raise CorruptError(f"the state {outcome['state']!r} is unknown", where=self.study / "log")
            self._ended[number] = outcome
            self.counted += 1

    def records(self) -> Iterator[list[Any]]:
        """What a snapshot says."""
        yield ["study", self.header]
        for drawn, ended in zip(self._drawn, self._ended, strict=True):
            yield ["trial", drawn, ended]

    # -- asking ---------------------------------------------------------------------------------------
    def drawn(self, number: int) -> Raw:
        """The record of a trial."""
        return self._drawn[number]

    def ended(self, number: int) -> Raw | None:
        """The record of what came of it, or None."""
        return self._ended[number]

    def points(self) -> list[Params]:
        """The parameters of all trials."""
        return [one["params"] for one in self._drawn]

    def spec(self, number: int) -> TrialSpec:
        """A trial."""
        return spec_of(self._drawn[number], trial_path(self.study, number))

    def outcome(self, number: int) -> Outcome | None:
        """What came of a trial, or None."""
        raw = self._ended[number]
        if raw is None:
            return None
        return outcome_of({**raw, "values": json.loads(raw["values"])}, trial_path(self.study, number))

    def unfinished(self) -> list[int]:
        """The trials without an outcome."""
        return [number for number, ended in enumerate(self._ended) if ended is None]

    def in_order(self) -> list[int]:
        """The trials with an outcome, in the order in which they were counted."""
        orders = [-1 if ended is None else ended["order"] for ended in self._ended]
        numbers = [number for number, order in enumerate(orders) if order >= 0]
        return sorted(numbers, key=orders.__getitem__)

    def counts(self) -> dict[str, int]:
        """Trials by outcome, and `unfinished`."""
        counts = dict.fromkeys((*STATES, "unfinished"), 0)
        for ended in self._ended:
            counts["unfinished" if ended is None else ended["state"]] += 1
        return counts

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
        return (number for number in range(len(self._trials)) if self._trials.ended(number) is not None)

    def __len__(self) -> int:
        return self._trials.counted
