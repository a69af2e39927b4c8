"""From an attempt's end to what follows: counted as this or that, or begun again with something changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcmass.config import Job, job_to_toml, job_with, read_run_job
from hpcmass.errors import BlockLost, HpcmassError
from hpcmass.files import replace as replace_file
from hpcmass.runs import MOST_FREE_LOSSES, FreeLosses, RunFolder
from hpcmass.sweep.attempts import NOWHERE, AttemptLog, History, end_fields, histories
from hpcmass.sweep.causes import Cause, Ended, cause_of
from hpcmass.sweep.flight import attempt_of
from hpcmass.sweep.records import TrialSpec
from hpcmass.sweep.remedy import WALL, Room, avoiding, remedy
from hpcmass.sweep.watch import NO_NUMBER, PRUNED, Verdict


@dataclass(frozen=True)
class Settled:
    """What became of an attempt.

    Attributes:
        verdict: What the trial counts as; None where it begins again.
        cause: Why the attempt ended.
        message: One sentence for whoever watches.
        fields: The attempt's record, for whoever shows it.
    """

    verdict: Verdict | None
    cause: str
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


class Attempts:
    """The attempts at a study's trials: one log, and by the cause of each end what follows."""

    def __init__(self, study: Path, job: Job, unfinished: set[int]) -> None:
        """Read what an earlier driver left.

        Args:
            study: The study's folder.
            job: The study's job.
            unfinished: Trials that were drawn and not counted.
        """
        assert job.sweep is not None
        self._job, self._retries, self._ranks = job, job.sweep.retries, job.sweep.ranks
        self._log = AttemptLog(study)
        self._known = histories(study, unfinished)
        # Those whose last attempt nobody saw end.
        self._open = {n for n, one in self._known.items() if one.submitted > len(one.causes)}
        self._not_ours = set(self._open)  # begun by an earlier driver, and at most watched by this one
        self._free = FreeLosses()
        self._best: dict[int, int] = {}

    # -- the beginning --------------------------------------------------------------------------------
    def to_begin(self, number: int) -> bool:
        """Whether the trial's last attempt, whatever its folder says of it, is to be followed by another."""
        known = self._known.get(number)
        return known is not None and known.again

    def begin(self, spec: TrialSpec, step: int) -> TrialSpec:
        """Write down that a trial is about to be handed to workers; gives it with what it is to have.

        Args:
            spec: The trial.
            step: The step that it has reached.
        """
        known = self._known.get(spec.number, History())
        if spec.number in self._open:  # Its driver ended under it, and so did what ran it.
            self._end(spec, Ended(Cause.DRIVER, "the study's driver ended"), step, "again", free=True)
            known = self._known[spec.number]
        number = known.submitted + 1
        self._not_ours.discard(spec.number)
        self._known[spec.number] = replace(known, submitted=number, again=False)
        if known.changes:
            _lay_down_changes(spec.run, known.changes)
        self._log.submit(spec.number, number, known.changes, known.avoid)
        self._open.add(spec.number)
        return replace(spec, changes=dict(known.changes), avoid=known.avoid)

    # -- the end --------------------------------------------------------------------------------------
    def settle(
        self,
        spec: TrialSpec,
        verdict: Verdict,
        error: BaseException | None,
        *,
        step: int,
        room: Callable[[], Room] = Room,
        ask: Callable[[], str] | None = None,
        free: bool = False,
    ) -> Settled:
        """Decide what follows from an attempt's end, and write it down.

        Args:
            spec: The trial.
            verdict: What its folder says.
            error: What its worker's future held.
            step: The step that it has reached.
            room: What the workers could give it.
            ask: What Slurm says of its block.
            free: Whether what ran it was lost from outside, whatever ended since.
        """
        ended = self._ended(spec, verdict, error, ask)
        if free and ended.cause is Cause.MACHINE:
            ended = replace(ended, cause=Cause.LOST)
        if ended.cause is Cause.DIVERGED:
            verdict = Verdict("pruned", f"{PRUNED}{ended.reason}")
        if ended.cause is Cause.PAUSED and spec.number not in self._open:
            return Settled(verdict, ended.cause.value, ended.reason)  # on record already
        if ended.cause in (Cause.COMPLETED, Cause.PRUNED, Cause.PAUSED, Cause.USER, Cause.DIVERGED):
            return self._counted(spec, verdict, ended, step)
        return self._again(spec, ended, step, room())

    def _ended(
        self, spec: TrialSpec, verdict: Verdict, error: BaseException | None, ask: Callable[[], str] | None
    ) -> Ended:
        reason = verdict.reason or ""
        if verdict.kind == "complete":
            return Ended(Cause.COMPLETED)
        if verdict.kind in ("pruned", "paused"):
            return Ended(Cause.PRUNED if verdict.kind == "pruned" else Cause.PAUSED, reason)
        if verdict.kind == "failed" and reason.endswith(NO_NUMBER):
            return Ended(Cause.DIVERGED, reason)
        said = cause_of(spec.run, error, ask)
        if said is not None:
            return said
        if verdict.kind == "failed":
            return Ended(Cause.USER, reason)
        if spec.number in self._not_ours and error is None and not spec.run.errors(attempt_of(spec.run)):
            # Without a word of its own: the earlier driver's workers were ended, as they are when it is gone.
            return Ended(Cause.DRIVER, f"{reason}; the driver that began it has ended")
        return Ended(Cause.LOST if isinstance(error, BlockLost) else Cause.MACHINE, reason)

    def _counted(self, spec: TrialSpec, verdict: Verdict, ended: Ended, step: int) -> Settled:
        known = self._known.get(spec.number, History())
        if known.submitted and spec.number not in self._open and known.causes[-1:] == (ended.cause.value,):
            # On record already: its driver ended between that and the outcome.
            return Settled(verdict, ended.cause.value, verdict.reason or "")
        fields = self._end(spec, ended, step, verdict.kind, free=False)
        return Settled(verdict, ended.cause.value, verdict.reason or "", fields)

    def _again(self, spec: TrialSpec, ended: Ended, step: int, room: Room) -> Settled:
        number, cause = spec.number, ended.cause
        known = self._known.get(number, History())
        place = self._place(spec, 0, step)
        got_on = step > self._best.get(number, -1)
        self._best[number] = max(step, self._best.get(number, -1))
        if cause.free:
            losses, most = self._free.add(number, step), MOST_FREE_LOSSES
        else:
            losses, most = known.counted + 1, self._retries
            self._known[number] = known = replace(known, counted=losses)
        said = remedy(
            cause,
            self._job_of(spec),
            known.changes,
            room,
            ranks=int(spec.overrides.get("resources.ranks", self._ranks)),
            ran_s=(place["ended"] or 0.0) - (place["started"] or 0.0),
            got_on=got_on,
        )
        if losses > most or not said.again:
            why = f"lost {losses} times: {ended.reason}" if losses > most else f"{ended.reason}; {said.words}"
            fields = self._end(spec, ended, step, "failed", free=cause.free)
            return Settled(Verdict("failed", why), cause.value, why, fields)
        avoid = avoiding(known.avoid, str(place["node"]), cause)
        self._known[number] = replace(known, changes=dict(said.changes), avoid=avoid)
        fields = self._end(
            spec, ended, step, "again", free=cause.free, changes=dict(said.changes), avoid=list(avoid)
        )
        return Settled(None, cause.value, "; ".join(filter(None, (ended.reason, said.words))), fields)

    def _place(self, spec: TrialSpec, ranks: int, step: int) -> dict[str, Any]:
        """Where and how long the attempt ran that ends now."""
        place = end_fields(spec.run, ranks=ranks, step=step)
        if place["node"] and place["started"] == self._known.get(spec.number, History()).started:
            # The last that a worker wrote down is an attempt that is on record: this one never had a worker.
            return {**place, **NOWHERE}
        return place

    def _job_of(self, spec: TrialSpec) -> Job:
        with contextlib.suppress(HpcmassError):
            return read_run_job(spec.run.job_file)
        return self._job

    def _end(
        self, spec: TrialSpec, ended: Ended, step: int, following: str, *, free: bool, **more: Any
    ) -> dict[str, Any]:
        known = self._known.get(spec.number, History())
        ranks = int(spec.overrides.get("resources.ranks", self._ranks))
        place = self._place(spec, ranks, step)
        fields = {
            **place,
            "cause": ended.cause.value,
            "reason": ended.reason,
            "free": free,
            "next": following,
            **{name: value for name, value in more.items() if value},
        }
        self._known[spec.number] = replace(
            known,
            causes=(*known.causes, ended.cause.value),
            again=following == "again",
            started=place["started"] or known.started,
        )
        self._open.discard(spec.number)
        self._log.end(spec.number, known.submitted, fields)
        return {**fields, "attempt": known.submitted}


def _lay_down_changes(run: RunFolder, changes: Mapping[str, Any]) -> None:
    """Put what an attempt is to have into its run's job; what is none of the job's is left out."""
    own = {name: value for name, value in changes.items() if name != WALL}
    if own and run.exists():
        replace_file(run.job_file, job_to_toml(job_with(read_run_job(run.job_file), own)))


__all__ = ["Attempts", "Settled"]
