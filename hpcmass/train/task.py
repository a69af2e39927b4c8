"""What a run trains, how far it is, and how many steps it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hpcmass.config import Job
from hpcmass.data.order import Order
from hpcmass.errors import ConfigError
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.optim import Schedule
from hpcmass.train.recipe import Recipe


@dataclass
class Task:
    """What is trained: built alike on every rank."""

    job: Job
    recipe: Recipe
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: DatasetLike
    valid: DatasetLike | None
    fields: tuple[list[str], list[str]]
    order: Order


@dataclass
class Position:
    """How far a run is; the same on all ranks, and part of every checkpoint.

    Attributes:
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        samples: Samples of this epoch done.
        window_loss: Sum of the losses of the samples since the last `train` record.
        window_samples: Their number.
        best: Best value of the early-stop metric.
        bad: Evaluations since then.
        evaluated: Step of the last evaluation.
        kept_best: Best value of that metric (the loss without early stop), where its checkpoint stays.
        kept_step: Its step.
        scaler: State of fp16's loss scale.
        skipped: Steps since the last `train` record that were skipped, a gradient having overflowed.
        window_losses: Of a reproducible run, `window_loss` by micro-batch.
        loss_mean: Running mean of the steps' losses, by which a diverging one is told.
    """

    step: int = 0
    epoch: int = 0
    samples: int = 0
    window_loss: float = 0.0
    window_samples: int = 0
    best: float | None = None
    bad: int = 0
    evaluated: int = -1
    kept_best: float | None = None
    kept_step: int = -1
    scaler: dict[str, Any] | None = None
    skipped: int = 0
    window_losses: list[float] | None = None
    loss_mean: float | None = None


@dataclass(frozen=True)
class Plan:
    """Steps of a run, from the job and the number of samples."""

    usable: int
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, job: Job, samples: int) -> Plan:
        """Count.

        Raises:
            ConfigError: There is not one step to do.
        """
        batch = job.train.global_batch
        full, rest = divmod(samples, batch)
        steps = full + (1 if rest and job.train.last != "drop" else 0)
        if steps == 0:
            raise ConfigError(
                f"there are {samples} samples, no whole batch of {batch}"
                if samples
                else "the dataset is empty",
                where="train.last_batch" if samples else "data.train",
                hint='lower train.global_batch, or last_batch = "keep"' if samples else None,
            )
        total = steps * job.train.epochs
        return cls(min(samples, steps * batch), steps, min(total, job.train.max_steps or total))
