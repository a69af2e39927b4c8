"""Holds a deployment at what is asked: starts replicas, admits them to the gateway, drains and replaces them.

All that it knows is in the deployment's folder, so that a successor goes on where it was killed. It decides on
the gateway's event loop and touches files and jobs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import replace_json
from hpcmass.serve.deployment import (
    Asked,
    Deployment,
    Known,
    ended,
    followed,
    launched,
    promoted,
    read_replica,
    version_of,
    without,
)
from hpcmass.serve.elastic import Load, Mind, Rule, decide
from hpcmass.serve.gateway import Gateway
from hpcmass.serve.member import Member
from hpcmass.serve.probing import Launcher, numbers, probe
from hpcmass.serve.rollout import Piece, steps
from hpcmass.serve.trial import Trial
from hpcmass.serve.upstream import Backend

log = logging.getLogger("hpcmass.serve")

TICK_S = 0.2
_LOOK_S, _LAID_S = (
    3.0,
    15.0,
)  # after which one that was laid down and has no job is looked for, and was not started
_DRAIN_S, _STOP_S, _START_S, _MUTE_S = 60.0, 45.0, 300.0, 15.0
_FAILURES = 3  # of a model in a row, after which it is told, and a trial of it ended


class Controller:
    """The one that decides, as long as it holds the deployment's lease.

    Args:
        deployment: The folder.
        gateway: Who gets the requests to the replicas.
        launcher: Where replicas are started.
        resolve: From a reference to what replicas serve: `NAME@production` to `NAME@3`.
        token: What replicas are asked with.
        say: Told in words what happens.

    Attributes:
        members: The replicas that have not ended, by number.
        standby: It decides nothing yet: another one does.
    """

    def __init__(
        self, deployment: Deployment, gateway: Gateway, launcher: Launcher, *,
        resolve: Callable[[str], str], token: str | None, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.deployment, self.gateway, self.launcher = deployment, gateway, launcher
        self.resolve, self.token, self.say = resolve, token, say
        self.asked: Asked = deployment.asked()
        self.members: dict[str, Member] = {}
        self.standby = True
        self.trial = Trial()
        self.mind = Mind(max(self.asked.least, 0))
        self.hours = 0.0
        self.note = ""
        self._ending: float | None = None
        self._stat: tuple[int, int] | None = None
        self._launching: list[str] = []  # models of which a replica is being started
        self._aimed: list[str | None] = []  # the targets of those
        self._laying: set[str] = set()  # and their numbers, as far as they have one
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probed: dict[str, float] = {}
        self._awake = asyncio.Event()
        self._last = {"tick": monotonic(), "follow": 0.0, "second": 0.0}
        gateway.wanted = self._awake.set
        gateway.suspected = self._suspected

    # -- the loop -----------------------------------------------------------------------------------------
    async def take_over(self) -> None:
        """Decide from now on: what the last controller began and did not finish is taken up."""
        self.standby = False
        before = await asyncio.to_thread(self.deployment.status) or {}
        self.hours = float(before.get("hours", 0.0))
        count = before.get("wanted")
        if isinstance(count, int):
            self.mind = Mind(min(max(count, self.asked.least), self.asked.most))
        await self.look()

    async def look(self) -> None:
        """Read the folder: what is asked, and the replicas that are there."""
        known, changed = await asyncio.to_thread(self._read)
        if changed is not None:
            self.asked = changed
            self.gateway.versions = {version_of(changed.stable)}
            if changed.canary is not None:
                self.gateway.versions.add(version_of(changed.canary.model))
            self.trial.follow(changed)
        for one in known:
            if (member := self.members.get(one.rid)) is not None:
                member.known.endpoint, member.known.job = one.endpoint or member.known.endpoint, one.job
            elif one.job is not None and one.rid not in self._laying:
                self.members[one.rid] = Member(one)
        views = await asyncio.to_thread(self.launcher.look, [one.known for one in self.members.values()])
        for rid, view in views.items():
            if rid in self.members:
                self.members[rid].view = view

    async def tick(self) -> str:
        """Do what is due; `ended` when nothing is left of a deployment that is to end, else empty."""
        now = monotonic()
        took, self._last["tick"] = now - self._last["tick"], now
        running = sum(not one.view.waiting for one in self.members.values())
        self.hours += running * min(took, 5.0) / 3600
        await self.look()
        for member in list(self.members.values()):
            self._watch(member, now)
        if self.standby:
            return ""
        if self.asked.state == "ended":
            return self._end_all()
        if now - self._last["follow"] >= 5.0:
            self._last["follow"] = now
            await asyncio.to_thread(self._follow)
        self._count()
        self._step()
        if now - self._last["second"] >= 1.0:
            self._last["second"] = now
            self._second()
            await asyncio.to_thread(self._judge)
            await self.tell()
        return ""

    async def rest(self) -> None:
        """Wait for the next tick, or until a request wants a replica."""
        self._awake.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._awake.wait(), TICK_S)

    async def leave(self) -> None:
        """Decide nothing more; what is being started is written down first."""
        self.standby = True
        while self._launching or self._laying:
            await asyncio.sleep(0.05)

    def _read(self) -> tuple[list[Known], Asked | None]:
        info = os.stat(self.deployment.file)
        stat, changed = (info.st_mtime_ns, info.st_ino), None
        if stat != self._stat:
            changed, self._stat = self.deployment.asked(), stat
        known = []
        for one in self.deployment.replicas():
            age = time.time() - one.created
            if one.job is None and not self.standby and age > _LOOK_S and one.rid not in self._laying:
                try:
                    if (job := self.launcher.find(one)) is not None:
                        launched(one, job)
                    elif age > _LAID_S:
                        ended(one, "was not started")
                        continue
                except HpcmassError as error:  # a silent Slurm, a full disk: the others need care meanwhile
                    self.note = str(error)
            known.append(one)
        return known, changed

    # -- one replica --------------------------------------------------------------------------------------
    def _watch(self, member: Member, now: float) -> None:
        told = (member.known.endpoint or {}).get("state")
        if member.view.alive is False or (told == "ended" and member.view.alive is not True):
            self._gone(member, "was stopped" if member.state == "stopping" else "is gone")
            return
        if member.state in ("starting", "ready", "suspect"):
            rid = member.known.rid
            every = 1.0 if member.state == "ready" else TICK_S
            if (member.state != "starting" or told == "ready") and now - self._probed.get(rid, 0.0) >= every:
                self._probed[rid] = float("inf")
                self._spawn(self._probe(member))
        if self.standby:
            return
        late = now - member.since
        if member.view.waiting:
            member.since = now
        elif member.state == "starting" and late > _START_S:
            self._stop(member, kill=True, why="was not ready in time")
        elif member.state == "suspect" and late > _MUTE_S:
            self._stop(member, kill=True, why="does not answer")
        elif member.state == "draining" and (
            late > _DRAIN_S or (late > TICK_S and (member.backend is None or not member.backend.in_flight))
        ):
            self._stop(member)
        elif member.state == "stopping" and late > _STOP_S:  # and again, should nobody have heard it
            why, member.killed = "" if member.killed else "did not end", True
            self._stop(member, kill=True, why=why)

    async def _probe(self, member: Member) -> None:
        rid, address = member.known.rid, member.address()
        try:
            if address is None:
                return
            status, _ = await probe(*address, member.health, self.token)
            if member.state not in ("starting", "ready", "suspect") or self.members.get(rid) is not member:
                return
            if status == 200:
                self._answers(member, address)
                if (wait := monotonic() - self._last.get(f"m{rid}", 0.0)) >= 1.5 or wait < 0:
                    self._last[f"m{rid}"] = monotonic()
                    _, body = await probe(*address, "/metrics", self.token)
                    member.measured(numbers(body))
            elif status == 503 and member.serving and (member.known.endpoint or {}).get("state") != "loading":
                # Somebody asked it to end: it answers what it has, and another one takes its place.
                self._event("replica-leaves", replica=rid)
                self._drain(member)
            else:
                self._misses(member)
        finally:
            self._probed[rid] = monotonic()

    def _answers(self, member: Member, address: tuple[str, int]) -> None:
        member.missed = 0
        if member.backend is None:
            version = str((member.known.endpoint or {}).get("version", ""))
            member.backend = Backend(member.known.rid, *address, version=version, model=member.known.model)
            self._failures.pop(member.known.model, None)
            if not self.standby:
                took = round(monotonic() - member.began, 3)
                self._event("replica-ready", replica=member.known.rid, model=member.known.model, seconds=took)
        elif (member.backend.host, member.backend.port) != address:  # another program, started anew
            member.backend.move(*address)
        if member.state != "ready":
            member.turn("ready")
            self._tracks()
            self.gateway.admit(member.backend)

    def _misses(self, member: Member) -> None:
        member.missed += 1
        backend = member.backend
        if backend is None or monotonic() - backend.heard < 2.0:
            return
        if member.missed >= 2 and member.state == "ready":
            member.turn("suspect")
            self.gateway.dismiss(backend)
        if member.missed >= 3:
            backend.cut()  # what it has goes to others

    def _suspected(self, backend: Backend, why: str) -> None:
        member = self.members.get(backend.rid)
        if member is not None and member.state == "ready":
            member.turn("suspect")
            self._awake.set()

    def _drain(self, member: Member) -> None:
        if member.backend is not None:
            self.gateway.dismiss(member.backend)
        member.turn("draining")

    def _stop(self, member: Member, *, kill: bool = False, why: str = "") -> None:
        if why:
            self._event("replica-stopped", replica=member.known.rid, reason=why)
        if member.state == "starting" and kill:
            self._failed(member.known.model, why)
        if member.backend is not None:
            self.gateway.dismiss(member.backend)
            member.backend.let_go()
            if kill:
                member.backend.cut()
        member.turn("stopping")
        self._spawn(self._in_thread(self.launcher.stop, member.known, kill=kill))

    def _gone(self, member: Member, reason: str) -> None:
        del self.members[member.known.rid]
        self._probed.pop(member.known.rid, None)
        if member.backend is not None:
            self.gateway.dismiss(member.backend)
            member.backend.cut()
        if self.standby:
            return
        if member.state == "starting":
            self._failed(
                member.known.model, f"{member.known.rid} ended: {_last_line(member.known.path / 'out.log')}"
            )
        self.trial.gone(member)
        self._event("replica-ended", replica=member.known.rid, reason=reason, state=member.state)
        self._spawn(self._in_thread(ended, member.known, reason))

    def _failed(self, model: str, why: str) -> None:
        count = self._failures[model] = self._failures.get(model, 0) + 1
        self._not_before[model] = monotonic() + min(60.0, 0.5 * 2**count)
        self.note = f"{model}: {why}"
        if count == _FAILURES:
            self._event("failing", model=model, reason=why)

    # -- all of them --------------------------------------------------------------------------------------
    def _follow(self) -> None:
        asked = self.asked
        if asked.follow is None or asked.canary is not None:
            return
        try:
            found = self.resolve(asked.follow)
            if found != asked.stable:
                reference = asked.follow
                self.deployment.change(
                    lambda old: followed(old, reference, found), "follows", reference=reference
                )
        except HpcmassError as error:
            self.note = str(error)

    def _judge(self) -> None:
        canary = self.asked.canary
        if canary is None:
            return
        verdict = self.trial.verdict(self.asked, time.time())
        if self._failures.get(canary.model, 0) >= _FAILURES:
            verdict = ("worse", "its replicas do not start")
        if verdict is None:
            return
        what, why = verdict
        with contextlib.suppress(NotFound):
            if what == "worse":
                self.deployment.change(
                    lambda old: without(old, canary), "canary-rolled-back", reason=why, canary=canary.model
                )
            else:
                self.deployment.change(lambda old: promoted(old, canary), "canary-promoted", reason=why)

    def _count(self) -> None:
        asked, gateway, now = self.asked, self.gateway, monotonic()
        serving = [one for one in self.members.values() if one.state == "ready"]
        summary = gateway.window.summary(3)
        load = Load(
            time=now,
            ready=len(serving),
            rate=summary.rate,
            p99_ms=summary.p99_ms,
            busy=sum(one.busy for one in serving) / max(1, len(serving)),
            queued=sum(one.queued for one in serving),
            held=len(gateway.held),
            refused=summary.refused,
            idle_s=now - gateway.last_request,
            hours=self.hours,
        )
        rule = Rule(asked.least, asked.most, asked.slo_p99_ms, asked.idle_s, asked.budget_hours)
        new = decide(self.mind, load, rule)
        if new.count != self.mind.count:
            self._event("scaled", replicas=new.count, before=self.mind.count, reason=new.why)
        self.mind = new
        gateway.idle_ready = asked.least == 0

    def _step(self) -> None:
        asked, count = self.asked, self.mind.count
        canary = asked.canary
        self.gateway.share = canary.share if canary is not None else 0.0
        self._tracks()
        pieces = [
            one.piece() if one.state != "suspect" else Piece(one.known.rid, one.known.model, False)
            for one in self.members.values()
            if one.state in ("starting", "ready") or (one.state == "suspect" and monotonic() - one.since < 3.0)
        ]
        pieces += [Piece("~", model, False) for model in self._launching]
        canaries = 0 if canary is None or not count else max(1, round(canary.share * count))
        todo = steps(
            pieces, asked.stable, count, canary=None if canary is None else canary.model, canaries=canaries,
            surge=max(1, count // 4),
        )  # fmt: skip
        for rid in todo.drain:
            if (member := self.members.get(rid)) is None:
                continue
            if member.state == "starting":
                self._stop(member, why="is not needed")
            else:
                self._event("replica-drains", replica=rid)
                self._drain(member)
        for model in todo.start:
            if monotonic() >= self._not_before.get(model, 0.0):
                targets = [one.known.target for one in self.members.values()]
                target = self.launcher.target([*targets, *self._aimed])
                self._launching.append(model)
                self._aimed.append(target)
                self._spawn(self._launch(model, target))

    async def _launch(self, model: str, target: str | None) -> None:
        rid = ""
        try:
            asked = self.asked

            def lay() -> Known:
                words = lambda rid, folder: self.launcher.command(asked, model, folder, target)  # noqa: E731
                return self.deployment.new_replica(model, words, target)

            known = await asyncio.to_thread(lay)
            rid = known.rid
            self._laying.add(rid)
            try:
                job = await asyncio.to_thread(self.launcher.start, known, asked)
                await asyncio.to_thread(launched, known, job)
            except HpcmassError as error:
                if not error.data.get("unsure"):
                    await asyncio.to_thread(ended, known, str(error))
                raise
            self.members[rid] = Member(read_replica(known.path) or known)
            self._event("replica-started", replica=rid, model=model, target=target)
        except (HpcmassError, OSError) as error:
            self._failed(model, str(error))
        finally:
            self._launching.remove(model)
            self._aimed.remove(target)
            self._laying.discard(rid)

    def _tracks(self) -> None:
        canary = self.asked.canary
        serving = [one for one in self.members.values() if one.backend is not None and one.state == "ready"]
        known = [one.capacity for one in serving if one.capacity]
        mean = sum(known) / len(known) if known else 0.0
        for one in serving:
            assert one.backend is not None
            one.backend.track = "canary" if canary is not None and one.known.model == canary.model else "stable"
            one.backend.weight = min(10.0, max(0.1, one.capacity / mean)) if one.capacity and mean else 1.0

    def _second(self) -> None:
        self.gateway.window.tick()
        for one in self.members.values():
            if one.backend is not None:
                one.backend.window.tick()
        self.trial.count(self.members.values(), self.asked)

    def _end_all(self) -> str:
        self.gateway.draining = True
        self._ending = self._ending or monotonic()
        if self.gateway.calls and monotonic() - self._ending < _DRAIN_S:
            return ""
        for member in self.members.values():
            if member.state in ("starting", "ready", "suspect"):
                self._drain(member)
        return "ended" if not self.members and not self._launching else ""

    async def tell(self, state: str = "") -> None:
        """Write `gateway/status.json`."""
        gateway, asked = self.gateway, self.asked
        seen = gateway.window.summary()
        value = {
            "format": 1, "time": time.time(), "state": state or asked.state, "node": socket.gethostname(),
            "pid": os.getpid(), "model": asked.stable, "wanted": self.mind.count, "reason": self.mind.why,
            "ready": len(gateway.ready), "rate": seen.rate, "p50_ms": seen.p50_ms, "p99_ms": seen.p99_ms,
            "errors": seen.errors, "refused": seen.refused, "held": len(gateway.held),
            "queue": sum(one.queued for one in self.members.values()), "retries": gateway.retries,
            "hours": round(self.hours, 5), "note": self.note,
            "canary": asked.canary and {"model": asked.canary.model, "share": asked.canary.share},
            "replicas": [one.told() for one in self.members.values()],
        }  # fmt: skip
        with contextlib.suppress(HpcmassError):
            await asyncio.to_thread(replace_json, self.deployment.status_file, value, durable=False)

    # -- helpers ------------------------------------------------------------------------------------------
    def _event(self, kind: str, **facts: Any) -> None:
        self.say(" ".join([kind, *(f"{key}={value}" for key, value in facts.items())]))
        self._spawn(self._in_thread(self.deployment.event, kind, **facts))

    async def _in_thread(self, what: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            await asyncio.to_thread(what, *args, **kwargs)
        except (HpcmassError, OSError) as error:
            self.note = str(error)
            self.say(f"{error}")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _last_line(file: Path) -> str:
    try:
        lines = file.read_bytes()[-2000:].decode("utf-8", "replace").split("\n")
    except OSError:
        return "no output"
    said = [line.strip() for line in lines if line.strip()]
    return next((line for line in said if line.startswith("error:")), said[-1] if said else "no output")
