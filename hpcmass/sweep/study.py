"""What to try next, and which trial to give up.

The study lives in memory and is rebuilt from the study's folder. What is proposed for trial n depends on
the seed, on n, and on the trials before it, never on how often the driver was restarted: the random state is
made anew for every draw, keyed by (seed, n, how often n was drawn before).
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from hpcmass.config.sweep import SweepTable
from hpcmass.errors import ConfigError
from hpcmass.sweep.evolve import Evolution, Member
from hpcmass.sweep.history import History, OutcomeState, Record, RecordHistory
from hpcmass.sweep.points import keyer, random_point, seed_of
from hpcmass.sweep.prune import Ended, make_pruner
from hpcmass.sweep.space import Params, Space, planned

REDRAWS = 20  # of a point that there is already, before it is allowed
# How often the sampler itself is asked before a redraw is a random point. The maximum of a Gaussian process
# stays where it is, and CMA-ES counts what it has drawn.
_OWN_DRAWS = {"random": REDRAWS, "qmc": 1, "tpe": 5, "nsga2": 10, "gp": 1, "cmaes": 1}
_BY_OPTUNA = ("tpe", "gp", "cmaes")


def asked_ahead(table: SweepTable) -> int:
    """How many trials are drawn before a worker is free for them: one for every eight at once.

    What is drawn ahead knows nothing of the outcomes that come until it is started. So with one trial at a time
    samplers that learn are asked after each outcome; those that do not learn propose the same in any case.
    """
    learns = table.sampler in (*_BY_OPTUNA, "nsga2")
    return 0 if learns and table.parallel == 1 else math.ceil(table.parallel / 8)


class Study:
    """What to try next (`ask`), which trial to give up (`report`), and what came of it (`tell`).

    `cmaes` draws only the numbers that every trial has; categorical dimensions and dimensions with `when`
    are drawn at random beside it.
    """

    def __init__(
        self,
        table: SweepTable,
        history: Sequence[Record] | History = (),
        *,
        known: Sequence[Record] = (),
        evaluations: int | None = None,
    ) -> None:
        """Rebuild the study from its trials, which are numbered without a gap.

        Args:
            table: `[sweep]`.
            history: Its trials.
            known: Results from elsewhere, with numbers below 0: learnt from, and no trials of this study.
            evaluations: Of a whole trial, where that is known.

        Raises:
            ConfigError: A grid over a float dimension without `step`.
        """
        self._table = table
        self._signs = [one.sign for one in table.objectives]
        self.space = Space(table.space)
        self.grid_size = planned(table) if table.sampler == "grid" else None
        self._grid: Iterator[Params] = iter(())  # its points from `_grid_next` on
        self._grid_next = sys.maxsize
        self._key = keyer(self.space)
        self._points: dict[Hashable, int] = {}  # by `_key`, the first trial that has it
        self.twins: dict[int, int] = {}  # trials that are where another one was before
        self._open: dict[int, Record] = {}
        self._pruner = make_pruner(table, evaluations)
        self._window = None
        if table.sampler in _BY_OPTUNA:
            from hpcmass.sweep.window import Window

            self._window = Window(table)
        self._propose = self._proposer()
        self._evolution = Evolution(self.space)
        self._worst: float | None = None  # loss of a trial that keeps to the constraints
        self._replay(known, RecordHistory(history) if isinstance(history, Sequence) else history)

    # -- asking -----------------------------------------------------------------------------------------
    def ask(self, number: int) -> Params | None:
        """The point of trial `number`, which is the next one; None when the grid has no further point."""
        if self.grid_size is not None:
            if number < self._grid_next:
                self._grid, self._grid_next = self.space.grid(), 0
            point = next(islice(self._grid, number - self._grid_next, None), None)
            self._grid_next = number + 1
            if point is not None:
                self._begin(Record(number, point))
            return point
        own, allowed = _OWN_DRAWS[self._table.sampler], None
        for redraw in range(REDRAWS):
            seed = seed_of(self._table.seed, number, redraw)
            last_own = redraw == own - 1
            if redraw < own:
                params = self._propose(number, redraw, seed)
                allowed = params if last_own or allowed is None else allowed
            else:
                params = random_point(self.space, random.Random(seed))
            if self._key(params) not in self._points:
                break
        else:
            assert allowed is not None
            params = allowed
            self.twins[number] = self._points[self._key(params)]
        self._begin(Record(number, params))
        return params

    def _proposer(self) -> Callable[[int, int, int], Params]:
        """How the sampler draws, given trial, redraw and seed."""
        name = self._table.sampler
        if name in ("random", "grid"):  # a grid draws nothing
            return lambda number, redraw, seed: random_point(self.space, random.Random(seed))
        if name == "nsga2":
            return lambda number, redraw, seed: self._evolution.propose(random.Random(seed))
        if name == "qmc":
            from hpcmass.sweep.quasi import Sobol

            sobol = Sobol(self.space, self._table.seed)
            return lambda number, redraw, seed: sobol.point(number)
        window = self._window
        assert window is not None
        return lambda number, redraw, seed: window.draw(self.space, seed)

    def _begin(self, record: Record) -> None:
        self._points.setdefault(self._key(record.params), record.number)
        self._open[record.number] = record
        if self._window is not None:
            self._window.begin(record)

    # -- telling ----------------------------------------------------------------------------------------
    def report(self, number: int, evaluation: int, value: float) -> bool:
        """Note the value of a running trial's n-th evaluation (from 1); whether to give the trial up."""
        if self._pruner is None or not math.isfinite(value):
            return False
        prune = self._pruner.report(number, evaluation, self._signs[0] * value)
        return prune and evaluation >= self._table.min_evaluations

    def tell(
        self,
        number: int,
        state: OutcomeState,
        value: float | Sequence[float] | None,
        values: list[list[float]] | None = None,
        violations: Sequence[float] = (),
    ) -> None:
        """Count a trial: `complete` with its value or values, `pruned` with what it reported, or `failed`."""
        record = replace(
            self._open.pop(number), state=state, value=value, values=values or [], violations=violations
        )
        if self._pruner is not None and state == "complete":
            self._pruner.complete(number)
        self._learn(record)

    def _learn(self, record: Record) -> None:
        known = record.all_values if record.state == "complete" else None
        if known is not None and self._table.sampler == "nsga2":
            losses = tuple(s * v for s, v in zip(self._signs, known, strict=True))
            self._evolution.elite.tell(Member(record.number, record.params, losses, sum(record.violations)))
        if self._window is not None:
            self._window.tell(self._penalised(record) if self._table.sampler == "cmaes" else record)

    def _penalised(self, record: Record) -> Record:
        """CMA-ES knows no constraints: what is beyond them is worse than all that keeps to them."""
        if record.state != "complete" or record.all_values is None:
            return record
        loss, violation = self._signs[0] * record.all_values[0], sum(record.violations)
        if violation == 0:
            self._worst = loss if self._worst is None else max(loss, self._worst)
            return record
        worst = 0.0 if self._worst is None else self._worst
        return replace(record, value=self._signs[0] * (worst + violation), violations=())

    # -- going on ---------------------------------------------------------------------------------------
    def _replay(self, known: Sequence[Record], history: History) -> None:
        """Bring the study to where the folder says it was.

        CMA-ES keeps its state in the trials that it drew, so its draws are made again, each after exactly
        those outcomes that had been counted then. The other samplers need the trials only.
        """
        if self._table.sampler == "cmaes":
            self._draw_again(history)
            return
        points, key = self._points, self._key
        for number, params in enumerate(history.points()):
            points.setdefault(key(params), number)
        ended = history.in_order()
        if self._pruner is not None:
            self._pruner.replay(self._losses(history, ended))
        if self._table.sampler == "nsga2":
            for record in (*known, *map(history.record, ended)):
                self._learn(record)
        if self._window is not None:
            self._window.load(known, history)
        for number in history.unfinished():
            self._begin(history.record(number))

    def _losses(self, history: History, numbers: Sequence[int]) -> Iterator[Ended]:
        """What the pruner is told of trials that have ended."""
        sign = self._signs[0]
        for number, values, complete in history.curves(numbers):
            yield number, [sign * value for _, value in values], complete

    def _draw_again(self, history: History) -> None:
        waiting = [history.record(number) for number in reversed(history.in_order())]
        for number, _ in enumerate(history.points()):
            record = history.record(number)
            while waiting and waiting[-1].order < record.told:
                self._count(waiting.pop())
            if not _close(self.ask(number), record.params):
                raise ConfigError(
                    f"trial {number} is not what CMA-ES draws there",
                    where="sweep.sampler",
                    hint="the study was begun with another version of optuna or cmaes; begin it anew",
                )
        while waiting:
            self._count(waiting.pop())

    def _count(self, record: Record) -> None:
        for evaluation, (_, value) in enumerate(record.values, start=1):
            self.report(record.number, evaluation, value)
        assert record.state is not None
        self.tell(record.number, record.state, record.value, record.values, record.violations)


def _close(drawn: Params | None, recorded: Params) -> bool:
    """Whether two draws are one, up to what another machine's linear algebra may round differently."""
    return (
        drawn is not None
        and drawn.keys() == recorded.keys()
        and all(
            math.isclose(value, recorded[name], rel_tol=1e-6)
            if isinstance(value, float)
            else value == recorded[name]
            for name, value in drawn.items()
        )
    )
