"""Parsl's HighThroughputExecutor over blocks: starts our pilot, and knows a lost block from a broken target.

Parsl formats its launch command as text, twice, and hands it to a shell; ours is a list of words, and what the
pilot needs to know lies in a file beside Parsl's logs.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus

from hpcmass.errors import HpcmassError, LaunchError, SlurmError
from hpcmass.files import replace_json
from hpcmass.workflow.addresses import own_addresses
from hpcmass.workflow.block_shape import BlockShape
from hpcmass.workflow.blocks import BlockProvider
from hpcmass.workflow.interchange import UNANSWERED, watch_answers
from hpcmass.workflow.quota import Quota

HEARTBEAT_S = 5
LOST_AFTER_S = 60
# So many blocks in a row that never came to work are a broken target, not bad luck; three times as many where
# another one runs, which may yet come to work.
_BROKEN_AFTER = 3
_BROKEN_BESIDE_OTHERS = 9
# After Slurm did not take a block, wait this long before the next: for its answer, or for room within a limit.
_HOLD_S = 15.0
_LIMIT_HOLD_S = 60.0
_SUBMIT_LIMIT = re.compile(r"(?:Max|Grp)Submit", re.IGNORECASE)
_BAD = (JobState.FAILED, JobState.MISSING)
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
        quota: What its target's executors may have at once, together; None: its own provider's limit holds.
        left: How many blocks earlier drivers have on its target, which are at work there yet.
        given_way: Blocks that take nothing more, so that another executor of the target gets their room.
        refused: Blocks that could not be submitted, and why.
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
        self.quota: Quota | None = None
        self.left: Callable[[], int] = lambda: 0
        self._gave_way: set[str] = set()
        self.refused: dict[str, Exception] = {}
        self._pilot = dict(pilot)
        self._blocks = provider
        self._addresses = [address] if address else own_addresses()
        self._hold_until = 0.0
        self._asked: dict[str, float] = {}
        self._excused: list[str] = []
        self._given_up = False
        self._giving_up = threading.Lock()

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
        """Submit blocks one after the other, until Slurm takes no more for now."""
        begun: list[str] = []
        for _ in range(n):
            if self._given_up or self._unreachable or time.monotonic() < self._hold_until:
                break
            if self._crowded() or (self.quota is not None and not self.quota.grant(self)):
                break
            if not self._blocks.affordable():
                break
            new: list[str] = super().scale_out_facade(1)
            if not new:
                break
            begun += new
        # What passes by itself is no end of a block.
        for one in self._excused:
            self._status.pop(one, None)
            self._simulated_status.pop(one, None)
        self._excused.clear()
        return begun

    def _crowded(self) -> bool:
        """Whether blocks of earlier drivers leave no room; for one there always is, else none would work."""
        members = [self] if self.quota is None else self.quota.members
        live = sum(len(one.live_blocks()) for one in members)
        return live > 0 and (left := self.left()) > 0 and live + left >= self._blocks.max_blocks

    def _launch_block(self, block_id: str) -> Any:
        command = [*_PILOT, str(self.pilot_file), block_id]
        self._asked[block_id] = time.monotonic()
        try:
            return self._blocks.submit(shlex.join(command), 1, f"{self.label}-{block_id}")
        except Exception as error:
            self._note_refusal(block_id, error)
            raise

    def _note_refusal(self, block_id: str, error: Exception) -> None:
        """Tell what passes by itself, and is waited out, from what does not."""
        hold_s = _HOLD_S
        if isinstance(error, SlurmError) and error.transient:
            self._excused.append(block_id)
        elif isinstance(error, SlurmError) and self._is_full(error):
            # There is room again once a job has ended: until then what was taken has to do.
            self._excused.append(block_id)
            self._blocks.book.note_refusal(self.label, error.message)
            hold_s = _LIMIT_HOLD_S
        else:
            self.refused[block_id] = error
            hold_s = _HOLD_S if self.live_blocks() else 0.0
        self._hold_until = time.monotonic() + hold_s

    def _is_full(self, error: SlurmError) -> bool:
        """Whether a limit leaves no room for a further block now; not one that no block can ever meet."""
        counts = _SUBMIT_LIMIT.search(error.data["stderr"]) is not None
        return bool(error.data["kind"] == "limit" and (counts or self.blocks_to_job_id))

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Give blocks back: any, at the end; with `max_idletime` (seconds) those that were idle for so long.

        Parsl's own, asked for none of them, takes all, and ends blocks that are just about to begin.
        """
        if blocks <= 0:
            return []
        try:
            if max_idletime is None:
                return list(super().scale_in(blocks))
            chosen = [one for one in self.live_blocks() if self._idle(one, max_idletime)][:blocks]
            for one in chosen:
                self._hold_block(one)  # type: ignore[no-untyped-call]
            # What was sent to a block until it was held counts.
            chosen = [one for one in chosen if self._idle(one, max_idletime)]
        except UNANSWERED:  # Without an interchange no block has anything to do any more.
            chosen = self.live_blocks()[:blocks]
        jobs = [self.blocks_to_job_id[one] for one in chosen]
        killed = self._filter_scale_in_ids(jobs, self._blocks.cancel(jobs))
        return [self.job_ids_to_block[one] for one in killed]

    @property
    def given_way(self) -> set[str]:
        """See the class."""
        self._gave_way &= set(self.live_blocks())
        return self._gave_way

    def give_way(self) -> None:
        """Let a block take nothing more: it is given back once it is empty, though work waits here."""
        block = self.live_blocks()[-1]
        with contextlib.suppress(*UNANSWERED):
            self._hold_block(block)  # type: ignore[no-untyped-call]
            self._gave_way.add(block)

    def give_back_empty(self) -> None:
        """Give back blocks that gave way and are empty by now; called by Parsl's scaling thread."""
        with contextlib.suppress(*UNANSWERED):
            empty = [one for one in self.given_way if self._idle(one, 0.0)]
            jobs = [self.blocks_to_job_id[one] for one in empty]
            if jobs:
                self._blocks.cancel(jobs)

    def give_up(self) -> None:
        """Cancel all blocks, and submit no more; Parsl would leave those of a broken executor as they are."""
        with self._giving_up:
            if not self._given_up:
                self._given_up = True
                self._blocks.book.drop(self.label)

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        """Take no further items; what was under way fails once its blocks are told to end, not before."""
        self.give_up()
        super().set_bad_state_and_fail_all(exception)

    def status(self) -> dict[str, JobStatus]:
        """The state of all blocks, also without an interchange: else no other executor were looked after."""
        if self._gave_way:
            self.give_back_empty()
        try:
            found: dict[str, JobStatus] = super().status()
        except UNANSWERED:
            found = BlockProviderExecutor.status(self)
        return found

    @property
    def _unreachable(self) -> bool:
        return self.interchange_proc is not None and self.interchange_proc.poll() is not None

    def live_blocks(self) -> list[str]:
        """Its blocks that are not over, by Parsl's numbers."""
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

    def at_work(self, blocks: Collection[str]) -> bool:
        """Whether workers of one of these blocks are connected."""
        try:
            found = {str(m["block_id"]) for m in self.connected_managers()}
        except UNANSWERED:
            return False
        return bool(found & set(blocks))

    def room(self) -> int:
        """Slots of the workers that are connected and take items.

        Raises:
            UNANSWERED: There is no interchange any more.
        """
        managers = self.connected_managers()
        return sum(m["worker_count"] for m in managers if m["active"] and not m["draining"])


def _judge_blocks(executor: Any, status: dict[str, JobStatus]) -> None:
    """Give a target up when block after block ends without having come to work, or is refused."""
    ended = sorted(
        (one for one, each in status.items() if each.state in TERMINAL_STATES), key=int, reverse=True
    )
    row = list(itertools.takewhile(lambda one: status[one].state in _BAD, ended))
    if len(row) < _BROKEN_AFTER or executor.bad_state_is_set or _may_work(executor, status, row):
        return
    last = [status[one] for one in row[:_BROKEN_AFTER]]
    refusals = [executor.refused[one] for one in row[:_BROKEN_AFTER] if one in executor.refused]
    said = next((text for each in last if (text := (each.stdout_summary or "").strip())), "")
    words = next((each.message for each in last if each.message), "")
    target = executor.shape.target
    if len(refusals) == len(last):
        why = refusals[0]
        message, hint = (why.message, why.hint) if isinstance(why, HpcmassError) else (str(why), None)
        what = f"{len(last)} blocks in a row on target '{target}' could not be submitted: {message}"
    else:
        what = f"{len(last)} blocks in a row on target '{target}' ended before they could work"
        what += f": {said[-1500:]}" if said else f": {words}" if words else ""
        hint = "its setup, modules or Python may be missing on the nodes; the folder has scripts and outputs"
    executor.set_bad_state_and_fail_all(LaunchError(what, where=executor.provider.scripts.folder, hint=hint))


def _may_work(executor: Any, status: dict[str, JobStatus], row: Sequence[str]) -> bool:
    """Whether a target has a block that works or may come to work, in spite of a row of bad ones."""
    died = sum(one not in executor.refused for one in row)
    alive = {one: each.state for one, each in status.items() if each.state not in TERMINAL_STATES}
    if alive and died < _BROKEN_AFTER:
        return True  # It was taken; that further ones are refused says nothing about it.
    if JobState.RUNNING in alive.values() and died < _BROKEN_BESIDE_OTHERS:
        return True
    return bool(executor.at_work(alive))
