"""Optimizers and schedules of torch by name, with a linear warm-up, stepped once an optimiser step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import lr_scheduler

from hpcmass.config import Job, nearest
from hpcmass.errors import ConfigError
from hpcmass.train.recipe import Recipe

# These cannot be driven by one gradient a step and nothing else.
_NOT_OPTIMIZERS = {"Optimizer", "LBFGS"}
_NOT_SCHEDULES = {
    "LRScheduler",
    "ReduceLROnPlateau",
    "ChainedScheduler",
    "SequentialLR",
    "LambdaLR",
    "MultiplicativeLR",
}


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """Optimizers of torch that a job file may name."""
    return {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in _NOT_OPTIMIZERS
    }


def schedule_names() -> dict[str, type[lr_scheduler.LRScheduler]]:
    """Schedules of torch that a job file may name."""
    return {
        name: value
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value)
        and issubclass(value, lr_scheduler.LRScheduler)
        and name not in _NOT_SCHEDULES
        and not name.startswith("_")
    }


def make_optimizer(model: torch.nn.Module, recipe: Recipe, job: Job) -> torch.optim.Optimizer:
    """The recipe's optimizer, else that of the job file.

    Raises:
        ConfigError: The name is none of torch.optim, an argument does not fit, or nothing is to be learnt.
        RecipeError: The recipe's `optimizer` raised.
    """
    table = job.train
    if recipe.optimizer is not None:
        return recipe.optimizer(model, dict(job.params), table.scaled_lr)
    kind = _pick(table.optimizer, optimizer_names(), "train.optimizer", "an optimizer of torch.optim")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("the model has no parameter to learn", where=recipe.path)
    try:
        made: torch.optim.Optimizer = kind(parameters, lr=table.scaled_lr, **_tuples(table.optimizer_args))
        return made
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{table.optimizer} refuses its arguments: {error}",
            where="train.optimizer_args",
            hint=f"it takes: {', '.join(_arguments(kind))}",
        ) from error


def check_optimizer(recipe: Recipe, job: Job) -> None:
    """Try the job's optimizer and schedule on a model of one weight, where the recipe brings no optimizer.

    Raises:
        ConfigError: A name or an argument is wrong.
    """
    if recipe.optimizer is None:
        Schedule(
            make_optimizer(torch.nn.Linear(1, 1), recipe, job), job, job.train.schedule.warmup_steps + 1000
        )


class Schedule:
    """Learning rates: a linear warm-up to the optimizer's own, then the named schedule.

    In step s < `warmup_steps` (counted from 0) every group has its rate times (s + 1) / `warmup_steps`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, job: Job, total_steps: int) -> None:
        """Build the schedule; `T_max`, `total_steps` and `total_iters` default to the steps after warm-up.

        Raises:
            ConfigError: The name is none of torch's, or an argument does not fit.
        """
        table = job.train.schedule
        self._optimizer = optimizer
        self._warmup = table.warmup_steps
        self._inner: lr_scheduler.LRScheduler | None = None
        if table.name is not None:
            where = "train.schedule.name"
            kind = _pick(table.name, schedule_names(), where, "a schedule of torch.optim.lr_scheduler")
            args = _tuples(table.args)
            known = _arguments(kind)
            for name in ("T_max", "total_steps"):
                if name in known and name not in args and "epochs" not in args:
                    args[name] = max(1, total_steps - self._warmup)
            try:
                self._inner = kind(optimizer, **args)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{table.name} refuses its arguments: {error}",
                    where="train.schedule.args",
                    hint=f"it takes: {', '.join(known)}",
                ) from error
        self._start = [float(group["lr"]) for group in optimizer.param_groups]
        self.before(0)

    @property
    def lr(self) -> float:
        """The first group's rate."""
        return float(self._optimizer.param_groups[0]["lr"])

    def before(self, step: int) -> None:
        """Set the rates of warm-up for the step to come (steps count from 0)."""
        if step <= self._warmup and self._warmup:
            part = min(1.0, (step + 1) / self._warmup)
            for group, start in zip(self._optimizer.param_groups, self._start, strict=True):
                group["lr"] = start * part

    def after(self, step: int) -> None:
        """Advance past `step`, once the optimizer has stepped."""
        if self._inner is None or step < self._warmup:
            return
        try:
            self._inner.step()
        except ValueError as error:  # OneCycleLR past its end
            raise ConfigError(
                f"the schedule ends before training does: {error}", where="train.schedule.args"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"start": self._start, "inner": self._inner.state_dict() if self._inner else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._start = [float(value) for value in state["start"]]
        if self._inner is not None and state["inner"] is not None:
            self._inner.load_state_dict(state["inner"])


def _pick(name: str, known: dict[str, Any], where: str, what: str) -> Any:
    if name in known:
        return known[name]
    like = nearest(name, list(known))
    raise ConfigError(
        f"{name!r} is not {what} that can be used here",
        where=where,
        hint=f"did you mean {like!r}?" if like else f"one of: {', '.join(sorted(known))}",
    )


def _arguments(kind: type) -> list[str]:
    names = list(inspect.signature(kind).parameters)
    return [name for name in names if name not in ("params", "optimizer", "lr", "verbose")]


def _tuples(args: dict[str, Any]) -> dict[str, Any]:
    """TOML has no tuples, and torch wants some (`betas`); its lists (`milestones`) may be tuples too."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
