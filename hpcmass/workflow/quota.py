"""The blocks of one target, shared by executors that cut them differently."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcmass.workflow.executors import BlockExecutor

# An executor with a block and without work gives it up at once where another one waits for it; one with work
# does so when another one has waited for so long.
_IDLE_S = 1.0
_PATIENCE_S = 30.0


class Quota:
    """Blocks, or nodes, that a target's executors may have at once; looked at by Parsl's one scaling thread.

    Attributes:
        members: The executors.
    """

    def __init__(self, blocks: int | None, nodes: int | None) -> None:
        """Make one.

        Args:
            blocks: Blocks at once; None: only nodes are counted.
            nodes: Nodes at once, where blocks are not counted; None: no limit.
        """
        self._blocks, self._nodes = blocks, nodes
        self.members: list[BlockExecutor] = []
        self._waits: dict[BlockExecutor, float] = {}

    def grant(self, asking: BlockExecutor) -> bool:
        """Whether an executor may have a further block now; makes room for it where others can spare one."""
        if len(self.members) < 2:
            return True
        first = min(
            (one for one in self._waits if one.outstanding()), key=self._waits.__getitem__, default=None
        )
        if self._fits(asking) and first in (None, asking):
            self._waits.pop(asking, None)
            return True
        if first is not None and first is not asking and self._fits(first):
            return False  # It is another one's turn.
        since = self._waits.setdefault(asking, time.monotonic())
        self._make_room(asking, urgent=time.monotonic() - since > _PATIENCE_S)
        return False

    def _fits(self, asking: BlockExecutor) -> bool:
        live = [(one, len(one.live_blocks())) for one in self.members]
        if self._blocks is not None:
            return sum(count for _, count in live) < self._blocks
        used = sum(count * one.shape.nodes for one, count in live)
        return self._nodes is None or used + asking.shape.nodes <= self._nodes

    def _make_room(self, asking: BlockExecutor, *, urgent: bool) -> None:
        others = [one for one in self.members if one is not asking and one.live_blocks()]
        for one in others:
            if not one.outstanding() and one.scale_in_facade(1, max_idletime=_IDLE_S):
                return
        if others and urgent and not any(one.given_way for one in others):
            max(others, key=lambda one: len(one.live_blocks())).give_way()


__all__ = ["Quota"]
