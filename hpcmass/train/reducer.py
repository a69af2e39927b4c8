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
FLAGS, LOSS, COUNTED = 7, 5, 6
"""Numbers that ride along with the gradients (see `GradientReducer.flags`), and which of them are the loss, and
whether some rank's loss was a sum over values."""


@dataclass
class _Bucket:
    flat: Tensor
    parameters: list[torch.nn.Parameter]
    views: list[Tensor]
    missing: set[int] = field(default_factory=set)  # whose gradient is not there yet
    pending: list[Pending] = field(default_factory=list)


class GradientReducer:
    """Owns the gradients of a model: `.grad` of every parameter is a view into a reused flat buffer.

    A step's first gradient of a parameter is copied there as it comes (dearer by nothing than adding it to
    zeros, which would have to be written first); the next ones add up there. One rank alone needs no buffer.

    Use in a step: `zero()`, micro-batches with `backward()`, before the last of them `start()`, then
    `finish()`.

    Attributes:
        flags: `FLAGS` numbers, set before `start` and summed over the ranks by `finish`, at no cost of a
            message of their own (small whole numbers only: they share the gradients' type), but for `LOSS`
            where they are `exact`.
        exact: Whether flags travel as float32 at least.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        comm: Communicator,
        *,
        bucket_bytes: int = MESSAGE_BYTES,
        wire: torch.dtype | None = None,
    ) -> None:
        """Lay out the buckets and hook the parameters. Collective.

        Args:
            parameters: All parameters, in the model's order; those without gradient are left out.
            comm: The ranks.
            bucket_bytes: A bucket is closed when the next parameter would make it larger.
            wire: A narrower float type for gradients that are sent between ranks.
        """
        self._comm, self._wire = comm, wire
        self._armed = False
        self._next = 0
        self._parameters = [p for p in parameters if p.requires_grad]
        self._buckets: list[_Bucket] = []
        self._flats: list[Tensor] = []
        if comm.size == 1:
            self.flags = torch.zeros(FLAGS, device=comm.device)
        else:
            groups = _group(self._parameters, bucket_bytes)
            self._flats, self._buckets = _lay_out(groups, comm)
            self.flags = self._buckets[-1].flat[-FLAGS:]
        self.exact = self.flags.dtype.itemsize >= 4 and (wire is None or comm.size == 1)
        self._where = {id(p): (b, n) for b in self._buckets for n, p in enumerate(b.parameters)}
        self._handles = [
            p.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]
            for b in self._buckets
            for p in b.parameters
        ]

    def zero(self) -> None:
        """Begin a step: no gradients, and flags of zero."""
        for parameter in self._parameters:
            parameter.grad = None
        self.flags.zero_()

    def start(self) -> None:
        """From here on a bucket is reduced as soon as all its gradients are there."""
        self._armed = True
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = set(range(len(bucket.parameters)))
            bucket.pending = []

    def finish(self) -> None:
        """Reduce what is left, and wait for all of it; a parameter without gradient has one of zeros then.

        Raises:
            RankFailed: Another rank went away.
        """
        if not self._armed:
            self.start()
        self._armed = False
        if self._comm.size == 1:
            _complete(self._parameters)
        elif not self._comm.overlaps:
            for bucket in self._buckets:
                self._fill(bucket)
            self._comm.sum_(self._flats, self._wire)
        else:
            while self._next < len(self._buckets):
                self._fill(self._buckets[self._next])
                self._launch()
            for bucket in self._buckets:
                for pending in bucket.pending:
                    pending.wait()
                bucket.pending = []

    def close(self) -> None:
        """Take the hooks off and let go of the buffers."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._parameters:
            parameter.grad = None
        self.flags = self.flags.clone()
        self._buckets, self._flats, self._where, self._handles = [], [], {}, []

    def _ready(self, parameter: Tensor) -> None:
        bucket, number = self._where[id(parameter)]
        self._settle(bucket, number)
        if not self._armed:
            return
        bucket.missing.discard(number)
        if not self._comm.overlaps:
            return
        while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
            self._launch()

    def _fill(self, bucket: _Bucket) -> None:
        for number in range(len(bucket.parameters)):
            self._settle(bucket, number)

    def _settle(self, bucket: _Bucket, number: int) -> None:
        """Bring a gradient that autograd or the user put elsewhere into the buffer; none at all is zeros."""
        parameter, view = bucket.parameters[number], bucket.views[number]
        grad = parameter.grad
        if grad is view:
            return
        if grad is None:
            view.zero_()
        elif grad.layout != torch.strided:
            view.zero_().add_(grad)
        elif grad.data_ptr() != view.data_ptr():
            view.copy_(grad)
        parameter.grad = view

    def _launch(self) -> None:
        bucket = self._buckets[self._next]
        step = max(1, MESSAGE_BYTES // bucket.flat.element_size())
        for number, piece in enumerate(torch.split(bucket.flat, step)):
            slot = self._next * 4096 + number
            bucket.pending.append(self._comm.allreduce_(piece, slot, self._wire))
        self._next += 1


def _complete(parameters: list[torch.nn.Parameter]) -> None:
    """Gradients as several ranks have them: dense, and zeros where there are none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.layout != torch.strided:
            parameter.grad = parameter.grad.to_dense()


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


def _lay_out(groups: list[list[torch.nn.Parameter]], comm: Communicator) -> tuple[list[Tensor], list[_Bucket]]:
    """One buffer a type, and the groups' buckets in them one after the other; the flags end the last one."""
    if not groups:
        flat = comm.buffer(FLAGS, torch.float32)
        return [flat], [_Bucket(flat, [], [])]
    sizes = [sum(p.numel() for p in group) for group in groups]
    sizes[-1] += FLAGS
    totals: dict[torch.dtype, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        totals[group[0].dtype] = totals.get(group[0].dtype, 0) + size
    flats = {dtype: comm.buffer(total, dtype) for dtype, total in totals.items()}
    starts = dict.fromkeys(totals, 0)
    buckets = []
    for group, size in zip(groups, sizes, strict=True):
        dtype = group[0].dtype
        buckets.append(_make_bucket(group, flats[dtype][starts[dtype] : starts[dtype] + size]))
        starts[dtype] += size
    return list(flats.values()), buckets


def _make_bucket(parameters: list[torch.nn.Parameter], flat: Tensor) -> _Bucket:
    views, start = [], 0
    for parameter in parameters:
        views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        start += parameter.numel()
    return _Bucket(flat, parameters, views)
