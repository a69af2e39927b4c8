"""The process of a driver's job: starts the command, ends it in order, and hands over to the next hop.

It goes on as a requeued job, or as a successor where the site forbids that: before the time limit, and where
Slurm ends the job by SIGTERM (preemption, a node that fails), but not where somebody cancelled it. The command
finds what is done in its folders, so nothing but time is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hpcmass.errors import HpcmassError, NotFound, SlurmError
from hpcmass.files import Lease, append_record, read_records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.outlive import Fate, fate_of, preempted_soon
from hpcmass.slurm.submission import submit_file
from hpcmass.workflow.drive import DriverFile, driver_folder
from hpcmass.workflow.hop import read_place
from hpcmass.workflow.warden import JobEyes

_LEASE_S = 150.0
_MAX_HOPS = 500
# Why a command that has more to do gets another hop.
_GO_ON = {Fate.TIMEOUT.value, Fate.PREEMPTED.value, Fate.NODE_FAIL.value, "signal"}


class _Child:
    """The driver's command, and the signals of its job."""

    def __init__(self, file: DriverFile, on_term: Callable[[], None]) -> None:
        """Take the signals.

        Args:
            file: What to run.
            on_term: Called once, in a thread of its own, when Slurm (or whoever) ends the job by SIGTERM.
        """
        self.cut = False  # the time limit is near
        self.ended: int | None = None  # told to end, by this signal
        self._process: subprocess.Popen[bytes] | None = None
        self._on_term: threading.Thread | None = threading.Thread(target=on_term)
        self._told: list[threading.Thread] = []
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._file = file

    def run(self) -> int:
        """Run it to its end, and what a signal began; a signal from before is not forgotten."""
        self._process = subprocess.Popen(self._file.command, cwd=self._file.cwd, stdin=subprocess.DEVNULL)
        if self.cut or self.ended:
            self._process.terminate()
        code = self._process.wait()
        for thread in self._told:
            thread.join()
        return code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.cut = True
        else:
            self.ended = number
        process = self._process
        if process is not None and process.poll() is None:
            # In a thread: a signal handler must not meet the lock that `wait` holds.
            threading.Thread(target=process.terminate, daemon=True).start()
        if number == signal.SIGTERM and self._on_term is not None:
            thread, self._on_term = self._on_term, None
            self._told.append(thread)
            thread.start()


class _Hop:
    """What one life of the driver's job writes down, and how it hands over to the next."""

    def __init__(self, folder: Path, file: DriverFile, slurm: Slurm) -> None:
        self.folder, self.file, self.slurm = folder, file, slurm
        self.job_id = os.environ.get("SLURM_JOB_ID", "")
        self.fate = Fate.RUNNING
        self._eyes = JobEyes(read_place(os.environ), slurm) if self.job_id else None
        self._lock = threading.Lock()
        self._handed = ""
        self._successor = ""
        self._over = False
        records = read_records(driver_folder(folder) / "hops.jsonl")
        self.number = 1 + sum(1 for record in records if record.get("kind") == "begin")
        self._write("begin")

    def on_term(self) -> None:
        """Slurm is ending the job. There may be seconds to live: do at once what cannot be done later."""
        with self._lock:
            if self._over:
                return
            self.fate = self._look()
            _say(f"SIGTERM came; Slurm's word on the job: {self.fate.value}")
            if self.fate in (Fate.PREEMPTED, Fate.NODE_FAIL, Fate.TIMEOUT):
                try:
                    self._hand_over(None, self.fate.value)
                except HpcmassError as error:  # It is tried again at the end.
                    _say(str(error))

    def end(self, code: int, child: _Child) -> int:
        """Write the end down, and go on where the command has not done all; gives the job's exit code."""
        with self._lock:
            self._over = True
            if code != 0 and self.fate is Fate.RUNNING:
                # SIGTERM goes to all processes of a job: the command may end by it before this process has it.
                self.fate = self._look()
            cause = self._cause(code, child)
            if code == 0:
                self._take_back()
            elif self._handed:
                self._write("end", exit_code=code, cause=cause, next=self._handed)
                return 0
            elif self.fate is Fate.REQUEUED:  # Slurm begins it again by itself.
                self._write("end", exit_code=code, cause=cause, next="requeue")
                return 0
            elif cause in _GO_ON and self._hand_over(code, cause):
                return 0
            if code == 0 or cause not in _GO_ON:
                self._write("end", exit_code=code, cause=cause, next="none")
            return code

    def _cause(self, code: int, child: _Child) -> str:
        if code == 0:
            return "completed"
        if self.fate in (Fate.CANCELLED, Fate.PREEMPTED, Fate.NODE_FAIL):
            return str(self.fate.value)
        if child.cut or self.fate is Fate.TIMEOUT:
            return str(Fate.TIMEOUT.value)
        if self.fate is Fate.REQUEUED:
            return "signal"
        if child.ended is None:
            return "failed"
        # Where Slurm does not say why, it is left to Slurm whether the job is begun again.
        goes_on = child.ended == signal.SIGTERM and self.fate is Fate.RUNNING
        return "signal" if goes_on else "interrupted"

    def _look(self) -> Fate:
        if self._eyes is None:
            return Fate.UNKNOWN
        shown = self._eyes.shown()
        fate = fate_of(shown, self._eyes.said(), self._eyes.place.restart)
        if fate is Fate.RUNNING and preempted_soon(shown):
            return Fate.PREEMPTED
        return fate

    def _hand_over(self, code: int | None, cause: str) -> bool:
        """Requeue the job or submit its successor, and write down which; False where neither could be done."""
        if not self.job_id or self.number >= _MAX_HOPS:
            self._write("end", exit_code=code, cause=cause, next="none", reason="no further hop is allowed")
            return False
        way, notes = "requeue" if self.file.requeue else "successor", []
        # Before it is done: a requeue ends this process.
        self._write("end", exit_code=code, cause=cause, next=way)
        if way == "requeue":
            try:
                self.slurm.requeue(self.job_id)
                self._handed = "requeue"
                return True
            except SlurmError as error:
                if self._look() is Fate.REQUEUED:  # It was done, and the answer was lost.
                    self._handed = "requeue"
                    return True
                notes.append(f"requeue: {error.message}")
        try:
            # After this job, also where that was requeued without a word: never both at once.
            self._successor = _submit_successor(self.folder, self.job_id, self.slurm)
            self._handed = "successor"
        except HpcmassError as error:
            notes.append(f"successor: {error.message}")
        if notes:
            reason = "; ".join(notes)
            self._write("end", exit_code=code, cause=cause, next=self._handed or "none", reason=reason)
            if not self._handed:
                _say(f"cannot go on ({reason}); later: hpcmass workflow resume {self.folder} --driver job")
        return bool(self._handed)

    def _take_back(self) -> None:
        """Cancel a successor that turned out not to be needed."""
        if self._successor:
            with contextlib.suppress(HpcmassError):
                self.slurm.cancel([self._successor])

    def _write(self, kind: str, **facts: object) -> None:
        record = {"kind": kind, "job_id": self.job_id, "hop": self.number, **facts}
        append_record(driver_folder(self.folder) / "hops.jsonl", {**record, "time": time.time()})


def drive(folder: Path, *, slurm: Slurm | None = None) -> int:
    """Be one hop of a driver: the process of its batch script. Gives its exit code.

    Raises:
        NotFound: The folder has no driver.
    """
    file = DriverFile.read(folder)
    hop = _Hop(folder, file, slurm or Slurm(patience_s=300.0))
    child = _Child(file, hop.on_term)
    _wait_for(file.leases, child)
    return hop.end(child.run(), child)


def _wait_for(leases: Sequence[str], child: _Child) -> None:
    """Wait for leases of a driver whose node is gone; one that is alive keeps them, and the command says so."""
    until = time.monotonic() + _LEASE_S
    while time.monotonic() < until and not child.cut and not child.ended:
        if all(Lease(Path(one)).owner() is None for one in leases):
            return
        time.sleep(1.0)


def _submit_successor(folder: Path, job_id: str, slurm: Slurm) -> str:
    place = driver_folder(folder)
    scripts = sorted(place.glob("job-*.sbatch"))
    if not scripts:
        raise NotFound("has no batch script", where=place)
    comment = f"hpcmass:{uuid.uuid4().hex}"
    new = submit_file(scripts[-1], slurm=slurm, comment=comment, options=[f"--dependency=afterany:{job_id}"])
    append_record(place / "hops.jsonl", {"kind": "submitted", "job_id": new, "time": time.time()})
    return new


def _say(text: str) -> None:
    """Tell whoever reads the job's output."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hpcmass driver: {text}", file=sys.stderr, flush=True)
