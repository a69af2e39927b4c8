"""One hop of a run: the process of its batch script, from Slurm's start to its time limit and over it.

It starts the ranks, has them stop in time, writes down in `RUN/slurm/hops.jsonl` what came of them, and hands
the run on to the next hop. What it decides is in `hpcmass.slurm.outlive`. It loads no torch: the memory is the
ranks'.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmass.config import Job, Project, load_site, read_run_job
from hpcmass.errors import CorruptError, HpcmassError, LaunchError, LeaseHeld, NotFound, StorageError
from hpcmass.launch import Control, hpcmass_command, read_allocation
from hpcmass.runs import (
    RankError,
    RunFolder,
    State,
    Status,
    first_error,
    is_lost_peer,
)
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.outlive import Decision, Fate, Seen, chain, decide, signal_of_script, worn_out
from hpcmass.slurm.records import (
    Hop,
    SubmissionRecord,
    numbers,
    read_hops,
    read_submissions,
    slurm_folder,
)
from hpcmass.slurm.values import expand_nodes
from hpcmass.workflow.containers import rank_prefix
from hpcmass.workflow.goingon import Asked, Handed, HandOver
from hpcmass.workflow.holder import Holder
from hpcmass.workflow.hopbook import HopBook
from hpcmass.workflow.steady import steady
from hpcmass.workflow.warden import JobEyes, Place, SignalInbox, Warden, say

# A controller that restarts must not end a run.
_PATIENCE_S = 300.0
_RECORD_WAIT_S = 10.0


def hop(
    run_folder: Path | str,
    project: Project,
    *,
    inbox: SignalInbox,
    env: Mapping[str, str] | None = None,
    slurm: Slurm | None = None,
) -> int:
    """Be one hop of a run.

    Args:
        run_folder: The run's folder, laid down by `hpcmass submit`.
        project: What its data paths are relative to.
        inbox: The signals of this process.
        env: The batch script's environment.
        slurm: The way to Slurm.

    Returns:
        The exit code of the batch script: 0 where the run is completed, or its job goes on as itself.

    Raises:
        NotFound: There is no run.
        LaunchError: This is no Slurm job.
        StorageError: The begin cannot be written down: then nothing is begun.
    """
    run = RunFolder(Path(run_folder).absolute())
    if not run.exists():
        raise NotFound("there is no run here", where=run.path)
    place = read_place(os.environ if env is None else env)
    slurm = slurm or Slurm(patience_s=_PATIENCE_S, on_wait=say)
    return steady(lambda: _Hop(run, project, place, inbox, slurm)).go()


def read_place(env: Mapping[str, str]) -> Place:
    """Where in Slurm this process is.

    Raises:
        LaunchError: Nowhere.
    """
    job_id = env.get("SLURM_JOB_ID", "")
    if not job_id:
        raise LaunchError("this is no Slurm job", hint="hpcmass submit JOB writes the script that calls this")
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        job_id = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    restart, ends = env.get("SLURM_RESTART_COUNT", "0"), env.get("SLURM_JOB_END_TIME", "")
    output, size = _output()
    return Place(
        job_id,
        int(restart) if restart.isdigit() else 0,
        expand_nodes(env.get("SLURM_JOB_NODELIST", "")),
        float(ends) if ends.isdigit() else None,
        output,
        size,
    )


def _output() -> tuple[Path | None, int]:
    try:
        path = Path(os.readlink("/proc/self/fd/2"))
        return (path, path.stat().st_size) if path.is_file() else (None, 0)
    except OSError:
        return None, 0


@dataclass(frozen=True)
class _Ended:
    """How the ranks ended: the run's status, or the error of ranks that did not begin."""

    status: Status | None
    error: HpcmassError | None = None


class _Hop:
    """The parts of `hop`, in the order in which they are called."""

    def __init__(
        self, run: RunFolder, project: Project, place: Place, inbox: SignalInbox, slurm: Slurm
    ) -> None:
        self.run, self.project, self.place, self.inbox, self.slurm = run, project, place, inbox, slurm
        self.eyes = JobEyes(place, slurm)
        self.job: Job = read_run_job(run.job_file)
        self.book = HopBook(run, self.job, place, self.eyes)
        self.past: Sequence[Hop] = ()
        self.stop_file_is_ours = False

    # -- begin -----------------------------------------------------------------------------------------
    def go(self) -> int:
        submissions = self._submissions()
        mine = next((one for one in reversed(submissions) if one.slurm_id == self.place.job_id), None)
        site = load_site(self.run.path / "site.toml")
        asked = Asked.of(self.job, site, mine, self._signal_s(mine))
        self.hand_over = HandOver(self.run, self.project, self.job, asked, self.eyes)
        control = Control()
        warden = Warden(
            self.eyes,
            self.inbox,
            control,
            began=self.book.began,
            time_s=float(asked.layout.time_s),
            signal_s=asked.signal_s,
            pace=self.book.pace,
            ask=self._ask,
            on_term=self._on_term,
        )
        with warden:
            self.book.write_lost_end()
            self.past = chain(read_hops(self.run.path), submissions, self.place.job_id)
            self.book.write_begin(ranks=asked.layout.ranks, ends=warden.limit)
            if (decision := steady(self._refusal)) is not None:
                return self._end(decision, steady(self.run.status).state.value)
            ended = self._ranks(asked, control, warden)
            return self._after(ended, warden)

    def _submissions(self) -> list[SubmissionRecord]:
        """The run's submissions; this job's own may be on its way to the disk, since jobs start at once."""
        until = time.monotonic() + _RECORD_WAIT_S
        while True:
            try:
                found = read_submissions(self.run.path)
            except CorruptError as error:
                say(str(error))
                return []
            known = any(one.slurm_id == self.place.job_id for one in found)
            pending = len(numbers(self.run.path)) > len(found)
            if known or not pending or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def _signal_s(self, mine: SubmissionRecord | None) -> int | None:
        if mine is None:
            return None
        try:
            script = slurm_folder(self.run.path) / mine.script
            return signal_of_script(script.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None

    def _refusal(self) -> Decision | None:
        """Why nothing is to be begun, if so."""
        if (cancel := self._cancel()) is not None:
            return Decision("cancelled", False, cancel or "cancelled", 0)
        if self.run.status().state is State.COMPLETED:
            return Decision("completed", False, "the run is completed already", 0)
        # Hops that went down with their node could not say so: Slurm began the job again each time.
        return worn_out(self.book.step(), self.past)

    def _cancel(self) -> str | None:
        try:
            text = (slurm_folder(self.run.path) / "cancel").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        return text.strip() or "cancelled"

    # -- ranks -----------------------------------------------------------------------------------------
    def _ranks(self, asked: Asked, control: Control, warden: Warden) -> _Ended:
        try:
            Holder(self.run, self.book, self.place, self.slurm).free_the_lease(lambda: warden.asked)
            if warden.asked:
                return _Ended(None)
            return _Ended(self._start(asked, control))
        except HpcmassError as error:
            say(f"the ranks: {error}")
            return _Ended(None, error)
        except OSError as error:  # the file system's, between the ranks' end and what is made of it
            say(f"the ranks: {error}")
            return _Ended(
                None, StorageError(f"{error.strerror or error}", where=error.filename, transient=True)
            )
        except Exception as error:  # a defect of ours must leave an end record too
            say("".join(traceback.format_exception(error)))
            return _Ended(None, HpcmassError(f"{type(error).__name__}: {error}"))

    def _start(self, asked: Asked, control: Control) -> Status:
        # Inherited by the ranks, whose environment is cleared of SLURM_*.
        os.environ["HPCMASS_SLURM_JOB"] = self.place.job_id
        os.environ["HPCMASS_SLURM_RESTART"] = str(self.place.restart)
        os.environ["HPCMASS_PATIENT"] = "1"
        ranks, threads = asked.layout.ranks, asked.layout.threads_per_rank
        allocation = read_allocation(os.environ)
        layout = None if allocation is None else asked.layout
        if self.job.command is not None:
            from hpcmass.train.script import fill_command, run_script

            return run_script(
                fill_command(self.job.command, self.job.params),
                run=self.run,
                ranks=ranks,
                target=asked.target,
                threads_per_rank=threads,
                cwd=self.project.root,
                ignore_usr1=True,
                control=control,
                layout=layout,
                allocation=allocation,
                container=rank_prefix(
                    asked.target, self.job, self.project, self.run.path, cwd=self.project.root
                ),
            )
        from hpcmass.train.start import start_ranks

        per_shard = self.job.train.mode == "per-shard"
        # The parts' own ranks are brought into the container, each by itself.
        container = [] if per_shard else rank_prefix(asked.target, self.job, self.project, self.run.path)
        argv = [*hpcmass_command(in_container=bool(container)), "train", str(self.run.job_file)]
        argv += ["--site", str(self.run.path / "site.toml")]
        argv += ["--project", str(self.project.root), "--run-folder", str(self.run.path)]
        return start_ranks(
            argv,
            run=self.run,
            ranks=1 if per_shard else ranks,  # it starts the workers of its parts itself
            target=asked.target,
            threads_per_rank=threads * ranks if per_shard else threads,
            backend="torch" if per_shard else self.job.train.backend,
            control=control,
            layout=None if per_shard else layout,
            allocation=None if per_shard else allocation,
            container=container,
        )

    def _ask(self, words: str) -> None:
        if self.job.command is not None and self.run.asked_to_stop() is None:
            self.stop_file_is_ours = True  # what `hpcmass.should_stop()` looks at
            self.run.ask_to_stop(words)

    def _on_term(self, fate: Fate) -> None:
        """Slurm is ending the job. There may be seconds to live: do at once what cannot be done later."""
        cancel = self._cancel()
        if cancel is not None or fate is Fate.CANCELLED:
            decision = decide(Seen("RUNNING", cancel=cancel, fate=fate), self.past)
            self.book.write_end(decision, self.run.status().state.value, "none", decision.reason)
        elif fate in (Fate.PREEMPTED, Fate.NODE_FAIL, Fate.TIMEOUT):
            self.hand_over.go()  # Slurm does not begin it again by itself

    # -- after -----------------------------------------------------------------------------------------
    def _after(self, ended: _Ended, warden: Warden) -> int:
        warden.finish()
        try:
            seen = steady(lambda: self._seen(ended, warden))
        except (HpcmassError, OSError) as error:
            seen = self._unseen(error, warden)
        decision = decide(seen, self.past)
        return self._end(decision, seen.state)

    def _unseen(self, error: HpcmassError | OSError, warden: Warden) -> Seen:
        """What is known where the run's folder does not say how its ranks ended."""
        passing = isinstance(error, (OSError, StorageError))
        say(f"{error}")
        return Seen(
            state="UNKNOWN",
            reason=f"the run's folder could not be read after its ranks had ended ({error})",
            step=self.book.from_step if self.job.command is None else None,
            from_step=self.book.from_step,
            fault="transient" if passing else "own",
            asked=warden.asked,
            fate=warden.fate,
            said=warden.said,
        )

    def _seen(self, ended: _Ended, warden: Warden) -> Seen:
        status = ended.status or self.run.status()
        fate, said = warden.fate, warden.said
        if fate in (Fate.RUNNING, Fate.UNKNOWN) and status.state is not State.COMPLETED:
            fate, said = self.eyes.fate()
        fault, reason = self._fault(ended, status, bool(warden.asked))
        state = status.state.value if ended.error is None else "FAILED"
        if ended.error is None and ended.status is None:
            state = "STOPPED"  # asked to before the ranks were started
        if fault == "transient" and fate is Fate.RUNNING and self.eyes.lost_nodes():
            fate = Fate.NODE_FAIL
        return Seen(
            state=state,
            reason=reason or status.reason,
            step=self.book.step(),
            from_step=self.book.from_step,
            fault=fault,
            asked=warden.asked,
            stop_file=None if self.stop_file_is_ours else self.run.asked_to_stop(),
            cancel=self._cancel(),
            fate=fate,
            said=said,
        )

    def _fault(self, ended: _Ended, status: Status, asked: bool) -> tuple[str, str]:
        """Whose fault a failure is, as `Seen.fault`, and its reason."""
        if (error := ended.error) is not None:
            if error.data.get("lasting"):
                first = error.message.partition("\n")[0].rstrip(":")
                return "own", "; ".join(text for text in (first, error.hint) if text)
            # A run that somebody else has at the moment is not this job's to begin again.
            passing = (error.transient or isinstance(error, LaunchError)) and not isinstance(error, LeaseHeld)
            return ("transient" if passing else "own"), error.message
        if status.state in (State.COMPLETED, State.STOPPED):
            return "", ""
        cause = first_error(self.run.errors(status.attempt))
        return ("own" if cause is not None and _is_own(cause, asked) else "transient"), ""

    def _end(self, decision: Decision, state: str) -> int:
        """Write the end down, and hand the run on. In this order: a requeue ends this process."""
        way = "none"
        if decision.go_on:
            way = "requeue" if decision.by_slurm else self.hand_over.way
        else:
            self.hand_over.take_back()
        told = self.hand_over.note  # of a requeue there is no second end to tell it
        reason = "; ".join(text for text in (decision.reason, told if decision.go_on else "") if text)
        kept = self.book.write_end(decision, state, way, reason)
        code = decision.exit_code
        if decision.go_on and not decision.by_slurm:
            if not kept:
                say("what cannot be written down is not gone on with")
                return code or 1
            handed = self.hand_over.go()
            if handed != Handed(way, told):
                reason = "; ".join(text for text in (decision.reason, handed.note) if text)
                self.book.write_end(decision, state, handed.next, reason)
            # Jobs that wait for this one to succeed must not begin: the run is not completed.
            code = 0 if handed.next == "requeue" else code or 1
        return code


def _is_own(cause: RankError, asked: bool) -> bool:
    """Whether a run failed by its own error: what it would do again."""
    if cause.transient or cause.kind == "signal" or is_lost_peer(f"{cause.error}: {cause.message}"):
        return False
    # A script that was asked to stop may say so by its exit code.
    return not (cause.kind == "exit" and asked)
