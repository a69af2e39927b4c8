"""Gradients of a reproducible run: the same, bit for bit, on any number of ranks.

A global batch is cut into micro-batches whose number the job settles, and a rank takes whole ones. What a
micro-batch's gradient is depends on nothing of the ranks: its samples, its random state, the model's buffers
as they were when the step began, and the number of threads. Their sum follows a fixed tree. Losses are summed
by micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmass.data.order import rank_slice
from hpcmass.train.comm.base import Communicator, Values
from hpcmass.train.feed import Cut, Key
from hpcmass.train.gradients import NOTHING, Gradients, StepLoss, seed_step
from hpcmass.train.ordered_reducer import OrderedReducer
from hpcmass.train.pace import COMPUTE, Pace
from hpcmass.train.reducer import FLAGS
from hpcmass.train.task import Plan, Position, Task


class OrderedGradients(Gradients):
    """`Gradients` whose sum does not depend on the number of ranks."""

    def __init__(
        self, task: Task, comm: Communicator, plan: Plan, at: Callable[[], Position], pace: Pace
    ) -> None:
        """Prepare. Collective; see `Gradients`."""
        assert task.job.train.micro_batches is not None
        self._many = task.job.train.micro_batches
        self._mine = rank_slice(0, self._many, comm.rank, comm.size)
        self._sums: np.ndarray[Any, np.dtype[np.float64]] | None = None  # of losses, by micro-batch
        self._buffers = Buffers(task.model, comm)
        super().__init__(task, comm, plan, at, pace)

    def _make_reducer(self) -> OrderedReducer:
        size = self._comm.size
        shares = [rank_slice(0, self._many, rank, size) for rank in range(size)]
        parameters = self._task.model.parameters()
        return OrderedReducer(parameters, self._comm, self._many, shares, flags=FLAGS + 1)

    @property
    def flags(self) -> Tensor:
        """Numbers that ride along; the last, whether buffers of the model changed, is not shown."""
        flags: Tensor = self._reducer.flags[:FLAGS]
        return flags

    def compute(self, at: Position, stop: int, set_flags: Callable[[bool], None]) -> None:
        """See `Gradients.compute`."""
        n, seed = stop - at.samples, self._job.seed
        self._reducer.zero()
        self._buffers.begin()
        self._step, self.spoilt = StepLoss(n), None
        self._window(at)
        micros = {cut.number: (cut, ids) for cut, ids in self._micros(at, n)}
        for number in range(*self._mine):
            if number in micros:
                cut, ids = micros[number]
                seed_step(seed, at.step, number)
                loss = self._loss(ids, self._read(cut.padded(ids), Key(at.epoch, at.samples + cut.low)))
                self._judged(loss, number, ids)
                self._backward(loss, len(ids) / n)
                self._buffers.put_back(keep=number == 0)
            value = self._step.totals.get(number, 0.0)
            self._reducer.add(number, value / n if math.isfinite(value) else 0.0)
        self._pace.lap(COMPUTE)
        self._step_ids = [ids for _, ids in micros.values()]
        self._set_flags(set_flags)
        self._reducer.flags[FLAGS] = float(self._buffers.changed)
        self._at_step = at.step

    def _put_loss(self) -> None:
        """See `Gradients._put_loss`: micro-batches' losses are added up along the tree."""

    def reduce(self) -> None:
        """See `Gradients.reduce`."""
        super().reduce()
        self._buffers.settle(changed=float(self._reducer.flags[FLAGS]) > 0)
        seed_step(self._job.seed, self._at_step, self._many)  # an optimizer may draw, too

    def _add_losses(self, totals: Mapping[int, float]) -> None:
        """See `Gradients._add_losses`: by micro-batch."""
        assert self._sums is not None
        for number, total in totals.items():
            self._sums[number] += total

    def _cut(self, n: int) -> list[Cut]:
        """See `Gradients._cut`: this rank's whole micro-batches."""
        widest = self._job.global_batch if self._job.last == "pad" else n
        made = []
        for number in range(*self._mine):
            low, high = rank_slice(0, n, number, self._many)
            first, last = rank_slice(0, widest, number, self._many)
            if high > low:
                made.append(Cut(number, low, high, max(last - first, high - low)))
        return made

    def _window(self, at: Position) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sums of the losses since the last record; this rank keeps up those of its micro-batches."""
        if at.window_samples == 0:
            self._sums = np.zeros(self._many)
        elif self._sums is None:  # goes on from a checkpoint
            self._sums = np.array(at.window_losses or np.zeros(self._many))
        assert self._sums is not None
        return self._sums

    def collect(self, at: Position, more: Values = NOTHING) -> Values:
        """See `Gradients.collect`. A sum with zeros alone is exact in any order."""
        sums = self._window(at)
        mine = np.zeros(self._many)
        mine[slice(*self._mine)] = sums[slice(*self._mine)]
        values = self._comm.allreduce_values(np.concatenate([mine, more]))
        self._sums = values[: self._many].copy()
        at.window_losses = self._sums.tolist()
        at.window_loss = 0.0
        for value in at.window_losses:
            at.window_loss += value
        return values[self._many :]

    def validation(self) -> dict[str, Any]:
        """See `Gradients.validation`: in batches of one size on any number of ranks."""

        def seed(number: int) -> None:
            seed_step(self._job.seed, self._at().step, self._many + 1 + number)

        return {"batch": -(-self._job.global_batch // self._many), "seed": seed}


class Buffers:
    """A model's buffers (running statistics), which the forward pass may change.

    Every micro-batch finds them as they were when the step began; as they are after micro-batch 0, which is
    rank 0's, all ranks have them in the next step. They are compared by value: torch's own batch norm changes
    its statistics without counting up their version.

    Attributes:
        changed: Whether this rank's micro-batch 0 has changed them in this step.
    """

    def __init__(self, model: torch.nn.Module, comm: Communicator) -> None:
        """Copy the buffers, which are alike on all ranks."""
        self._model, self._comm = model, comm
        self.changed = False
        self._saved: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Begin a step."""
        self.changed, self._first = False, {}
        for name, buffer in self._model.named_buffers():
            if name not in self._saved or not torch.equal(buffer, self._saved[name]):
                self._saved[name] = buffer.detach().clone()

    def put_back(self, *, keep: bool) -> None:
        """After a micro-batch: put them back; where `keep`, what they had become is for `settle`."""
        for name, buffer in self._model.named_buffers():
            if torch.equal(buffer, self._saved[name]):
                continue
            if keep:
                self._first[name] = buffer.detach().clone()
                self.changed = True
            with torch.no_grad():
                buffer.copy_(self._saved[name])

    def settle(self, *, changed: bool) -> None:
        """All ranks take rank 0's, if any have `changed`. Collective."""
        if not changed:
            return
        buffers = dict(self._model.named_buffers())
        with torch.no_grad():
            for name, value in self._first.items():
                buffers[name].copy_(value)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers.values():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        for group in by_type.values():  # one message a type
            flat = torch.cat([buffer.detach().reshape(-1) for buffer in group])
            self._comm.broadcast_([flat])
            parts = torch.split(flat, [buffer.numel() for buffer in group])
            with torch.no_grad():
                for buffer, part in zip(group, parts, strict=True):
                    buffer.copy_(part.view(buffer.shape))
