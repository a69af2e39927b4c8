"""The one module that knows Optuna: what to try next, and which trial to give up.

The study lives in memory and is rebuilt from the study's folder. What is proposed for trial n depends on
the seed, on n, and on the trials before it, never on how often the driver was restarted: the sampler is
made anew for every trial, with its random state keyed by (seed, n).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial, TrialState

from hpcmass.config.job import CategoricalDimension, Dimension, FloatDimension, SweepTable
from hpcmass.errors import ConfigError
from hpcmass.sweep.space import Params, Space

OutcomeState = Literal["complete", "pruned", "failed"]

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_ASHA_REDUCTION = 3
_MEDIAN_STARTUP_TRIALS = 4
_TPE_STARTUP_TRIALS = 8


@dataclass(frozen=True)
class Record:
    """A trial as the study's folder tells it.

    Attributes:
        told: How many outcomes had been counted when it was drawn.
        state: None while it has no outcome.
        values: `[evaluation's step, value]` in order; the study counts evaluations, not steps.
        order: Its place among the outcomes, in the order in which they were counted.
    """

    number: int
    params: Params
    told: int = 0
    state: OutcomeState | None = None
    value: float | None = None
    values: list[list[float]] = field(default_factory=list)
    order: int = 0


class Study:
    """What to try next (`ask`), which trial to give up (`report`), and what came of it (`tell`).

    `cmaes` draws only the numbers that every trial has; categorical dimensions and dimensions with `when`
    are drawn at random beside it.
    """

    def __init__(self, table: SweepTable, history: Sequence[Record] = ()) -> None:
        """Rebuild the study from its trials, which are numbered without a gap.

        Raises:
            ConfigError: A grid over a float dimension without `step`.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._table = table
        self.space = Space(table.space)
        self.grid_size = sum(1 for _ in islice(self.space.grid(), table.trials)) if self._grid else None
        self._study = optuna.create_study(direction=table.direction, pruner=_pruner(table))
        self._replay(sorted(history, key=lambda record: record.number))

    @property
    def _grid(self) -> bool:
        return self._table.sampler == "grid"

    def ask(self, number: int) -> Params | None:
        """The point of trial `number`, which is the next one; None when the grid has no further point."""
        if self._grid:
            point = next(islice(self.space.grid(), number, None), None)
            if point is not None:
                self._add(Record(number, point))
            return point
        with _quiet():
            self._study.sampler = _sampler(self._table, number)
            trial = self._study.ask()
            assert trial.number == number
            return self.space.draw(lambda name, dimension: _suggest(trial, name, dimension))

    def report(self, number: int, evaluation: int, value: float) -> bool:
        """Note the value of a running trial's n-th evaluation (from 1); whether to give the trial up."""
        if not math.isfinite(value):
            return False
        with _quiet():
            trial = self._trial(number)
            trial.report(value, evaluation)
            return trial.should_prune() and evaluation >= self._table.min_evaluations

    def tell(self, number: int, state: OutcomeState, value: float | None) -> None:
        """Count a trial: `complete` with its value, `pruned` with what it reported, or `failed`."""
        with _quiet():
            values = None if state != "complete" or value is None else [value]
            self._study.tell(number, values, state=_STATES[state])

    def _trial(self, number: int) -> Trial:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return Trial(self._study, frozen._trial_id)

    def _add(self, record: Record) -> None:
        with _quiet():
            distributions = {name: _distribution(self._table.space[name]) for name in record.params}
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING, params=record.params, distributions=distributions
                )
            )

    def _replay(self, history: list[Record]) -> None:
        """Bring the study to where the folder says it was.

        CMA-ES keeps its state in the trials that it drew, so its draws are made again, each after exactly
        those outcomes that had been counted then. The other samplers need the trials only.
        """
        waiting = sorted((r for r in history if r.state is not None), key=lambda record: record.order)
        for record in history:
            if self._table.sampler == "cmaes":
                waiting = self._count(waiting, lambda done, r=record: done.order < r.told)  # type: ignore[misc]
                if _close(self.ask(record.number), record.params):
                    continue
                raise ConfigError(
                    f"trial {record.number} is not what CMA-ES draws there",
                    where="sweep.sampler",
                    hint="the study was begun with another version of optuna or cmaes; begin it anew",
                )
            self._add(record)
        self._count(waiting, lambda _: True)

    def _count(self, waiting: list[Record], now: Any) -> list[Record]:
        for record in (done for done in waiting if now(done)):
            for evaluation, (_, value) in enumerate(record.values, start=1):
                self.report(record.number, evaluation, value)
            assert record.state is not None
            self.tell(record.number, record.state, record.value)
        return [record for record in waiting if not now(record)]


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


def _seed(study_seed: int, number: int) -> int:
    """The seed of one trial's draw: 31 bits of SHA-256 over (study's seed, trial's number)."""
    digest = hashlib.sha256(f"{study_seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _sampler(table: SweepTable, number: int) -> optuna.samplers.BaseSampler:
    seed = _seed(table.seed, number)
    if table.sampler == "tpe":
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_TPE_STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    if table.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(table: SweepTable) -> optuna.pruners.BasePruner:
    if table.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=_MEDIAN_STARTUP_TRIALS, n_warmup_steps=table.min_evaluations
        )
    if table.pruner == "asha":
        # Li et al., A System for Massively Parallel Hyperparameter Tuning (2020): rungs at min * 3^k.
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=table.min_evaluations, reduction_factor=_ASHA_REDUCTION
        )
    return optuna.pruners.NopPruner()


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
