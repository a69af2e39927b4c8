"""A replica that is another program: any command that serves at a port, watched as a model of ours would be.

Requests go to the program itself, at the address in `endpoint.json`; nothing of ours stands between. It is
started without a shell, is ready when its page of health says so, is started anew when it dies, and ends with
the replica.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcmass.errors import ConfigError, HpcmassError, StorageError
from hpcmass.files import replace_json

_LIBC = ctypes.CDLL(None, use_errno=True)
_PDEATHSIG = 1  # PR_SET_PDEATHSIG
_PLACE = re.compile(r"\{(port|host|model|name|version)\}")
_TICK_S = 0.05
_HEALTH_S = 1.0
_FAILURES = 3  # in a row, before it counts as not ready
_FORGIVEN_S = 600.0  # a program that has run for so long may die as often as a new one


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A program and how it is watched.

    Attributes:
        name: The model's.
        version: The version's, as text.
        command: Words as a shell would split them; `{port}` `{host}` `{model}` `{name}` `{version}` stand for
            what they say, each within its word.
        model: The bundle's folder, for `{model}`.
        port: 0: one that is free, another one at each start.
        health: A path that is answered with 2xx when the program is ready.
        ready_s: How long it may take to be ready, at its start or later, before it is started anew.
        restarts: How often it may die before the replica ends.
        endpoint: A file that says where it is, replaced whenever its state changes.
        notice_s: After SIGTERM, how long it goes on before it is told.
        drain_s: How long it may take to end then, before it is killed.
        say: Told in words what happens.
    """

    name: str
    version: str
    command: str
    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    health: str = "/v2/health/ready"
    ready_s: float = 600.0
    restarts: int = 3
    endpoint: Path | None = None
    notice_s: float = 1.0
    drain_s: float = 30.0
    say: Callable[[str], None] = print


def words_of(wrapped: Wrapped, port: int) -> list[str]:
    """The program and its arguments; what is put in for a placeholder stays within its word.

    Raises:
        ConfigError: It is not a command, or has no `{port}`.
    """
    try:
        words = shlex.split(wrapped.command)
    except ValueError as error:
        raise ConfigError(f"cannot be split into words ({error})", where="serve.command") from error
    if not any("{port}" in word for word in words):
        raise ConfigError(
            "has no {port}", where="serve.command", hint="the command must listen at the port that it is given"
        )
    means = {"port": str(port), "host": wrapped.host, "name": wrapped.name, "version": wrapped.version}
    if wrapped.model is not None:
        means["model"] = str(wrapped.model)
    # In one pass: what is put in is not looked at again.
    made = [_PLACE.sub(lambda found: means.get(found[1], found[0]), word) for word in words]
    if shutil.which(made[0]) is None:
        raise ConfigError(f"there is no program {made[0]!r} here", where="serve.command")
    return made


def serve_command(wrapped: Wrapped) -> None:
    """Run the program until SIGTERM or SIGINT.

    Raises:
        ConfigError: It is not a command.
        HpcmassError: It died, or was not ready in time, too often.
    """
    _Keeper(wrapped).run()


class _Keeper:
    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped
        self.port = wrapped.port
        self._signals = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._state = ""

    def run(self) -> None:
        words_of(self.wrapped, self.port)  # what is wrong is said before anything starts
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)
        died = 0
        try:
            while not self._signals:
                begun = time.monotonic()
                why = self._live()
                if self._signals:
                    break
                died = 1 if time.monotonic() - begun > _FORGIVEN_S else died + 1
                if died > self.wrapped.restarts:
                    raise HpcmassError(f"the command {why}, {died} times", hint="its output is above")
                self.wrapped.say(f"the command {why}; it is started anew")
                self._wait(lambda: False, 0.25 * 2**died)
            self._drain()
        finally:
            self._kill()
            with contextlib.suppress(HpcmassError):
                self._publish("ended")

    # -- one life -----------------------------------------------------------------------------------------
    def _live(self) -> str:
        """Start the program and watch it; why it has to be started anew."""
        self.port = self.wrapped.port or _free_port(self.wrapped.host)
        self._start()
        self._publish("loading")
        failures, since, asked = _FAILURES, time.monotonic(), 0.0
        while not self._signals:
            assert self._child is not None
            if (code := self._child.poll()) is not None:
                self._kill()
                return f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
            now = time.monotonic()
            if now - asked >= (_HEALTH_S if self._state == "ready" else 4 * _TICK_S):
                failures = 0 if self._healthy() else failures + 1
                asked = time.monotonic()
            if not failures:
                since = now
                if self._state != "ready":
                    self._publish("ready")
                    self.wrapped.say(f"ready: {self.url} (the command, process {self._child.pid})")
            elif failures >= _FAILURES and self._state == "ready":
                self.wrapped.say(f"the command does not answer at {self.wrapped.health}")
                self._publish("loading")
            if now - since > self.wrapped.ready_s:
                self._end_child(self.wrapped.drain_s)
                return f"was not ready for {self.wrapped.ready_s:g} s"
            time.sleep(_TICK_S)
        return "was asked to end"

    def _start(self) -> None:
        words = words_of(self.wrapped, self.port)
        try:
            self._child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise HpcmassError(f"the command cannot be started: {error}", where="serve.command") from error

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(_own(self.wrapped.host), self.port, timeout=2.0)
        try:
            connection.request("GET", self.wrapped.health)
            return 200 <= connection.getresponse().status < 300
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def url(self) -> str:
        host = f"[{self.wrapped.host}]" if ":" in self.wrapped.host else self.wrapped.host
        return f"http://{host}:{self.port}"

    def _publish(self, state: str) -> None:
        self._state = state
        if self.wrapped.endpoint is None:
            return
        child = self._child
        value = {
            "format": 1,
            "state": state,
            "url": self.url,
            "host": self.wrapped.host,
            "port": self.port,
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "command_pid": None if child is None else child.pid,
            "health": self.wrapped.health,
            "model": self.wrapped.name,
            "version": self.wrapped.version,
            "time": time.time(),
        }
        replace_json(self.wrapped.endpoint, value, durable=state == "ready")

    # -- end ----------------------------------------------------------------------------------------------
    def _asked(self, number: int, frame: object) -> None:
        self._signals += 1

    def _drain(self) -> None:
        """Say that it leaves, give those who choose replicas time to see it, then let the program finish."""
        with contextlib.suppress(StorageError):
            self._publish("draining")
        child = self._child
        if child is not None:
            self._wait(lambda: child.poll() is not None, self.wrapped.notice_s)
            self._end_child(self.wrapped.drain_s)
            self.wrapped.say("ended")

    def _end_child(self, limit_s: float) -> None:
        """Ask the program to end, and kill it and what it started when it has not in time."""
        child = self._child
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()  # the program alone: it knows in which order its own are to end
            self._wait(lambda: child.poll() is not None, limit_s)
        self._kill()

    def _kill(self) -> None:
        """Leave nothing of the program's session."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _wait(self, over: Callable[[], bool], limit_s: float) -> None:
        """Until something is so, the time is over, or one more signal comes."""
        end, before = time.monotonic() + limit_s, self._signals
        while not over() and time.monotonic() < end and self._signals == before:
            time.sleep(_TICK_S)


def _die_with_parent() -> None:
    """In the program's process, before it begins: where the replica is killed, the program is too."""
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _own(host: str) -> str:
    """Where a program that listens at `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def _free_port(host: str) -> int:
    """A port that is free now; where another program takes it first, the command dies and is started anew."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as one:
            one.bind(address[:2])
            return int(one.getsockname()[1])
    except (OSError, UnicodeError, IndexError) as error:
        raise HpcmassError(f"cannot listen at {host}: {error}", where="--host") from error
