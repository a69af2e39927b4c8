"""Start the ranks of a training run, and put into its folder what they could not say themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from hpcmass.config import Layout, Target
from hpcmass.errors import CorruptError, LeaseHeld, NotFound, RankFailed
from hpcmass.files import make_dir, replace_json, storage_errors
from hpcmass.launch import (
    Allocation,
    Control,
    LostNode,
    Outcome,
    RankExit,
    find_mpiexec,
    plan_ranks,
    supervise,
    usable_cores,
)
from hpcmass.launch.advice import daemon_failed, launcher_hint, never_fits
from hpcmass.runs import RankError, RunFolder, State, Status, first_error, log_tail
from hpcmass.runs.folder import FORMAT

_LAUNCHER = {"torch": "spawn", "horovod": "mpiexec", "mpi": "mpiexec"}
_LAST_BREATH_S = 5.0
_ENDED = (State.COMPLETED, State.FAILED, State.STOPPED)


def start_ranks(
    argv: Sequence[str],
    *,
    run: RunFolder,
    ranks: int,
    target: Target,
    threads_per_rank: int | None = None,
    backend: str = "auto",
    console: bool = True,
    control: Control | None = None,
    layout: Layout | None = None,
    allocation: Allocation | None = None,
    container: Sequence[str] | None = None,
    stop_grace_s: float | None = None,
) -> Status:
    """Start `argv` on N ranks, each of which trains its part of `run`, and wait.

    The ranks lay the run folder down themselves, once they have found each other; until then their output
    is kept beside it, and a start that is refused leaves nothing.

    Args:
        argv: The command of one rank.
        run: The run that it trains.
        ranks: Processes to start.
        target: The site's target.
        threads_per_rank: CPU threads a rank; None shares the cores out.
        backend: `torch` needs plain processes; `mpi` and `horovod` need mpiexec; `auto` takes what is there.
        console: Whether rank 0's output is shown.
        control: Owns the signals to the ranks; default: those to this process are passed on.
        layout: Nodes and ranks a node, in an allocation.
        allocation: The Slurm job that this process is the script of; None: this machine alone.
        container: Words put in front of each rank's command.
        stop_grace_s: Seconds that ranks have after SIGTERM or SIGINT; None: see `supervise`.

    Returns:
        The run's status. A rank that was killed is in it, and among the run's errors.

    Raises:
        LaunchError: mpiexec is needed and missing, or does not start.
        HpcmassError: The ranks refused before the run began: the first one's error, once.
        StorageError: The project's folder cannot be written.
    """
    plan = plan_ranks(
        argv,
        ranks,
        target,
        threads_per_rank=threads_per_rank,
        cores=usable_cores(),
        launcher=_LAUNCHER.get(backend, "auto"),  # type: ignore[arg-type]
        mpiexec=find_mpiexec() if backend != "torch" else None,
        env=os.environ,
        layout=layout,
        allocation=allocation,
        container=container,
    )
    before = _attempt(run)
    with _logs_beside(run) as waiting:
        adopted = False

        def adopt() -> None:
            nonlocal adopted
            if not adopted and _attempt(run) > before:
                adopted = True
                _move_logs(waiting, run, before + 1)

        outcome = supervise(
            plan,
            log_file=lambda rank: waiting / f"{rank}.log",
            console=console,
            each_poll=adopt,
            control=control,
            stop_grace_s=stop_grace_s,
            shared=waiting,
        )
        if _attempt(run) == before:
            if outcome.ok and run.exists() and run.status().state is State.COMPLETED:
                return run.status()  # It was completed before, and the ranks had nothing to do.
            if outcome.signalled is not None:
                raise KeyboardInterrupt  # before there was anything to stop
            raise _refusal(outcome, waiting, console, plan.pmi)
        if _attempt(run) > before + 1:
            # Begun again by somebody else meanwhile: nothing in there is about our ranks.
            raise next(iter(outcome.words.values()), run.taken_over())
        _move_logs(waiting, run, before + 1, ended=True)
    return settle(run, outcome)


def settle(run: RunFolder, outcome: Outcome) -> Status:
    """Write into the run folder what its ranks, all gone now, did not write themselves."""
    status = run.status()
    if status.state is State.COMPLETED or (outcome.ok and status.state in _ENDED):
        return status
    cause = first_error(run.errors(status.attempt))
    failure = outcome.first_failure
    if outcome.signalled is not None:
        if status.state in _ENDED:
            return status
        reason = f"ended by {signal.Signals(outcome.signalled).name} without a checkpoint of its last steps"
        return _finish(run, State.STOPPED, reason)
    if outcome.lost is not None:
        note_lost(run, status.attempt, outcome.lost, status.step)
        return _finish(run, State.FAILED, outcome.lost.text())
    hard = failure is not None and failure.signal is not None and not failure.ended_by_us
    if cause is not None and cause.kind == "exception" and not (hard and failure and failure.time < cause.time):
        return status if status.state in _ENDED else _finish(run, State.FAILED, cause.message)
    if failure is not None:
        if status.state is State.FAILED and cause is not None and not hard:
            return status
        note_end(run, status.attempt, failure, status.step)
        return _finish(run, State.FAILED, failure.text())
    if outcome.launcher_exit:
        return _finish(run, State.FAILED, f"the launcher ended with exit code {outcome.launcher_exit}")
    if outcome.unknown and status.state not in _ENDED:  # an mpiexec may end with 0 all the same
        return _finish(run, State.FAILED, outcome.unknown)
    return status


def note_lost(run: RunFolder, attempt: int, lost: LostNode, step: int | None) -> None:
    """Record the end of a node, as its first rank's error."""
    run.record_error(
        RankError(
            attempt=attempt,
            rank=lost.ranks[0],
            kind="signal",
            error="NodeLost",
            message=lost.text(),
            hint=f"'scontrol show node {lost.node}' tells what Slurm knows of it; start the run again to go on",
            step=step,
            time=lost.time,
            host=lost.node,
        )
    )


def note_end(run: RunFolder, attempt: int, end: RankExit, step: int | None) -> None:
    """Record how a rank ended, in place of what another rank guessed about it."""
    file = run.path / "errors" / f"attempt-{attempt}-rank-{end.rank}.json"
    name = end.text().rpartition("(")[2].rstrip(")") if end.signal is not None else f"exit code {end.exit_code}"
    error = RankError(
        attempt=attempt,
        rank=end.rank,
        kind="exit" if end.signal is None else "signal",
        error=name,
        message=end.text(),
        traceback=None,
        step=step,
        time=end.time or time.time(),
        host=end.host,
    )
    known = [e for e in run.errors(attempt) if e.rank == end.rank]
    if not known:
        run.record_error(error)
    elif known[0].kind == "signal":
        replace_json(file, {"format": FORMAT, **asdict(error)})


def _finish(run: RunFolder, state: State, reason: str) -> Status:
    """Write the last status under the lease; a run that somebody else runs by now is left alone."""
    until = time.monotonic() + _LAST_BREATH_S
    while True:
        try:
            with run.lease():
                return run.update(state=state, reason=reason, ended=time.time())
        except LeaseHeld:
            # A rank that was killed a moment ago may still be on its way out, with the lease.
            if time.monotonic() > until:
                return run.status()
            time.sleep(0.1)


def _attempt(run: RunFolder) -> int:
    """The number of starts of a run; 0 where it does not exist yet."""
    try:
        return run.status().attempt if run.exists() else 0
    except (NotFound, CorruptError):
        return 0


@contextlib.contextmanager
def _logs_beside(run: RunFolder) -> Iterator[Path]:
    """A folder beside the run's, on the same file system, gone afterwards."""
    parent = run.path.absolute().parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    make_dir(parent)
    with storage_errors(parent, "write the logs"):
        folder = Path(tempfile.mkdtemp(prefix=f".{run.path.name}-starting-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def _move_logs(waiting: Path, run: RunFolder, attempt: int, *, ended: bool = False) -> None:
    """Give the ranks' logs their place in the run folder; running ranks go on writing to them."""
    make_dir(run.path / "logs")
    for log in waiting.glob("*.log"):
        place = run.log_file(attempt, int(log.stem))
        with contextlib.suppress(OSError):
            if not place.exists():
                os.rename(log, place)
            elif ended:
                with open(log, "rb") as old, open(place, "ab") as new:
                    shutil.copyfileobj(old, new)
                log.unlink()


def _refusal(outcome: Outcome, waiting: Path, console: bool, pmi: str | None) -> Exception:
    """The error of ranks that ended before their run began."""
    for error in outcome.words.values():
        return error
    failure = outcome.first_failure
    rank = failure.rank if failure is not None else 0
    said = log_tail(waiting / f"{rank}.log") or log_tail(waiting / "0.log") or outcome.launcher_tail.strip()
    what = (
        failure.text() if failure is not None else f"the launcher ended with exit code {outcome.launcher_exit}"
    )
    lines = said.splitlines()
    plain = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    if plain is not None:  # a rank's own plain message
        message = "\n".join([lines[plain].removeprefix("error: "), *lines[plain + 1 :]])
    else:
        message = f"{what}, before the run began" + (f":\n{said}" if said else "")
    shown = console and bool(log_tail(waiting / "0.log")) and plain is not None
    exit_code = failure.exit_code if failure is not None else None
    number = failure.signal if failure is not None else None
    hint = None if plain is not None else launcher_hint(f"{outcome.launcher_tail}\n{said}", pmi)
    return RankFailed(
        message, hint=hint, told=shown, rank=rank, exit_code=exit_code, signal=number,
        transient=plain is None and daemon_failed(outcome.launcher_tail),
        lasting=plain is None and never_fits(outcome.launcher_tail),
    )  # fmt: skip
