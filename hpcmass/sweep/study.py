"""What to try next, and which trial to give up. The one module that knows Optuna (`tpe`, `gp`, `cmaes`).

The study lives in memory and is rebuilt from the study's folder. What is proposed for trial n depends on
the seed, on n, and on the trials before it, never on how often the driver was restarted: the random state is
made anew for every draw, keyed by (seed, n, how often n was drawn before).

What a sampler looks at is bounded (`_Window`), so that asking costs the same in a study of any length.
"""

from __future__ import annotations

import math
import random
import warnings
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from hpcmass.config.sweep import CategoricalDimension, Dimension, FloatDimension, SweepTable
from hpcmass.errors import ConfigError
from hpcmass.sweep.evolve import Elite, Evolution, Member
from hpcmass.sweep.points import key_of, random_point, seed_of
from hpcmass.sweep.prune import make_pruner
from hpcmass.sweep.space import Params, Space

OutcomeState = Literal["complete", "pruned", "failed"]

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_TPE_STARTUP_TRIALS = 8
REDRAWS = 20  # of a point that there is already, before it is allowed
# How often the sampler itself is asked before a redraw is a random point. The maximum of a Gaussian process
# stays where it is, and CMA-ES counts what it has drawn.
_OWN_DRAWS = {"random": REDRAWS, "qmc": 1, "tpe": 5, "nsga2": 10, "gp": 1, "cmaes": 1}
# Finished trials that a sampler looks at: TPE's time grows with them, a Gaussian process's with their cube.
_LOOKS_AT = {"tpe": 500, "gp": 100}
_CMA_KEEPS = 100  # finished trials: more than a generation


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


class Study:
    """What to try next (`ask`), which trial to give up (`report`), and what came of it (`tell`).

    `cmaes` draws only the numbers that every trial has; categorical dimensions and dimensions with `when`
    are drawn at random beside it.
    """

    def __init__(
        self, table: SweepTable, history: Sequence[Record] = (), *, evaluations: int | None = None
    ) -> None:
        """Rebuild the study from its trials, which are numbered without a gap.

        Args:
            table: `[sweep]`.
            history: Its trials.
            evaluations: Of a whole trial, where that is known.

        Raises:
            ConfigError: A grid over a float dimension without `step`.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._table = table
        self._signs = [one.sign for one in table.objectives]
        self.space = Space(table.space)
        grid = table.sampler == "grid"
        self.grid_size = sum(1 for _ in islice(self.space.grid(), table.trials)) if grid else None
        self._points: dict[str, int] = {}  # by `key_of`, the first trial that has it
        self.twins: dict[int, int] = {}  # trials that are where another one was before
        self._open: dict[int, Record] = {}
        self._pruner = make_pruner(table, evaluations)
        self._window = _Window(table, _LOOKS_AT.get(table.sampler))
        self._propose = self._proposer()
        self._evolution = Evolution(self.space)
        self._worst: float | None = None  # loss of a trial that keeps to the constraints
        self._replay(sorted(history, key=lambda record: record.number))

    # -- asking -----------------------------------------------------------------------------------------
    def ask(self, number: int) -> Params | None:
        """The point of trial `number`, which is the next one; None when the grid has no further point."""
        if self.grid_size is not None:
            point = next(islice(self.space.grid(), number, None), None)
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
            if key_of(params) not in self._points:
                break
        else:
            assert allowed is not None
            params = allowed
            self.twins[number] = self._points[key_of(params)]
        self._begin(Record(number, params))
        return params

    def _proposer(self) -> Callable[[int, int, int], Params]:
        """How the sampler draws, given trial, redraw and seed."""
        name = self._table.sampler
        if name == "random":
            return lambda number, redraw, seed: random_point(self.space, random.Random(seed))
        if name == "nsga2":
            return lambda number, redraw, seed: self._evolution.propose(random.Random(seed))
        if name == "qmc":
            from hpcmass.sweep.quasi import Sobol

            sobol = Sobol(self.space, self._table.seed)
            return lambda number, redraw, seed: sobol.point(number)
        return lambda number, redraw, seed: self._window.draw(self.space, seed)

    def _begin(self, record: Record) -> None:
        self._points.setdefault(key_of(record.params), record.number)
        self._open[record.number] = record
        if self._table.sampler in ("tpe", "gp", "cmaes"):
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
        known = record.all_values if state == "complete" else None
        if self._pruner is not None and state == "complete":
            self._pruner.complete(number)
        if known is not None and self._table.sampler == "nsga2":
            losses_of = tuple(s * v for s, v in zip(self._signs, known, strict=True))
            self._evolution.elite.tell(Member(number, record.params, losses_of, sum(violations)))
        if self._table.sampler in ("tpe", "gp"):
            self._window.tell(record)
        elif self._table.sampler == "cmaes":
            self._window.tell(self._penalised(record))

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
    def _replay(self, history: list[Record]) -> None:
        """Bring the study to where the folder says it was.

        CMA-ES keeps its state in the trials that it drew, so its draws are made again, each after exactly
        those outcomes that had been counted then. The other samplers need the trials only.
        """
        waiting = sorted((r for r in history if r.state is not None), key=lambda record: -record.order)
        for record in history:
            if self._table.sampler == "cmaes":
                while waiting and waiting[-1].order < record.told:
                    self._count(waiting.pop())
                if _close(self.ask(record.number), record.params):
                    continue
                raise ConfigError(
                    f"trial {record.number} is not what CMA-ES draws there",
                    where="sweep.sampler",
                    hint="the study was begun with another version of optuna or cmaes; begin it anew",
                )
            self._begin(Record(record.number, record.params, record.told))
        while waiting:
            self._count(waiting.pop())

    def _count(self, record: Record) -> None:
        for evaluation, (_, value) in enumerate(record.values, start=1):
            self.report(record.number, evaluation, value)
        assert record.state is not None
        self.tell(record.number, record.state, record.value, record.values, record.violations)


class _Window:
    """The study as Optuna sees it: all trials, or where there are many those that matter.

    Of more than `looks_at` finished trials these are, as of the last multiple of a quarter of `looks_at`, the
    best quarter and the newest three; and all that finished since. So what is seen is a function of the
    outcomes in their order, and Optuna's study is made anew once in a quarter.
    """

    def __init__(self, table: SweepTable, looks_at: int | None) -> None:
        self._table = table
        self._limit = looks_at
        self._signs = [one.sign for one in table.objectives]
        self._distributions = {name: _distribution(one) for name, one in table.space.items()}
        self._finished: list[Record] = []
        self._running: dict[int, Record] = {}
        self._best: list[tuple[float, float, int, Record]] = []  # violation, loss, number: of one objective
        self._elite = Elite(64 if looks_at is None else min(64, looks_at // 4))  # of several
        self._base: list[Record] = []  # what stays of those before `_since`
        self._since = 0
        self._ids: dict[int, int] = {}
        self._study: optuna.Study | None = None
        self._drawn: tuple[int, Params] | None = None

    def draw(self, space: Space, seed: int) -> Params:
        """One point by the sampler; it is the study's when `begin` is called with it."""
        study = self._open()
        self._drop()
        with _quiet():
            study.sampler = _sampler(self._table, seed)
            trial = study.ask()
            params = space.draw(lambda name, dimension: _suggest(trial, name, dimension))
        self._drawn = (trial.number, params)
        return params

    def begin(self, record: Record) -> None:
        """A trial of this point runs."""
        self._running[record.number] = record
        if self._table.sampler == "cmaes" and self._drawn is not None and self._drawn[1] == record.params:
            self._ids[record.number] = self._drawn[0]  # it holds what CMA-ES goes on from
            self._drawn = None
            return
        self._drop()  # what a resumed study knows of it is its point alone, and so this one does
        if self._study is not None:
            self._add(self._study, record)

    def tell(self, record: Record) -> None:
        """A trial has ended."""
        self._running.pop(record.number, None)
        self._finished.append(record)
        self._note_best(record)
        count, limit = len(self._finished), self._limit
        if limit is not None and count >= limit and (count - limit) % max(limit // 4, 1) == 0:
            self._rebase(limit)
        elif self._study is not None:
            self._settle(self._study, record)
            if self._table.sampler == "cmaes" and count % _CMA_KEEPS == 0:
                self._compact(self._study)

    def _compact(self, old: optuna.Study) -> None:
        """Leave out what CMA-ES no longer looks at: what it goes on from lies in the newest trials."""
        self._drop()
        trials = old.get_trials(deepcopy=False)
        running = {self._ids[number]: number for number in self._running}
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE][-_CMA_KEEPS:]
        self._study = self._new()
        self._ids.clear()
        for place, trial in enumerate(sorted([*done, *(trials[i] for i in running)], key=lambda t: t.number)):
            if trial.number in running:
                self._ids[running[trial.number]] = place
            self._study.add_trial(trial)

    def _new(self) -> optuna.Study:
        with _quiet():
            directions = [one.direction for one in self._table.objectives]
            return optuna.create_study(directions=directions, study_name="hpcmass")

    def _drop(self) -> None:
        """The point that was drawn last was not taken."""
        if self._drawn is not None and self._study is not None:
            with _quiet():
                self._study.tell(self._drawn[0], state=TrialState.FAIL)
        self._drawn = None

    def _note_best(self, record: Record) -> None:
        known = record.all_values if record.state == "complete" else None
        if known is None or self._limit is None:
            return
        losses = tuple(s * v for s, v in zip(self._signs, known, strict=True))
        if len(losses) > 1:
            self._elite.tell(Member(record.number, record.params, losses, sum(record.violations)))
            return
        insort(self._best, (sum(record.violations), losses[0], record.number, record), key=lambda e: e[:3])
        del self._best[max(self._limit // 4, 1) :]

    def _rebase(self, limit: int) -> None:
        newest = self._finished[-(limit - max(limit // 4, 1)) :]
        chosen = {record.number: record for record in newest}
        chosen.update((entry[2], entry[3]) for entry in self._best)
        if self._elite.members:
            wanted = {member.number for member in self._elite.members} - chosen.keys()
            kept = {r.number: r for r in (*self._base, *self._finished[self._since :]) if r.number in wanted}
            chosen.update(kept)
        self._base, self._since = list(chosen.values()), len(self._finished)
        self._study = None

    def _open(self) -> optuna.Study:
        if self._study is None:
            self._study = self._new()
            self._ids.clear()
            seen = [*self._base, *self._finished[self._since :], *self._running.values()]
            for record in sorted(seen, key=lambda record: record.number):
                self._add(self._study, record)
        return self._study

    def _add(self, study: optuna.Study, record: Record) -> None:
        self._ids[record.number] = len(study.get_trials(deepcopy=False))
        with _quiet():
            study.add_trial(self._frozen(record))

    def _frozen(self, record: Record) -> FrozenTrial:
        values, state = record.all_values, TrialState.RUNNING if record.state is None else _STATES[record.state]
        several = len(self._signs) > 1
        if (state == TrialState.COMPLETE and values is None) or (state == TrialState.PRUNED and several):
            state = TrialState.FAIL
        last = {len(record.values): record.values[-1][1]} if record.values and not several else None
        return optuna.trial.create_trial(
            state=state,
            values=values if state == TrialState.COMPLETE else None,
            params=record.params,
            distributions={name: self._distributions[name] for name in record.params},
            intermediate_values=last if state == TrialState.PRUNED else None,
            constraints=_constraints(record.violations),
        )

    def _settle(self, study: optuna.Study, record: Record) -> None:
        """Say in Optuna's study what became of a trial that runs there."""
        frozen = self._frozen(record)
        with _quiet():
            trial = Trial(study, study.get_trials(deepcopy=False)[self._ids[record.number]]._trial_id)
            for name, amount in frozen.constraints.items():
                trial.set_constraint(name, amount)
            for evaluation, value in frozen.intermediate_values.items():
                trial.report(value, evaluation)
            values = frozen.values if frozen.state == TrialState.COMPLETE else None
            study.tell(trial, values, state=frozen.state)


def _constraints(violations: Sequence[float]) -> dict[str, float] | None:
    return {str(place): amount for place, amount in enumerate(violations)} or None


class _quiet(warnings.catch_warnings):  # type: ignore[type-arg]
    """Optuna's own warnings (experimental features, adjusted steps) are not the user's business."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _close(drawn: Params | None, recorded: Params) -> bool:
    """Whether two draws are one, up to what another machine's linear algebra may round differently."""
    return (
        drawn is not None
        and list(drawn) == list(recorded)
        and all(
            math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) else a == b
            for a, b in zip(drawn.values(), recorded.values(), strict=True)
        )
    )


def _sampler(table: SweepTable, seed: int) -> optuna.samplers.BaseSampler:
    if table.sampler == "tpe":
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_TPE_STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    beside = optuna.samplers.RandomSampler(seed=seed)
    if table.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed, independent_sampler=beside, warn_independent_sampling=False
        )
    return optuna.samplers.GPSampler(seed=seed, independent_sampler=beside, warn_independent_sampling=False)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, CategoricalDimension):
        return CategoricalDistribution(dimension.choices)
    if isinstance(dimension, FloatDimension):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _suggest(trial: Trial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, CategoricalDimension):
        return trial.suggest_categorical(name, dimension.choices)
    if isinstance(dimension, FloatDimension):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
