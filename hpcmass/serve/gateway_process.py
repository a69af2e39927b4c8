"""The process of a deployment: gateway and controller together, and how one follows the other without a gap.

A process that comes while another one lives serves first, with the replicas that are there, says so in
`gateway/next.json`, and waits. The one before sees that, decides nothing more, and gives the lease back; the
new one takes it and writes `endpoint.json` anew. The old one goes on answering whoever still comes, asks
them to connect anew, and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from hpcmass.errors import HpcmassError, LeaseHeld
from hpcmass.files import Lease, Owner, replace_json
from hpcmass.serve.controller import Controller
from hpcmass.serve.deployment import Deployment, maybe_json
from hpcmass.serve.gateway import Gateway
from hpcmass.serve.http import Server
from hpcmass.serve.interfaces import Limits
from hpcmass.serve.listening import BACKLOG, listen, stop_listening
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.probing import Launcher
from hpcmass.serve.rate import Rate
from hpcmass.serve.replica import _allow_files, _context
from hpcmass.serve.tokens import Tokens

log = logging.getLogger("hpcmass.serve")
_SWEEP_S, _NOTICE_S, _IDLE_S = 0.25, 2.0, 0.25
TTL_S = 20.0


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """How the gateway of a deployment is to be reached and run.

    Attributes:
        host: Address to listen at; `address`: what others are told to use.
        rate: Requests a second that one client may send; None: any number.
        token: What replicas are asked with.
        dead: Whether the holder of the lease is known to be dead by other means, such as Slurm's.
        hop: Called in a thread about once a second while it decides; starts the successor where one is due.
        drain_s: How long requests under way may take at the end.
    """

    host: str = "127.0.0.1"
    port: int = 0
    address: str | None = None
    tokens: Tokens | None = None
    rate: float | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None
    drain_s: float = 30.0
    hold_s: float = 60.0
    dead: Callable[[Owner], bool] | None = None
    hop: Callable[[], None] = lambda: None
    limits: Limits = field(default_factory=lambda: Limits(connections=4096))
    say: Callable[[str], None] = print


def serve_gateway(
    deployment: Deployment, settings: GatewaySettings, launcher: Launcher, resolve: Callable[[str], str]
) -> None:
    """Be the gateway and the controller of a deployment until it is ended, another one follows, or SIGTERM.

    Raises:
        NotFound: There is no such deployment.
        HpcmassError: It cannot listen.
    """

    async def run() -> None:
        await _Process(deployment, settings, launcher, resolve).run()

    uvloop.run(run())


class _Process:
    def __init__(
        self,
        deployment: Deployment,
        settings: GatewaySettings,
        launcher: Launcher,
        resolve: Callable[[str], str],
    ) -> None:
        self.deployment, self.settings = deployment, settings
        asked = deployment.asked()
        self.model = asked.model
        self.metrics = Metrics()
        self.gateway = Gateway(
            asked.model, self.metrics, settings.tokens, settings.token, hold_s=settings.hold_s,
            rate=None if settings.rate is None else Rate(settings.rate),
        )  # fmt: skip
        self.server = Server(self.gateway, settings.limits, self.metrics)
        self.controller = Controller(
            deployment, self.gateway, launcher, resolve=resolve, token=settings.token, say=settings.say
        )
        self.lease = Lease(deployment.path / "controller", ttl_s=TTL_S)
        self.next_file = deployment.path / "gateway" / "next.json"
        self.generation = 0
        self._asked = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked.set)
        settings = self.settings
        _allow_files(2 * settings.limits.connections + 1024)
        secure: dict[str, Any] = {}
        if settings.certificate is not None:
            secure = {"ssl": _context(settings.certificate, settings.key), "ssl_handshake_timeout": 10.0}
        self.socket = listen(settings.host, settings.port)
        self.port = int(self.socket.getsockname()[1])
        listener = await loop.create_server(
            self.server.connection,
            sock=self.socket,
            backlog=BACKLOG,
            **secure,
        )
        sweeping = loop.create_task(self._sweep())
        try:
            await self.controller.look()
            if await self._acquire():
                await self._decide()
            await self._drain(listener)
        finally:
            listener.close()
            sweeping.cancel()
            await asyncio.to_thread(self.lease.release)
            for connection in list(self.server.open):
                connection.abort()

    @property
    def url(self) -> str:
        host = self.settings.address or self.settings.host
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.settings.certificate else 'http'}://{host}:{self.port}"

    # -- becoming the one that decides --------------------------------------------------------------------
    async def _acquire(self) -> bool:
        """Take the lease, serving meanwhile; False where this process is asked to end before."""
        told = -1
        while not self._asked.is_set():
            try:
                await asyncio.to_thread(self.lease.acquire, dead=self.settings.dead, watch=False)
                return True
            except LeaseHeld:
                pass
            await self._tick()
            if self.controller.asked.state == "ended":
                return False
            # Ready to follow only with as many replicas as the one before is sending to.
            status = await asyncio.to_thread(self.deployment.status) or {}
            before = await asyncio.to_thread(self.deployment.endpoint) or {}
            now = int(before.get("generation", 0))
            if told != now and len(self.gateway.ready) >= int(status.get("ready") or 0):
                value = {
                    "format": 1, "after": now, "url": self.url, "pid": os.getpid(),
                    "node": socket.gethostname(), "time": time.time(),
                }  # fmt: skip
                await asyncio.to_thread(replace_json, self.next_file, value)
                told = now
                self.settings.say("ready to follow")
            await self.controller.rest()
        return False

    async def _decide(self) -> None:
        while not (self._asked.is_set() or self.lease.lost or await self._taken_over()):
            await asyncio.sleep(1.0)
        hopped = 0.0
        while not self._asked.is_set():
            if self.lease.lost:
                self.settings.say("another controller has taken over")
                break
            if await self._tick() == "ended":
                await self.controller.tell("ended")
                await self._publish("ended")
                self.settings.say("ended")
                return
            self.server.draining = self.gateway.draining
            if await self._followed():
                break
            if time.monotonic() - hopped > 1.0:
                hopped = time.monotonic()
                await asyncio.to_thread(self.settings.hop)
            await self.controller.rest()
        await self.controller.leave()
        await asyncio.to_thread(self.lease.release)

    async def _taken_over(self) -> bool:
        """Become the one that decides; False where the file system does not let it say so, which passes."""
        try:
            await self.controller.take_over()
            before = await asyncio.to_thread(self.deployment.endpoint) or {}
            self.generation = int(before.get("generation", 0)) + 1
            await self._publish("ready")
            facts = {"generation": self.generation, "url": self.url, "pid": os.getpid()}
            await asyncio.to_thread(lambda: self.deployment.event("gateway", **facts))
        except (HpcmassError, OSError) as error:
            self.settings.say(str(error))
            return False
        self.settings.say(f"generation {self.generation}: {self.url}/v2/models/{self.model}")
        return True

    async def _tick(self) -> str:
        """One tick; whatever goes wrong in it (a file system that does not answer), what is served goes on."""
        try:
            return await self.controller.tick()
        except (HpcmassError, OSError) as error:
            self.settings.say(str(error))
        except Exception:
            log.exception("the controller stumbled")
        await asyncio.sleep(1.0)
        return ""

    async def _followed(self) -> bool:
        """Whether another process is ready to go on."""
        try:
            found = await asyncio.to_thread(maybe_json, self.next_file)
        except (HpcmassError, OSError):  # the file system does not answer now: what is served goes on
            return False
        if found is None or found.get("after") != self.generation:
            return False
        self.settings.say(f"followed by {found.get('url')}")
        return True

    async def _publish(self, state: str) -> None:
        value = {
            "format": 1, "generation": self.generation, "url": self.url, "state": state, "model": self.model,
            "node": socket.gethostname(), "pid": os.getpid(), "time": time.time(),
        }  # fmt: skip
        await asyncio.to_thread(replace_json, self.deployment.endpoint_file, value)

    # -- end ----------------------------------------------------------------------------------------------
    async def _drain(self, listener: asyncio.Server) -> None:
        """Answer whoever comes until the next one is known, then what is under way; replicas are left alone."""
        watching = asyncio.get_running_loop().create_task(self._watch())
        end = time.monotonic() + (self.settings.drain_s if not self._asked.is_set() else 0.0)
        while self.generation and time.monotonic() < end:
            now = await asyncio.to_thread(self.deployment.endpoint) or {}
            if int(now.get("generation", 0)) > self.generation or now.get("state") == "ended":
                break
            await asyncio.sleep(0.1)
        else:
            if self.generation:
                with contextlib.suppress(HpcmassError):
                    await self._publish("draining")
        self.server.draining = True
        await asyncio.sleep(_NOTICE_S)
        await stop_listening(self.socket)
        listener.close()
        end = time.monotonic() + self.settings.drain_s
        while time.monotonic() < end and (self.server.open or self.gateway.calls):
            for connection in list(self.server.open):
                connection.close_idle(_IDLE_S)
            await asyncio.sleep(0.02)
        watching.cancel()

    async def _watch(self) -> None:
        """Follow the replicas that another one starts and ends, for the requests that still come here."""
        while True:
            await self._tick()
            await self.controller.rest()

    async def _sweep(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.gateway.sweep()
            count += 1
            if count % 4 == 0:
                self.server.sweep()
