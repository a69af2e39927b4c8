"""Start a plan's ranks, watch them, pass signals on, and leave none behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hpcmass.errors import LaunchError
from hpcmass.files import process_start, storage_errors
from hpcmass.launch.abort import parse_abort
from hpcmass.launch.console import Tail, terminal
from hpcmass.launch.control import Control
from hpcmass.launch.lastword import read_words
from hpcmass.launch.lifeline import Lifelines
from hpcmass.launch.meet import meeting_place, node_address
from hpcmass.launch.notes import notes_folder
from hpcmass.launch.outcome import LostNode, Outcome, RankExit, unheard_node
from hpcmass.launch.plan import LaunchPlan

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.05
_POLL_SHARED_S = 0.25  # every look is a listing of a folder on the shared file system
# A rank that loses its peer says so in its own log, if it is given a moment.
_LAST_WORDS_S = 1.0
# srun waits for its step when told to end it; where slurmctld does not answer it may wait for ever.
_SRUN_KILLS_S = 10.0
_TAIL_BYTES = 16384


def supervise(
    plan: LaunchPlan,
    *,
    log_file: Callable[[int], Path],
    console: bool = False,
    cwd: Path | None = None,
    each_poll: Callable[[], None] | None = None,
    grace_s: float = 5.0,
    stop_grace_s: float | None = None,
    shared: Path | None = None,
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
        stop_grace_s: Seconds that ranks have to end after being asked to. None: 30, or 600 in a Slurm job,
            where Slurm itself knows how long it waits.
        shared: A folder that all nodes see, for the ranks' notes; needed where the plan has nodes.
        control: Owns the signals instead; then `stop_grace_s` means nothing.

    Raises:
        LaunchError: The launcher could not be started, or a plan with nodes has no shared folder.
        StorageError: A log cannot be written.
    """
    if plan.nodes and shared is None:
        raise LaunchError("ranks on several nodes need a folder that all of them see", where="shared")
    if stop_grace_s is None:
        stop_grace_s = 600.0 if "HPCMASS_SLURM_JOB_ID" in plan.env else 30.0
    folder = notes_folder(shared if plan.nodes else None)
    watch = _Watch(plan, folder, grace_s=grace_s, stop_grace_s=stop_grace_s, control=control)
    poll_s = _POLL_SHARED_S if plan.nodes else _POLL_S
    tail: Tail | None = None
    try:
        logs = [log_file(rank).resolve() for rank in range(plan.ranks)]
        for log in logs:
            with storage_errors(log, "write the log"):
                log.parent.mkdir(parents=True, exist_ok=True)
                log.touch()
        if console:
            tail = Tail(logs[0])
        settings = {
            "ranks": plan.ranks,
            "logs": [str(log) for log in logs],
            "nodes": list(plan.nodes),
            "launcher": plan.launcher,
            "gpus_per_rank": plan.gpus_per_rank,
            "own_gpus": plan.own_gpus,
            "ignore_usr1": plan.ignore_usr1,
            "lifeline": watch.lifelines.settings(node_address(plan.host)) if watch.lifelines else None,
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        with _forwarding(watch.on_signal) if control is None else contextlib.nullcontext():
            watch.start(cwd, terminal() if console else None)
            while not watch.step():
                time.sleep(poll_s)
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
        self.pids: dict[int, tuple[int, int | None]] = {}  # rank here -> keeper (leads its group), its start
        self.begun: dict[int, tuple[str, str]] = {}  # rank -> its host and its node
        self.forwarded = 0  # signals of `pending` that the launcher was given to pass on
        self.ended_launcher: float | None = None
        self.exits: dict[int, RankExit] = {}
        self.pending: list[int] = []
        self.delivered: dict[int, int] = {}  # rank -> signals of `pending` that it has had
        self.kill_now = False
        self.lifelines = Lifelines() if plan.nodes else None
        self.ending_since: float | None = None  # when the supervisor began to end the ranks
        self.failed_since: float | None = None
        self.stop_since: float | None = None

    # -- start ------------------------------------------------------------------------------------------
    def start(self, cwd: Path | None, terminal: str | None) -> None:
        """Start mpiexec, or every rank."""
        env = {**self.plan.env, "HPCMASS_KEEPER": str(self.folder)}
        env.update(meeting_place(self.plan, env))
        env["HPCMASS_STOP_GRACE_S"] = f"{self.stop_grace_s:g}"
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
        # Killed at once, Hydra's proxy ends the ranks; Open MPI's prterun does so when asked politely, by
        # SIGINT because it is deaf to SIGTERM; srun takes SIGTERM for an order to kill.
        numbers = {"mpich": signal.SIGKILL, "openmpi": signal.SIGINT}
        number = numbers.get(self.plan.launcher, signal.SIGTERM)
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
        failed = failed or self._lost() is not None
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
        if len(self.begun) < self.plan.ranks:
            for note in self._notes("start", self.begun):
                rank, pid = int(note["rank"]), int(note["pid"])
                self.begun[rank] = str(note["host"]), str(note.get("node", ""))
                if note["host"] == socket.gethostname():
                    self.pids.setdefault(rank, (pid, process_start(pid)))
        if len(self.exits) < self.plan.ranks:
            for note in self._notes("exit", self.exits):
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

    def _notes(self, kind: str, known: Collection[int]) -> Iterator[dict[str, Any]]:
        """The notes of ranks that are not among those known."""
        for name in os.listdir(self.folder):
            found = re.fullmatch(rf"{kind}-(\d+)\.json", name)
            if found is None or int(found[1]) in known:
                continue
            with contextlib.suppress(OSError, ValueError):
                yield json.loads((self.folder / name).read_text(encoding="utf-8"))

    def _deliver(self) -> None:
        """Pass signals on to the process group of every rank that has begun, each once."""
        for rank in self.pids:
            for number in self.pending[self.delivered.get(rank, 0) :]:
                self._signal(rank, number)
            self.delivered[rank] = len(self.pending)
        if self.plan.nodes and not self.pids and len(self.begun) == self.plan.ranks:
            self._forward()

    def _forward(self) -> None:
        """Let the launcher pass a signal on, for no rank runs on this node.

        Always SIGUSR1, which asks for a stop too; SIGTERM the launchers take for an order to kill.
        """
        while self.forwarded < len(self.pending):
            self.forwarded += 1
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGUSR1)

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
        if number != signal.SIGKILL:
            return
        again, now = self.ended_launcher is not None, time.monotonic()
        self.ended_launcher = self.ended_launcher or now
        # srun kills the step on all nodes at SIGTERM, and says so; killed itself, it leaves that to Slurm.
        asked = self.plan.launcher == "srun" and now - self.ended_launcher < _SRUN_KILLS_S
        if asked and again:
            return
        for process in self.processes:
            if process.poll() is None:
                process.terminate() if asked else process.kill()

    def _lost(self) -> LostNode | None:
        """The first node that was lost, unless a rank had ended badly before, or we had begun to end them."""
        lost = self.lifelines.lost if self.lifelines is not None else {}
        for node, when in sorted(lost.items(), key=lambda item: item[1]):
            ranks = tuple(sorted(rank for rank, place in self.begun.items() if place[1] == node))
            # A launcher that ends the others after a failure may kill their keepers too.
            before = [end.time for end in self.exits.values() if not end.ok and 0 < end.time < when]
            ours = self.ending_since is not None and self.ending_since < when
            if ranks and not before and not ours and not any(rank in self.exits for rank in ranks):
                return LostNode(node, ranks, when)
        return None

    def end_all(self) -> None:
        """Kill what is left, also what a rank has started and left behind, and reap it."""
        self._read_notes()
        self._end(signal.SIGKILL)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_SRUN_KILLS_S if self.plan.launcher == "srun" else 10)
            if process.poll() is None:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
        if self.lifelines is not None:
            self.lifelines.close()

    # -- outcome ----------------------------------------------------------------------------------------
    def outcome(self) -> Outcome:
        """What is known once everything has ended."""
        self._read_notes()
        self._note_lost()
        tail = (self.folder / "launcher.log").read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        bad = sorted((end for end in self.exits.values() if not end.ok), key=lambda end: end.time)
        lost = self._lost()
        blamed = parse_abort(tail) if self.plan.launcher != "spawn" else None
        if blamed and blamed.rank is not None and blamed.rank not in self.exits:
            end = RankExit(blamed.rank, blamed.exit_code, blamed.signal, host=blamed.host)
            self.exits[blamed.rank] = end
            bad.insert(0, end)
        if lost is None and not bad and self.ending_since is None and not self.pending:
            lost = unheard_node(self.begun, self.exits)
        codes = [process.returncode for process in self.processes]
        return Outcome(
            ranks=self.plan.ranks,
            exits=self.exits,
            first_failure=bad[0] if bad else None,
            launcher_exit=next((code for code in codes if code), 0),
            launcher_tail=tail,
            signalled=self.pending[0] if self.pending else None,
            words=read_words(self.folder),
            lost=lost,
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
