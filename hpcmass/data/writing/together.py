"""Ranks that work on one folder at one time, and know of each other by files alone.

`HOME/lease.N.json` is held by rank 0, who leads: two starts at once cannot be. What one start's ranks tell each
other lies in `HOME/ranks-<random>/`: `start.json` (by rank 0; how the others find it), a lease of every other
rank, `begun.json`, a mark `WHAT-00003` of each rank that has come so far, and `failed-00003.json` of one that
ended badly.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcmass.data.writing.staging import discard_folder
from hpcmass.errors import CorruptError, DataError, HpcmassError, LeaseHeld, NotFound, RankFailed
from hpcmass.files import Lease, claim, matching, publish_json, read_json, sha256_bytes

COMING_S = 600.0
"""How long ranks may take to start, one later than another."""
_LEAVING_S = 30.0
_LOOK_EVERY_S = 1.0
_PAUSES_S = (0.01, 0.5)


class Together:
    """One start of several ranks, seen from one of them; a context manager.

    Attributes:
        rank: Which one this is; rank 0 leads.
        ranks: How many there are.
        discard: Set by rank 0: whether `HOME` is removed at the end, and not kept for the next start.
    """

    def __init__(self, home: Path, rank: int = 0, ranks: int = 1, start: str = "") -> None:
        """Prepare; nothing is looked at yet.

        Args:
            home: The folder.
            rank: Which one this is, 0 … ranks - 1.
            ranks: How many take part.
            start: The same text for all ranks of one start, another for the next; "" where nobody knows one.

        Raises:
            DataError: The numbers do not fit.
        """
        if not 0 <= rank < ranks:
            raise DataError(f"rank {rank} of {ranks} ranks cannot be")
        self.home, self.rank, self.ranks, self.start = home, rank, ranks, start
        self.discard = False
        self._lead = Lease(home / "lease")
        self._leases: dict[int, Lease] = {0: self._lead} if rank else {}  # of those who are watched
        self._own: Lease | None = None
        self._folder = home
        self._looked = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # -- coming and going -----------------------------------------------------------------------------
    def __enter__(self) -> Together:
        """Take the lead, or find who has it.

        Raises:
            LeaseHeld: Others are at work here.
            RankFailed: Rank 0 never came, or has ended.
            StorageError: The file system refused.
        """
        if self.leads:
            self._take_lead()
        else:
            self._join()
        return self

    def _take_lead(self) -> None:
        try:
            self._lead.acquire()
        except LeaseHeld as error:
            refusal = LeaseHeld(
                f"is being written by others at this moment ({error.message})",
                where=self.home,
                hint="wait for them to end",
                transient=True,
                owner=error.data.get("owner"),
            )
            if self.ranks > 1 and self.start:
                with contextlib.suppress(HpcmassError):
                    publish_json(self._refused(), _record(self.rank, refusal))
            raise refusal from error
        for old in matching(self.home, "ranks-*"):
            shutil.rmtree(old, ignore_errors=True)
        for old in matching(self.home, "refused-*.json"):
            old.unlink(missing_ok=True)
        if self.ranks > 1:
            self._folder = self.home / f"ranks-{secrets.token_hex(8)}"
            publish_json(self._folder / "start.json", {"format": 1, "ranks": self.ranks, "start": self.start})

    def _refused(self) -> Path:
        return self.home / f"refused-{sha256_bytes(self.start.encode())[:16]}.json"

    def _join(self) -> None:
        """Find the start that rank 0 has begun; where several may be it, the one that begins."""
        mine: dict[Path, Lease] = {}
        limit, pause = time.monotonic() + COMING_S, _PAUSES_S[0]
        try:
            while (found := self._begun(mine)) is None:
                if self.start and self._refused().exists():
                    raise _as_error(read_json(self._refused()), LeaseHeld)
                # Once there is a rank 0, it may take as long as it likes to prepare.
                if time.monotonic() > limit and (not mine or self._lead.gone()):
                    raise RankFailed(
                        f"rank 0 of {self.ranks} did not come within {COMING_S:.0f} s",
                        where=self.home,
                        hint="all ranks have to see this folder; who works alone needs no mpiexec or srun",
                        rank=0,
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, _PAUSES_S[1])
            self._folder, self._own = found, mine.pop(found)
        finally:
            for lease in mine.values():
                lease.drop()

    def _begun(self, mine: dict[Path, Lease]) -> Path | None:
        """Take a place in every start that may be ours, and say which of them begins.

        Without a name for starts, one that is there may be an old one, which the new rank 0 will remove.
        """
        for folder in matching(self.home, "ranks-*"):
            if folder not in mine and self._is_ours(folder):
                lease = Lease(folder / f"rank-{self.rank:05d}")
                with contextlib.suppress(LeaseHeld):
                    lease.acquire(watch=False)
                    mine[folder] = lease
        for folder in mine:
            if (folder / "begun.json").exists():
                return folder
            gone = self._lead.gone()
            if self.start or not gone:
                self._raise_failure(folder)
            if self.start and (gone or not folder.exists()):
                raise RankFailed(f"rank 0 of {self.ranks} has ended", where=self.home, rank=0)
        return None

    def _is_ours(self, folder: Path) -> bool:
        with contextlib.suppress(NotFound, CorruptError):
            said = read_json(folder / "start.json")
            return bool(said["ranks"] == self.ranks and said["start"] == self.start)
        return False

    def begin(self) -> None:
        """By rank 0, when all is prepared: wait until all have come, and let them begin.

        Raises:
            RankFailed: One did not come, or ended.
        """
        if self.ranks == 1 or not self.leads:
            return
        limit = time.monotonic() + COMING_S

        def all_there() -> bool:
            found = {int(name[5:10]) for name in os.listdir(self._folder) if re.match(r"rank-\d{5}\.", name)}
            missing = sorted(set(range(1, self.ranks)) - found)
            if missing and time.monotonic() > limit:
                raise RankFailed(
                    f"rank {missing[0]} of {self.ranks} did not come within {COMING_S:.0f} s",
                    where=self.home,
                    hint="all ranks have to see this folder",
                    rank=missing[0],
                )
            return not missing

        self._wait(all_there)
        self._leases = {rank: Lease(self._folder / f"rank-{rank:05d}") for rank in range(1, self.ranks)}
        publish_json(self._folder / "begun.json", {"format": 1})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and self.ranks > 1:
            self._tell(error)
        if self._own is not None:
            # Not released, which would make the folder anew where rank 0 has just removed it.
            self._own.drop()
            for path in matching(self._folder, f"rank-{self.rank:05d}.*"):
                with contextlib.suppress(OSError):
                    path.unlink()
        if not self.leads:
            return
        if error is not None and self.ranks > 1:
            self._see_them_off()
        if self.discard and not self._lead.lost:
            self._lead.drop()
            discard_folder(self.home)
            return
        if self.ranks > 1:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lead.release()

    def _tell(self, error: BaseException) -> None:
        if isinstance(error, RankFailed) and error.data.get("told"):
            return
        if not self._vanished():
            with contextlib.suppress(HpcmassError, OSError):
                publish_json(self._folder / f"failed-{self.rank:05d}.json", _record(self.rank, error))

    def _see_them_off(self) -> None:
        """Let the others read why all ends, before the folder goes."""
        limit = time.monotonic() + _LEAVING_S
        with contextlib.suppress(OSError):
            found = {name[:10] for name in os.listdir(self._folder) if re.match(r"rank-\d{5}\.", name)}
            self._leases = {int(name[5:]): Lease(self._folder / name) for name in found}
        while not all(lease.gone() for lease in self._leases.values()) and time.monotonic() < limit:
            time.sleep(0.05)

    # -- knowing of each other ------------------------------------------------------------------------
    def check(self) -> None:
        """See whether the others are still there; looks once a second at most.

        Raises:
            RankFailed: One has ended; the message says which, where and why.
            LeaseHeld: Others have taken over: this rank was held for dead.
        """
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        if self.leads and self._lead.lost:
            raise LeaseHeld("others write here now, who held this process for dead", where=self.home)
        if self.ranks == 1:
            return
        if not self.leads and self._vanished():
            raise RankFailed("rank 0 has given up", where=self.home, rank=0)
        self._raise_failure(self._folder)
        for rank, lease in self._leases.items():
            if lease.gone():
                self._raise_failure(self._folder)
                raise RankFailed(
                    f"rank {rank} of {self.ranks} has ended without a word",
                    where=self.home,
                    hint="killed, or out of memory? The same command goes on with what is done",
                    rank=rank,
                )

    def meet(self, what: str, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until all ranks have come so far.

        Args:
            what: A name for this place, used once.
            meanwhile: Called now and then.

        Raises:
            RankFailed: One has ended.
        """
        if self.ranks > 1:
            claim(self._folder / f"{what}-{self.rank:05d}")
            self._wait(lambda: self._marks(what) == self.ranks, meanwhile)

    def part(self, what: str) -> None:
        """By rank 0: say that it is done. By the others: wait for that. Rank 0 is the last to go."""
        if self.ranks == 1:
            return
        if not self.leads:
            self._wait(lambda: (self._folder / f"{what}-00000").exists())
            claim(self._folder / f"{what}-{self.rank:05d}")
            return
        claim(self._folder / f"{what}-00000")
        with contextlib.suppress(HpcmassError):  # who ends now has ended too late to spoil anything
            self._wait(lambda: self._marks(what) == self.ranks)

    def _wait(self, done: Callable[[], bool], meanwhile: Callable[[], None] | None = None) -> None:
        pause = _PAUSES_S[0]
        while not self._seen(done):
            self.check()
            if meanwhile is not None:
                meanwhile()
            time.sleep(pause)
            pause = min(pause * 1.5, _PAUSES_S[1])

    def _seen(self, done: Callable[[], bool]) -> bool:
        try:
            return done()
        except FileNotFoundError as error:
            raise RankFailed("rank 0 has given up", where=self.home, rank=0) from error

    def _marks(self, what: str) -> int:
        return sum(bool(re.fullmatch(rf"{what}-\d{{5}}", name)) for name in os.listdir(self._folder))

    def _vanished(self) -> bool:
        return not (self._folder / "start.json").exists()

    def _raise_failure(self, folder: Path) -> None:
        for path in matching(folder, "failed-*.json"):
            with contextlib.suppress(NotFound):
                raise _as_error(read_json(path), RankFailed)


def _record(rank: int, error: BaseException) -> dict[str, Any]:
    said: dict[str, Any] = {"message": f"{type(error).__name__}: {error}", "where": None, "hint": None}
    if isinstance(error, HpcmassError):
        said = {"message": error.message, "where": error.where, "hint": error.hint}
    place = {"format": 1, "rank": rank, "host": socket.gethostname()}
    return {**place, **said, "lasting": isinstance(error, DataError), "told": isinstance(error, HpcmassError)}


def _as_error(value: dict[str, Any], kind: type[HpcmassError]) -> HpcmassError:
    """What another rank ended with, as an error here; `told` where that rank tells its user itself."""
    message = f"rank {value['rank']} ({value['host']}) has ended: {value['message']}"
    return kind(
        message,
        where=value["where"],
        hint=value["hint"],
        rank=value["rank"],
        told=value["told"],
        lasting=value["lasting"],
    )
