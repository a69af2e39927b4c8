"""A deployment's folder: what is asked, what happened, its replicas, its address. See docs/deployments.md."""

from __future__ import annotations

import contextlib
import getpass
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists, ConfigError, CorruptError, LeaseHeld, NotFound
from hpcmass.files import (
    Lease,
    append_record,
    make_dir,
    matching,
    publish_json,
    read_json,
    read_records,
    replace_json,
    storage_errors,
)

FORMAT = 1
_CHANGE_S = 15.0  # how long a change waits for another one
_RID = re.compile(r"r-\d{4,}")


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A version on trial.

    Attributes:
        model: What its replicas serve.
        share: Of the requests, above 0 and below 1.
        since: When it was asked for.
        after_s: It takes the other's place when it has done as well for so long; None: when told.
    """

    model: str
    share: float
    since: float
    after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a deployment, `deployment.json`.

    Attributes:
        name: Its name, a folder's.
        model: The model's name in addresses.
        asked: As the user named the model.
        stable: What replicas serve: `NAME@3`, or a bundle's folder.
        follow: A reference that is looked up again and again, `NAME@ALIAS`; None: the version stays.
        previous: What `stable` was before; what `rollback` brings back.
        least: Replicas, at least; also `most`. With 0 the last one goes when nobody asks.
        idle_s: Seconds without a request until then.
        budget_hours: Replica hours that may be used, beyond `least`; None: no limit.
        site: The site file, and `targets` of it where replicas may run; None: this machine.
        time: Wall time of a replica's job; None: the target's.
        serve: Further words of `hpcmass serve` for replicas.
        gateway: How the gateway is to be reached: `host`, `port`, `tokens`, `rate`, `anybody`, `certificate`,
            `key`; `target`: what it is a job on; without one it is a process of the machine of `deploy`.
        state: `running`, or `ended`: nothing of it is to run.
        revision: Raised by each change.
    """

    name: str
    model: str
    asked: str
    stable: str
    follow: str | None = None
    canary: Canary | None = None
    previous: str | None = None
    least: int = 1
    most: int = 1
    slo_p99_ms: float = 10.0
    idle_s: float = 300.0
    budget_hours: float | None = None
    site: str | None = None
    targets: tuple[str, ...] = ()
    time: str | None = None
    serve: tuple[str, ...] = ()
    gateway: Mapping[str, Any] = field(default_factory=dict)
    state: str = "running"
    revision: int = 1
    created: float = 0.0
    by: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ConfigError(
                f"{self.least}:{self.most} is no range", where="--replicas", hint="such as 1:3, 2, 0:4"
            )
        if self.canary is not None and not 0 < self.canary.share < 1:
            raise ConfigError("is not between 0 and 100 %", where="--canary", hint="such as 10%")
        if not 0 < self.slo_p99_ms < 1e9:
            raise ConfigError("is not more than 0", where="--slo-p99-ms")


@dataclass
class Known:
    """A replica as its folder tells of it: what was laid down, its job, its own word, its end."""

    rid: str
    path: Path
    model: str
    created: float
    command: tuple[str, ...]
    target: str | None
    job: dict[str, Any] | None
    endpoint: dict[str, Any] | None
    ended: bool


class Deployment:
    """The folder `deployments/NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "deployment.json"
        self.events_file = path / "events.jsonl"
        self.endpoint_file = path / "endpoint.json"
        self.status_file = path / "gateway" / "status.json"
        self._over: set[str] = set()  # replicas that were seen to have ended, which stays so

    def exists(self) -> bool:
        """Whether there is one."""
        return self.file.is_file()

    def asked(self) -> Asked:
        """What is asked.

        Raises:
            NotFound: There is no such deployment.
            CorruptError: The file is damaged, or newer than this hpcmass.
        """
        try:
            raw = read_json(self.file)
        except NotFound:
            raise NotFound(
                f"there is no deployment '{self.path.name}'", where=self.path, hint="hpcmass deployments"
            ) from None
        return parse_asked(raw, self.file)

    def create(self, asked: Asked) -> Asked:
        """Lay the folder down.

        Raises:
            AlreadyExists: There is one.
        """
        for part in ("replicas", "gateway", "monitor"):
            make_dir(self.path / part)
        asked = replace(asked, created=time.time(), by=getpass.getuser())
        publish_json(self.file, _written(asked))
        self.event("created", model=asked.stable, replicas=[asked.least, asked.most])
        return asked

    def change(self, how: Callable[[Asked], Asked], kind: str, **facts: Any) -> Asked:
        """Change what is asked; several who do so take turns.

        Args:
            how: Gives the new from the old; where they are equal nothing is written.
            kind: Of the event.
            **facts: Go with it.
        """
        with self.alone():
            old = self.asked()
            new = how(old)
            if new == old:
                return old
            new = replace(new, revision=old.revision + 1)
            replace_json(self.file, _written(new))
            self.event(kind, revision=new.revision, model=new.stable, **facts)
        return new

    def event(self, kind: str, **facts: Any) -> None:
        """Write down what happened."""
        append_record(self.events_file, {"kind": kind, "time": time.time(), **facts})

    def events(self) -> list[dict[str, Any]]:
        """All that happened."""
        return list(read_records(self.events_file)) if self.events_file.exists() else []

    def endpoint(self) -> dict[str, Any] | None:
        """Where the gateway is, as it said last; None where none has been yet."""
        return maybe_json(self.endpoint_file)

    def status(self) -> dict[str, Any] | None:
        """What the controller said last."""
        return maybe_json(self.status_file)

    # -- replicas -----------------------------------------------------------------------------------------
    def new_replica(self, model: str, command: Callable[[str, Path], list[str]], target: str | None) -> Known:
        """Claim the next number and lay a replica down, not started yet."""
        parent = make_dir(self.path / "replicas")
        number = 1 + max((int(one.name[2:]) for one in self._folders()), default=0)
        while True:
            folder = parent / f"r-{number:04d}"
            with storage_errors(folder, "make the folder of a replica"):
                try:
                    folder.mkdir()
                    break
                except FileExistsError:
                    number += 1
        words = command(folder.name, folder)
        record = {
            "format": FORMAT, "model": model, "target": target, "command": words, "created": time.time(),
        }  # fmt: skip
        publish_json(folder / "replica.json", record)
        return Known(folder.name, folder, model, record["created"], tuple(words), target, None, None, False)  # type: ignore[arg-type]

    def replicas(self) -> list[Known]:
        """All that have not ended, by number; one that was not laid down wholly is none."""
        found = []
        for folder in self._folders():
            if folder.name in self._over:
                continue
            if (folder / "ended.json").exists():
                self._over.add(folder.name)
                continue
            if (one := read_replica(folder)) is not None:
                found.append(one)
        return found

    def _folders(self) -> list[Path]:
        return [one for one in matching(self.path / "replicas", "r-*") if _RID.fullmatch(one.name)]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While it lasts nobody else changes what is asked.

        Raises:
            LeaseHeld: Another one took too long.
        """
        lease, end = Lease(self.path / "change", ttl_s=10.0), time.monotonic() + _CHANGE_S
        while True:
            try:
                lease.acquire(watch=False)
                break
            except LeaseHeld:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        try:
            yield
        finally:
            lease.release()


def read_replica(folder: Path) -> Known | None:
    """A replica by its folder; None where it was not laid down wholly."""
    record = maybe_json(folder / "replica.json")
    if record is None:
        return None
    return Known(
        folder.name,
        folder,
        str(record.get("model")),
        float(record.get("created", 0.0)),
        tuple(record.get("command", ())),
        record.get("target"),
        maybe_json(folder / "job.json"),
        maybe_json(folder / "endpoint.json"),
        (folder / "ended.json").exists(),
    )


def launched(replica: Known, job: dict[str, Any]) -> None:
    """Write down what a replica was started as."""
    replica.job = {"format": FORMAT, **job}
    replace_json(replica.path / "job.json", replica.job)


def ended(replica: Known, reason: str) -> None:
    """Write down that a replica is no more."""
    with contextlib.suppress(AlreadyExists):
        publish_json(replica.path / "ended.json", {"format": FORMAT, "time": time.time(), "reason": reason})
    replica.ended = True


def parse_asked(raw: Any, where: Path) -> Asked:
    """What `deployment.json` says.

    Raises:
        CorruptError: It is damaged, or newer than this hpcmass.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise CorruptError("is no deployment", where=where)
    if raw["format"] > FORMAT:
        raise CorruptError(f"has format {raw['format']}, this hpcmass knows up to {FORMAT}", where=where)
    names = {one.name for one in fields(Asked)}
    values = {key: value for key, value in raw.items() if key in names}
    try:
        values["least"], values["most"] = raw["replicas"]
        values["targets"], values["serve"] = tuple(raw["targets"]), tuple(raw["serve"])
        values["canary"] = None if raw["canary"] is None else Canary(**raw["canary"])
        return Asked(**values)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CorruptError(f"is no deployment: {error}", where=where) from error


def version_of(model: str) -> str:
    """The version that a replica of this names in addresses."""
    name, at, number = model.rpartition("@")
    return number if at and number.isdigit() and "/" not in name else "1"


def updated(old: Asked, stable: str) -> Asked:
    """What is asked, with another version."""
    if stable == old.stable:
        return replace(old, canary=None)
    return replace(old, stable=stable, previous=old.stable, canary=None)


def without(old: Asked, canary: Canary) -> Asked:
    """What is asked, with this trial ended; as it was where another one is asked for by now."""
    return replace(old, canary=None, follow=None) if old.canary == canary else old


def promoted(old: Asked, canary: Canary) -> Asked:
    """What is asked, with the version on trial in the other's place; an alias is followed no more.

    It means another version, and would bring that back at the next look.
    """
    return replace(updated(old, canary.model), follow=None) if old.canary == canary else old


def followed(old: Asked, reference: str, found: str) -> Asked:
    """What is asked, with what a reference means by now; as it was where that is followed no more."""
    follows = old.state == "running" and old.follow == reference and old.canary is None
    return updated(old, found) if follows else old


def _written(asked: Asked) -> dict[str, Any]:
    values = asdict(asked)
    least, most = values.pop("least"), values.pop("most")
    return {"format": FORMAT, **values, "replicas": [least, most]}


def maybe_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file, or it is damaged."""
    try:
        found = read_json(file)
    except (NotFound, CorruptError):
        return None
    return found if isinstance(found, dict) else None
