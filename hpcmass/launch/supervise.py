"""Start a plan's ranks, watch them, pass signals on, and leave none behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hpcmass.errors import HpcmassError, LaunchError
from hpcmass.files import process_start, storage_errors
from hpcmass.launch.abort import parse_abort
from hpcmass.launch.control import Control
from hpcmass.launch.lastword import read_words
from hpcmass.launch.plan import LaunchPlan

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.05
# A rank that loses its peer says so in its own log, if it is given a moment.
_LAST_WORDS_S = 1.0
_TAIL_BYTES = 16384


@dataclass(frozen=True)
class RankExit:
    """How one rank ended.

    Attributes:
        exit_code: Its exit code, or None when a signal ended it.
        signal: The signal that ended it, or None.
        time: When, in seconds since the epoch.
        ended_by_us: Whether the supervisor had begun to end the ranks by then.
    """

    rank: int
    exit_code: int | None
    signal: int | None
    time: float = 0.0
    host: str = ""
    ended_by_us: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.exit_code == 0

    def text(self) -> str:
        """Such as `rank 1 was killed by signal 9 (SIGKILL)`."""
        if self.signal is None:
            return f"rank {self.rank} ended with exit code {self.exit_code}"
        with contextlib.suppress(ValueError):
            return f"rank {self.rank} was killed by signal {self.signal} ({signal.Signals(self.signal).name})"
        return f"rank {self.rank} was killed by signal {self.signal}"


@dataclass(frozen=True)
class Outcome:
    """How all ranks ended.

    Attributes:
        exits: By rank; a rank is missing where nothing is known of its end.
        first_failure: The first rank that ended badly, before the supervisor or mpiexec ended the others.
        launcher_exit: The exit code of mpiexec (negative: a signal); of spawned ranks the first bad one.
        launcher_tail: The last of what mpiexec itself said, or a rank before it had its log.
        signalled: The first signal that was passed on to the ranks, or None.
        words: Errors that ranks left by `leave_word`, by rank, the earliest first.
    """

    ranks: int
    exits: dict[int, RankExit] = field(default_factory=dict)
    first_failure: RankExit | None = None
    launcher_exit: int = 0
    launcher_tail: str = ""
    signalled: int | None = None
    words: dict[int, HpcmassError] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every rank is known to have ended with exit code 0."""
        known = len(self.exits) == self.ranks and all(end.ok for end in self.exits.values())
        return known and self.launcher_exit == 0


def supervise(
    plan: LaunchPlan,
    *,
    log_file: Callable[[int], Path],
    console: bool = False,
    cwd: Path | None = None,
    each_poll: Callable[[], None] | None = None,
    grace_s: float = 5.0,
    stop_grace_s: float = 30.0,
    control: Control | None = None,
) -> Outcome:
    """Run all ranks to their end.

    The first rank that ends badly ends the others: SIGTERM after a second, SIGKILL `grace_s` later. SIGINT,
    SIGTERM and SIGUSR1 to this process are passed on to the ranks (in the main thread only); ranks that are
    still there `stop_grace_s` after SIGINT or SIGTERM, or at the second one, are killed. When this process
    is killed, the ranks end too.

    Args:
        plan: What `plan_ranks` planned.
        log_file: The file that a rank's output is appended to.
        console: Whether to show rank 0's log on this process's standard output as it grows.
        cwd: Working folder of the ranks.
        each_poll: Called about twenty times a second while the ranks run.
        grace_s: Seconds between SIGTERM and SIGKILL after a failure.
        stop_grace_s: Seconds that ranks have to end after being asked to.
        control: Owns the signals instead; then `stop_grace_s` means nothing.

    Raises:
        LaunchError: The launcher could not be started.
        StorageError: A log cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="hpcmass-launch-"))
    watch = _Watch(plan, folder, grace_s=grace_s, stop_grace_s=stop_grace_s, control=control)
    tail: _Tail | None = None
    try:
        logs = [log_file(rank).resolve() for rank in range(plan.ranks)]
        for log in logs:
            with storage_errors(log, "write the log"):
                log.parent.mkdir(parents=True, exist_ok=True)
                log.touch()
        if console:
            tail = _Tail(logs[0])
        settings = {"ranks": plan.ranks, "logs": [str(log) for log in logs]}
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        with _forwarding(watch.on_signal) if control is None else contextlib.nullcontext():
            watch.start(cwd, _terminal() if console else None)
            while not watch.step():
                time.sleep(_POLL_S)
                if tail is not None:
                    tail.copy()
                if each_poll is not None:
                    each_poll()
        return watch.outcome()
    finally:
        watch.end_all()
        if tail is not None:
            tail.copy()
        shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    """The ranks of one plan while they run."""

    def __init__(
        self,
        plan: LaunchPlan,
        folder: Path,
        *,
        grace_s: float,
        stop_grace_s: float,
        control: Control | None = None,
    ) -> None:
        self.control = control
        self.plan = plan
        self.folder = folder
        self.grace_s = grace_s
        self.stop_grace_s = stop_grace_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pids: dict[int, tuple[int, int | None]] = {}  # rank -> keeper (leads its group), its start
        self.exits: dict[int, RankExit] = {}
        self.pending: list[int] = []
        self.delivered: dict[int, int] = {}  # rank -> signals of `pending` that it has had
        self.kill_now = False
        self.ending_since: float | None = None  # when the supervisor began to end the ranks
        self.failed_since: float | None = None
        self.stop_since: float | None = None

    # -- start ------------------------------------------------------------------------------------------
    def start(self, cwd: Path | None, terminal: str | None) -> None:
        """Start mpiexec, or every rank."""
        env = {**self.plan.env, "HPCMASS_KEEPER": str(self.folder)}
        env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        if terminal is not None:
            # Rank 0's output is a file here; a progress line can still be drawn on the terminal itself.
            env["HPCMASS_TTY"] = terminal
        ranks = range(self.plan.ranks) if self.plan.launcher == "spawn" else [None]
        with open(self.folder / "launcher.log", "ab") as said:
            for rank in ranks:
                place = {} if rank is None else _spawn_place(rank, self.plan.ranks)
                argv = self.plan.argv if rank is not None else [*self._guard(), *self.plan.argv]
                try:
                    self.processes.append(
                        subprocess.Popen(
                            argv,
                            env={**env, **place},
                            cwd=cwd,
                            stdin=subprocess.DEVNULL,
                            stdout=said,
                            stderr=said,
                            start_new_session=True,
                        )
                    )
                except OSError as error:
                    raise LaunchError(f"cannot start the ranks: {error.strerror}", where=argv[0]) from error

    def _guard(self) -> list[str]:
        # Killed at once, Hydra's proxy ends the ranks; Open MPI's prterun does so when asked politely.
        number = signal.SIGKILL if self.plan.launcher == "mpich" else signal.SIGTERM
        child = str(Path(__file__).with_name("child.py"))
        return [sys.executable, "-I", "-S", child, "guard", str(int(number)), str(os.getpid())]

    # -- watch ------------------------------------------------------------------------------------------
    def step(self) -> bool:
        """Look once; True when everything has ended."""
        self._read_notes()
        self._note_lost()
        if self.control is not None:
            self.pending = self.control.sent
            self.kill_now = self.control.killing
        self._deliver()
        running = [process for process in self.processes if process.poll() is None]
        if not running:
            return True
        now = time.monotonic()
        failed = any(not end.ok for end in self.exits.values()) or any(
            process.returncode not in (None, 0) for process in self.processes
        )
        if failed and self.failed_since is None:
            self.failed_since = now
        too_long = self._over(self.stop_since, self.stop_grace_s, now)
        if self.kill_now or too_long or self._over(self.failed_since, _LAST_WORDS_S + self.grace_s, now):
            self._end(signal.SIGKILL)
        elif self._over(self.failed_since, _LAST_WORDS_S, now) and self.ending_since is None:
            self._end(signal.SIGTERM)
        return False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal for the ranks; sent by `step`, since a handler must do little."""
        if number != signal.SIGUSR1:
            if self.stop_since is not None:
                self.kill_now = True
            self.stop_since = time.monotonic()
        self.pending.append(number)

    @staticmethod
    def _over(since: float | None, seconds: float, now: float) -> bool:
        return since is not None and now - since >= seconds

    def _read_notes(self) -> None:
        if len(self.pids) < self.plan.ranks:
            for note in self._notes("start"):
                pid = int(note["pid"])
                if note["host"] == socket.gethostname():
                    self.pids.setdefault(int(note["rank"]), (pid, process_start(pid)))
        if len(self.exits) < self.plan.ranks:
            for note in self._notes("exit"):
                rank, ended = int(note["rank"]), float(note["time"])
                ours = self.ending_since is not None and ended >= self.ending_since
                self.exits.setdefault(
                    rank, RankExit(rank, note["exit_code"], note["signal"], ended, note["host"], ours)
                )

    def _note_lost(self) -> None:
        """Note spawned ranks that ended without a note: their keeper was killed, or refused."""
        if self.plan.launcher != "spawn":
            return
        for rank, process in enumerate(self.processes):
            if process.poll() is None or rank in self.exits:
                continue
            self._read_notes()  # it may have been written just before the end
            code = process.returncode
            exit_code, number = (code, None) if code >= 0 else (None, -code)
            now, ours = time.time(), self.ending_since is not None
            self.exits.setdefault(rank, RankExit(rank, exit_code, number, now, socket.gethostname(), ours))

    def _notes(self, kind: str) -> Iterator[dict[str, Any]]:
        for path in self.folder.glob(f"{kind}-*.json"):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_text(encoding="utf-8"))

    def _deliver(self) -> None:
        """Pass signals on to the process group of every rank that has begun, each once."""
        for rank in self.pids:
            for number in self.pending[self.delivered.get(rank, 0) :]:
                self._signal(rank, number)
            self.delivered[rank] = len(self.pending)

    def _signal(self, rank: int, number: int) -> None:
        pid, start = self.pids[rank]
        now = process_start(pid)
        # The number may belong to another process by now; a group outlives its leader, though.
        if now is not None and now != start:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    def _end(self, number: int) -> None:
        if self.ending_since is None:
            self.ending_since = time.time()
        for rank in self.pids:
            self._signal(rank, number)
        if number == signal.SIGKILL:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()

    def end_all(self) -> None:
        """Kill what is left, also what a rank has started and left behind, and reap it."""
        self._read_notes()
        self._end(signal.SIGKILL)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)

    # -- outcome ----------------------------------------------------------------------------------------
    def outcome(self) -> Outcome:
        """What is known once everything has ended."""
        self._read_notes()
        self._note_lost()
        tail = (self.folder / "launcher.log").read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        bad = sorted((end for end in self.exits.values() if not end.ok), key=lambda end: end.time)
        blamed = parse_abort(tail) if self.plan.launcher != "spawn" else None
        if blamed and blamed.rank is not None and blamed.rank not in self.exits:
            end = RankExit(blamed.rank, blamed.exit_code, blamed.signal)
            self.exits[blamed.rank] = end
            bad.insert(0, end)
        codes = [process.returncode for process in self.processes]
        return Outcome(
            ranks=self.plan.ranks,
            exits=self.exits,
            first_failure=bad[0] if bad else None,
            launcher_exit=next((code for code in codes if code), 0),
            launcher_tail=tail,
            signalled=self.pending[0] if self.pending else None,
            words=read_words(self.folder),
        )


def _spawn_place(rank: int, ranks: int) -> dict[str, str]:
    return {
        "HPCMASS_RANK": str(rank),
        "HPCMASS_SIZE": str(ranks),
        "HPCMASS_LOCAL_RANK": str(rank),
        "HPCMASS_LOCAL_SIZE": str(ranks),
    }


@contextlib.contextmanager
def _forwarding(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take the forwarded signals for the time of the body; Python allows it in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in FORWARDED}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Tail:
    """Copies what a growing file gains to standard output."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.file.seek(0, os.SEEK_END)

    def copy(self) -> None:
        """Copy what is new."""
        while block := self.file.read(1 << 16):
            try:
                # Rank 0 may be drawing a progress line on the same terminal: it is wiped, and drawn again.
                wipe = "\r\x1b[2K" if sys.stdout.isatty() else ""
                sys.stdout.write(wipe + block.decode(errors="replace"))
                sys.stdout.flush()
            except (OSError, ValueError):
                return


def _terminal() -> str | None:
    """The device of the terminal that shows standard error, or None."""
    try:
        return os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else None
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """A TCP port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
