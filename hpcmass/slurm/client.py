"""Runs Slurm's commands: with a limit on each, patience with what passes by itself, and plain errors."""

from __future__ import annotations

import contextlib
import os
import random
import signal as signals
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmass.errors import SlurmError
from hpcmass.slurm import commands
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.messages import explain, last_word, plain
from hpcmass.slurm.parse import (
    NodeInfo,
    PartitionInfo,
    QosInfo,
    parse_config,
    parse_nodes,
    parse_partitions,
    parse_qos,
)
from hpcmass.slurm.parse_jobs import JobRow, parse_now, parse_sacct, parse_squeue, parse_start

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_QUIET_S = 3.0  # without an answer, after which the wait is told
_SBATCH_S = 60.0  # sbatch itself waits for its controller, and ended early leaves open whether it was heard
_CANCEL_AT_ONCE = 500


class Slurm:
    """The Slurm that this environment reaches.

    Attributes:
        calls: Slurm commands run so far.
        silent: Why the last call of `jobs` could not learn all that Slurm knows; empty where it could.
        patience_s: How long a command is tried again while its failure may pass by itself (the controller
            restarts, a socket times out).
    """

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Make a client.

        Args:
            env: The environment of the commands; default: that of this process when a command is run.
            timeout_s: A command that has not ended by then is ended, and counts as no answer.
            patience_s: See the class; 0 tries once.
            on_wait: Told, in one sentence, that a command waits or is going to be tried again.
        """
        self.calls = 0
        self.silent = ""
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._env = env
        self._on_wait = on_wait
        self._accounting: bool | None = None
        self._lock = threading.Lock()

    @property
    def env(self) -> dict[str, str]:
        """The environment as given, before anything is taken out of it for a command."""
        return dict(os.environ if self._env is None else self._env)

    # -- running ---------------------------------------------------------------------------------------
    def run(self, argv: Sequence[str], *, patience_s: float | None = None) -> str:
        """Run a Slurm command and return what it wrote to stdout.

        sbatch is tried again only while it is sure that the job was not taken.

        Raises:
            SlurmError: It failed; the data carries `argv`, `exit_code` (None: it was ended), `stderr`, `kind`
                (see `messages.Trouble`) and `unsure` (whether it may have been carried out all the same).
        """
        out, _ = self._run(argv, patience_s=patience_s)
        return out

    def _run(self, argv: Sequence[str], *, patience_s: float | None = None) -> tuple[str, str]:
        until = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return self._once(list(argv))
            except SlurmError as error:
                # Jitter, so that many clients do not come back at the same moment.
                wait = pause * random.uniform(0.7, 1.3)
                again = error.transient and not (error.data["unsure"] and _is_sbatch(argv))
                if not again or time.monotonic() + wait > until:
                    raise
                if self._on_wait is not None:
                    self._on_wait(f"{error.message}; trying again")
                time.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _once(self, argv: list[str]) -> tuple[str, str]:
        env = commands.submit_env(self.env) if _is_sbatch(argv) else commands.query_env(self.env)
        if "--test-only" in argv:
            env["SLURM_TIME_FORMAT"] = "%s"
        with self._lock:
            self.calls += 1
        try:
            child = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise SlurmError(
                f"there is no '{argv[0]}' on this machine",
                hint="Slurm's commands are on login nodes; 'hpcmass slurm up' starts a small Slurm here",
                **_facts(argv, None, "", "no-slurm", unsure=False),
            ) from None
        except OSError as error:
            raise SlurmError(
                f"'{argv[0]}' cannot be started: {error.strerror}",
                **_facts(argv, None, "", "other", unsure=False),
            ) from error
        limit_s = max(self.timeout_s, _SBATCH_S) if _is_sbatch(argv) else self.timeout_s
        try:
            out_bytes, err_bytes = self._answer(child, argv, limit_s)
        except subprocess.TimeoutExpired:
            _end(child)
            raise SlurmError(
                f"{argv[0]} did not answer within {limit_s:g} s and was ended",
                hint="Slurm's controller is busy or unreachable; try again later",
                transient=True,
                **_facts(argv, None, "", "timeout", unsure=True),
            ) from None
        except BaseException:
            _end(child)
            raise
        out, err = out_bytes.decode("utf-8", "replace"), err_bytes.decode("utf-8", "replace")
        if child.returncode != 0:
            trouble = explain(err, argv)
            raise SlurmError(
                plain(err, argv),
                hint=trouble.hint,
                transient=trouble.transient,
                **_facts(argv, child.returncode, err, trouble.kind, unsure=trouble.unsure),
            )
        return out, err

    def _answer(self, child: subprocess.Popen[bytes], argv: list[str], limit_s: float) -> tuple[bytes, bytes]:
        """What a command writes until its end; Slurm's own wait for a controller that is away."""
        if self._on_wait is not None and limit_s > _QUIET_S:
            try:
                return child.communicate(timeout=_QUIET_S)
            except subprocess.TimeoutExpired:
                self._on_wait(f"Slurm does not answer {argv[0]} yet; waiting")
                return child.communicate(timeout=limit_s - _QUIET_S)
        return child.communicate(timeout=limit_s)

    # -- jobs ------------------------------------------------------------------------------------------
    def jobs(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        """What is known of jobs, by the ids asked for: one squeue, and at most one sacct, whatever the number.

        An id of a whole array stands for all its elements, that of a heterogeneous job for its first part.
        Of a job that is over, sacct adds exit code and usage. UNKNOWN, with the reason, is a job that neither
        knows, or that Slurm does not answer about. Of an element that was cancelled alone while it was pending
        Slurm keeps no record: where both answer and know its array only, that is what became of it.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        patience_s = min(self.patience_s, 3.0)
        reached, words = True, ""
        queued: dict[str, JobRow] = {}
        try:
            argv = commands.squeue_jobs(wanted, uid=os.getuid())
            queued = _by_id(parse_squeue(self.run(argv, patience_s=patience_s)))
        except SlurmError as error:
            if error.data["kind"] != "job":  # One id alone that is not known is an error to squeue.
                reached, words = False, error.message
        self.silent = "" if reached else words
        infos = {one: _find(one, queued) for one in wanted}
        missing = [one for one, info in infos.items() if info is None or info.state.ended]
        past: dict[str, JobRow] = {}
        arrays: set[str] = set()
        unheard = ""
        if missing and self._accounting is not False:
            try:
                past = _by_id(parse_sacct(self.run(commands.sacct_jobs(missing), patience_s=0.0)))
                self._accounting = True
                arrays = {row.base_id for row in (*queued.values(), *past.values()) if "_" in row.info.job_id}
            except SlurmError as error:
                if error.data["kind"] == "no-accounting":
                    self._accounting = False
                elif error.transient and reached:
                    down = error.data["kind"] == "accounting"
                    unheard = words = "its accounting database is away" if down else error.message
        found = {one: _merged(one, infos[one], _find(one, past), reached, words) for one in wanted}
        for one, info in found.items():
            if info.source:
                continue
            if unheard:  # Accounting may know what the controller has forgotten.
                self.silent = unheard
            elif reached and "_" in one and one.split("_")[0] in arrays:
                found[one] = replace(
                    info, state=JobState.CANCELLED, reason="cancelled before it started", gone=False
                )
        return found

    def alive(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        """Those of the jobs that are pending, running or otherwise not over; one squeue.

        Raises:
            SlurmError: Slurm does not answer, so that nobody knows.
        """
        if not ids:
            return {}
        try:
            rows = _by_id(parse_squeue(self.run(commands.squeue_jobs(ids, uid=os.getuid()))))
        except SlurmError as error:
            if error.data["kind"] == "job":
                return {}
            raise
        infos = {one: _find(one, rows) for one in ids}
        return {one: info for one, info in infos.items() if info is not None and not info.state.ended}

    def has_accounting(self) -> bool:
        """Whether this Slurm keeps a database of jobs that have ended (slurmdbd)."""
        if self._accounting is None:
            kind = self.config().get("AccountingStorageType", "")
            self._accounting = kind.endswith(("slurmdbd", "mysql"))
        return self._accounting

    def clock_ahead_s(self) -> float | None:
        """Seconds that the controller's clock is ahead of this machine's; None where it does not say.

        All else that Slurm's commands say of time left (squeue's `%L`) they reckon by the clock here.
        """
        before = time.time()
        try:
            said = parse_now(self.run(commands.diagnose(), patience_s=0.0))
        except SlurmError:
            return None
        # It cuts the fraction off, and spoke some time between question and answer.
        return None if said is None else said + 0.5 - (before + time.time()) / 2

    def time_left_s(self, job_id: str, *, ahead_s: float = 0.0) -> float | None:
        """Seconds to a running job's time limit (0 past it); None without a limit, or where it is not known.

        Args:
            job_id: The job's.
            ahead_s: `clock_ahead_s`, of the controller, whose clock the limit's end is told by.
        """
        info = self._squeue_one(job_id)
        if info is None or info.state is not JobState.RUNNING or info.ends is None or info.time_limit_s is None:
            return None
        return max(0.0, info.ends - ahead_s - time.time())

    def _squeue_one(self, job_id: str) -> JobInfo | None:
        try:
            text = self.run(
                commands.squeue_jobs([job_id], uid=os.getuid()), patience_s=min(self.patience_s, 3.0)
            )
        except SlurmError:
            return None
        return _find(job_id, _by_id(parse_squeue(text)))

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue; its script starts again, with one more restart.

        Raises:
            SlurmError: Slurm refused (the job forbids it, or is over), or does not answer.
        """
        self.run(commands.requeue(job_id))

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs; one that is over already is none to fail for.

        Raises:
            SlurmError: Slurm refused or does not answer.
        """
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), _CANCEL_AT_ONCE):
            try:
                self.run(commands.cancel(wanted[start : start + _CANCEL_AT_ONCE]))
            except SlurmError as error:
                # One line a job: all of them have to say that there is nothing to cancel.
                lines = [line for line in error.data["stderr"].splitlines() if line.strip()]
                if not lines or any(explain(line).kind != "job" for line in lines):
                    raise

    def find_comment(self, comment: str) -> list[str]:
        """Ids of this user's jobs with a comment, or it and `:…` behind it, newest last; an array counts once.

        Raises:
            SlurmError: Slurm does not answer, so that nobody knows.
        """
        out = self.run(commands.squeue_user(os.getuid()))
        found = []
        for line in out.split("\n"):
            values = line.split(commands.SEPARATOR, 3)
            if len(values) == 4 and (values[3] == comment or values[3].startswith(f"{comment}:")):
                found.append(values[0].split("_")[0].split("+")[0])
        return sorted(set(found), key=int)

    def test_only(self, script: Path) -> tuple[float | None, str]:
        """When a script would start: epoch seconds, or None where it never can, and Slurm's own words."""
        try:
            out, err = self._run(commands.sbatch_test(script))
        except SlurmError as error:
            if error.transient or error.data["exit_code"] is None:
                raise
            return None, last_word(error.data["stderr"]) or error.message
        return parse_start(err + out), last_word(err) or last_word(out)

    # -- the cluster -----------------------------------------------------------------------------------
    def nodes(self) -> list[NodeInfo]:
        """All nodes."""
        return parse_nodes(self.run(commands.show_nodes()))

    def partitions(self) -> list[PartitionInfo]:
        """All partitions."""
        return parse_partitions(self.run(commands.show_partitions()))

    def config(self) -> dict[str, str]:
        """Slurm's configuration, such as `{"ClusterName": "lab", "MaxArraySize": "1001"}`."""
        return parse_config(self.run(commands.show_config()))

    def qos(self) -> list[QosInfo]:
        """All QOS with their limits; none on a Slurm without accounting."""
        return parse_qos(self.run(commands.show_qos())) if self.has_accounting() else []


def _is_sbatch(argv: Sequence[str]) -> bool:
    return os.path.basename(argv[0]) == "sbatch"


def _facts(argv: list[str], exit_code: int | None, stderr: str, kind: str, *, unsure: bool) -> dict[str, Any]:
    return {"argv": argv, "exit_code": exit_code, "stderr": stderr, "kind": kind, "unsure": unsure}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and what it started (it leads a session of its own)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signals.SIGKILL)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    child.wait()


# -- merging what squeue and sacct say -------------------------------------------------------------------


def _by_id(rows: Sequence[JobRow]) -> dict[str, JobRow]:
    return {row.info.job_id: row for row in rows}


def _find(job_id: str, rows: Mapping[str, JobRow]) -> JobInfo | None:
    """The job of an id: its own, a heterogeneous job's first part, a whole array, or a raw id."""
    for one in (job_id, f"{job_id}+0"):
        if one in rows:
            return replace(rows[one].info, job_id=job_id)
    parts = [row.info for row in rows.values() if row.base_id == job_id]
    if parts:
        return _whole(job_id, parts)
    raw = next((row.info for row in rows.values() if row.raw_id == job_id), None)
    return None if raw is None else replace(raw, job_id=job_id)


def _whole(job_id: str, parts: list[JobInfo]) -> JobInfo:
    """An array as one job: it runs while an element does, and has failed when one has."""

    def rank(info: JobInfo) -> int:
        if info.state.ended is False:
            return 0 if info.state is JobState.RUNNING else 1
        return 4 if info.state is JobState.COMPLETED else 2 if info.state.ended else 3

    first = min(parts, key=rank)
    return replace(
        first, job_id=job_id, nodes=tuple(dict.fromkeys(node for part in parts for node in part.nodes))
    )


def _merged(job_id: str, queued: JobInfo | None, past: JobInfo | None, reached: bool, words: str) -> JobInfo:
    if queued is not None:
        if past is None or not past.state.ended:  # sacct lags by seconds, or knows nothing.
            return queued
        # Accounting may not have heard yet what the job is called or was asked for: the controller has.
        return replace(
            queued,
            state=past.state,
            reason=queued.reason or past.reason,
            ends=past.ends or queued.ends,
            exit_code=past.exit_code,
            signal=past.signal,
            used=past.used,
            source=past.source,
        )
    if past is not None and past.state.ended:
        return past
    if past is not None and reached:
        words = f"squeue knows the job no more, while sacct still says {past.state.value}"
    known = past or JobInfo(job_id, JobState.UNKNOWN)
    return replace(known, state=JobState.UNKNOWN, reason=words, gone=reached)
