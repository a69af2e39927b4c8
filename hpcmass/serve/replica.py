"""One replica: a process that loads a model, listens, answers, and leaves without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from hpcmass.errors import ConfigError, HpcmassError, StorageError
from hpcmass.files import replace_json
from hpcmass.monitor.baseline import Baseline
from hpcmass.monitor.features import Watched
from hpcmass.monitor.observer import Monitor
from hpcmass.serve.app import App
from hpcmass.serve.batcher import INLINE_S, Batcher
from hpcmass.serve.choice import Choice, Offer, choose
from hpcmass.serve.http import Server
from hpcmass.serve.interfaces import Limits, Runner
from hpcmass.serve.listening import BACKLOG, listen, stop_listening
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.protocol import Schema
from hpcmass.serve.rate import Rate
from hpcmass.serve.tokens import Tokens

log = logging.getLogger("hpcmass.serve")
_SWITCH_S = 0.0005
_IDLE_S = 0.25  # a connection that was just accepted, or answered, may have a request on its way


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one replica is to be reached and run.

    Attributes:
        name: The model's, as in its address.
        version: The version's, as text.
        port: 0: any that is free.
        threads: Cores of one computation.
        endpoint: A file that says where the replica is, replaced whenever its state changes.
        tokens: Who is let in; None: everybody.
        rate: Requests a second that one client may send, by its token, else its address; None: any number.
        certificate: PEM file of the certificate and those above it; None: no TLS.
        key: PEM file of its key.
        notice_s: After SIGTERM, how long it goes on taking new connections, not ready any more.
        drain_s: Then, how long requests under way may take.
        monitor: Sees what is asked and answered.
        baseline: Gives what drift is measured against, for the model loaded; called before it is warm.
        say: Told in words what happens.
    """

    name: str
    version: str
    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    endpoint: Path | None = None
    tokens: Tokens | None = None
    rate: float | None = None
    certificate: Path | None = None
    key: Path | None = None
    notice_s: float = 1.0
    drain_s: float = 30.0
    limits: Limits = field(default_factory=Limits)
    monitor: Monitor | None = None
    baseline: Callable[[Runner], Baseline | None] = lambda _: None
    say: Callable[[str], None] = print


def serve(settings: Settings, load: Callable[[], Offer]) -> None:
    """Serve a model until SIGTERM or SIGINT, then answer what has been taken on, and return.

    Args:
        settings: How.
        load: Gives what can compute the model; called in a thread, while the replica is live and not yet ready.

    Raises:
        HpcmassError: It cannot listen, or the model cannot be loaded.
    """

    async def run() -> None:
        await _Replica(settings).run(load)

    uvloop.run(run())


class _Replica:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        rate = None if settings.rate is None else Rate(settings.rate)
        self.app = App(settings.name, settings.version, self.metrics, settings.tokens, rate)
        self.server = Server(self.app, settings.limits, self.metrics)
        self.app.gauges = self._gauges
        self.choice: Choice | None = None
        self.port = 0
        self.batcher: Batcher | None = None
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self, load: Callable[[], Offer]) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked)
        listener = await self._listen()
        sweeping = [loop.create_task(self._sweep())]
        try:
            self._publish("loading")
            if await self._load(load):
                if settings.monitor is not None:
                    sweeping.append(loop.create_task(settings.monitor.run()))
                self._publish("ready")
                settings.say(f"ready: {self.url}/v2/models/{settings.name} ({self._how()})")
                await self._stop.wait()
            await self._drain(listener)
        finally:
            listener.close()
            for task in sweeping:
                task.cancel()
            await asyncio.gather(*sweeping, return_exceptions=True)
            for connection in list(self.server.open):
                connection.abort()
            if self.batcher is not None:
                self.batcher.close()
            if settings.endpoint is not None:
                with contextlib.suppress(HpcmassError):
                    self._publish("ended")

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'https' if self.settings.certificate else 'http'}://{host}:{self.port}"

    # -- beginning ----------------------------------------------------------------------------------------
    async def _listen(self) -> asyncio.Server:
        settings = self.settings
        _allow_files(settings.limits.connections + 64)
        secure: dict[str, Any] = {}
        if settings.certificate is not None:
            secure = {"ssl": _context(settings.certificate, settings.key), "ssl_handshake_timeout": 10.0}
        self._socket = listen(settings.host, settings.port)
        self.port = int(self._socket.getsockname()[1])
        return await asyncio.get_running_loop().create_server(
            self.server.connection, sock=self._socket, backlog=BACKLOG, **secure
        )

    async def _load(self, load: Callable[[], Offer]) -> bool:
        """Load and warm the model in a thread; False where the replica is to end before that is done."""
        settings = self.settings

        def loaded() -> tuple[Choice, Baseline | None]:
            choice = choose(load(), settings.limits, settings.threads)
            return choice, settings.baseline(choice.runner) if settings.monitor is not None else None

        work = asyncio.ensure_future(asyncio.to_thread(loaded))
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not work.done():
            return False
        self.choice, baseline = work.result()
        choice = self.choice
        runner, pace = choice.runner, choice.pace
        settings.say(f"{runner.platform} serves: {choice.why}")
        inline = pace.seconds[1] <= INLINE_S
        self.batcher = Batcher(
            runner, pace, settings.limits, self.metrics, inline=inline, threads=settings.threads
        )
        schema = Schema(settings.name, settings.version, runner.interface, settings.limits.rows)
        self.app.info["platform"] = runner.platform
        self.app.load(schema, self.batcher, choice.to_json())
        if settings.monitor is not None:
            settings.monitor.begin(self.metrics, Watched.of(runner.interface), baseline)
            self.app.monitor = settings.monitor
        # What is loaded stays: to look through it again and again would be felt as pauses of 50 ms and more.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        # A model's thread that is done waits no longer than this for a loop that is busy reading requests.
        sys.setswitchinterval(_SWITCH_S)
        return True

    def _how(self) -> str:
        assert self.batcher is not None
        pace = self.batcher.pace
        return (
            f"{self.batcher.runner.platform}, {1e3 * pace.seconds[1]:.2f} ms alone, "
            f"batches up to {pace.limit}, {1 / max(pace.row_s, 1e-9):.0f} rows/s"
        )

    def _gauges(self) -> dict[str, float]:
        return {
            "connections": float(len(self.server.open)),
            "buffered_bytes": float(self.server.buffered),
            **(self.choice.gauges() if self.choice is not None else {}),
        }

    def _publish(self, state: str) -> None:
        """Say in `endpoint.json` where the replica is and what it does."""
        settings = self.settings
        if settings.endpoint is None:
            return
        value = {
            "format": 1,
            "state": state,
            "url": self.url,
            "host": settings.host,
            "port": self.port,
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "model": settings.name,
            "version": settings.version,
            "time": time.time(),
        }
        replace_json(settings.endpoint, value, durable=state == "ready")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.server.sweep()

    # -- end ----------------------------------------------------------------------------------------------
    def _asked(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self.settings.say("asked again: ending at once")
            self.settings = _hurried(self.settings)
        self.app.ready = False
        self.server.draining = True
        self._stop.set()

    async def _drain(self, listener: asyncio.Server) -> None:
        """Go on answering for a while, then take no more, then answer what is under way.

        Whoever chooses replicas sees first that this one is not ready; a request that comes all the same is
        answered, and every answer asks its client to connect anew.
        """
        self.server.draining = True
        with contextlib.suppress(StorageError):
            self._publish("draining")
        await self._wait(lambda: self.settings.notice_s, lambda: False)
        await stop_listening(self._socket)
        listener.close()
        begun = self.metrics.inferences
        await self._wait(lambda: self.settings.drain_s, self._rest)
        left = len(self.server.open)
        self.settings.say(
            f"ended: {self.metrics.inferences} requests answered, {self.metrics.inferences - begun} of them "
            f"after the last was taken on" + (f"; {left} connections cut" if left else "")
        )

    def _rest(self) -> bool:
        """Close what has been idle for a while; whether nothing is left."""
        for connection in list(self.server.open):
            connection.close_idle(_IDLE_S)
        return not self.server.open and not self.app.waiting

    async def _wait(self, limit_s: Callable[[], float], over: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < limit_s() and not over():
            await asyncio.sleep(0.02)
            for _ in range(3):  # rounds of the loop, each of which reads what has come
                await asyncio.sleep(0)


def _hurried(settings: Settings) -> Settings:
    from dataclasses import replace

    return replace(settings, notice_s=0.0, drain_s=0.0)


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate and key cannot be used: {error}", where=certificate) from error
    return context


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files to what the connections need, as far as the hard one goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
