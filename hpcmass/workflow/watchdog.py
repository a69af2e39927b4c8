"""Ends what a driver leaves behind.

Every process that a driver's workers start carries `HPCMASS_DRIVER=<uuid>` in its environment from its
first moment, and hands it on to what it starts. So what belongs to a driver can be told from outside
without guessing from names, even when the driver was killed with -9.

Run as a program it waits for its driver to be gone, in a session of its own so that no Ctrl-C reaches it.
Blocks that the driver had in Slurm are cancelled then, by the ids in its journal and by their comment: all of
them, or only those that have not begun, where what runs in the others is to go on (they end by themselves).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from hpcmass.files import process_start

TAG = "HPCMASS_DRIVER"
_LOOK_S = 0.5
_QUIET_S = 3.0
_UNKILLABLE_S = 20.0
_BLOCKS_S = 1800.0


def tagged(tag: str, *, name: str = TAG) -> list[int]:
    """Process ids of this user's live processes that carry the tag, this process left out."""
    wanted = f"{name}={tag}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if os.stat(f"/proc/{entry}").st_uid != os.getuid():
                continue
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # Gone meanwhile, or not ours to read.
        if wanted in environment.split(b"\0") and process_start(int(entry)) is not None:
            found.append(int(entry))
    return found


def end_tagged(tag: str, *, grace_s: float, told: Collection[int] = (), name: str = TAG) -> int:
    """End every process that carries the tag: TERM, and KILL for those that are there `grace_s` later.

    Args:
        tag: The driver's tag.
        grace_s: Seconds between the two.
        told: Process groups that had their TERM already; many programs take a second one for "at once".
        name: The variable that carries it.

    Returns:
        How many had to be killed.
    """
    _signal([pid for pid in tagged(tag, name=name) if _group(pid) not in told], signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if not tagged(tag, name=name):
            return 0
        time.sleep(0.05)
    killed: set[int] = set()
    deadline = time.monotonic() + _UNKILLABLE_S
    while left := tagged(tag, name=name):  # A process may have been born between two looks.
        killed.update(left)
        if time.monotonic() > deadline:
            break  # It hangs in the kernel (a file system that does not answer), and dies when it returns.
        _signal(left, signal.SIGKILL)
        time.sleep(0.05)
    return len(killed)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Watchdog:
    """A process that outlives the driver and ends what carries its tag. Use as a context manager.

    It learns of the driver's end by the end of a pipe that only the driver holds, and by the driver's
    process id where something else inherited the pipe.
    """

    def __init__(self, tag: str, *, grace_s: float, journal: Path | None = None, waiting: bool = False) -> None:
        """Make one.

        Args:
            tag: The driver's tag.
            grace_s: Seconds between TERM and KILL.
            journal: The journal of the driver's blocks, where it may have some in Slurm.
            waiting: Of the blocks end only those that wait in the queue.
        """
        self._tag = tag
        self._grace_s = grace_s
        self._journal = journal
        self._waiting = waiting
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def start(self) -> None:
        """Start it; nothing where it runs already."""
        if self._process is not None:
            return
        started = process_start(os.getpid()) or 0
        words = [str(os.getpid()), str(started), self._tag, str(self._grace_s)]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hpcmass.workflow.watchdog",
                *words,
                *([str(self._journal.absolute())] if self._journal else []),
                *(["waiting"] if self._journal and self._waiting else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def __exit__(self, *_: object) -> None:
        """Let it go: nothing is left to be ended."""
        if self._process is None:
            return
        try:
            self._process.communicate(b"done", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process = None

    def keep(self) -> None:
        """Leave it at its post: something is left that it is to end when the driver is gone, all of it."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"all")
                self._process.stdin.flush()
        self._process = None


def _watch(
    driver: int, started: int, tag: str, grace_s: float, journal: Path | None = None, *, waiting: bool = False
) -> None:
    while process_start(driver) == started:
        ready, _, _ = select.select([0], [], [], _LOOK_S)
        said = os.read(0, 16) if ready else None
        if said == b"done":
            return
        if said == b"":
            break
        waiting = waiting and said != b"all"
    if journal is not None:
        # First, and beside the rest: blocks cost node-hours, and Slurm may take its time.
        threading.Thread(target=_end_blocks, args=(tag, journal, waiting)).start()
    # The driver's last children may be starting only now: look until it has been quiet for a while.
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < _QUIET_S:
        if tagged(tag):
            end_tagged(tag, grace_s=grace_s)
            quiet_since = time.monotonic()
        time.sleep(0.1)


def _end_blocks(driver: str, journal: Path, waiting: bool) -> None:
    from hpcmass.slurm.client import Slurm
    from hpcmass.workflow.blocks_left import end_blocks, journaled

    slurm = Slurm(patience_s=30.0)
    end_blocks(slurm, driver, journaled(journal, driver), within_s=_BLOCKS_S, waiting=waiting)
    # One that sbatch was just taking while the driver died shows up a moment later.
    time.sleep(_QUIET_S)
    end_blocks(slurm, driver, journaled(journal, driver), within_s=60.0, waiting=waiting)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    words = sys.argv[1:]
    _watch(
        int(words[0]), int(words[1]), words[2], float(words[3]), Path(words[4]) if len(words) > 4 else None,
        waiting="waiting" in words[5:],
    )  # fmt: skip
