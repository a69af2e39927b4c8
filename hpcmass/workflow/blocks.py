"""The blocks (pilot jobs) of one driver: submitted, written down, looked at all at once, and ended.

What a block's state says is never the truth about work, only about room for it: a block that Slurm does not
answer about stays what it was, and one that has gone in any way is replaced while there is work.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus
from parsl.providers.base import ExecutionProvider

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import append_record
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.submission import submit_file
from hpcmass.workflow.blocks_left import comment_of, end_blocks
from hpcmass.workflow.ledger import Ledger

_log = logging.getLogger("hpcmass")
POLL_S = 10.0
JOURNAL = "blocks.jsonl"
# Slurm's state -> Parsl's. What the machine did to a block is TIMEOUT, Parsl's word for an end that is no fault
# of the configuration; a completing block runs nothing any more and is replaced at once.
_STATES = {
    JobState.PENDING: BlockState.PENDING,
    JobState.REQUEUED: BlockState.PENDING,
    JobState.RUNNING: BlockState.RUNNING,
    JobState.SUSPENDED: BlockState.HELD,
    JobState.COMPLETING: BlockState.TIMEOUT,
    JobState.COMPLETED: BlockState.COMPLETED,
    JobState.CANCELLED: BlockState.CANCELLED,
    JobState.FAILED: BlockState.FAILED,
    JobState.BOOT_FAIL: BlockState.FAILED,
    JobState.OUT_OF_MEMORY: BlockState.FAILED,
    JobState.NODE_FAIL: BlockState.TIMEOUT,
    JobState.TIMEOUT: BlockState.TIMEOUT,
    JobState.PREEMPTED: BlockState.TIMEOUT,
    JobState.DEADLINE: BlockState.TIMEOUT,
}
# So long after Slurm first did not know a block any more (while it answers), the block counts as gone.
_FORGOTTEN_S = 120.0
# So long after sbatch did not hear back, a block may still turn up: a busy controller comes to it late.
_STRAYS_S = 900.0
# So long accounting is waited for at the end, where a budget has to be settled.
_ACCOUNTED_S = 5.0


class BlockBook:
    """All blocks of one driver, over all its executors.

    Attributes:
        driver: The driver's uuid.
        journal: `blocks.jsonl`: a record for every block before it is submitted, and one with its job's id.
        touched: Whether there may be blocks.
        ledger: What its blocks, and those of earlier drivers of the folder, use of nodes.
        avoided: Nodes on which no block is to begin, and until when, in epoch seconds.
    """

    def __init__(
        self,
        folder: Path,
        driver: str,
        *,
        slurm: Slurm | None = None,
        poll_s: float = POLL_S,
        limit_node_s: float | None = None,
    ) -> None:
        self.driver = driver
        self.journal = folder / JOURNAL
        self.ledger = Ledger(self.journal, limit_node_s)
        self.slurm = slurm or Slurm(patience_s=5.0)
        self.poll_s = poll_s
        self.on_first: Callable[[], None] = lambda: None
        self.touched = False
        self._submitting = threading.Lock()
        # Of which sbatch did not hear back: by their script their label, their comment, and how long to look.
        self._unsure: dict[str, tuple[str, str, float]] = {}
        self._lock = threading.RLock()
        self._live: dict[str, JobInfo] = {}
        self._labels: dict[str, str] = {}
        self._gone_since: dict[str, float] = {}
        self._looked = 0.0
        self._dropped: set[str] = set()
        self._said: set[tuple[str, str]] = set()
        self.submitted: list[str] = []
        self.avoided: dict[str, float] = {}

    def avoid(self, node: str, seconds: float) -> None:
        """Let no block begin on a node for some time."""
        self.avoided[node] = time.time() + seconds

    def excluded(self) -> list[str]:
        """The nodes on which no block is to begin now."""
        return sorted(node for node, until in self.avoided.items() if until > time.time())

    def submit(self, script: Path, label: str, number: str, *, nodes: int = 1, time_s: int = 0) -> str:
        """Submit a block's script; gives its job id.

        Raises:
            SlurmError: Slurm refused, or does not answer. A block that it took all the same is cancelled later.
            StorageError: The file system refused; nothing is submitted.
        """
        if not self.touched:
            self.on_first()
        self.touched = True
        record = {"driver": self.driver, "executor": label, "script": script.name}
        # First: whoever finds this can find the block, too, whatever becomes of this driver in between.
        size = {"nodes": nodes, "time_s": time_s}
        append_record(self.journal, {"kind": "intent", **record, **size, "time": time.time()})
        self.ledger.reserve(self.driver, script.name, nodes, time_s)
        comment = comment_of(self.driver, f"{label}-{number}")
        with self._submitting:
            self._end_strays()
            try:
                job_id = submit_file(script, slurm=self.slurm, comment=comment, patience_s=0.0)
            except SlurmError as error:
                if error.data["unsure"]:
                    self._unsure[script.name] = label, comment, time.monotonic() + _STRAYS_S
                else:
                    self.ledger.void(self.driver, script.name)
                raise
            with self._lock:
                self._take(job_id, label)
                too_late = label in self._dropped
        self._note(job_id, script.name, label)
        if too_late:
            self.drop(label)
        return job_id

    def _take(self, job_id: str, label: str) -> None:
        self.submitted.append(job_id)
        self._live[job_id] = JobInfo(job_id, JobState.PENDING)
        self._labels[job_id] = label

    def _note(self, job_id: str, script: str, label: str) -> None:
        self.ledger.submitted(self.driver, script, job_id)
        record = {"kind": "block", "job_id": job_id, "driver": self.driver, "executor": label, "script": script}
        with contextlib.suppress(HpcmassError):  # It is known by its comment as well.
            append_record(self.journal, {**record, "time": time.time()})

    def _end_strays(self) -> None:
        """Cancel blocks that Slurm took without sbatch hearing of it: others were asked for in their place.

        What was reserved for one is settled as any block's; for one that does not turn up it is given back.
        """
        for script, (label, comment, until) in list(self._unsure.items()):
            with self._lock, contextlib.suppress(SlurmError):
                for job_id in self.slurm.find_comment(comment):
                    self.slurm.cancel([job_id])
                    self._take(job_id, label)
                    self._note(job_id, script, label)
                    self._unsure.pop(script, None)
                if script in self._unsure and time.monotonic() > until:
                    del self._unsure[script]
                    self.ledger.void(self.driver, script)

    def drop(self, label: str) -> None:
        """Cancel all blocks of an executor for good; one that Slurm does not let go now, at the next looks."""
        with self._lock:
            self._dropped.add(label)
            left = self._unwanted()
        if left:
            self.cancel(left)

    def _unwanted(self) -> list[str]:
        alive = (one for one, info in self._live.items() if not info.state.ended)
        return [one for one in alive if self._labels.get(one) in self._dropped]

    def note_refusal(self, label: str, words: str) -> None:
        """Write down that Slurm takes no more blocks for now; whoever waits is told so once."""
        if (label, words) not in self._said:
            self._said.add((label, words))
            _log.warning("Slurm takes no more blocks on '%s' for now, and is asked again: %s", label, words)
        record = {"kind": "refused", "driver": self.driver, "executor": label, "message": words}
        with contextlib.suppress(HpcmassError, OSError):
            append_record(self.journal, {**record, "time": time.time()})

    def look(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        """What is known of blocks: one squeue for all live blocks of all executors, at most one a `poll_s`."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= 0.9 * self.poll_s:
                self._looked = now
                live = [one for one, info in self._live.items() if not info.state.ended]
                live = list(
                    dict.fromkeys([*live, *(one for one in self.ledger.unsettled() if one in self._live)])
                )
                found = self.slurm.jobs(live) if live else {}
                for one, info in found.items():
                    self._live[one] = self._judge(one, info, now)
                self.ledger.look(found, patient=True)
                if left := self._unwanted():
                    self.cancel(left)
                if self._submitting.acquire(blocking=False):  # Else a block is not written down yet.
                    try:
                        self._end_strays()
                    finally:
                        self._submitting.release()
            return {one: self._live.get(one, JobInfo(one, JobState.UNKNOWN)) for one in job_ids}

    def _judge(self, job_id: str, info: JobInfo, now: float) -> JobInfo:
        """The last that was known where Slurm says nothing; gone where it has forgotten the job for long."""
        if info.state is not JobState.UNKNOWN:
            self._gone_since.pop(job_id, None)
            return info
        if not info.gone:
            self._gone_since.pop(job_id, None)
        elif now - self._gone_since.setdefault(job_id, now) > _FORGOTTEN_S:
            return JobInfo(job_id, JobState.NODE_FAIL, reason=info.reason or "Slurm does not know it any more")
        return self._live[job_id]

    def cancel(self, job_ids: Sequence[str]) -> bool:
        """Cancel blocks; False where Slurm did not take it (the next look shows what became of them)."""
        try:
            self.slurm.cancel(job_ids)
        except SlurmError:
            return False
        return True

    def end(self, *, within_s: float) -> bool:
        """Cancel every block of this driver, also one whose id nobody learnt, and wait until none is left.

        Returns:
            Whether Slurm confirmed it.
        """
        ended = end_blocks(self.slurm, self.driver, self.submitted, within_s=within_s)
        self.settle(self.ledger.unsettled())
        if ended:
            self.ledger.forget(self.driver)
        return ended

    def settle(self, job_ids: Sequence[str]) -> None:
        """Ask Slurm what blocks that are over have used; accounting is a few seconds late."""
        until = time.monotonic() + (_ACCOUNTED_S if self.ledger.limit_node_s is not None else 0.0)
        while job_ids:
            infos = self.slurm.jobs(list(job_ids))
            told = {one: info for one, info in infos.items() if "elapsed_s" in dict(info.used)}
            late = time.monotonic() > until
            self.ledger.look(infos if late else told)
            job_ids = [one for one in job_ids if one not in told]
            if late:
                return
            time.sleep(0.5)


@dataclass(frozen=True)
class BlockScripts:
    """How the batch script of a block is made: `render(number, command, excluded, time_s)` gives its text."""

    render: Callable[[str, Sequence[str], Sequence[str], int], str]
    folder: Path


class BlockProvider(ExecutionProvider):
    """Parsl's way to blocks in Slurm, in place of its `SlurmProvider`.

    That one takes an empty answer for COMPLETED, turns FAILED into COMPLETED at the next look, asks Slurm once
    an executor, and hands paths to a shell unquoted.
    """

    def __init__(
        self,
        book: BlockBook,
        scripts: BlockScripts,
        *,
        label: str,
        nodes: int,
        max_blocks: int,
        time_s: int = 0,
        init_blocks: int = 0,
        parallelism: float = 1.0,
    ) -> None:
        self.book, self.scripts = book, scripts
        self.nodes_per_block, self.max_blocks, self.time_s = nodes, max_blocks, time_s
        self.init_blocks, self.min_blocks, self.parallelism = init_blocks, 0, parallelism
        self.cores_per_node = None
        self.mem_per_node = None
        self.resources: dict[object, dict[str, JobStatus]] = {}
        self._label = label

    def submit(self, command: str, tasks_per_node: int, job_name: str = "block") -> str:
        """Submit one block; `command` is the pilot's, quoted for a shell."""
        number = job_name.rpartition("-")[2]
        script = self.scripts.folder / f"{self._label}-{number}.sbatch"
        words, excluded = shlex.split(command), self.book.excluded()
        size = {
            "nodes": self.nodes_per_block,
            "time_s": self.book.ledger.grant(self.nodes_per_block, self.time_s),
        }
        script.write_text(self.scripts.render(number, words, excluded, size["time_s"]), encoding="utf-8")
        try:
            job_id = self.book.submit(script, self._label, number, **size)
        except SlurmError as error:
            if error.transient or not excluded:
                raise
            self.book.avoided.clear()  # There may be no other nodes.
            script.write_text(self.scripts.render(number, words, (), size["time_s"]), encoding="utf-8")
            job_id = self.book.submit(script, self._label, number, **size)
        self.resources[job_id] = {"status": self._status_of(job_id, BlockState.PENDING)}
        return job_id

    def affordable(self) -> bool:
        """Whether there is a budget left for a block."""
        return self.book.ledger.grant(self.nodes_per_block, self.time_s) > 0

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """The state of blocks; one that ended stays ended, one that is not known stays what it was."""
        ids = [str(one) for one in job_ids]
        live = [one for one in ids if not self.resources[one]["status"].terminal]
        for one, info in self.book.look(live).items():
            state = _STATES.get(info.state)
            if state is not None:
                self.resources[one]["status"] = self._status_of(one, state, info.reason)
        return [self.resources[one]["status"] for one in ids]

    def _status_of(self, job_id: str, state: BlockState, reason: str = "") -> JobStatus:
        output = str(self.scripts.folder / f"out-{job_id}.log")
        message = f"Slurm job {job_id}: {reason}" if reason and reason != "None" else None
        return JobStatus(state, message, stdout_path=output)

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        """Cancel blocks."""
        ids = [str(one) for one in job_ids]
        if not ids:
            return []
        done = self.book.cancel(ids)
        for one in ids if done else ():
            self.resources[one]["status"] = self._status_of(one, BlockState.CANCELLED)
        return [done] * len(ids)

    @property
    def label(self) -> str:
        """Name of the executor that it serves."""
        return self._label

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two looks."""
        return max(1, round(self.book.poll_s))
