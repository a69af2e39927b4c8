"""A lease: a claim with an owner and an expiry, renewed while its owner lives.

The lease of generation n is the file `NAME.n.json`, claimed once. Its owner renews it by replacing
`NAME.n.beat`. Taking over means claiming generation n + 1, allowed only when the owner of generation n
has released it, is known to be dead (same host and boot, and its process is gone; or the caller can prove
it, as by asking Slurm), or has not renewed for `ttl_s`. Clocks of two machines differ, so what the beat's time
says is believed only where it is far off; else the beat is watched, by the reader's own clock. Two that take
over at once race for one name, and one wins. A holder that slept for longer (a suspended machine), or that
somebody holds for dead, finds the newer generation soon, and its lease is `lost` from then on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import CorruptError, HpcmassError, LeaseHeld, NotFound
from hpcmass.files.publish import claim, make_dir, read_json, replace_json

DEFAULT_TTL_S = 60.0
# How old the answer to "is it lost?" may be: a job that Slurm has begun again elsewhere takes the lease over at
# once, while the old one, on a node that Slurm has given up, may still be running.
_LOOK_EVERY_S = 1.0
# Clocks that differ by more are not looked for: a beat so much older than `ttl_s` is an old one.
_CLOCKS_S = 600.0


def boot_id() -> str:
    """This boot of this machine, so that a process id means something."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """The namespace in which process ids count here: containers of one host have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None when there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: enough to tell from outside whether it is alive.

    Attributes:
        slurm_job_id: The job it belongs to; ranks, whose environment is cleared of `SLURM_*`, have it by
            `HPCMASS_SLURM_JOB`.
        slurm_restart: How often Slurm had begun that job again by then (`SLURM_RESTART_COUNT`).
    """

    host: str
    pid: int
    start_ticks: int
    boot: str
    slurm_job_id: str | None
    since: float
    pid_namespace: str = ""
    slurm_restart: int = 0

    @classmethod
    def this_process(cls) -> Owner:
        """The owner record of the calling process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            start_ticks=process_start(os.getpid()) or 0,
            boot=boot_id(),
            slurm_job_id=os.environ.get("HPCMASS_SLURM_JOB")
            or os.environ.get("SLURM_JOB_ID", os.environ.get("HPCMASS_SLURM_JOB_ID")),
            since=time.time(),
            pid_namespace=pid_namespace(),
            slurm_restart=_restart_count(),
        )

    def alive(self) -> bool | None:
        """True or False where this host can tell, None where it cannot (another host, another container)."""
        here = (socket.gethostname(), boot_id(), pid_namespace())
        if (self.host, self.boot, self.pid_namespace) != here:
            return None
        return process_start(self.pid) == self.start_ticks


def _restart_count() -> int:
    text = os.environ.get("HPCMASS_SLURM_RESTART") or os.environ.get("SLURM_RESTART_COUNT") or ""
    return int(text) if text.isdigit() else 0


class Lease:
    """A lease named by a path without suffix, such as `run/lease`.

    Use `acquire` and `release`, or as a context manager. While held, a daemon thread renews it every
    third of `ttl_s`.
    """

    def __init__(self, base: Path, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self.base = base
        self.ttl_s = ttl_s
        self._generation: int | None = None
        self._record: dict[str, Any] = {}
        self._lost = False
        self._renewed = 0.0
        self._looked = 0.0
        self._beat_seen: tuple[int, Any] | None = None  # of whoever holds it: generation and beat
        self._unchanged_since = 0.0
        self._renewal_seen = False
        self._lock = threading.Lock()  # of the files' place, which `rename_folder` changes
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, dead: Callable[[Owner], bool] | None = None, watch: bool = True) -> None:
        """Take the lease.

        Where its beat's age may come from clocks that differ, the beat is watched first, for up to `ttl_s`.

        Args:
            dead: Whether the caller knows by other means that an owner is dead, of whom this host cannot tell.
            watch: False for a caller that tries again and again with the same object, which watches all the
                while: refused at once, as long as nothing is known.

        Raises:
            LeaseHeld: Its owner is alive, or may be and has renewed within `ttl_s`; the data carries `owner`.
        """
        make_dir(self.base.parent)
        last = self._last_generation()
        held = last is not None and self._taken(last, dead)
        while watch and held is None:
            time.sleep(min(1.0, self.ttl_s / 20))
            last = self._last_generation()
            held = last is not None and self._taken(last, dead)
        if last is not None and held is not False:
            owner = self._owner(last)
            who = f"process {owner.pid} on {owner.host}" if owner else "an unknown process"
            raise LeaseHeld(
                f"is in use by {who}",
                where=self.base.parent,
                hint="wait for it to end, or end it",
                transient=True,
                owner=owner,
            )
        generation = (last or 0) + 1
        record = vars(Owner.this_process())
        if not claim(self._file(generation), json.dumps(record, sort_keys=True) + "\n"):
            raise LeaseHeld("was taken by another process just now", where=self.base.parent, transient=True)
        if self._last_generation() != generation:
            # Others took, gave back and cleared away generations since we looked: ours is an old number.
            with contextlib.suppress(OSError):
                self._file(generation).unlink()
            raise LeaseHeld("was taken by another process just now", where=self.base.parent, transient=True)
        self._generation, self._record, self._lost = generation, record, False
        self._beat()
        for old in range(max(1, generation - 3), generation):
            for path in (self._file(old), self._beat_file(old)):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="hpcmass-lease")
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process took the lease over while this one held it; it stays so.

        The folder is looked at when the last look is a second old, so also right after a sleep.
        """
        if not self._lost and self._generation is not None and time.time() - self._looked > _LOOK_EVERY_S:
            with self._lock:
                self._look()
        return self._lost

    def rename_folder(self, folder: Path) -> None:
        """Rename the folder that the held lease lies in; it is held all the while.

        Raises:
            OSError: The file system refused.
        """
        with self._lock:
            os.rename(self.base.parent, folder)
            self.base = folder / self.base.name

    def release(self) -> None:
        """Give the lease back; without one, or where it was lost, do nothing."""
        if self._generation is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._look()
        if self._lost:
            self._generation = None
            return
        try:
            replace_json(self._beat_file(self._generation), {"released": True})
        except HpcmassError:
            # On a full disk nothing can be written, but a name can be removed. Kept, the lease would be held
            # for as long as this process lives, and a worker lives long.
            with contextlib.suppress(OSError):
                self._file(self._generation).unlink()
        self._generation = None

    @property
    def renewal_seen(self) -> bool:
        """Whether the holder, of whom this host cannot tell, renewed the lease between calls of `acquire`."""
        return self._renewal_seen

    def drop(self) -> None:
        """End the renewal and write nothing: for a holder that removes the folder, and the lease with it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._generation = None

    def gone(self) -> bool:
        """Whether whoever took it last is gone: gave it back, is dead, or was quiet while this object watched.

        Nobody's clock but this machine's counts; of a holder elsewhere it takes calls over `ttl_s`.
        """
        last = self._last_generation()
        if last is None:
            return True
        known = self._known(last)
        return not known if known is not None else self._quiet_s(last) >= self.ttl_s

    def owner(self) -> Owner | None:
        """Who holds the lease now by the beat's own time, or None when it is free."""
        last = self._last_generation()
        return self._owner(last) if last is not None and self._held(last) else None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _file(self, generation: int) -> Path:
        return self.base.with_name(f"{self.base.name}.{generation}.json")

    def _beat_file(self, generation: int) -> Path:
        return self.base.with_name(f"{self.base.name}.{generation}.beat")

    def _last_generation(self) -> int | None:
        pattern = re.compile(re.escape(self.base.name) + r"\.(\d+)\.json")
        try:
            names = os.listdir(self.base.parent)
        except FileNotFoundError:
            return None
        return max((int(m[1]) for n in names if (m := pattern.fullmatch(n))), default=None)

    def _owner(self, generation: int) -> Owner | None:
        try:
            record: dict[str, Any] = read_json(self._file(generation))
            return Owner(**record)
        except (NotFound, CorruptError, TypeError):
            return None

    def _held(self, generation: int) -> bool:
        known = self._known(generation)
        return self._age_s(generation) < self.ttl_s if known is None else known

    def _known(self, generation: int, dead: Callable[[Owner], bool] | None = None) -> bool | None:
        """Whether it is held, as far as that is known without any clock."""
        try:
            if read_json(self._beat_file(generation)).get("released"):
                return False
        except (NotFound, CorruptError):
            pass
        owner = self._owner(generation)
        alive = owner.alive() if owner else None
        if alive is None and owner is not None and dead is not None and dead(owner):
            return False
        return alive

    def _taken(self, generation: int, dead: Callable[[Owner], bool] | None) -> bool | None:
        """Whether it is held, for whoever wants it; None where its beat has to be watched for longer."""
        if (known := self._known(generation, dead)) is not None:
            return known
        quiet_s, age_s = self._quiet_s(generation), self._age_s(generation)
        if quiet_s >= self.ttl_s or age_s >= self.ttl_s + _CLOCKS_S:
            return False
        return True if age_s < self.ttl_s or self._renewal_seen else None

    def _quiet_s(self, generation: int) -> float:
        """Seconds, by this machine's clock, for which this object has seen no renewal."""
        try:
            beat = read_json(self._beat_file(generation)).get("beat")
        except (NotFound, CorruptError):
            beat = None
        seen, now = (generation, beat), time.monotonic()
        if seen != self._beat_seen:
            self._renewal_seen = self._beat_seen is not None and self._beat_seen[0] == generation
            self._beat_seen, self._unchanged_since = seen, now
        return now - self._unchanged_since

    def _age_s(self, generation: int) -> float:
        """Seconds since the last renewal by the owner's clock, as written in the file, not by mtime."""
        try:
            return time.time() - float(read_json(self._beat_file(generation)).get("beat", 0.0))
        except (NotFound, CorruptError):
            owner = self._owner(generation)
            return time.time() - owner.since if owner else float("inf")

    def _beat(self) -> None:
        assert self._generation is not None
        now = time.time()
        with contextlib.suppress(HpcmassError):
            replace_json(self._beat_file(self._generation), {"beat": now})
            self._renewed = now

    def _look(self) -> None:
        """See whether the newest generation is still the one that this object claimed."""
        assert self._generation is not None
        try:
            # By its content too: in a folder that was set aside and made anew, generations begin again.
            mine = self._last_generation() == self._generation
            self._lost = not mine or read_json(self._file(self._generation)) != self._record
            self._looked = time.time()
        except NotFound:
            self._lost = True
        except (HpcmassError, OSError):
            pass  # The file system does not say: not known to be lost.

    def _renew(self) -> None:
        while not self._stop.wait(self.ttl_s / 3):
            with self._lock:
                self._look()
                if self._lost:
                    return
                self._beat()
