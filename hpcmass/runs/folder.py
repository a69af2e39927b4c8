"""The run folder: the truth about a run, written by its ranks and read by everybody else."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hpcmass.errors import CorruptError, HpcmassError, LeaseHeld, NotFound
from hpcmass.files import (
    Lease,
    append_record,
    claim,
    make_dir,
    read_json,
    read_records,
    replace_json,
    storage_errors,
)

FORMAT = 1
PAUSED = "paused: "
_EVALUATIONS = ("valid", "report")


class State(str, Enum):
    """What a run is. `UNKNOWN` is never written: a reader says it when nothing better can be known."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Status:
    """The content of `status.json`.

    Attributes:
        step: Optimiser steps done.
        total_steps: Optimiser steps that the run is to do; 0 where nobody counts them (scripts, estimators).
        samples_done: Samples seen in the current epoch.
        attempt: 1 at the first start, one more at every resume.
        reason: Why the run is in its state, one sentence, or None.
        metrics: The last validation's metrics.
    """

    state: State
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    samples_done: int = 0
    ranks: int = 0
    backend: str = ""
    attempt: int = 0
    started: float | None = None
    updated: float | None = None
    ended: float | None = None
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RankError:
    """What one rank said before it ended badly (`errors/attempt-A-rank-R.json`).

    Attributes:
        kind: `exception`, `signal` (ended from outside) or `exit` (a script's own exit code).
        transient: Whether the error says of itself that it may pass (a full disk, a file system that lags).
    """

    attempt: int
    rank: int
    kind: str
    error: str
    message: str
    hint: str | None = None
    where: str | None = None
    traceback: str | None = None
    step: int | None = None
    time: float = 0.0
    host: str = ""
    transient: bool = False


class RunFolder:
    """One run's folder. Rank 0 writes status and metrics; every rank writes its own errors and log.

    Nothing is created until `create` is called, so a refused start leaves no trace.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._held: Lease | None = None

    # -- places ---------------------------------------------------------------------------------------
    @property
    def job_file(self) -> Path:
        """The job as resolved."""
        return self.path / "job.toml"

    @property
    def metrics_file(self) -> Path:
        """Records of rank 0."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model bundle, there once training has completed."""
        return self.path / "model"

    @property
    def stop_file(self) -> Path:
        """Its presence asks the run to end."""
        return self.path / "stop"

    def log_file(self, attempt: int, rank: int) -> Path:
        """Where the output of a rank goes."""
        return self.path / "logs" / f"attempt-{attempt}-rank-{rank}.log"

    def rank_file(self, attempt: int, rank: int) -> Path:
        """Where a rank says on which host, cores and GPUs it runs."""
        return self.path / "ranks" / f"attempt-{attempt}-rank-{rank}.json"

    # -- life -----------------------------------------------------------------------------------------
    def exists(self) -> bool:
        """Whether the run was created."""
        return self.job_file.exists()

    def create(self, job_toml: str, site_toml: str, recipe: Path | None = None) -> None:
        """Lay the folder down: job, site, recipe; `job.toml` last, since it makes the run exist.

        Raises:
            AlreadyExists: The run was created before.
            StorageError: The file system refused.
        """
        from hpcmass.files import publish

        make_dir(self.path)
        with storage_errors(self.path, "create the run"):
            if recipe is not None:
                shutil.copyfile(recipe, self.path / "recipe.py")
            (self.path / "site.toml").write_text(site_toml, encoding="utf-8")
        # Not waited for: where the power goes it is empty, and then says the same.
        replace_json(self.path / "status.json", _status_json(Status(State.CREATED)), durable=False, flat=True)
        publish(self.job_file, job_toml)

    def lease(self, *, ttl_s: float = 60.0) -> Lease:
        """The lease that whoever runs this run holds (rank 0, or the launcher of a script)."""
        return Lease(self.path / "lease", ttl_s=ttl_s)

    def hold(self, lease: Lease) -> None:
        """Write under this lease: once it is lost, this object writes nothing more."""
        self._held = lease

    @property
    def lost(self) -> bool:
        """Whether another process has taken over the lease under which this object writes."""
        return self._held is not None and self._held.lost

    def taken_over(self) -> LeaseHeld:
        """The error with which whoever lost the lease ends."""
        return LeaseHeld(
            "another process has taken this run over",
            where=self.path,
            hint="this one was stopped for longer than its lease lasts; it has written nothing since",
            transient=True,
        )

    def check_held(self) -> None:
        """Refuse to go on without the lease.

        Raises:
            LeaseHeld: Another process has taken the run over.
        """
        if self.lost:
            raise self.taken_over()

    # -- status ---------------------------------------------------------------------------------------
    def status(self) -> Status:
        """What the file says, corrected by what the lease proves.

        Raises:
            NotFound: There is no such run.
        """
        status = self._read_status()
        if status.state is State.RUNNING and self.lease().owner() is None:
            # It may have ended in order between the two looks: the lease is given back after the last word.
            status = self._read_status()
            if status.state is State.RUNNING:
                return replace(status, state=State.UNKNOWN, reason="its processes are gone without a last word")
        return status

    def _read_status(self) -> Status:
        file = self.path / "status.json"
        try:
            raw = read_json(file)
        except NotFound as error:
            raise NotFound("there is no run here", where=self.path) from error
        except CorruptError:
            if file.stat().st_size > 0:
                raise
            return Status(State.CREATED)  # see `create`: what comes later is on disk before it has the name
        return _status_of(raw, file)

    def update(self, **changes: Any) -> Status:
        """Change fields of the status; the writer is the holder of the lease.

        Raises:
            LeaseHeld: It was, and has lost it.
        """
        self.check_held()
        file = self.path / "status.json"
        try:
            old = _status_of(read_json(file), file)
        except (NotFound, CorruptError):
            old = Status(State.CREATED)
        status = replace(old, **{**changes, "updated": time.time()})
        replace_json(self.path / "status.json", _status_json(status), flat=True)
        return status

    # -- records --------------------------------------------------------------------------------------
    def append(self, record: dict[str, Any]) -> None:
        """Append a record to `metrics.jsonl`, with the time.

        Raises:
            LeaseHeld: Another process has taken the run over.
        """
        self.check_held()
        append_record(self.metrics_file, {**record, "time": time.time()})
        limit = self.pause_at() if record.get("kind") in _EVALUATIONS else None
        if limit is not None and sum(1 for _ in self.records(record["kind"])) >= limit:
            self.ask_to_stop(f"{PAUSED}{read_json(self._pause_file).get('reason', '')}")

    def records(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Records that count: those of steps that a later resume took back are left out."""
        kept: list[dict[str, Any]] = []
        for record in read_records(self.metrics_file):
            if record.get("kind") == "resume":
                limit = int(record.get("from_step", 0))
                kept = [old for old in kept if old.get("kind") == "resume" or old.get("step", 0) <= limit]
            kept.append(record)
        return (record for record in kept if kind is None or record.get("kind") == kind)

    # -- errors ---------------------------------------------------------------------------------------
    def record_error(self, error: RankError) -> None:
        """Write down why a rank ended; the first word of a rank in an attempt stays."""
        import json

        if self.lost:
            return
        name = f"attempt-{error.attempt}-rank-{error.rank}.json"
        with contextlib.suppress(HpcmassError):
            claim(self.path / "errors" / name, json.dumps({"format": FORMAT, **asdict(error)}, indent=1) + "\n")

    def record_exception(self, attempt: int, rank: int, error: BaseException, step: int | None = None) -> None:
        """Write down an exception as a rank's reason to end."""
        known = isinstance(error, HpcmassError)
        self.record_error(
            RankError(
                attempt=attempt,
                rank=rank,
                kind="exception",
                error=type(error).__name__,
                message=error.message if isinstance(error, HpcmassError) else str(error),
                hint=error.hint if isinstance(error, HpcmassError) else None,
                where=error.where if isinstance(error, HpcmassError) else None,
                traceback=None if known else "".join(traceback.format_exception(error)),
                step=step,
                time=time.time(),
                host=socket.gethostname(),
                transient=isinstance(error, HpcmassError) and error.transient,
            )
        )

    def errors(self, attempt: int | None = None) -> list[RankError]:
        """What the ranks said, first in time first; of one attempt, or of all."""
        found = []
        folder = self.path / "errors"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            if not name.endswith(".json") or name.startswith("."):
                continue
            with contextlib.suppress(NotFound, CorruptError, TypeError):
                raw = read_json(folder / name)
                raw.pop("format", None)
                found.append(RankError(**raw))
        return sorted((e for e in found if attempt in (None, e.attempt)), key=lambda e: e.time)

    # -- pause ----------------------------------------------------------------------------------------
    @property
    def _pause_file(self) -> Path:
        return self.path / "pause.json"

    def pause_at(self) -> int | None:
        """After how many evaluations the run is to pause; None where it is to go on to its end."""
        try:
            return int(read_json(self._pause_file)["evaluations"])
        except NotFound:
            return None

    def pause(self, evaluations: int | None, reason: str = "") -> None:
        """Say after how many evaluations, all attempts counted, the run is to pause: it stops and can go on.

        An earlier pause is over. To be called while nobody runs it.
        """
        if evaluations is None:
            self._pause_file.unlink(missing_ok=True)
        else:
            replace_json(self._pause_file, {"format": FORMAT, "evaluations": evaluations, "reason": reason})
        if (self.asked_to_stop() or "").startswith(PAUSED):
            self.stop_file.unlink(missing_ok=True)

    def paused(self) -> bool:
        """Whether the pause that stands has asked it to end, and no earlier one, ended only by half."""
        try:
            reason = str(read_json(self._pause_file).get("reason", ""))
        except NotFound:
            return False
        return self.asked_to_stop() == f"{PAUSED}{reason}".strip()

    # -- stop -----------------------------------------------------------------------------------------
    def ask_to_stop(self, reason: str) -> None:
        """Ask the run to end at its next evaluation."""
        claim(self.stop_file, reason + "\n")

    def asked_to_stop(self) -> str | None:
        """The reason, when the run was asked to end.

        Raises:
            StorageError: The file system does not say.
        """
        with storage_errors(self.stop_file, "look whether the run is to stop"):
            try:
                said = self.stop_file.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None
        return said.strip() or "asked to stop"


_STATUS_KEYS = tuple(one.name for one in fields(Status))


def _status_json(status: Status) -> dict[str, Any]:
    # A NaN or an infinity is no JSON; as text it comes back by float().
    metrics = {name: v if math.isfinite(v) else str(v) for name, v in status.metrics.items()}
    plain = {name: getattr(status, name) for name in _STATUS_KEYS}
    return {"format": FORMAT, **plain, "metrics": metrics, "state": status.state.value}


def _status_of(raw: Any, file: Path) -> Status:
    """The status out of its JSON.

    Raises:
        CorruptError: It is none.
        HpcmassError: A newer hpcmass wrote it.
    """
    try:
        if int(raw["format"]) > FORMAT:
            raise HpcmassError(
                f"is of format {raw['format']}, this hpcmass knows {FORMAT}",
                where=file,
                hint="use a newer hpcmass",
            )
        # Keys that a later hpcmass adds within the same format are none of this one's business.
        values = {name: raw[name] for name in _STATUS_KEYS if name in raw}
        values["metrics"] = {name: float(value) for name, value in raw.get("metrics", {}).items()}
        return Status(**{**values, "state": State(raw["state"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"is not a run's status ({error})", where=file) from error
