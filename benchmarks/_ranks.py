"""Groups of ranks that take turns: each group is there all the time, and stopped while another one measures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcmass.launch import find_mpiexec

READY_S = 600.0


class Group:
    """Ranks of one way of doing it, each in a process of its own with one thread."""

    def __init__(self, script: str, words: list[str], ranks: int) -> None:
        """Start `script --worker SOCKET WORDS` on `ranks` ranks, and wait until all have warmed up."""
        self._folder = tempfile.TemporaryDirectory()
        address = str(Path(self._folder.name) / "s")
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "HOROVOD_FUSION_THRESHOLD": str(16 << 20),
            "HOROVOD_CYCLE_TIME": "1",
        }  # fmt: skip
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
        argv = [sys.executable, script, "--worker", address, *words]
        if ranks > 1:
            flavour = find_mpiexec()
            assert flavour is not None, "no mpiexec"
            argv = [str(flavour.path), "-n", str(ranks), "--oversubscribe", "--bind-to", "none", *argv]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(ranks)
            server.settimeout(1.0)
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  mpiexec says at the end that its ranks were killed
            self._process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=self._errors)
            self._files = [self._accept(server).makefile("rw") for _ in range(ranks)]
        self._pids = [int(file.readline()) for file in self._files]
        self._pause()

    def _accept(self, server: socket.socket) -> socket.socket:
        until = time.monotonic() + READY_S
        while self._process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                return server.accept()[0]
        self._process.kill()
        self._errors.seek(0)
        raise SystemExit(f"the ranks did not start\n{self._errors.read()}")

    def turn(self, steps: int) -> float:
        """Mean seconds of a step, of `steps` steps; of several ranks the slowest's."""
        self._signal(signal.SIGCONT)
        for file in self._files:
            file.write(f"{steps}\n")
            file.flush()
        seconds = [json.loads(file.readline()) for file in self._files]
        self._pause()
        return max(seconds)

    def close(self) -> None:
        """End the ranks."""
        self._signal(signal.SIGCONT)
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for pid in self._pids:
            os.kill(pid, number)


class Turns:
    """The other side, in a rank: `begin()` before every step."""

    def __init__(self, address: str, warmup: int = 4) -> None:
        self._address, self._left, self._began = address, warmup, 0.0
        self._file: Any = None
        self._seconds: list[float] = []

    def begin(self) -> None:
        """Say how long the steps took when a turn is over, and wait for the next."""
        now = time.perf_counter()
        if self._began:
            self._seconds.append(now - self._began)
        if self._left == 0:
            self._next()
        self._left -= 1
        self._began = time.perf_counter()

    def _next(self) -> None:
        if self._file is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self._address)
            self._file = connection.makefile("rw")
            self._file.write(f"{os.getpid()}\n")
        else:
            self._file.write(f"{json.dumps(sum(self._seconds) / len(self._seconds))}\n")
        self._file.flush()
        self._left = int(self._file.readline() or os._exit(0))
        self._seconds = []


def take_turns(groups: dict[str, Group], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step by name, a value a round; each round in another order."""
    names = list(groups)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(groups[name].turn(steps))
    return found


def measure(makers: dict[str, Callable[[], Group]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Start the groups one after the other, let them take turns, and end them."""
    groups: dict[str, Group] = {}
    try:
        for name, make in makers.items():
            groups[name] = make()
        return take_turns(groups, rounds, steps)
    finally:
        for group in groups.values():
            group.close()
