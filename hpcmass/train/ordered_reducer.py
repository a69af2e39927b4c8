"""Gradients added up in one fixed order, whatever the number of ranks: see `hpcmass.train.tree`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmass.train.comm.base import Communicator
from hpcmass.train.reducer import FLAGS, LOSS
from hpcmass.train.tree import across, whole_nodes, within


@dataclass
class _Type:
    """The parameters of one type, and rows of their gradients side by side."""

    parameters: list[torch.nn.Parameter]
    shared: Tensor  # (rows, n): what the ranks add up of each other
    rows: list[Tensor]  # those, and scratch
    views: list[list[Tensor]]  # of each row, one a parameter


class OrderedReducer:
    """Owns the gradients of a model, as `GradientReducer` does, and adds them up along the tree.

    Use in a step: `zero()`, for each of this rank's micro-batches, in order, a backward pass and `add()`,
    then `flags`, `finish()`.

    Attributes:
        flags: Numbers that are summed over the ranks, set before `finish`; all but `LOSS`, which `add` sets.
    """

    exact = True

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        comm: Communicator,
        many: int,
        shares: Sequence[tuple[int, int]],
        *,
        flags: int = FLAGS,
    ) -> None:
        """Lay out the rows. Collective.

        Args:
            parameters: All parameters, in the model's order; those without gradient are left out.
            comm: The ranks.
            many: Micro-batches of a global batch, over all ranks.
            shares: Of each rank its micro-batches, from … to (without).
            flags: Their number.
        """
        self._comm, self._parameters = comm, [p for p in parameters if p.requires_grad]
        held = [whole_nodes(many, low, high) for low, high in shares]
        self._count = max(len(nodes) for nodes in held)
        self._steps = across(many, held, self._count)
        self._leaves, rows = within(held[comm.rank], self._count)
        groups: dict[torch.dtype, list[torch.nn.Parameter]] = {}
        for parameter in self._parameters:
            groups.setdefault(parameter.dtype, []).append(parameter)
        groups.setdefault(torch.float32, [])  # has the flags
        self._types = [self._lay_out(dtype, group, rows, flags) for dtype, group in groups.items()]
        self._tails = next(t.rows for t in self._types if t.shared.dtype == torch.float32)
        self._tails = [row[-flags:] for row in self._tails]
        self.flags = self._tails[0]

    def _lay_out(self, dtype: torch.dtype, group: list[torch.nn.Parameter], rows: int, flags: int) -> _Type:
        n = sum(p.numel() for p in group) + (flags if dtype == torch.float32 else 0)
        shared = self._comm.buffer(self._count * n, dtype).view(self._count, n)
        spare = torch.zeros(rows - self._count, n, dtype=dtype, device=self._comm.device)
        made = [*shared.unbind(), *spare.unbind()]
        sizes = [p.numel() for p in group]
        views = [
            [part.view(p.shape) for part, p in zip(torch.split(row[: sum(sizes)], sizes), group, strict=True)]
            for row in made
        ]
        return _Type(group, shared, made, views)

    def zero(self) -> None:
        """Begin a step: no gradients, and flags of zero."""
        self._forget()
        for tail in self._tails:
            tail.zero_()

    def add(self, micro: int, loss: float = 0.0) -> None:
        """Take the gradients of a micro-batch's backward pass out of the parameters.

        Args:
            micro: Which one; without a backward pass (no samples) its gradients are zero.
            loss: Its part of the step's loss, which is added up along the tree as the gradients are.
        """
        leaf = self._leaves[micro]
        if leaf.adds and leaf.adds[0][1] == leaf.row:
            self._tails[leaf.adds[0][0]][LOSS] += loss
        else:
            self._tails[leaf.row][LOSS] = loss
        with torch.no_grad():
            for one in self._types:
                grads = [_dense(p) for p in one.parameters]
                adds = list(leaf.adds)
                if adds and adds[0][1] == leaf.row:  # spares writing it down first
                    if grads:
                        torch._foreach_add_(one.views[adds[0][0]], grads)
                    adds = adds[1:]
                elif grads:
                    torch._foreach_copy_(one.views[leaf.row], grads)
                for to, of in adds:
                    one.rows[to].add_(one.rows[of])
        self._forget()

    def finish(self) -> None:
        """Add up what the ranks have: then every `.grad` is the sum, the same on all ranks. Collective.

        Raises:
            RankFailed: Another rank went away.
        """
        if self._comm.size > 1:
            self._comm.combine_([one.shared for one in self._types], self._steps)
        for one in self._types:
            for parameter, view in zip(one.parameters, one.views[0], strict=True):
                parameter.grad = view

    def close(self) -> None:
        """Let go of the buffers."""
        self._forget()
        self.flags = self.flags.clone()
        self._types, self._tails = [], []

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _dense(parameter: torch.nn.Parameter) -> Tensor:
    grad = parameter.grad
    if grad is None:
        return torch.zeros_like(parameter)
    return grad if grad.layout == torch.strided else grad.to_dense()
