"""Shards on a node's own disk: named by their checksum, kept for the next job, evicted by age.

`SCRATCH/hpcmass-shards-UID/HOST-BOOT/` holds a folder a shard, `<sha256>/shard-00000.h5`, made beside as
`.part-…` and renamed when its checksum was right. `<sha256>/checked` says of which file that was found: by its
digest, size, time and inode, so that a later job trusts what nobody has touched since, without reading it.

`use-…` files, locked for as long as their process lives, say which shards it reads. One process at a time, who
holds `.lock`, makes its `use-…` file, says what it reads, lets a shard be found, evicts or sweeps: so no shard
goes between being found and being read, and no file is taken for that of a dead process. What another boot of
the machine left is not trusted, and removed. Locks (flock) are of this node alone, as its disk has to be: on a
file system that other nodes may share nothing is staged.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmass.data.manifest import ShardInfo
from hpcmass.data.reading.filesystem import file_system
from hpcmass.errors import CorruptError, StorageError
from hpcmass.files import boot_id, matching, sha256_file, storage_errors

_CHECKED = "checked"
_SPARE_SHARE = 0.05  # of a disk is left free: others write there too


@dataclass(frozen=True)
class Held:
    """A shard that lies on this node."""

    folder: Path
    bytes: int
    used: float  # seconds since the epoch


def _only_here(folder: Path) -> None:
    """Refuse a folder that other nodes may share: there they would take each other's shards away.

    A container's own file system (overlay) counts as this node's.
    """
    with storage_errors(folder, "make the folder of staged shards"):
        there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    kind = file_system(there)
    if not kind.local and kind.name != "overlay":
        raise StorageError(
            f"other nodes may share its file system ({kind.name})", where=folder,
            hint="name a folder of the node's own disk as `scratch` of the site's target",
        )  # fmt: skip


def _checked(shard: ShardInfo, file: Path) -> bytes:
    found = file.stat()
    return f"{shard.sha256} {found.st_size} {found.st_mtime_ns} {found.st_ino}\n".encode()


class Stage:
    """The shards on one node's disk. One process a node opens it, of each job.

    Attributes:
        folder: Where they lie.
    """

    def __init__(self, scratch: Path, limit_bytes: int | None = None) -> None:
        """Make the folder, or find it.

        Args:
            scratch: A folder of the node's own disk.
            limit_bytes: What all staged shards may take together; None: what the disk has.

        Raises:
            StorageError: It cannot be written, belongs to somebody else, or other nodes may share it.
            NotFound: It was removed meanwhile.
        """
        self._limit = limit_bytes
        _only_here(scratch)
        top = scratch / f"hpcmass-shards-{os.getuid()}"
        host = f"{socket.gethostname()}-"
        self.folder = top / f"{host}{boot_id() or 'boot'}"
        with storage_errors(top, "make the folder of staged shards"):
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = top.lstat()
            if found.st_uid != os.getuid() or top.is_symlink() or found.st_mode & 0o022:
                raise StorageError(
                    "belongs to somebody else, or others may write it", where=top, hint="remove it"
                )
            self.folder.mkdir(mode=0o700, exist_ok=True)
            others = matching(top, f"{glob.escape(host)}*")
        for other in others:
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = self._use = -1
        try:
            with storage_errors(self.folder, "say which shards are read"):
                self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
                with self._alone():
                    file = self.folder / f"use-{self._name}"
                    self._use = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                    fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Say that no shard is read any more."""
        if self._use >= 0:
            (self.folder / f"use-{self._name}").unlink(missing_ok=True)
            os.close(self._use)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = self._use = -1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process is in here."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def place(self, shard: ShardInfo) -> Path:
        """The folder in which a shard lies, or would."""
        return self.folder / shard.sha256

    def use(self, shards: Sequence[ShardInfo]) -> list[bool]:
        """Say which shards this process is going to read, so that nobody evicts them.

        Returns:
            Of each whether it is there, as it was when it was checked.

        Raises:
            StorageError: The disk refused.
            NotFound: The folder was removed meanwhile.
        """
        with storage_errors(self.folder, "look for staged shards"), self._alone():
            return self._find(shards)

    def _find(self, shards: Sequence[ShardInfo]) -> list[bool]:
        os.write(self._use, "".join(f"{shard.sha256}\n" for shard in shards).encode())
        there = [self._intact(shard) for shard in shards]
        for shard, found in zip(shards, there, strict=True):
            if found:
                os.utime(self.place(shard))
        return there

    def _intact(self, shard: ShardInfo) -> bool:
        """Whether a shard is there, and the very file that was found right when it arrived."""
        place = self.place(shard)
        try:
            return (place / _CHECKED).read_bytes() == _checked(shard, place / shard.file)
        except OSError:
            return False

    def check_again(self, shard: ShardInfo) -> bool:
        """Read a shard that is there once more; one that is damaged counts as not there from now on.

        Raises:
            StorageError: It cannot be read.
            NotFound: It is not there.
        """
        place = self.place(shard)
        if sha256_file(place / shard.file) == shard.sha256:
            return True
        (place / _CHECKED).unlink(missing_ok=True)
        return False

    def put(self, part: Path, shard: ShardInfo) -> Path:
        """Let others find a shard whose checksum was right; where it lies.

        Raises:
            StorageError: The disk refused.
            NotFound: It was removed meanwhile.
        """
        place = self.place(shard)
        with storage_errors(place, "stage a shard"), self._alone():
            (part / _CHECKED).write_bytes(_checked(shard, part / shard.file))
            if self._intact(shard):  # another job on this node was quicker
                shutil.rmtree(part, ignore_errors=True)
                return place
            if place.exists():
                self._remove(place)
            part.rename(place)
        return place

    def _remove(self, place: Path) -> None:
        aside = self.folder / f".part-{self._name}-old-{place.name[:16]}"
        place.rename(aside)  # whoever looks now finds all of it or nothing
        shutil.rmtree(aside, ignore_errors=True)

    def make_room(self, needed_bytes: int) -> bool:
        """Evict shards that nobody reads, the longest unused first, until there is room; whether there is.

        Nothing goes where all of them would not be enough.

        Raises:
            StorageError: The disk refused.
            NotFound: The folder was removed meanwhile.
        """
        with storage_errors(self.folder, "make room for shards"), self._alone():
            return self._evict(needed_bytes)

    def _evict(self, needed_bytes: int) -> bool:
        self._sweep()
        held, used = self._held(), self._in_use()
        total = sum(one.bytes for one in held)
        unused = sorted((one for one in held if one.folder.name not in used), key=lambda one: one.used)
        if not self._fits(needed_bytes, total, evicted=sum(one.bytes for one in unused)):
            return False
        for one in unused:
            if self._fits(needed_bytes, total):
                return True
            with contextlib.suppress(OSError):
                self._remove(one.folder)
                total -= one.bytes
        return self._fits(needed_bytes, total)

    def receive(self, shard: ShardInfo) -> Arrival:
        """Begin to write a shard.

        Raises:
            StorageError: It cannot be made.
        """
        part = self.folder / f".part-{self._name}-{shard.sha256[:16]}"
        return Arrival(self, shard, part)

    def _fits(self, needed: int, total: int, evicted: int = 0) -> bool:
        """Whether so many bytes fit beside those that are held, `total`, once some of these are evicted."""
        if self._limit is not None and total - evicted + needed > self._limit:
            return False
        disk = os.statvfs(self.folder)
        spare = int(_SPARE_SHARE * disk.f_blocks * disk.f_frsize)
        return disk.f_bavail * disk.f_frsize + evicted - spare >= needed

    def _held(self) -> list[Held]:
        held = []
        for folder in self.folder.iterdir():
            if folder.name.startswith((".", "use-")):
                continue
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in folder.iterdir() if file.name != _CHECKED)
                held.append(Held(folder, size, folder.stat().st_mtime))
        return held

    def _uses(self) -> Iterator[tuple[Path, bool]]:
        """The `use-…` files of other processes, and whether they live."""
        for file in matching(self.folder, "use-*"):
            if file.name == f"use-{self._name}":
                continue
            with contextlib.suppress(OSError):
                handle = os.open(file, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    yield file, False
                except OSError:
                    yield file, True
                finally:
                    os.close(handle)

    def _in_use(self) -> set[str]:
        living = [file for file, lives in self._uses() if lives]
        names: set[str] = set()
        for file in [*living, self.folder / f"use-{self._name}"]:
            with contextlib.suppress(OSError):
                names.update(file.read_text().split())
        return names

    def _sweep(self) -> None:
        """Remove what processes that are gone have begun."""
        living = {self._name}
        dead = []
        for file, lives in self._uses():
            if lives:
                living.add(file.name.removeprefix("use-"))
            else:
                dead.append(file)
        for part in matching(self.folder, ".part-*"):
            if not any(part.name.startswith(f".part-{name}-") for name in living):
                shutil.rmtree(part, ignore_errors=True)
        for file in dead:
            file.unlink(missing_ok=True)


class Arrival:
    """A shard that is being written to a node's disk."""

    def __init__(self, stage: Stage, shard: ShardInfo, part: Path) -> None:
        self._stage, self._shard, self._part = stage, shard, part
        self._hash = hashlib.sha256()
        self._handle = -1
        shutil.rmtree(part, ignore_errors=True)
        with storage_errors(part, "stage a shard"):
            part.mkdir(mode=0o700)
            self._handle = os.open(part / shard.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with contextlib.suppress(OSError):  # not every file system can
                os.posix_fallocate(self._handle, 0, max(1, shard.bytes))

    def write(self, data: memoryview) -> None:
        """The next bytes, to the disk.

        Raises:
            StorageError: The disk is full, say.
        """
        with storage_errors(self._part, "stage a shard"):
            rest = data
            while rest.nbytes:
                rest = rest[os.write(self._handle, rest) :]

    def check(self, data: memoryview) -> None:
        """The next bytes, for the checksum; another thread than the one that writes may do it."""
        self._hash.update(data)

    def finish(self, where: Path) -> Path:
        """All bytes have come: check them, and let others find the shard.

        Args:
            where: The file that it was read from, for the message.

        Returns:
            The folder in which it lies.

        Raises:
            CorruptError: It does not fit its checksum.
            StorageError: The disk refused.
            NotFound: Somebody removed it meanwhile.
        """
        handle, self._handle = self._handle, -1
        with storage_errors(self._part, "stage a shard"):
            os.close(handle)
        if self._hash.hexdigest() != self._shard.sha256:
            self.discard()
            raise CorruptError(
                f"does not fit its checksum: its SHA-256 is {self._hash.hexdigest()[:12]}…, "
                f"the manifest says {self._shard.sha256[:12]}…",
                where=where, hint="copy the dataset again, or make it again with `hpcmass shard`",
            )  # fmt: skip
        return self._stage.put(self._part, self._shard)

    def discard(self) -> None:
        """Remove what has come so far."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = -1
        shutil.rmtree(self._part, ignore_errors=True)
