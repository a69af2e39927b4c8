"""Signals and dying ranks, watched by a thread while a rank trains.

Python's own handlers do not run while the main thread is blocked inside MPI, waiting for a rank that is no
more; the byte that the interpreter's C handler writes to the wakeup descriptor arrives all the same.

A signal asks for a stop: the ranks agree on a step, write a checkpoint, and end as STOPPED. When a rank dies,
mpiexec sends SIGTERM too, and SIGKILL about a second later. The two are told apart by looking whether the
other ranks of this node still live, and by whether steps go on: a rank that got no further half a second
after SIGTERM writes down why it is about to end, and takes it back if a step is done after all. SIGUSR1 is
sent by nobody but who wants a stop (hpcmass itself before a time limit, or a user), so no step is too long
for it; and SIGTERM after it is Slurm's, which does not mean to end a checkpoint.

Inside a Slurm job (`HPCMASS_PATIENT`) signals come twice and more by themselves: from Slurm to every process of
the job, from the launcher, from the batch script's process. There a second one does not end a rank at once, and
a rank is not given up for a slow step or a long checkpoint: Slurm, or whoever supervises the ranks, ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hpcmass.errors import HpcmassError
from hpcmass.files import boot_id, pid_namespace, process_start
from hpcmass.runs import RankError, RunFolder, State
from hpcmass.train.hang import SILENCE_S, Clock, Waiting, main_place

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PROVISIONAL_S = 0.5
GIVE_UP_S = 30.0
SECOND_S = 1.0


@dataclass(frozen=True)
class Peer:
    """A rank's process, told to the others at the start."""

    rank: int
    host: str
    boot: str
    pid: int
    start_ticks: int
    pid_namespace: str

    @classmethod
    def this(cls, rank: int) -> Peer:
        """The calling process."""
        start = process_start(os.getpid()) or 0
        return cls(rank, socket.gethostname(), boot_id(), os.getpid(), start, pid_namespace())

    def dead(self) -> bool:
        """Whether this process can know that the other one is gone (not from within another container)."""
        here = (socket.gethostname(), boot_id(), pid_namespace())
        return (self.host, self.boot, self.pid_namespace) == here and process_start(
            self.pid
        ) != self.start_ticks


class Watch:
    """Context manager around a rank's training.

    Handlers are installed in the main thread only, and what was there before is put back.

    Attributes:
        requested: The name of the signal that asked for a stop, or None.
    """

    def __init__(
        self, run: RunFolder, attempt: int, rank: int, peers: list[Peer], *, hang_s: float = 0.0
    ) -> None:
        """Prepare.

        Args:
            run: The run.
            attempt: Which attempt at it this is.
            rank: This rank.
            peers: All ranks' processes, this one's too.
            hang_s: A run of several ranks ends when for so long no step is done; 0: never.
        """
        self._hosts = {peer.rank: peer.host for peer in peers}
        self._clock = Clock(hang_s) if hang_s and len(peers) > 1 else None
        self._waiting = Waiting(run.path, attempt, rank, len(peers))
        self._waited_s = 0.0
        self._run, self._attempt, self._rank = run, attempt, rank
        self._peers = [peer for peer in peers if peer.rank != rank and peer.boot == boot_id()]
        self._alone = len(peers) == 1
        self.requested: str | None = None
        self._step = 0
        self._signalled = 0.0  # the first SIGTERM or SIGINT
        self._give_up_s = give_up_s()
        self._step_when_signalled = 0
        self._provisional = False
        self._patient = os.environ.get("HPCMASS_PATIENT") == "1"
        self._old: dict[int, Any] = {}
        self._old_fd = -1
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._ending = threading.Event()
        self._read, self._write = -1, -1

    def begin(self, step: int) -> None:
        """Say where it goes on from; the first step after that is a first one, and has its time."""
        self._step = step
        self.alive()

    def advance(self, step: int) -> None:
        """Say that `step` optimiser steps are done."""
        self._step = step
        self.alive(step=True)

    def alive(self, *, step: bool = False) -> None:
        """Say that something is going on between two steps (a validation, a checkpoint)."""
        if self._clock is not None:
            self._clock.alive(step=step)

    def ending(self) -> None:
        """Say that all ranks are about to end: a process that is gone is no dead rank any more."""
        self._ending.set()

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._step

    def lost_peer(self) -> None:
        """The connection to another rank broke: if it died here, say so, and end this process."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            self._look_at_peers()
            time.sleep(0.05)

    def __enter__(self) -> Watch:
        if self._rank == 0:
            self._waiting.sweep()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
            self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="hpcmass-watch")
        self._thread.start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._closing.set()
        if self._old:
            signal.set_wakeup_fd(self._old_fd)
            for number, handler in self._old.items():
                signal.signal(number, handler)
            self._old = {}
        os.write(self._write, b"\0")
        if self._thread is not None:
            self._thread.join()
        self._waiting.take_back()
        if self._provisional and error is None:
            self._forget()  # the step was done, and the end came before the thread looked again
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """In the main thread, between two byte codes: a lone process ends at the second signal."""
        name = signal.Signals(number).name
        if self.requested is None:
            self.requested = name
        elif self._patient or number == signal.SIGUSR1:
            return
        elif self._alone and self._signalled and time.monotonic() - self._signalled > SECOND_S:
            raise KeyboardInterrupt(name)

    def _watch(self) -> None:
        while not self._closing.is_set():
            waiting = self._signalled and not self._alone
            ready, _, _ = select.select([self._read], [], [], 0.1 if waiting else 1.0)
            if self._closing.is_set():
                return
            if ready:
                for number in os.read(self._read, 256):
                    if number in SIGNALS:
                        self._on_signal(signal.Signals(number).name)
            if not self._alone:
                self._look_at_peers()
                self._look_at_steps()
                self._look_for_hang()

    def _on_signal(self, name: str) -> None:
        now = time.monotonic()
        self.requested = self.requested or name
        if name == "SIGUSR1":
            return
        if not self._signalled:
            self._signalled, self._step_when_signalled = now, self._step
        elif self._patient:
            return
        elif not self._alone and now - self._signalled > SECOND_S:
            self._finish(State.STOPPED, f"ended at once by a second signal ({name})", name)

    def _look_at_peers(self) -> None:
        dead = None if self._ending.is_set() else next((peer for peer in self._peers if peer.dead()), None)
        if dead is None:
            return
        time.sleep(0.2)  # its own last word may just be on its way to the disk
        if self._closing.is_set() or self._ending.is_set():
            return
        said = next((e for e in self._run.errors(self._attempt) if e.rank == dead.rank), None)
        what = said.message if said else "its process ended without a word (killed, or out of memory)"
        reason = f"rank {dead.rank} died: {what}"
        # mpiexec's SIGKILL may be less than a second away, and a busy disk slow: what matters most comes first.
        self._fail(State.FAILED, reason)
        if said is None:
            message = f"process {dead.pid} on {dead.host} ended without a word: killed, or out of memory"
            hint = "look for 'Out of memory' in the system's log; the run goes on from its last checkpoint"
            self._record(dead.rank, "Died", message, hint)
        # What a rank says itself, it has printed too.
        self._finish(State.FAILED, reason, self.requested or "PeerDied", tell=said is None)

    def _look_at_steps(self) -> None:
        if not self._signalled or (self._patient and self.requested == "SIGUSR1"):
            return  # SIGUSR1 comes from whoever wants a stop, never from a launcher whose rank died
        waited = time.monotonic() - self._signalled
        reason = f"ended by {self.requested}, probably because another rank died"
        if self._step != self._step_when_signalled:
            if self._provisional:
                self._take_back()
        elif waited > self._give_up_s and not self._patient:
            self._finish(State.FAILED, reason, self.requested or "")
        elif waited > PROVISIONAL_S and not self._provisional:
            self._provisional = True
            self._record(self._rank, self.requested or "", reason, None)
            if self._rank == 0:
                fail_status(self._run, reason)

    def _look_for_hang(self) -> None:
        clock = self._clock
        if clock is None or self._ending.is_set():
            return
        clock.tick()
        if clock.idle_s < clock.limit_s:
            if clock.waited_for:
                self._waiting.work(self._step)
            else:
                self._waiting.take_back()
            self._waited_s = 0.0
            return
        waits, where, stack = main_place()
        if not waits:
            self._hangs(f"no step for {clock.idle_s:.0f} s: it hangs in {where}", {self._rank}, stack)
        self._waiting.say(self._step)
        self._waited_s = self._waited_s or clock.idle_s
        patience_s, waited_s = min(SILENCE_S, clock.limit_s), clock.idle_s - self._waited_s
        said = self._run.errors(self._attempt) if waited_s >= patience_s else []
        if said and waited_s >= 2 * patience_s:  # its launcher should have ended this one too
            self._finish(State.FAILED, f"rank {said[0].rank} ended: {said[0].message}", "PeerDied")
        if waited_s < patience_s or said:
            return
        if self._waiting.others_work():  # no step, but a long validation or checkpoint: of a slow node, say
            self._waited_s = clock.idle_s
            return
        self._name_the_silent(clock, stack)

    def _name_the_silent(self, clock: Clock, stack: str) -> None:
        """All who can say so have said that they wait: end, for those who have not."""
        silent = self._waiting.silent()
        names = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in silent[:4])
        if len(silent) > 4:
            names += f" and {len(silent) - 4} more"
        what = (
            "is silent: stopped, or out of reach"
            if len(silent) == 1
            else "are silent: stopped, or out of reach"
        )
        if not silent:
            names, what = "all ranks", "wait for each other"
        self._hangs(f"no step for {clock.idle_s:.0f} s: {names} {what}", set(silent), stack)

    def _hangs(self, reason: str, who: set[int], stack: str) -> None:
        """Say which ranks hang, and end."""
        record = RankError(
            attempt=self._attempt, rank=self._rank, kind="exception" if who == {self._rank} else "signal",
            error="Hang", message=reason, traceback=stack,
            hint="train.hang_s is how long a step may take; the run goes on from its last checkpoint",
            step=self._step, time=time.time(), host=socket.gethostname(),
        )  # fmt: skip
        self._run.record_error(record)
        who = who - {self._rank}
        if min(rank for rank in self._hosts if rank not in who) == self._rank:
            fail_status(self._run, reason if who else f"rank {self._rank} on {record.host}: {reason}")
        with contextlib.suppress(OSError):  # nobody may be there to read it
            print(f"hpcmass: rank {self._rank}: {reason}", file=sys.stderr, flush=True)
        self._waiting.take_back()
        os._exit(2)

    def _forget(self) -> None:
        self._provisional = False
        with contextlib.suppress(OSError):
            (self._run.path / "errors" / f"attempt-{self._attempt}-rank-{self._rank}.json").unlink()

    def _take_back(self) -> None:
        self._forget()
        if self._rank == 0:
            with contextlib.suppress(HpcmassError):
                self._run.update(state=State.RUNNING, reason=None, ended=None)

    def _finish(self, state: State, reason: str, error: str, *, tell: bool = True) -> None:
        """Write the last words and end this process; the launcher ends the others."""
        told = self._fail(state, reason)
        self._record(self._rank, error, reason, None)
        if told and tell:
            with contextlib.suppress(OSError):  # nobody may be there to read it
                print(f"hpcmass: {reason}", file=sys.stderr, flush=True)
        self._waiting.take_back()
        os._exit(2)

    def _fail(self, state: State, reason: str) -> bool:
        """Rank 0 writes the status; when it is the one that died, whoever sees that does."""
        mine = self._rank == 0 or any(peer.rank == 0 and peer.dead() for peer in self._peers)
        if mine:
            fail_status(self._run, reason, state, again=self._provisional)
        return mine

    def _record(self, rank: int, error: str, message: str, hint: str | None) -> None:
        self._run.record_error(
            RankError(
                attempt=self._attempt, rank=rank, kind="signal", error=error, message=message, hint=hint,
                step=self._step, time=time.time(), host=socket.gethostname(),
            )
        )  # fmt: skip


def give_up_s() -> float:
    """How long a rank waits for the others after SIGTERM: as long as whoever started it will wait."""
    try:
        return max(GIVE_UP_S, float(os.environ.get("HPCMASS_STOP_GRACE_S", "0")))
    except ValueError:
        return GIVE_UP_S


def fail_status(run: RunFolder, reason: str, state: State = State.FAILED, *, again: bool = False) -> None:
    """Write why a run ended; a reason that is there already stays, unless `again`."""
    with contextlib.suppress(HpcmassError):
        if again or run.status().state in (State.RUNNING, State.UNKNOWN, State.CREATED):
            run.update(state=state, reason=reason, ended=time.time())
