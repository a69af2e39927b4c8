"""A step's gradients: this rank's micro-batches forward and backward, and the sum over the ranks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmass.data.order import Ids, rank_slice
from hpcmass.errors import RecipeError
from hpcmass.train.augment import Augment
from hpcmass.train.comm.base import Communicator, Values
from hpcmass.train.compiled import compiled
from hpcmass.train.defaults import Sum
from hpcmass.train.feed import Cut, Key, ReadAhead, steps_ahead
from hpcmass.train.inputs import Prepared, forward, prepare, without_padding
from hpcmass.train.pace import COMPUTE, INPUT, REDUCTION, Pace, Row
from hpcmass.train.precision import WIRE_TYPES, Precision
from hpcmass.train.ragged import is_packed
from hpcmass.train.reducer import COUNTED, LOSS, GradientReducer
from hpcmass.train.shares import equal_shares, fractions, measured_shares, part_of
from hpcmass.train.soundness import LossWatch
from hpcmass.train.task import Plan, Position, Task

NOTHING: Values = np.zeros(0)


class Gradients:
    """One rank's part of the gradient of a global batch, and then the whole of it in every `.grad`.

    Use in a step: `compute`, `reduce`, then look at `flags` and update the parameters.

    Attributes:
        precision: What the model computes in.
        soundness: What a loss may be.
        step_loss: The mean loss of the whole global batch, the same on all ranks; known after `reduce`.
        spoilt: Of this step: samples of this rank whose mean loss is not finite, and that loss.
    """

    def __init__(
        self, task: Task, comm: Communicator, plan: Plan, at: Callable[[], Position], pace: Pace
    ) -> None:
        """Prepare. Collective.

        Args:
            task: What is trained; its model has its initial weights.
            comm: The ranks.
            plan: Samples and steps of the run.
            at: Where the run is; asked when the first batch is read.
            pace: Is told what the time went into.
        """
        self._task, self._comm, self._plan, self._at = task, comm, plan, at
        self._job = job = task.job.train
        self.precision = Precision(job.precision, comm.device)
        self.soundness = LossWatch(job.max_loss)
        self.spoilt: tuple[Ids, float] | None = None
        self.step_loss = self._own_loss = 0.0
        self._pace = pace
        self._forward: Callable[..., Any] = compiled(task.model, comm.device) if job.compile else task.model
        self._losses = 0.0  # of this rank's samples, since `collect`
        self._packed = is_packed(task.train)
        self._step = StepLoss()
        self._step_ids: list[Ids] = []  # this rank's samples of the step
        self._ends: tuple[int, ...] | None = None  # of the ranks' shares; None: equal ones
        self._reducer = self._make_reducer()
        self._data = self._read_ahead()

    def _make_reducer(self) -> Any:
        wire = WIRE_TYPES[self._job.compression]
        return GradientReducer(self._task.model.parameters(), self._comm, wire=wire)

    @property
    def flags(self) -> Tensor:
        """Numbers that ride along: see `GradientReducer.flags`."""
        flags: Tensor = self._reducer.flags
        return flags

    def compute(self, at: Position, stop: int, set_flags: Callable[[bool], None]) -> None:
        """Gradients of this rank's samples, weighed by their share of the global batch.

        Args:
            at: Where the run is; the step's samples begin there.
            stop: Position in the epoch at which they end.
            set_flags: Called once, before anything is sent, with whether this rank's losses are sound.
        """
        n = stop - at.samples
        seed_step(self._job.seed, at.step, self._comm.rank)
        self._reducer.zero()
        self._step, self.spoilt = StepLoss(n), None
        micros = self._micros(at, n)
        self._step_ids = [ids for _, ids in micros]
        self._pace.count(sum(len(ids) for _, ids in micros))
        for cut, ids in micros:
            loss = self._loss(ids, self._read(cut.padded(ids), Key(at.epoch, at.samples + cut.low)))
            self._judged(loss, cut.number, ids)
            if cut is micros[-1][0]:
                self._set_flags(set_flags)
                self._reducer.start()
            self._backward(loss, len(ids) / n)
        if not micros:
            self._set_flags(set_flags)

    def _set_flags(self, set_flags: Callable[[bool], None]) -> None:
        set_flags(self.spoilt is None)
        self._reducer.flags[COUNTED] = float(self._step.counted)
        self._put_loss()

    def _put_loss(self) -> None:
        """This rank's part of the step's loss goes with its gradients; that it is no number says a flag."""
        total = self._step.total
        self._own_loss = total / self._step.samples if math.isfinite(total) else 0.0
        if self._reducer.exact:
            self._reducer.flags[LOSS] = self._own_loss

    def _cut(self, n: int) -> list[Cut]:
        """This rank's micro-batches of a global batch of `n` samples; those without a sample are left out."""
        job, rank, size = self._job, self._comm.rank, self._comm.size
        low, high = self._part(n, rank, size)
        widest = self._part(job.global_batch if job.last == "pad" else n, rank, size)
        made = []
        for part in range(job.accumulation):
            begin, end = rank_slice(low, high, part, job.accumulation)
            first, last = rank_slice(*widest, part, job.accumulation)
            if end > begin:
                # Measured shares round: of fewer samples a part may be longer by one than of a whole batch.
                made.append(Cut(part, begin, end, max(last - first, end - begin)))
        return made

    def _part(self, n: int, rank: int, size: int) -> tuple[int, int]:
        """This rank's part of a global batch of `n` samples."""
        return rank_slice(0, n, rank, size) if self._ends is None else part_of(n, rank, self._ends)

    def rebalance(self, rows: Row) -> list[float] | None:
        """Have shares follow measured speed, where the job says so. All ranks call it with the same rows.

        Args:
            rows: `Pace.row` of every rank.

        Returns:
            Each rank's share, where they have changed.
        """
        if self._job.shares != "measured":
            return None
        ends = measured_shares(rows, self._ends or equal_shares(self._comm.size))
        if ends is None:
            return None
        self._ends = ends
        self._data.close()  # it has read ahead what other ranks take now
        self._data = self._read_ahead()
        return fractions(ends)

    def _micros(self, at: Position, n: int) -> list[tuple[Cut, Ids]]:
        """This rank's micro-batches of the next `n` samples, with their sample numbers."""
        cuts = self._cut(n)
        if not cuts:
            return []
        low = cuts[0].low
        ids = self._task.order.ids(at.epoch, at.samples + low, at.samples + cuts[-1].high)
        return [(cut, ids[cut.low - low : cut.high - low]) for cut in cuts]

    def reduce(self) -> None:
        """Sum gradients and flags over the ranks, and wait for it. Collective.

        Raises:
            RankFailed: Another rank went away.
        """
        self._reducer.finish()
        scale = self._average()
        if self._reducer.exact:
            loss = float(self._reducer.flags[LOSS])
        else:
            loss = float(self._comm.allreduce_values(np.array([self._own_loss]))[0])
        self.step_loss = scale * loss
        self._pace.lap(REDUCTION)

    def _average(self) -> float:
        """Where losses are sums over values: the gradient of their mean over the whole global batch.

        The gradients are there divided by the samples; what they should be divided by is known by now.

        Returns:
            Samples / values, by which what was divided by the samples is to be multiplied.
        """
        scale = 1.0
        if float(self._reducer.flags[COUNTED]) > 0:
            # Sums of whole numbers are the same in any order.
            whole = float(self._comm.allreduce_values(np.array([self._step.count]))[0])
            scale = self._step.samples / whole if whole else 1.0
            grads = [p.grad for p in self._task.model.parameters() if p.grad is not None]
            if grads:
                torch._foreach_mul_(grads, scale)
        self._add_losses({number: total * scale for number, total in self._step.totals.items()})
        return scale

    def _add_losses(self, totals: Mapping[int, float]) -> None:
        """Take the losses of a step's micro-batches, each the sum over its samples, into the window."""
        step = 0.0
        for total in totals.values():
            step += total
        self._losses += step

    def collect(self, at: Position, more: Values = NOTHING) -> Values:
        """Bring the ranks' sums of losses together in the window. Collective.

        Args:
            at: Where the run is.
            more: Numbers to be summed over the ranks in the same message.

        Returns:
            Their sums.
        """
        values = self._comm.allreduce_values(np.concatenate([[self._losses], more]))
        at.window_loss += float(values[0])
        self._losses = 0.0
        return values[1:]

    def validation(self) -> dict[str, Any]:
        """How `validate` goes through the samples."""
        return {"batch": max(1, -(-self._job.global_batch // self._comm.size))}

    def close(self) -> None:
        """End the reading threads, and let go of the gradients."""
        self._data.close()
        self._reducer.close()

    def _read(self, shown: Ids, key: Key) -> Prepared:
        """A micro-batch, ready for the model; some samples may be there twice, to pad it.

        Raises:
            RecipeError: `transform` made another number of samples of it.
        """
        task = self._task
        arrays = {**self._data.batch(shown, key), "sample_id": shown}
        ready = prepare(arrays, task.recipe, *task.fields, train=True, device=self._comm.device)
        if ready.n != len(shown) and not self._packed:
            raise RecipeError(
                f"transform made {ready.n} samples of {len(shown)}", where=task.recipe.path,
                hint="change samples, but keep their number",
            )  # fmt: skip
        self._pace.lap(INPUT)
        return ready

    def _loss(self, micro: Ids, ready: Prepared) -> Tensor | Sum:
        """Mean loss of a micro-batch, or its sum; the padding counts in nothing."""
        recipe = self._task.recipe
        with self.precision.autocast():
            outputs, targets = forward(self._forward, recipe, ready.inputs), ready.targets
            if ready.n > len(micro) and not self._packed:
                outputs, targets = (without_padding(v, len(micro), ready.n) for v in (outputs, targets))
            loss = recipe.loss(outputs, targets)
        if self._packed and not isinstance(loss, Sum):
            raise RecipeError(
                "loss returned one number, and of packed samples nobody could tell which mean it is",
                where=recipe.path,
                hint='return a pair: cross_entropy(…, reduction="sum"), (targets != -100).sum()',
            )
        return loss

    def _judged(self, loss: Tensor | Sum, number: int, micro: Ids) -> None:
        """Count the losses of a micro-batch; the first that is not finite is remembered."""
        value = loss.mean if isinstance(loss, Sum) else float(loss.detach())
        if not math.isfinite(value) and self.spoilt is None:
            self.spoilt = micro, value
        self._step.add(loss, number, len(micro))

    def own_step(self) -> tuple[Ids, float] | None:
        """This rank's samples of the step, and their mean loss; None without samples."""
        return (np.concatenate(self._step_ids), self._step.mean) if self._step_ids else None

    def _backward(self, loss: Tensor | Sum, weight: float) -> None:
        if isinstance(loss, Sum):
            loss, weight = loss.total, 1 / self._step.samples
        with self._task.recipe.errors("the backward pass"):
            self.precision.scaled(loss * weight).backward()  # type: ignore[no-untyped-call]
        self._pace.lap(COMPUTE)

    def _read_ahead(self) -> ReadAhead:
        """This rank's batches, from where the run is when the first is read."""
        task, data, job = self._task, self._task.job.data, self._job

        def begin() -> tuple[int, int, int]:
            at = self._at()
            return at.step, at.epoch, at.samples

        keys: dict[int, Key] = {}
        augment = None if not task.recipe.augments else Augment(task.recipe, job.seed)
        plan = steps_ahead(
            task.order.ids, begin,
            usable=self._plan.usable, total_steps=self._plan.total_steps, batch=job.global_batch, cut=self._cut,
            keys=None if augment is None else keys,
        )  # fmt: skip
        block = getattr(task.order, "block", None)
        return ReadAhead(
            task.train, plan, read=data.read, block=block, device=self._comm.device, augment=augment, keys=keys
        )


@dataclass
class StepLoss:
    """This rank's losses in a step.

    Attributes:
        samples: Samples of the global batch.
        totals: By micro-batch the sum of the losses of its samples, or of its values.
        count: Number of those samples, or values.
        counted: Whether they are values: some loss was a `Sum`.
    """

    samples: int = 0
    totals: dict[int, float] = field(default_factory=dict)
    count: float = 0.0
    counted: bool = False

    @property
    def total(self) -> float:
        """Sum over this rank's samples, or values."""
        total = 0.0
        for one in self.totals.values():
            total += one
        return total

    @property
    def mean(self) -> float:
        """Mean over this rank's samples, or values."""
        return self.total / self.count if self.count else 0.0

    def add(self, loss: Tensor | Sum, number: int, samples: int) -> None:
        """The loss of a micro-batch of so many samples."""
        if isinstance(loss, Sum):
            self.totals[number], self.counted = float(loss.total.detach()), True
            self.count += loss.count
        else:
            self.totals[number] = float(loss.detach()) * samples
            self.count += samples


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the generators that dropout and augmentation draw from, as a function of (seed, step, rank).

    In a reproducible run a micro-batch's number stands in place of the rank.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    random.seed(int(words[1]))
    np.random.seed(int(words[2] & np.uint64(0xFFFFFFFF)))
