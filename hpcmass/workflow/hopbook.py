"""What a hop writes down about itself, in `RUN/slurm/hops.jsonl`, and how far the run is."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmass.config import Job
from hpcmass.errors import HpcmassError
from hpcmass.files import Owner, append_record, claim, read_records
from hpcmass.runs import NewestCommit, RunFolder, newest_commit
from hpcmass.slurm.outlive import Decision, Fate
from hpcmass.slurm.records import FORMAT, hop_claims, hop_file, read_hops, slurm_folder
from hpcmass.workflow.steady import steady
from hpcmass.workflow.warden import JobEyes, Place, say

_STEP_S = 2.0  # how long an end waits for a file system that does not say how far the run is


class HopBook:
    """The records of one hop.

    Attributes:
        number: 1 for a run's first hop; no other hop of the run has it.
        began: Seconds since the epoch.
        from_step: The step that it goes on from.
    """

    def __init__(self, run: RunFolder, job: Job, place: Place, eyes: JobEyes) -> None:
        """Take the next number.

        Raises:
            StorageError: It cannot be taken.
        """
        self.run, self.job, self.place, self.eyes = run, job, place, eyes
        self.earlier = read_hops(run.path)
        self.number = self._claim_number()
        self.began = time.time()
        self.from_step = self.step() or 0

    def _claim_number(self) -> int:
        me = replace(Owner.this_process(), slurm_job_id=self.place.job_id, slurm_restart=self.place.restart)
        taken = [*(one.hop for one in self.earlier), *hop_claims(self.run.path)]
        number = max(taken, default=0) + 1
        while not claim(
            hop_file(self.run.path, number),
            json.dumps({"format": FORMAT, "hop": number, "owner": vars(me)}, indent=1, sort_keys=True) + "\n",
        ):
            number += 1
        return number

    def rivals(self) -> list[Owner]:
        """Hops of other jobs that took their numbers before this one and have not written their end.

        They may be long dead. Of two jobs that begin a run at once exactly one sees the other here.
        """
        ended = {one.hop for one in read_hops(self.run.path) if one.cause}
        claims = hop_claims(self.run.path)
        owners = (claims[number] for number in sorted(claims) if number < self.number and number not in ended)
        return [one for one in owners if one is not None and one.slurm_job_id != self.place.job_id]

    def write_begin(self, *, ranks: int, ends: float | None) -> None:
        """Write that the hop begins.

        Raises:
            StorageError: It cannot be written.
        """
        self._append(
            {
                "kind": "begin",
                "hop": self.number,
                "job_id": self.place.job_id,
                "restart": self.place.restart,
                "host": socket.gethostname(),
                "nodes": list(self.place.nodes),
                "ranks": ranks,
                "ends": ends,
                "from_step": self.from_step,
                "output_from": self.place.output_from,
                "time": self.began,
            }
        )

    def write_lost_end(self) -> None:
        """Write the end of a hop that was killed before it could: what is known of it from outside.

        Only for an earlier life of this job; another job's may still be at it.

        Raises:
            StorageError: It cannot be written.
        """
        last = self.earlier[-1] if self.earlier else None
        if last is None or last.cause or last.job_id != self.place.job_id or last.restart >= self.place.restart:
            return
        said = self.eyes.said(self._output_from(last.hop))
        cause = "signal" if said is Fate.REQUEUED else said.value if said is not None else "lost"
        reason = "it was killed before it could say so itself (or its node failed)"
        state = self.run.status().state.value
        self._append(_end_record(last.hop, state, cause, self.step(), "requeue", reason, self.began))

    def write_end(self, decision: Decision, state: str, way: str, reason: str) -> bool:
        """Write the end, and tell it; False where it cannot be written, which is told too."""
        step = self._step_told()
        where = "" if step is None else f" at step {step}"
        say(f"hop {self.number} ended: {decision.cause}{where}: {reason}; next: {way}")
        try:
            self._append(_end_record(self.number, state, decision.cause, step, way, reason, time.time()))
        except HpcmassError as error:
            say(f"the end of this hop cannot be written down: {error}")
            return False
        return True

    def _step_told(self) -> int | None:
        try:
            return steady(self.step, patience_s=_STEP_S)
        except (OSError, HpcmassError):
            return None if self.job.command is not None else self.from_step

    def step(self) -> int | None:
        """The step that the next hop goes on from (of a per-shard run the sum over its parts).

        None for a script that reported none: where it goes on from is its own affair.
        """
        if self.job.command is not None:
            return self.run.status().step or None
        return sum(one.step for folder in self._checkpoints() if (one := newest_commit(folder)) is not None)

    def pace(self) -> NewestCommit | None:
        """The newest checkpoint with what it took; of a per-shard run that of the slowest part."""
        found = [newest_commit(folder) for folder in self._checkpoints()]
        return max((one for one in found if one), key=lambda one: one.checkpoint_s + one.step_s, default=None)

    def _checkpoints(self) -> list[Path]:
        return [self.run.checkpoints, *sorted((self.run.path / "parts").glob("*/checkpoints"))]

    def _output_from(self, number: int) -> int:
        """Where in the job's output an earlier hop began, in bytes."""
        for record in read_records(slurm_folder(self.run.path) / "hops.jsonl"):
            if record.get("kind") == "begin" and record.get("hop") == number:
                return int(record.get("output_from") or 0)
        return 0

    def _append(self, record: dict[str, Any]) -> None:
        append_record(slurm_folder(self.run.path) / "hops.jsonl", record)


def _end_record(
    hop: int, state: str, cause: str, step: int | None, way: str, reason: str, when: float
) -> dict[str, Any]:
    return {
        "kind": "end",
        "hop": hop,
        "state": state,
        "cause": cause,
        "step": step,
        "next": way,
        "reason": reason,
        "time": when,
    }
