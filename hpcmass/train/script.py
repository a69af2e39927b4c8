"""A training script of the user's own: started on N ranks, with a run folder like any other run's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Layout, Site, Target, job_to_toml, nearest, site_to_toml
from hpcmass.errors import ConfigError, NotFound
from hpcmass.launch import (
    Allocation,
    Control,
    Outcome,
    RankExit,
    find_mpiexec,
    plan_ranks,
    supervise,
    usable_cores,
)
from hpcmass.runs import RankError, RunFolder, State, Status, is_lost_peer, log_tail
from hpcmass.runs.report import numbers
from hpcmass.train.start import note_lost

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][\w.-]*)\}\}|\{([A-Za-z_][\w.-]*)\}")
_EXCEPTION_LINE = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Iteration)): ?(.*)")
_TAIL_LINES = 40


def fill_command(command: str | Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """The words of a command with `{name}` replaced by the parameter's text.

    The command is cut into words first, as a shell would but by none, and the values put in afterwards: a
    value with spaces, quotes or `$(…)` stays part of one word. `{{name}}` stands for the text `{name}`.

    Args:
        command: One text, or its words.
        params: Values by name. Truth values become `true` and `false`, lists and tables JSON.

    Raises:
        ConfigError: The command is empty, its quotes do not close, or it names an unknown parameter.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as error:
        raise ConfigError(f"cannot be cut into words: {error}", where="command") from error
    if not words:
        raise ConfigError("is empty", where="command")

    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return "{" + match[1] + "}"
        if match[2] not in params:
            like = nearest(match[2], list(params))
            known = ", ".join(sorted(params)) or "none"
            raise ConfigError(
                f"'{{{match[2]}}}' is no parameter of [params]",
                where="command",
                hint=f"did you mean '{{{like}}}'?" if like else f"parameters: {known}",
            )
        return _text(match[2], params[match[2]])

    return [_PLACEHOLDER.sub(value, word) for word in words]


def run_script(
    command: Sequence[str],
    *,
    run: RunFolder,
    job: Job | None = None,
    site: Site | None = None,
    ranks: int = 1,
    target: Target | None = None,
    threads_per_rank: int | None = None,
    cwd: Path | None = None,
    ignore_usr1: bool = False,
    console: bool = True,
    control: Control | None = None,
    layout: Layout | None = None,
    allocation: Allocation | None = None,
    container: Sequence[str] | None = None,
    stop_grace_s: float | None = None,
) -> Status:
    """Run a command on N ranks to its end, and keep what is known of it in a run folder.

    Args:
        command: Its words; `python` is the interpreter that runs hpcmass. No shell reads them.
        run: The run's folder; created unless a sweep laid it down before. A completed run is left as it is.
        job: What stands in `job.toml` of a new run.
        site: What stands in `site.toml` of a new run.
        ranks: Processes to start; with mpiexec where there is one, so that Horovod and mpi4py work too.
        target: The site's target; default: this machine.
        threads_per_rank: CPU threads a rank; None shares the cores out.
        cwd: Working folder of the ranks; default: this process's.
        ignore_usr1: Whether they begin deaf to SIGUSR1, which would end a script that knows nothing of it.
        console: Whether rank 0's output is shown.
        control: Owns the signals to the ranks; default: those to this process are passed on.
        layout: Nodes and ranks a node, in an allocation.
        allocation: The Slurm job that this process is the script of; None: this machine alone.
        container: Words put in front of each rank's command; its `python` is the image's then.
        stop_grace_s: Seconds that ranks have after SIGTERM or SIGINT; None: see `supervise`.

    Returns:
        `COMPLETED`, `FAILED` (the first failing rank is among the run's errors), or `STOPPED`.

    Raises:
        NotFound: The command, or the Python script it names, does not exist; nothing was created.
        LeaseHeld: The run is being run by somebody else.
        StorageError: The run folder cannot be written.
    """
    words = resolve_command(command, cwd, in_container=bool(container))
    target = target or Target()
    plan = plan_ranks(
        words,
        ranks,
        target,
        threads_per_rank=threads_per_rank,
        cores=usable_cores(),
        mpiexec=find_mpiexec() if ranks > 1 or target.launcher == "mpiexec" else None,
        env=os.environ,
        layout=layout,
        allocation=allocation,
        container=container,
        own_gpus=False,  # scripts written for torchrun take the GPU of their LOCAL_RANK
    )
    if not run.exists():
        job = job or Job(name=run.path.name, command=list(command))
        run.create(job_to_toml(job), site_to_toml(site or Site.local()))
    with run.lease() as lease:
        run.hold(lease)
        before = run.status()
        if before.state is State.COMPLETED:
            return before
        attempt = before.attempt + 1
        # What asked an earlier attempt to end must not end this one.
        with contextlib.suppress(FileNotFoundError):
            run.stop_file.unlink()
        run.update(
            state=State.RUNNING,
            attempt=attempt,
            ranks=ranks,
            backend="script",
            started=before.started or time.time(),
            ended=None,
            reason=None,
        )
        plan.env["HPCMASS_RUN_DIR"] = str(run.path.absolute())
        plan.env["HPCMASS_ATTEMPT"] = str(attempt)
        try:
            outcome = supervise(
                replace(plan, ignore_usr1=ignore_usr1),
                log_file=lambda rank: run.log_file(attempt, rank),
                console=console,
                cwd=cwd,
                each_poll=run.check_held,
                control=control,
                stop_grace_s=stop_grace_s,
                shared=run.path,
            )
        except BaseException as error:
            run.record_exception(attempt, 0, error)
            run.update(state=State.FAILED, reason=f"could not be started: {error}", ended=time.time())
            raise
        return _settle(run, attempt, outcome)


def resolve_command(
    command: Sequence[str], cwd: Path | None = None, *, in_container: bool = False
) -> list[str]:
    """The words with `python` as this interpreter, refused where there is nothing to run.

    In a container programs are the image's, of which nothing is known here.

    Raises:
        ConfigError: There are no words, or one holds a NUL.
        NotFound: The program, or the script given to Python, does not exist.
    """
    words = list(command)
    if not words:
        raise ConfigError("there is no command to run", hint="hpcmass run --ranks 2 -- python train.py")
    if any("\0" in word for word in words):
        raise ConfigError("a word of the command holds a NUL character", where=words[0])
    if in_container:
        return words
    folder = Path.cwd() if cwd is None else cwd
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    elif "/" in words[0]:
        words[0] = str(folder / words[0])
    if shutil.which(words[0]) is None:
        raise NotFound("there is no such program, or it may not be run", where=command[0])
    if words[0] == sys.executable and len(words) > 1 and words[1].endswith(".py"):
        script = folder / words[1]
        if not script.is_file():
            raise NotFound("there is no such script", where=script)
    return words


def _settle(run: RunFolder, attempt: int, outcome: Outcome) -> Status:
    """The run's last status, by how its ranks ended; called under the lease."""
    changes: dict[str, Any] = {"ended": time.time()}
    reports = list(run.records("report"))
    if reports:  # the status is written once a second at most, so it may lag behind
        changes.update(step=reports[-1]["step"], metrics=numbers(reports[-1]))
    asked = run.asked_to_stop()
    if outcome.ok:
        state = State.COMPLETED if asked is None and outcome.signalled is None else State.STOPPED
        return run.update(state=state, reason=_stop_reason(asked, outcome), **changes)
    if outcome.signalled is not None and all(end.signal or end.ok for end in outcome.exits.values()):
        return run.update(state=State.STOPPED, reason=_stop_reason(asked, outcome), **changes)
    if outcome.lost is not None:
        note_lost(run, attempt, outcome.lost, run.status().step or None)
        return run.update(state=State.FAILED, reason=outcome.lost.text(), **changes)
    failure = _cause(run, attempt, outcome)
    if failure is None:
        said = outcome.launcher_tail.strip() or "nothing"
        reason = f"the launcher ended with exit code {outcome.launcher_exit}; it said: {said[-1000:]}"
        return run.update(state=State.FAILED, reason=reason, **changes)
    error = _rank_error(run, attempt, failure)
    run.record_error(error)
    return run.update(state=State.FAILED, reason=error.message, **changes)


def _stop_reason(asked: str | None, outcome: Outcome) -> str | None:
    if outcome.signalled is not None:
        return f"stopped by {signal.Signals(outcome.signalled).name}"
    return asked


def _cause(run: RunFolder, attempt: int, outcome: Outcome) -> RankExit | None:
    """The rank that failed first; one that only lost a peer counts where there is no other."""
    bad = sorted((end for end in outcome.exits.values() if not end.ok), key=lambda end: end.time)
    own = [end for end in bad if not end.ended_by_us and end.signal != signal.SIGTERM]
    for end in own:
        if end.signal is not None or not is_lost_peer(_last_line(log_tail(run.log_file(attempt, end.rank)))):
            return end
    return next(iter(own), outcome.first_failure)


def _rank_error(run: RunFolder, attempt: int, end: RankExit) -> RankError:
    """What a rank's exit and the end of its log say."""
    tail = log_tail(run.log_file(attempt, end.rank), _TAIL_LINES)
    last = _last_line(tail)
    raised = _EXCEPTION_LINE.fullmatch(last) if end.signal is None else None
    if end.signal is not None:
        error, message = end.text().rpartition("(")[2].rstrip(")"), end.text()
    else:
        error = raised[1] if raised else f"exit code {end.exit_code}"
        message = f"{end.text()}: {last}" if last else end.text()
    return RankError(
        attempt=attempt,
        rank=end.rank,
        kind="exit" if end.signal is None else "signal",
        error=error,
        message=message,
        where=str(run.log_file(attempt, end.rank)),
        traceback=tail or None,
        step=run.status().step or None,
        time=end.time,
        host=end.host or socket.gethostname(),
    )


def _last_line(tail: str) -> str:
    """The line that says what was wrong: the last one that names an exception, else the last."""
    lines = [line.strip() for line in tail.splitlines()]
    # torch prefixes a rank's lines with `[rank1]:`.
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line) for line in lines]
    return next(
        (line for line in reversed(lines) if _EXCEPTION_LINE.fullmatch(line)), lines[-1] if lines else ""
    )


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value)
        if isinstance(value, (list, dict))
        else str(value)
    )
    if "\0" in text:
        raise ConfigError("holds a NUL character, which no command can take", where=f"params.{name}")
    return text
