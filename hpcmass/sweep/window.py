"""The study as Optuna sees it, for `tpe`, `gp` and `cmaes`. The one module that knows Optuna.

What a sampler looks at is bounded, so that asking costs the same in a study of any length.
"""

from __future__ import annotations

import warnings
from bisect import insort
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from hpcmass.config.sweep import CategoricalDimension, Dimension, FloatDimension, SweepTable
from hpcmass.sweep.evolve import Elite, Member
from hpcmass.sweep.history import History, Record
from hpcmass.sweep.space import Params, Space

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_TPE_STARTUP_TRIALS = 8
# Finished trials that a sampler looks at: TPE's time grows with them, a Gaussian process's with their cube.
_LOOKS_AT = {"tpe": 500, "gp": 100}
_CMA_KEEPS = 100  # finished trials: more than a generation


class Window:
    """The study as Optuna sees it: all trials, or where there are many those that matter.

    Of more than `looks_at` finished trials these are, as of the last multiple of a quarter of `looks_at`, the
    best quarter and the newest three; and all that finished since. So what is seen is a function of the
    outcomes in their order, and Optuna's study is made anew once in a quarter.
    """

    def __init__(self, table: SweepTable) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._table = table
        self._limit = looks_at = _LOOKS_AT.get(table.sampler)
        self._signs = [one.sign for one in table.objectives]
        self._distributions = {name: _distribution(one) for name, one in table.space.items()}
        self._finished: list[Record] = []  # all, or where the window is bounded the newest
        self._count = 0  # of all that finished
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
        self._count += 1
        self._note_best(record)
        count, limit = self._count, self._limit
        if limit is not None and count >= limit and (count - limit) % max(limit // 4, 1) == 0:
            self._rebase(limit)
        elif self._study is not None:
            self._settle(self._study, record)
            if self._table.sampler == "cmaes" and count % _CMA_KEEPS == 0:
                self._compact(self._study)

    def load(self, known: Sequence[Record], history: History) -> None:
        """Bring a new window to where `tell` of each of these, in this order, would bring it.

        Args:
            known: Results from elsewhere.
            history: The study's trials, of which those count that have ended.
        """
        told: list[Record | int] = [*known, *history.in_order()]
        limit, count = self._limit, len(told)
        done = 0
        if limit is not None and count >= limit and len(self._signs) == 1:
            quarter = max(limit // 4, 1)
            done = count - (count - limit) % quarter
            numbers = [one for one in told[:done] if isinstance(one, int)]
            sign = self._signs[0]
            ranked = [(v, sign * value, n) for v, value, n in history.standings(numbers)]
            for earlier in known[:done]:  # complete, each with its value
                value = (earlier.all_values or (0.0,))[0]
                ranked.append((sum(earlier.violations), sign * value, earlier.number))
            self._best = [(*one, _at(one[2], known, history)) for one in nsmallest(quarter, ranked)]
            self._finished = [
                one if isinstance(one, Record) else history.record(one) for one in told[:done][-limit:]
            ]
            self._count = done
            self._rebase(limit)
        for one in told[done:]:
            self.tell(one if isinstance(one, Record) else history.record(one))

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
        del self._finished[:-limit]
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


def _at(number: int, known: Sequence[Record], history: History) -> Record:
    return history.record(number) if number >= 0 else known[-1 - number]


def _constraints(violations: Sequence[float]) -> dict[str, float] | None:
    return {str(place): amount for place, amount in enumerate(violations)} or None


class _quiet(warnings.catch_warnings):  # type: ignore[type-arg]
    """Optuna's own warnings (experimental features, adjusted steps) are not the user's business."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


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


def importances(table: SweepTable, records: Sequence[Record], objective: int) -> dict[str, float]:
    """How much each dimension matters to be among the best in one objective: shares of 1, by PED-ANOVA.

    Args:
        table: The study's.
        records: Complete trials, all with that objective.
        objective: Its place among the objectives.

    Returns:
        By name; empty where the trials say nothing, such as when all values are one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sign = table.objectives[objective].sign
    distributions = {name: _distribution(one) for name, one in table.space.items()}
    # The best tenth, and five trials at least, of which the method wants some.
    share = min(0.5, max(0.1, 5 / max(len(records), 1)))
    with _quiet():
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                optuna.trial.create_trial(
                    value=sign * record.all_values[objective],
                    params=record.params,
                    distributions={name: distributions[name] for name in record.params},
                )
                for record in records
                if record.all_values is not None
            ]
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        try:
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
    return {name: float(value) for name, value in found.items() if value == value}
