"""What a study may use, and has used: its hard limits, beside the number of its trials."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import SweepTable, parse_duration
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import read_json, replace_json

FILE = "usage.json"
FORMAT = 1
_SAVED_EVERY_S = 5.0


@dataclass(frozen=True)
class Nodes:
    """What the workers use of nodes, as they say themselves.

    Attributes:
        node_s: Node-seconds of the study's blocks, all drivers, by what Slurm accounts and until now.
        reserved_s: Node-seconds that blocks which have not ended may use yet.
        local: Nodes that are in use now without a scheduler to account them.
        spent: Whether nothing runs, and nothing can be begun any more with what is left of the budget.
    """

    node_s: float = 0.0
    reserved_s: float = 0.0
    local: int = 1
    spent: bool = False


@dataclass(frozen=True)
class Used:
    """What a study has used, as `usage.json` has it.

    Attributes:
        wall_s: Seconds that drivers have worked on it.
        node_s: Node-seconds, of blocks and of this machine.
        local_node_s: Those of them that no scheduler accounts.
        reserved_s: Node-seconds that blocks under way may use yet.
        ended: Why the last driver ended the study, or None.
        time: When this was written, epoch seconds.
    """

    wall_s: float = 0.0
    node_s: float = 0.0
    local_node_s: float = 0.0
    reserved_s: float = 0.0
    ended: str | None = None
    time: float = 0.0


def read_used(study: Path) -> Used:
    """What a study has used so far; nothing where it does not say."""
    try:
        raw = read_json(study / FILE)
    except NotFound:
        return Used()
    known = {name: raw[name] for name in Used.__dataclass_fields__ if name in raw}
    return Used(**known)


class Budget:
    """Counts what a study uses while its driver works, and says when it is at an end."""

    def __init__(self, study: Path, table: SweepTable) -> None:
        self._study, self._table = study, table
        before = read_used(study)
        self._wall_s, self._local_s = before.wall_s, before.local_node_s
        self._blocks_s = max(0.0, before.node_s - before.local_node_s)
        self._reserved_s = 0.0
        self._looked = time.monotonic()
        self._saved = -_SAVED_EVERY_S
        self._enough: str | None = None

    def note(self, number: int, value: float | None) -> None:
        """Take in the value of a complete trial that keeps to all constraints."""
        goal, objective = self._table.budget.value, self._table.objectives[0]
        if goal is not None and value is not None and objective.sign * (value - goal) <= 0:
            self._enough = self._enough or (
                f"trial {number} reached {objective.name} {value:.6g}, and {goal:g} is enough"
            )

    def over(self, nodes: Nodes | None) -> str | None:
        """Why the study is at its end, or None; to be asked again and again.

        Args:
            nodes: What the workers use; None while there are none.
        """
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        self._wall_s += passed
        if nodes is not None:
            self._local_s += passed * nodes.local
            self._blocks_s, self._reserved_s = nodes.node_s, nodes.reserved_s
        reason = self._enough or self._spent(nodes)
        if now - self._saved > _SAVED_EVERY_S:
            self._saved = now
            self.save(None)
        return reason

    def _spent(self, nodes: Nodes | None) -> str | None:
        budget = self._table.budget
        wall_s = None if budget.wall is None else parse_duration(budget.wall)
        if wall_s is not None and self._wall_s >= wall_s:
            return f"the budget's wall time of {budget.wall} is used"
        if budget.node_hours is None:
            return None
        hours = (self._blocks_s + self._local_s) / 3600
        if hours >= budget.node_hours or (nodes is not None and nodes.spent):
            return f"{hours:.4g} of the budget's {budget.node_hours:g} node-hours are used" + (
                "" if hours >= budget.node_hours else ", and the rest is not enough for a block"
            )
        return None

    def finish(self, nodes: Nodes | None, ended: str | None) -> None:
        """Write down what was used, with what blocks have used that have ended meanwhile."""
        if nodes is not None:
            self._blocks_s, self._reserved_s = nodes.node_s, nodes.reserved_s
        self.save(ended)

    def save(self, ended: str | None) -> None:
        """Write down what was used; `ended` is why the study is at its end."""
        used = Used(
            round(self._wall_s, 3),
            round(self._blocks_s + self._local_s, 3),
            round(self._local_s, 3),
            round(self._reserved_s, 3),
            ended,
            time.time(),
        )
        with contextlib.suppress(HpcmassError):  # it is written again soon
            replace_json(self._study / FILE, {"format": FORMAT, **asdict(used)})


def nodes_of(workers: object | None) -> Nodes | None:
    """What workers say that they use; of those that do not say, one node of this machine."""
    if workers is None:
        return None
    ask: Callable[[], Nodes] | None = getattr(workers, "nodes", None)
    return Nodes() if ask is None else ask()


def used_in_words(used: Used, table: SweepTable) -> dict[str, str]:
    """What was used of the budget, a line each."""
    budget = table.budget
    lines: Mapping[str, tuple[Any, str]] = {
        "node-hours": (budget.node_hours, f"{used.node_s / 3600:.4g}"),
        "wall time": (budget.wall, f"{used.wall_s:.0f} s"),
    }
    said = {name: f"{now} of {limit}" if limit is not None else now for name, (limit, now) in lines.items()}
    if used.reserved_s > 0:
        said["node-hours"] += f" ({used.reserved_s / 3600:.4g} more reserved)"
    return said
