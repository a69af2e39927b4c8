"""Whether the loss is still one that training can go on from: a finite number, and no diverging one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DIVERGED_TIMES = 1000.0
"""A loss that is this many times the run's first one is diverging, where `train.max_loss` says nothing."""
_KEPT = 0.9  # of the running mean a step: one bad batch among good ones ends no run


class LossWatch:
    """The judgement of the losses of whole global batches, so the same on any number of ranks.

    Attributes:
        mean: The running mean of the losses, which a checkpoint holds; None before the first.
        first_loss: The loss of the run's first record, the same on all ranks; None before it.
    """

    def __init__(self, max_loss: float | None) -> None:
        """Prepare.

        Args:
            max_loss: `train.max_loss`.
        """
        self._max_loss = max_loss
        self.mean: float | None = None
        self.first_loss: float | None = None

    @property
    def limit(self) -> float:
        """Above this, the loss diverges."""
        if self._max_loss is not None:
            return self._max_loss
        first = self.first_loss
        return DIVERGED_TIMES * first if first is not None and first > 0 else math.inf

    def sound(self, loss: float) -> bool:
        """Take a step's loss in; False when it is no finite number, or the losses diverge.

        Args:
            loss: The mean over the global batch of the step.
        """
        if not math.isfinite(loss):
            return False
        self.mean = loss if self.mean is None else _KEPT * self.mean + (1 - _KEPT) * loss
        return self.mean <= self.limit


def bad_loss_in_words(blame: Sequence[dict[str, Any]], loss: float, limit: float) -> str:
    """What is wrong with the loss, the same on all ranks.

    Args:
        blame: Of `gather_blame`.
        loss: Of the global batch.
        limit: Of `LossWatch.limit`.
    """
    losses = [one["loss"] for one in blame]
    if None in losses or not losses:
        return "the loss is NaN or infinite"
    return f"the loss diverges ({loss:.4g}; the limit is {limit:.4g})"
