"""Gradients summed over the ranks in buckets, while the backward pass goes on.

Buckets are filled in reverse order of the parameters, as the backward pass does, and reduced one after the
other in one fixed order, the same on every rank; a bucket whose parameters got no gradient (unused, or no
sample on this rank) takes part with zeros. After Li et al., "PyTorch Distributed" (VLDB 2020), without
DDP's average: the loop weighs each rank's mean loss by its share of the samples, so that the sum over the
ranks is the mean over the global batch even where the ranks hold unequal numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcmass.train.comm.base import Communicator, Pending

# Messages above glibc's 32 MiB ceiling fault their temporary in anew at every call (measured: 3 times slower).
MESSAGE_BYTES = 25 << 20
FLAGS = 5
"""Numbers that ride along with the gradients: see `GradientReducer.flags`."""


@dataclass
class _Bucket:
    flat: Tensor
    parameters: list[torch.nn.Parameter]
    views: list[Tensor]
    missing: set[int] = field(default_factory=set)
    pending: list[Pending] = field(default_factory=list)


class GradientReducer:
    """Owns the gradients of a model: `.grad` of every parameter is a view into a reused flat buffer.

    Use in a step: `zero()`, micro-batches with `backward()`, before the last of them `start()`, then
    `finish()`.

    Attributes:
        flags: `FLAGS` numbers, set before `start` and summed over the ranks by `finish`, at no cost of a
            message of their own (small whole numbers only: they share the gradients' type).
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        comm: Communicator,
        *,
        bucket_bytes: int = MESSAGE_BYTES,
    ) -> None:
        """Lay out the buckets and hook the parameters.

        Args:
            parameters: All parameters, in the model's order; those without gradient are left out.
            comm: The ranks.
            bucket_bytes: A bucket is closed when the next parameter would make it larger.
        """
        self._comm = comm
        self._armed = False
        self._next = 0
        groups = _group([p for p in parameters if p.requires_grad], bucket_bytes)
        self._buckets = [
            _make_bucket(group, FLAGS if i == len(groups) - 1 else 0) for i, group in enumerate(groups)
        ]
        if not groups:
            self._buckets = [_Bucket(torch.zeros(FLAGS, device=comm.device), [], [])]
        self.flags = self._buckets[-1].flat[-FLAGS:]
        self._where = {id(p): (b, n) for b in self._buckets for n, p in enumerate(b.parameters)}
        self._handles = [
            p.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]
            for b in self._buckets
            for p in b.parameters
        ]

    def zero(self) -> None:
        """Set all gradients and flags to zero."""
        for bucket in self._buckets:
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def start(self) -> None:
        """From here on a bucket is reduced as soon as all its gradients are there."""
        self._armed = True
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = set(range(len(bucket.parameters)))
            bucket.pending = []

    def finish(self) -> None:
        """Reduce what is left, and wait for all of it.

        Raises:
            RankFailed: Another rank went away.
        """
        if not self._armed:
            self.start()
        self._armed = False
        while self._next < len(self._buckets):
            self._launch()
        for bucket in self._buckets:
            for pending in bucket.pending:
                pending.wait()
            bucket.pending = []

    def close(self) -> None:
        """Take the hooks off and give the buffers back."""
        for handle in self._handles:
            handle.remove()
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.grad = None

    def _ready(self, parameter: Tensor) -> None:
        bucket, number = self._where[id(parameter)]
        self._settle(bucket, number)
        if not self._armed:
            return
        bucket.missing.discard(number)
        while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
            self._launch()

    def _settle(self, bucket: _Bucket, number: int) -> None:
        """Bring a gradient that autograd or the user put elsewhere back into the buffer."""
        parameter, view = bucket.parameters[number], bucket.views[number]
        if parameter.grad is not None and parameter.grad is not view:
            if parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
            parameter.grad = view

    def _launch(self) -> None:
        bucket = self._buckets[self._next]
        if self._comm.size > 1:
            step = max(1, MESSAGE_BYTES // bucket.flat.element_size())
            for number, piece in enumerate(torch.split(bucket.flat, step)):
                bucket.pending.append(self._comm.allreduce_(piece, slot=self._next * 4096 + number))
        self._next += 1


def _group(parameters: list[torch.nn.Parameter], bucket_bytes: int) -> list[list[torch.nn.Parameter]]:
    """Parameters in reverse order, cut where the type changes or the bucket is full."""
    groups: list[list[torch.nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        nbytes = parameter.numel() * parameter.element_size()
        same = groups and groups[-1][0].dtype == parameter.dtype and groups[-1][0].device == parameter.device
        if not same or size + nbytes > bucket_bytes:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += nbytes
    return groups


def _make_bucket(parameters: list[torch.nn.Parameter], extra: int) -> _Bucket:
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters) + extra, dtype=first.dtype, device=first.device)
    views, start = [], 0
    for parameter in parameters:
        views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        start += parameter.numel()
    return _Bucket(flat, parameters, views)
