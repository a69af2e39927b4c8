"""What watches over a hop's ranks: the signals that come to the batch script, and the time left."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.launch import Control
from hpcmass.launch.scrub import scrubbed
from hpcmass.runs import NewestCommit
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.outlive import (
    Fate,
    Times,
    fate_of,
    is_early_warning,
    is_node_trouble,
    parse_said,
    parse_shown,
    preempted_soon,
    times,
)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# How often the time limit is asked for: operators and users change it while a job runs. Once more before the
# stop, but not in the moment of it: a controller that is down takes long to say nothing.
_READ_EVERY_S, _READ_UNKNOWN_S, _READ_BEFORE_STOP_S = 300.0, 20.0, 60.0
_PACE_EVERY_S = 15.0
_CLOCKS_S = 5.0  # a difference that is told
_SAID_BYTES = 1 << 16
_GLANCE_S = 2.0
_START_S = 60.0  # how long a node may take to start a process


class SignalInbox:
    """Takes the signals of this process from the moment it is made, in the main thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put may be called in a signal handler
        self._before: dict[int, Any] = {}
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._put)

    def _put(self, number: int, _frame: FrameType | None) -> None:
        self._queue.put(number)

    def get(self, timeout_s: float) -> int | None:
        """The next signal, or None when none comes in time."""
        with contextlib.suppress(queue.Empty):
            return self._queue.get(timeout=timeout_s)
        return None

    def close(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@dataclass(frozen=True)
class Place:
    """Where in Slurm a hop is.

    Attributes:
        job_id: `12`, or `12_3` for an element of an array.
        restart: How often Slurm has begun this job again.
        nodes: Names.
        ends: The time limit's end by the job's environment, seconds since the epoch, or None.
        output: The file of this process's standard error, where slurmstepd writes too, or None.
        output_from: Its size when this hop began.
    """

    job_id: str
    restart: int
    nodes: tuple[str, ...]
    ends: float | None
    output: Path | None
    output_from: int


class JobEyes:
    """What this hop can learn about its own job."""

    def __init__(self, place: Place, slurm: Slurm) -> None:
        self.place, self.slurm = place, slurm

    def shown(self) -> dict[str, str] | None:
        """Slurm's view of the job, or None where it does not answer. At once: there may be seconds to live."""
        try:
            return parse_shown(self.slurm.run(["scontrol", "show", "job", self.place.job_id], patience_s=0.0))
        except SlurmError:
            return None

    def said(self, start: int | None = None) -> Fate | None:
        """What slurmstepd wrote into the job's output during this hop, or since it had `start` bytes."""
        start = self.place.output_from if start is None else start
        if self.place.output is None:
            return None
        try:
            with open(self.place.output, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                # A requeued job's output may have been begun anew.
                file.seek(max(start if start <= end else 0, end - _SAID_BYTES))
                return parse_said(file.read().decode(errors="replace"))
        except OSError:
            return None

    def fate(self) -> tuple[Fate, Fate | None]:
        """What Slurm is doing with the job, and what slurmstepd said."""
        said = self.said()
        return fate_of(self.shown(), said, self.place.restart), said

    def lost_nodes(self) -> bool:
        """Whether a node of this job is down, by Slurm's word or because nothing can be started there any more.

        Slurm itself takes up to its SlurmdTimeout (five minutes by default) to call a silent node down.
        """
        if len(self.place.nodes) < 2:
            return False
        try:
            if self._called_down():
                return True
            self._start_on_all()
            return False
        except SlurmError as error:
            if not is_node_trouble(error.data["kind"], error.data["stderr"]):
                return False  # srun itself was refused, say
        try:  # A controller that does not answer says nothing about the nodes.
            self.slurm.nodes()
        except SlurmError:
            return False
        return True

    def _called_down(self) -> bool:
        known = {node.name: node.state.upper() for node in self.slurm.nodes()}
        words = ("DOWN", "NOT_RESPONDING", "*", "FAIL")
        return any(word in known.get(name, "") for name in self.place.nodes for word in words)

    def _start_on_all(self) -> None:
        """Start nothing much on every node of the job, beside whatever runs there.

        Raises:
            SlurmError: It did not start everywhere, or did not end in time.
        """
        count = len(self.place.nodes)
        words = ["srun", f"--jobid={self.place.job_id}", f"--nodes={count}", f"--ntasks={count}"]
        words += ["--ntasks-per-node=1", "--overlap", "--mpi=none", "--quiet", "--input=none", "true"]
        env = scrubbed(self.slurm.env, in_allocation=True)
        Slurm(env, timeout_s=_START_S, patience_s=0.0).run(words)


class Warden:
    """Asks the ranks to stop when the time limit comes near or a signal says so; ends them where they do not.

    Attributes:
        asked: Why they were asked: `time-limit`, `signal`, `term`, or empty.
        fate, said: What Slurm was doing with the job when SIGTERM came.
        limit: The time limit's end as last known, seconds since the epoch, or None.
    """

    def __init__(
        self,
        eyes: JobEyes,
        inbox: SignalInbox,
        control: Control,
        *,
        began: float,
        time_s: float | None,
        signal_s: int | None,
        pace: Callable[[], NewestCommit | None],
        ask: Callable[[str], None],
        on_term: Callable[[Fate], None],
    ) -> None:
        """Prepare.

        Args:
            eyes: Its job.
            inbox: The signals of this process.
            control: The way to the ranks.
            began: When the hop began, seconds since the epoch.
            time_s: Wall time that was asked for, the last resort where Slurm does not tell the limit.
            signal_s: How long before the limit the script asks Slurm for SIGUSR1.
            pace: The newest checkpoint, with what it took.
            ask: Called once, in the watching thread, with why the ranks are asked to stop.
            on_term: Called once with the job's fate when SIGTERM has come.
        """
        self.eyes, self.inbox, self.control = eyes, inbox, control
        self.began, self.time_s, self.signal_s = began, time_s, signal_s
        self.asked = ""
        self.fate, self.said = Fate.RUNNING, None  # type: Fate, Fate | None
        self.limit: float | None = None
        self._pace, self._ask, self._on_term = pace, ask, on_term
        self._newest: NewestCommit | None = None
        self._paced = 0.0
        self._read = 0.0
        self._ahead_s: float | None = None  # the controller's clock
        self._terms = 0
        self._ended, self._killed = False, False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="hpcmass-warden")

    def __enter__(self) -> Warden:
        self.read_limit()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def finish(self) -> None:
        """The ranks are gone: from now on signals are nobody's affair but Slurm's.

        Waits for what the watching thread is at: it may be handing the run on, and has the job's fate.
        """
        self._done.set()
        self._thread.join()

    @property
    def times(self) -> Times | None:
        """When to stop, as far as that is known."""
        if self.limit is None:
            return None
        now = time.time()
        if now - self._paced > _PACE_EVERY_S:
            self._newest, self._paced = self._pace() or self._newest, now
        newest = self._newest or NewestCommit(0)
        return times(self.began, self.limit, checkpoint_s=newest.checkpoint_s, step_s=newest.step_s)

    def read_limit(self, slurm: Slurm | None = None) -> None:
        """Ask Slurm for the time left; what was known stays where it does not say."""
        self._read = time.time()
        if self._ahead_s is None and slurm is None:
            self._ahead_s = self.eyes.slurm.clock_ahead_s()
            if abs(self._ahead_s or 0.0) > _CLOCKS_S:
                say(f"the clock here is {self._ahead_s:+.0f} s from that of Slurm's controller")
        left = (slurm or self.eyes.slurm).time_left_s(self.eyes.place.job_id, ahead_s=self._ahead_s or 0.0)
        if left is not None:
            self.limit = time.time() + left
        elif self.limit is None:
            self.limit = self.eyes.place.ends or (self.began + self.time_s if self.time_s else None)

    def _watch(self) -> None:
        while not self._done.is_set():
            number = self.inbox.get(0.2)
            try:
                if number is not None:
                    self._on_signal(number)
                self._look_at_time()
            except (HpcmassError, OSError) as error:  # a full disk, say; the watch goes on
                say(f"{error}")
        # A SIGTERM that came while the ranks ended: it says why.
        while (number := self.inbox.get(0)) is not None:
            if number != signal.SIGUSR1:
                try:
                    self._on_signal(number)
                except (HpcmassError, OSError) as error:
                    say(f"{error}")

    def _on_signal(self, number: int) -> None:
        if number != signal.SIGUSR1:
            self._terms += 1
            self.stop("term")
            self.control.send(signal.SIGTERM)
            if self._terms == 1:
                self.fate, self.said = self.eyes.fate()
                say(f"{signal.Signals(number).name} came; Slurm's word on the job: {self.fate.value}")
                self._on_term(self.fate)
            return
        if self.signal_s is not None and not self.asked:
            # It may have been changed, and this be Slurm's warning of the new one; but a stop is in a hurry.
            self.read_limit(Slurm(self.eyes.slurm.env, timeout_s=_GLANCE_S, patience_s=0.0))
        now, when = time.time(), self.times
        if is_early_warning(now, when, self.signal_s) and not preempted_soon(self.eyes.shown()):
            say("SIGUSR1 is Slurm's warning of the time limit; there is time left")
        else:
            self.stop("time-limit" if when is not None and now >= when.stop else "signal")

    def _look_at_time(self) -> None:
        now, when = time.time(), self.times
        if now - self._read > self._patience(now, when):
            self.read_limit()
            now, when = time.time(), self.times
        if when is None or now < when.stop:
            return
        self.stop("time-limit")
        if now >= when.end and not self._ended:
            self._ended = True
            say("the ranks have not stopped in time: SIGTERM")
            self.control.send(signal.SIGTERM)
        if now >= when.kill and not self._killed:
            self._killed = True
            say("the ranks have not ended: SIGKILL")
            self.control.kill()

    def _patience(self, now: float, when: Times | None) -> float:
        """How old the last word on the time limit may be, in seconds."""
        if when is None:
            return _READ_UNKNOWN_S
        soon = when.stop - _READ_BEFORE_STOP_S < now < when.stop - _READ_BEFORE_STOP_S / 4
        return _READ_BEFORE_STOP_S if soon else _READ_EVERY_S

    def stop(self, why: str) -> None:
        """Ask the ranks to stop, once."""
        if self.asked:
            return
        self.asked = why
        words = {"time-limit": "the time limit is near", "signal": "SIGUSR1", "term": "SIGTERM"}[why]
        say(f"asking the ranks to stop ({words})")
        self.control.send(signal.SIGUSR1)
        self._ask(words)


def say(text: str) -> None:
    """Tell whoever reads the job's output."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hpcmass hop: {text}", file=sys.stderr, flush=True)
