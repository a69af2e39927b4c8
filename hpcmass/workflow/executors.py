"""Parsl's HighThroughputExecutor over blocks: starts our pilot, and knows a lost block from a broken target.

Parsl formats its launch command as text, twice, and hands it to a shell; ours is a list of words, and what the
pilot needs to know lies in a file beside Parsl's logs.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus

from hpcmass.errors import LaunchError, SlurmError
from hpcmass.files import replace_json
from hpcmass.workflow.addresses import own_addresses
from hpcmass.workflow.block_shape import BlockShape
from hpcmass.workflow.blocks import BlockProvider
from hpcmass.workflow.interchange import UNANSWERED, watch_answers

HEARTBEAT_S = 5
LOST_AFTER_S = 60
# So many blocks in a row that never came to work are a broken target, not bad luck.
_BROKEN_AFTER = 3
# After Slurm did not answer a submission, wait this long before the next one.
_HOLD_S = 15.0
# Not by its path, which would put this folder in front of the standard library.
_PILOT = [
    sys.executable,
    "-c",
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    f"sys.path.append({str(Path(__file__).resolve().parents[2])!r}); "
    "from hpcmass.workflow.pilot import main; sys.exit(main(*sys.argv[1:]))",
]


class BlockExecutor(HighThroughputExecutor):
    """One kind of slots on one target of a site.

    Attributes:
        shape: How its blocks are cut.
        demand: Items that want a slot here, those under way included; by default those handed to Parsl.
    """

    def __init__(
        self,
        shape: BlockShape,
        provider: BlockProvider,
        *,
        pilot: Mapping[str, Any],
        interchange: list[str],
        address: str | None,
        encrypted: bool,
        lost_after_s: int = LOST_AFTER_S,
    ) -> None:
        super().__init__(
            label=shape.label,
            provider=provider,
            # Bound to all addresses; which of them a node reaches, it finds itself.
            address="0.0.0.0",
            encrypted=encrypted,
            max_workers_per_node=shape.slots,
            cores_per_worker=1e-6,
            heartbeat_period=HEARTBEAT_S,
            heartbeat_threshold=lost_after_s,
            interchange_launch_cmd=interchange,
            block_error_handler=_judge_blocks,
        )
        self.shape = shape
        self.demand: Callable[[], int] | None = None
        self.excused: set[str] = set()
        self._pilot = dict(pilot)
        self._blocks = provider
        self._addresses = [address] if address else own_addresses()
        self._hold_until = 0.0
        self._asked: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"BlockExecutor({self.label!r}, {self.shape!r})"

    def initialize_scaling(self) -> None:
        """Write down what the pilots need; called once the interchange has its port."""
        watch_answers(self)
        replace_json(
            self.pilot_file,
            {
                "format": 1,
                **self._pilot,
                "label": self.label,
                "addresses": self._addresses,
                "port": self.worker_port,
                "cert_dir": self.cert_dir,
                "logdir": str(Path(self.worker_logdir).absolute()),
                "heartbeat_s": self.heartbeat_period,
                "lost_after_s": self.heartbeat_threshold,
                "poll_ms": self.poll_period,
            },
        )

    @property
    def pilot_file(self) -> Path:
        """Where that lies."""
        return Path(self.logdir).absolute() / "pilot.json"

    @property
    def workers_per_node(self) -> float:
        """Slots a node; of a whole-node block, whose one slot has all its nodes, a share of it."""
        return 1 / self.shape.nodes if self.shape.whole else self.shape.slots

    def outstanding(self) -> int:
        """How many items want a slot here: what Parsl scales by."""
        return max(len(self.tasks), self.demand() if self.demand else 0)

    def scale_out_facade(self, n: int) -> list[str]:
        """Submit blocks, unless Slurm did not answer just now."""
        if time.monotonic() < self._hold_until:
            return []
        blocks: list[str] = super().scale_out_facade(n)
        return blocks

    def _launch_block(self, block_id: str) -> Any:
        command = [*_PILOT, str(self.pilot_file), block_id]
        self._asked[block_id] = time.monotonic()
        try:
            return self._blocks.submit(shlex.join(command), 1, f"{self.label}-{block_id}")
        except SlurmError as error:
            if error.transient:
                self.excused.add(block_id)
                self._hold_until = time.monotonic() + _HOLD_S
            raise

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Give blocks back: any, at the end; with `max_idletime` (seconds) those that were idle for so long.

        Parsl's own, asked for none of them, takes all, and ends blocks that are just about to begin.
        """
        if blocks <= 0:
            return []
        try:
            if max_idletime is None:
                return list(super().scale_in(blocks))
            chosen = [one for one in self._live_blocks() if self._idle(one, max_idletime)][:blocks]
            for one in chosen:
                self._hold_block(one)  # type: ignore[no-untyped-call]
            # What was sent to a block until it was held counts.
            chosen = [one for one in chosen if self._idle(one, max_idletime)]
        except UNANSWERED:  # Without an interchange no block has anything to do any more.
            chosen = self._live_blocks()[:blocks]
        jobs = [self.blocks_to_job_id[one] for one in chosen]
        killed = self._filter_scale_in_ids(jobs, self._blocks.cancel(jobs))
        return [self.job_ids_to_block[one] for one in killed]

    def _live_blocks(self) -> list[str]:
        known = self._status.items()
        return [one for one, s in known if s.state not in TERMINAL_STATES and one in self.blocks_to_job_id]

    def _idle(self, block: str, seconds: float) -> bool:
        """Whether a block had nothing to do for so long, or has waited for so long to begin."""
        mine = [m for m in self.connected_managers() if m["block_id"] == block]
        if mine:
            # One that was held takes nothing more: once it is empty it may go.
            empty = all(m["tasks"] == 0 for m in mine)
            return empty and all(m["idle_duration"] > seconds or not m["active"] for m in mine)
        waits = self._status[block].state in (JobState.PENDING, JobState.HELD)
        return waits and time.monotonic() - self._asked[block] > seconds

    def room(self) -> int:
        """Slots of the workers that are connected and take items."""
        managers = self.connected_managers()
        return sum(m["worker_count"] for m in managers if m["active"] and not m["draining"])


def _judge_blocks(executor: Any, status: dict[str, JobStatus]) -> None:
    """Give a target up when block after block ends without having come to work."""
    ids = sorted((one for one in status if one not in executor.excused), key=int)
    last = [status[one] for one in ids[-_BROKEN_AFTER:]]
    bad = (JobState.FAILED, JobState.MISSING)
    if len(last) < _BROKEN_AFTER or any(each.state not in bad for each in last) or executor.bad_state_is_set:
        return
    said = next((text for each in reversed(last) if (text := (each.stdout_summary or "").strip())), "")
    words = next((each.message for each in reversed(last) if each.message), "")
    executor.set_bad_state_and_fail_all(
        LaunchError(
            f"{_BROKEN_AFTER} blocks in a row on target '{executor.shape.target}' ended before they could work"
            + (f": {said[-1500:]}" if said else f": {words}" if words else ""),
            where=executor.provider.scripts.folder,
            hint="its setup, modules or Python may be missing on the nodes; the folder has scripts and outputs",
        )
    )
