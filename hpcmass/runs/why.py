"""Why a run is in its state: the first failing rank's error, the last step, and what to do. Reads only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.files import matching
from hpcmass.runs.folder import RankError, RunFolder, State, Status
from hpcmass.runs.pace import pace_lines

_TAIL_LINES = 12
_TAIL_BYTES = 16384

# What a rank says when it lost a peer: true, but never the cause.
_LOST_PEER = re.compile(
    r"connection (closed|reset|refused|aborted)|broken pipe|socket closed|peer (is gone|closed|shut)"
    r"|remote process exited|connectFullMesh|horovod has been shut down|HorovodInternalError|DistBackendError"
    r"|MPI_ERR_PROC_FAILED|another rank died|^PeerDied"
    r"|one or more (processes|ranks).*(ended|exited|died)|lost .{0,20}\brank",
    re.IGNORECASE,
)
# Signals by which ranks are ended because another one failed, or because somebody asked.
_POLITE = re.compile(r"SIG(TERM|INT|USR1|USR2|HUP|CONT)\b|\bsignal (15|2|10|12|1|18)\b")

_ADVICE: Sequence[tuple[str, str]] = (
    (
        r"out of memory|MemoryError|can(no|')t allocate memory|bad_alloc|OutOfMemory|oom-kill",
        "it ran out of memory: a smaller global_batch, more accumulation, more nodes, or a smaller model",
    ),
    (
        r"\bnan\b|not finite|non-finite|\binf(inity)?\b",
        "the loss is no number any more: a lower lr, clip_norm, warm-up steps, or look for a NaN in the data "
        "(hpcmass data show)",
    ),
    (
        r"disk is full|no space left|quota|ENOSPC|file size limit|File too large",
        "free space or quota where the project lies, then run it again",
    ),
    (
        r"checksum|CorruptError|truncated|sha256",
        "a file is damaged: hpcmass data verify names the shards; a damaged checkpoint may be deleted, "
        "an older one is used then",
    ),
    (r"permission denied|unwritable|read-only", "make the folder writable for this user"),
    (r"ModuleNotFoundError|No module named|ImportError", "install what is missing into this environment"),
    (
        r"SIGSEGV|SIGBUS|SIGILL|\bsignal (11|7|4)\b",
        "native code crashed: the end of the rank's log names the Python line; a node or library "
        "may be at fault",
    ),
)


@dataclass(frozen=True)
class Explanation:
    """Why a run is in its state.

    Attributes:
        headline: One sentence.
        first_error: The error of the rank that failed first in the last attempt, or None.
        last_step: The last step that is known to have been done.
        attempts: How often the run was started.
        advice: What to do, most useful first.
        pace: What made it slow, a line each; empty where nothing did.
        log_tail: The last lines of the failing rank's log (of rank 0's where none failed).
    """

    path: Path
    state: State
    headline: str
    first_error: RankError | None
    last_step: int
    attempts: int
    advice: list[str]
    log_tail: str
    pace: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The explanation as text, a line each."""
        shown = [f"{self.path.name}: {self.state.value}: {self.headline}"]
        shown.append(f"last step: {self.last_step}   attempts: {self.attempts}")
        if (error := self.first_error) is not None:
            what = "" if error.message in self.headline else f": {error.error}: {error.message}"
            where = f" ({error.where})" if error.where else ""
            shown.append(f"rank {error.rank} on {error.host or 'an unknown host'}{what}{where}")
            if error.traceback:
                shown += ["", *("  " + line for line in error.traceback.rstrip().splitlines())]
        # A script's error carries the end of its log already.
        ended_badly = self.state in (State.FAILED, State.UNKNOWN)
        if ended_badly and self.log_tail and not (self.first_error and self.first_error.traceback):
            shown += ["", "the end of its log:", *("  " + line for line in self.log_tail.splitlines())]
        if self.pace:
            shown += ["", "pace:", *("  " + line for line in self.pace)]
        if self.advice:
            shown += ["", *(f"- {line}" for line in self.advice)]
        return shown


def explain(run: RunFolder) -> Explanation:
    """Say why a run is in its state.

    Raises:
        NotFound: There is no such run.
        CorruptError: Its status cannot be read.
    """
    status = run.status()
    error = first_error(run.errors(status.attempt)) if status.state in (State.FAILED, State.UNKNOWN) else None
    rank = error.rank if error else 0
    records = list(run.records())
    steps = [record["step"] for record in records if isinstance(record.get("step"), int)]
    return Explanation(
        path=run.path,
        state=status.state,
        headline=_headline(run, status, error),
        first_error=error,
        last_step=max([status.step, *steps]),
        attempts=status.attempt,
        advice=_advice(run, status, error),
        log_tail=log_tail(run.log_file(status.attempt, rank)),
        pace=pace_lines(records),
    )


def first_error(errors: Sequence[RankError]) -> RankError | None:
    """The error that began it, of one attempt's errors.

    The earliest counts, but one that only says that a peer is gone, or that a rank was ended politely
    (SIGTERM …), counts only where there is nothing better: those are the survivors' words.
    """
    ordered = sorted(errors, key=lambda error: error.time)
    causes = [error for error in ordered if not _is_echo(error)]
    return next(iter(causes or ordered), None)


def is_lost_peer(text: str) -> bool:
    """Whether an error's text says no more than that another rank is gone."""
    return bool(_LOST_PEER.search(text))


def log_tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # A progress line is drawn over itself with carriage returns; what was drawn last is what counts.
    shown = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def _is_echo(error: RankError) -> bool:
    said = f"{error.error}: {error.message}"
    return is_lost_peer(said) or (error.kind == "signal" and bool(_POLITE.search(said)))


def _headline(run: RunFolder, status: Status, error: RankError | None) -> str:
    if status.state is State.COMPLETED:
        return status.reason or "it completed"
    if status.state is State.CREATED:
        return "it was created and never started"
    if status.state is State.RUNNING:
        owner = run.lease().owner()
        return f"it is running (process {owner.pid} on {owner.host})" if owner else "it is running"
    if status.state is State.STOPPED:
        return status.reason or run.asked_to_stop() or "it was stopped"
    if error is not None:
        what = error.message or error.error
        return what if f"rank {error.rank}" in what else f"rank {error.rank}: {what}"
    return status.reason or "it ended without saying why"


def _advice(run: RunFolder, status: Status, error: RankError | None) -> list[str]:
    advice: list[str] = []
    if status.state in (State.FAILED, State.UNKNOWN):
        if error is not None and error.hint:
            advice.append(error.hint)
        said = "" if error is None else f"{error.error}: {error.message}"
        advice += [
            text for pattern, text in _ADVICE if re.search(pattern, f"{said} {status.reason or ''}", re.I)
        ][:1]
        if re.search(r"SIGKILL|\bsignal 9\b", f"{said} {status.reason or ''}"):
            advice.append(
                "SIGKILL comes from outside: the kernel short of memory (dmesg, the site's job report), "
                "a limit of the scheduler, or a person"
            )
    if status.state is State.UNKNOWN:
        advice.append("nothing is known of its end: look at the logs and at the scheduler's record of the job")
    if status.state in (State.FAILED, State.UNKNOWN, State.STOPPED, State.CREATED):
        advice.append("run the same command again: " + _how_it_goes_on(run, status))
    return advice


def _how_it_goes_on(run: RunFolder, status: Status) -> str:
    if status.backend == "script":
        return "a further attempt in this run folder; where the script goes on from is its own affair"
    numbers = (
        re.fullmatch(r"step-(\d+)\.json", file.name) for file in matching(run.checkpoints, "step-*.json")
    )
    steps = [int(number[1]) for number in numbers if number]
    if not steps:
        return "it begins anew, since there is no checkpoint yet"
    return f"it goes on from the checkpoint of step {max(steps)}"
