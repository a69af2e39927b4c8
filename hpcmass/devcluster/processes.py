"""Processes that are known by pid and start time, so that never another one is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import LaunchError
from hpcmass.files import boot_id, pid_namespace, process_start

POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """One process as the state file notes it.

    Attributes:
        pid: Its id.
        start_ticks: When it began, in clock ticks since boot.
        boot: That boot of the machine.
        namespace: The namespace that the pid counts in.
    """

    pid: int
    start_ticks: int
    boot: str
    namespace: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The record of a process that just began; never alive if it ended already."""
        return cls(pid, process_start(pid) or -1, boot_id(), pid_namespace())

    @property
    def alive(self) -> bool:
        """Whether this very process lives; a zombie does not."""
        here = (self.boot, self.namespace) == (boot_id(), pid_namespace())
        return here and process_start(self.pid) == self.start_ticks

    def send(self, number: int) -> None:
        """Send a signal to this process and to no other that has got its pid since."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def end(self, number: int = signal.SIGTERM, patience_s: float = 60.0) -> None:
        """Signal it and wait until it is gone; after a while with SIGKILL."""
        self.send(number)
        if not wait_for(lambda: not self.alive, patience_s):
            self.send(signal.SIGKILL)
            wait_for(lambda: not self.alive, patience_s)

    def to_json(self) -> dict[str, Any]:
        """As the state file holds it."""
        return asdict(self)


def spawn(argv: Sequence[str], *, env: Mapping[str, str], log: Path, keep: Sequence[int] = ()) -> Process:
    """Start a daemon in a session of its own, with its output appended to a file.

    Args:
        argv: Program and arguments.
        env: Its whole environment.
        log: Where its standard output and error go.
        keep: Open files that it inherits.

    Raises:
        LaunchError: The program cannot be started.
    """
    with open(log, "ab") as output:
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd="/",
                pass_fds=tuple(keep),
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"cannot start {argv[0]}: {error.strerror}", where=error.filename) from error
    _children.append(child)
    return Process.of(child.pid)


# Kept until they ended: an ended child would stay a zombie, and Popen warns when it is dropped before.
_children: list[subprocess.Popen[bytes]] = []


def wait_for(true: Callable[[], bool], patience_s: float) -> bool:
    """Look again and again until something is true; False when it never became so."""
    end = time.monotonic() + patience_s
    while True:
        _children[:] = [child for child in _children if child.poll() is None]
        if true():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)


def end_all_on(node: str, marks: Mapping[str, str], conf: Path, patience_s: float = 60.0) -> None:
    """SIGKILL everything that runs on a node without namespaces: slurmd, its steps, and their children.

    Args:
        node: The node's name.
        marks: Variables that its daemons were started with, and that no other process has.
        conf: The cluster's slurm.conf, by which tasks that left their family are known.
        patience_s: For how long to look for more.

    Raises:
        LaunchError: Something of the node still lives.
    """

    def none_left() -> bool:
        left = _on_node(node, marks, conf)
        for process in left:
            process.send(signal.SIGKILL)
        return not left

    if not wait_for(none_left, patience_s):
        raise LaunchError(f"processes of {node} do not end", hint="see: ps -ef")


def _on_node(node: str, marks: Mapping[str, str], conf: Path) -> list[Process]:
    """All processes of a node, by the environment they began with and by descent."""
    task = {"SLURMD_NODENAME": node, "SLURM_CONF": str(conf)}
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            words = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        except OSError:
            continue  # it ended, or it is another user's
        if any(_has(words, each) for each in (marks, task)):
            found.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        grown = bool(more)
        found |= more
    processes = (Process.of(pid) for pid in found - {os.getpid()})
    return [process for process in processes if process.alive]


def _has(words: Iterable[bytes], variables: Mapping[str, str]) -> bool:
    return bool(variables) and {f"{k}={v}".encode() for k, v in variables.items()} <= set(words)


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log, for a message; empty where there is none."""
    try:
        text = path.read_bytes()[-8000:].decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
