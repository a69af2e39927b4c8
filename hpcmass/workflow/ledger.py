"""Node-seconds of a study's blocks: reserved before each is submitted, settled by what Slurm accounts.

The blocks' own journal is the ledger: what an intent reserves, `void` gives back and `settled` replaces.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import HpcmassError
from hpcmass.files import append_record, read_records
from hpcmass.slurm.jobs import JobInfo

# A block that is shorter is worth less than its start; Slurm counts wall time in minutes.
LEAST_S = 60
_ACCOUNTED_S = 20.0


@dataclass
class _Block:
    nodes: int
    time_s: int
    job_id: str = ""
    started: float | None = None
    over_since: float | None = None


class Ledger:
    """The node-seconds of all drivers of one study."""

    def __init__(self, journal: Path, limit_node_s: float | None = None) -> None:
        """Read what the study's drivers have used and reserved.

        Args:
            journal: `blocks.jsonl`.
            limit_node_s: What all of them together may use; None: no limit.
        """
        self.limit_node_s = limit_node_s
        self._journal = journal
        self._lock = threading.Lock()
        self._settled_s = 0.0
        self._open: dict[tuple[str, str], _Block] = {}
        for record in read_records(journal):
            self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        key = (str(record.get("driver")), str(record.get("script")))
        kind = record.get("kind")
        if kind == "intent":
            self._open[key] = _Block(int(record.get("nodes", 1)), int(record.get("time_s", 0)))
        elif kind == "block" and key in self._open:
            self._open[key].job_id = str(record["job_id"])
        elif kind in ("void", "settled") and self._open.pop(key, None) is not None:
            # Once: a driver that was stopped, and taken for gone, may have written it again.
            self._settled_s += float(record.get("node_s", 0.0))

    # -- before and after sbatch ------------------------------------------------------------------------
    def grant(self, nodes: int, time_s: int) -> int:
        """Seconds of wall time that the rest of the budget pays for, for a block; 0 where it is too little."""
        if self.limit_node_s is None:
            return time_s
        with self._lock:
            reserved = sum(block.nodes * block.time_s for block in self._open.values())
            left_s = (self.limit_node_s - self._settled_s - reserved) / nodes
        if left_s >= time_s:
            return time_s
        whole = int(left_s // 60) * 60
        return whole if whole >= LEAST_S else 0

    def reserve(self, driver: str, script: str, nodes: int, time_s: int) -> None:
        """A block is about to be submitted (its intent is in the journal)."""
        with self._lock:
            self._open[driver, script] = _Block(nodes, time_s)

    def submitted(self, driver: str, script: str, job_id: str) -> None:
        """It has its job."""
        with self._lock:
            if (block := self._open.get((driver, script))) is not None:
                block.job_id = job_id

    def void(self, driver: str, script: str) -> None:
        """It was not taken."""
        self._close(driver, script, "void", 0.0)

    # -- settling -----------------------------------------------------------------------------------------
    def unsettled(self) -> list[str]:
        """Jobs of blocks of which it is not known what they used."""
        with self._lock:
            return [block.job_id for block in self._open.values() if block.job_id]

    def settling(self, driver: str) -> bool:
        """Whether a driver has blocks of which it is not known what they used, and will be."""
        with self._lock:
            return any(block.job_id and key[0] == driver for key, block in self._open.items())

    def look(self, infos: Mapping[str, JobInfo], *, patient: bool = False) -> None:
        """Take in what Slurm says of jobs: settle those that have ended.

        Args:
            infos: What is known of them.
            patient: Give accounting, which is late, some seconds to tell of a block that has ended.
        """
        with self._lock:
            known = {block.job_id: key for key, block in self._open.items() if block.job_id}
        for job_id, info in infos.items():
            key = known.get(job_id)
            block = None if key is None else self._open.get(key)
            if key is None or block is None:  # another thread may have settled it just now
                continue
            block.started = info.started if info.state.ended is False and info.source else block.started
            if info.state.ended:
                block.over_since = block.over_since or time.monotonic()
                late = time.monotonic() - block.over_since > _ACCOUNTED_S
                if patient and not late and "elapsed_s" not in dict(info.used):
                    continue
                node_s, by = _used(block, info)
                self._close(*key, "settled", node_s, job_id=job_id, by=by, state=info.state.value)

    def forget(self, driver: str) -> None:
        """All blocks of a driver are over, and of those that are not settled nobody knows what they used.

        What has a job counts with all that was reserved; what has none never was.
        """
        with self._lock:
            mine = [(key, block) for key, block in self._open.items() if key[0] == driver]
        for key, block in mine:
            if block.job_id:
                node_s = float(block.nodes * block.time_s)
                self._close(*key, "settled", node_s, job_id=block.job_id, by="reserved")
            else:
                self.void(*key)

    def _close(self, driver: str, script: str, kind: str, node_s: float, **more: Any) -> None:
        with self._lock:
            if self._open.pop((driver, script), None) is None:
                return
            self._settled_s += node_s
        record = {"kind": kind, "driver": driver, "script": script, "node_s": round(node_s, 3), **more}
        with contextlib.suppress(HpcmassError):  # the next driver asks Slurm again
            append_record(self._journal, {**record, "time": time.time()})

    # -- telling --------------------------------------------------------------------------------------------
    def used_s(self) -> float:
        """Node-seconds used so far, of blocks under way until now."""
        with self._lock:
            return self._settled_s + sum(_so_far(block) for block in self._open.values())

    def reserved_s(self) -> float:
        """Node-seconds that blocks under way may use yet."""
        with self._lock:
            return sum(block.nodes * block.time_s - _so_far(block) for block in self._open.values())


def _so_far(block: _Block) -> float:
    if block.started is None:
        return 0.0
    return block.nodes * min(max(0.0, time.time() - block.started), block.time_s)


def _used(block: _Block, info: JobInfo) -> tuple[float, str]:
    """Node-seconds of a block that has ended, and who says so."""
    used = dict(info.used)
    if "elapsed_s" in used:
        return used["elapsed_s"] * block.nodes, "sacct"
    started = info.started or block.started
    if started is not None and info.ends is not None and info.ends >= started:
        return (info.ends - started) * block.nodes, "squeue"
    if started is not None:
        return max(0.0, min(time.time() - started, block.time_s)) * block.nodes, "clock"
    return 0.0, "never started"
