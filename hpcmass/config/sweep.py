"""`[sweep]` of a job file: the space, what is optimised, and how."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_serializer, model_validator

from hpcmass.config.resources import Duration
from hpcmass.config.table import Scalar, Table


class FloatDimension(Table):
    """A float of the space, both ends included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)
    when: dict[str, Scalar | list[Scalar]] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> FloatDimension:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log dimension needs low > 0 and no step")
        return self


class IntDimension(Table):
    """An integer of the space, both ends included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(1, ge=1)
    when: dict[str, Scalar | list[Scalar]] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> IntDimension:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError("a log dimension needs low > 0 and step 1")
        return self


class CategoricalDimension(Table):
    """One of several values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)
    when: dict[str, Scalar | list[Scalar]] | None = None


Dimension = Annotated[FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")]


Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Objective:
    """What is optimised: a validation metric, or a fact of the run (`sweep.facts`)."""

    name: str
    direction: Direction

    @property
    def sign(self) -> float:
        """What a value is multiplied with, so that less is better."""
        return 1.0 if self.direction == "minimize" else -1.0


_CONSTRAINT = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """`name <= limit`, over the names that objectives may have."""

    name: str
    relation: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read one.

        Raises:
            ValueError: It is none.
        """
        found = _CONSTRAINT.fullmatch(text)
        try:
            limit = float(found[3]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or not math.isfinite(limit):
            raise ValueError(f'{text!r} is none; write NAME <= NUMBER (or <, >, >=), as "model_mb <= 10"')
        return cls(found[1], found[2], limit)

    def violation(self, value: float) -> float:
        """By how much a value is beyond the limit; 0 where it keeps to it."""
        beyond = value - self.limit if self.relation.startswith("<") else self.limit - value
        if len(self.relation) == 1 and beyond == 0:
            return math.ulp(self.limit)
        return max(beyond, 0.0)


class BudgetTable(Table):
    """`[sweep.budget]`: hard limits of the whole study, over all its drivers, beside `sweep.trials`."""

    node_hours: float | None = Field(None, gt=0, description="reserved with each block, settled as accounted")
    wall: Duration | None = Field(None, description="time that drivers work on it, such as 8h")
    value: float | None = Field(None, description="a value of the objective that is good enough to end")


class SweepTable(Table):
    """`[sweep]`: a study. Keys of `space` are job keys (`train.lr`), or names of `[params]` without a dot.

    A dimension with `when = {family = "cnn"}` exists only in trials where `family` has that value (or one
    of the values of a list); dimensions are drawn in the order in which they stand in the file.

    One objective is `metric` and `direction`; several are `metrics` and `directions`.
    """

    metrics: list[str] | None = Field(None, min_length=1, description="several objectives")
    directions: list[Direction] | None = Field(
        None, validate_default=True, description="one for each of `metrics`"
    )
    metric: str = Field("loss", description="validation metric, or fact of the run, that is optimised")
    direction: Direction = "minimize"
    constraints: list[str] = Field(default_factory=list, description='such as "model_mb <= 10"')
    sampler: Literal["random", "grid", "qmc", "tpe", "cmaes", "gp", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "asha", "hyperband", "halving"] = "none"
    trials: int = Field(20, ge=1)
    parallel: int = Field(2, ge=1, description="trials at once")
    ranks: int = Field(1, ge=1, description="ranks a trial")
    seed: int = Field(0, ge=0)
    min_evaluations: int = Field(1, ge=1, description="evaluations before a trial may be pruned")
    max_evaluations: int | None = Field(
        None,
        ge=1,
        description="evaluations of a whole trial, for hyperband, halving; default: by train.epochs",
    )
    warm_start: list[str] = Field(
        default_factory=list, description='earlier studies, or "catalogue:MODEL", whose results are learnt from'
    )
    retries: int = Field(2, ge=0, description="further attempts for a trial whose worker was lost")
    targets: list[str] | Literal["all"] | None = Field(
        None, description='targets of the site that take trials, whoever is free; "all": every one that can'
    )
    budget: BudgetTable = BudgetTable()
    space: dict[str, Dimension] = Field(min_length=1)

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("names an objective twice")
        return value

    @field_validator("directions")
    @classmethod
    def _of_metrics(cls, value: list[Direction] | None, info: ValidationInfo) -> list[Direction] | None:
        metrics = info.data.get("metrics")
        if "metrics" in info.data and len(value or ()) != len(metrics or ()):
            if metrics is None:
                raise ValueError("is for sweep.metrics; one objective has sweep.metric and sweep.direction")
            raise ValueError(f"has to say minimize or maximize for each of the {len(metrics)} sweep.metrics")
        return value

    @field_validator("metric", "direction")
    @classmethod
    def _of_one(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("metrics"):  # called only for what the file says itself
            raise ValueError("is for one objective, and sweep.metrics names them all: keep one of the two")
        return value

    @field_validator("constraints")
    @classmethod
    def _constraints(cls, value: list[str]) -> list[str]:
        for text in value:
            Constraint.parse(text)
        return value

    @field_validator("sampler", "pruner")
    @classmethod
    def _of_several(cls, value: str, info: ValidationInfo) -> str:
        count = len(info.data.get("metrics") or ())
        if count > 1 and value == "cmaes":
            raise ValueError(f'"cmaes" has one objective, and there are {count}: use "nsga2", "tpe" or "gp"')
        if count > 1 and info.field_name == "pruner" and value != "none":
            raise ValueError(
                f'"{value}" compares trials by one objective, and there are {count}: set pruner = "none"'
            )
        return value

    @field_validator("budget")
    @classmethod
    def _one_value(cls, value: BudgetTable, info: ValidationInfo) -> BudgetTable:
        if value.value is not None and len(info.data.get("metrics") or ()) > 1:
            raise ValueError("a value ends a study of one objective, and sweep.metrics names several")
        return value

    @field_validator("warm_start")
    @classmethod
    def _learns(cls, value: list[str], info: ValidationInfo) -> list[str]:
        sampler = info.data.get("sampler", "tpe")
        if value and sampler not in ("tpe", "gp", "nsga2"):
            raise ValueError(f'"{sampler}" learns nothing from earlier results: use "tpe", "gp" or "nsga2"')
        return value

    @model_serializer(mode="wrap")
    def _one_form(self, handler: Any) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.metrics is not None:
            values.pop("metric", None)
            values.pop("direction", None)
        return values

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised, one or several."""
        if self.metrics is None:
            return (Objective(self.metric, self.direction),)
        return tuple(Objective(*pair) for pair in zip(self.metrics, self.directions or (), strict=True))

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints, read."""
        return tuple(Constraint.parse(text) for text in self.constraints)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a trial is measured by, objectives first."""
        names = [one.name for one in self.objectives] + [one.name for one in self.limits]
        return tuple(dict.fromkeys(names))
