"""Where an index lies in the user's cache, and how it is changed while others read it.

On a file system of this machine alone (`LiveIndex`) it is changed in place, in SQLite's write-ahead mode: of
many processes one writes at a time, readers go on with what they see. An index made anew gets a file of its
own, and a small file names the one that counts, so that no file is ever exchanged under a process that has it
open. Elsewhere (`CopiedIndex`: a home on NFS, seen by many machines) locks and shared mappings cannot be
relied on: a change works on a copy, which takes the file's name.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcmass.files import is_local
from hpcmass.files.publish import fsync_file, temporary_beside

_WAIT_S = 30.0
_OLD_S = 86400.0
_LEFT_S = 600.0  # since its last change, before an index that was made anew is removed

_inherited: list[sqlite3.Connection] = []
"""Connections of a parent process: neither used nor closed here, since its locks hang on them."""


_readers: dict[int, int] = {}
"""Who goes through what a search found, by connection."""

_left: set[int] = set()
"""Connections that nobody but those needs any more."""

_readers_lock = threading.RLock()  # an object may be let go of anywhere, in here too


def keep_open(connection: sqlite3.Connection, reader: object) -> None:
    """See that a connection is not closed while a reader lives, though its index is made anew meanwhile."""
    with _readers_lock:
        _readers[id(connection)] = _readers.get(id(connection), 0) + 1
    weakref.finalize(reader, _let_go, connection, os.getpid()).atexit = False


def _let_go(connection: sqlite3.Connection, owner: int) -> None:
    with _readers_lock:
        _readers[id(connection)] -= 1
        if _readers[id(connection)]:
            return
        del _readers[id(connection)]
        left = id(connection) in _left
        _left.discard(id(connection))
    if left and owner == os.getpid():
        connection.close()
    elif left:
        _inherited.append(connection)


def _close(connection: sqlite3.Connection) -> None:
    with _readers_lock:
        if id(connection) in _readers:
            _left.add(id(connection))
            return
    connection.close()


class IndexFile:
    """The file of an index.

    Args:
        folder: Where it lies.
        stem: Its name without `.sqlite`.
        fits: Whether what was opened is an index of the right layout and catalogue.
    """

    def __init__(self, folder: Path, stem: str, fits: Callable[[sqlite3.Connection], bool]) -> None:
        self.folder = folder
        self.stem = stem
        self._fits = fits
        self._opened_by: dict[int, tuple[tuple[object, ...], sqlite3.Connection]] = {}

    @property
    def _open(self) -> tuple[tuple[object, ...], sqlite3.Connection] | None:
        """What this thread has open: two that use one connection at once end in a segmentation fault.

        A thread that began after another had ended may have its number, and goes on with its connection.
        """
        return self._opened_by.get(threading.get_ident())

    @_open.setter
    def _open(self, opened: tuple[tuple[object, ...], sqlite3.Connection] | None) -> None:
        if opened is None:
            self._opened_by.pop(threading.get_ident(), None)
        else:
            self._opened_by[threading.get_ident()] = opened

    @property
    def path(self) -> Path:
        """The file that counts now."""
        return self.folder / f"{self.stem}.sqlite"

    def reader(self) -> sqlite3.Connection | None:
        """The index for reading, if there is one that fits; kept open while it is the same file."""
        try:
            path = self.path
            found = os.stat(path)
            key = (str(path), found.st_dev, found.st_ino, os.getpid())
            if self._open is not None and self._open[0] == key:
                return self._open[1]
            self.close()
            connection = self._connect(path)
        except (OSError, sqlite3.Error):
            return None
        try:
            fits = self._fits(connection)
        except sqlite3.Error:
            fits = False
        if not fits:
            connection.close()
            return None
        self._open = (key, connection)
        return connection

    def close(self) -> None:
        """Close the file; the next look opens it again."""
        if self._open is None:
            return
        (*_, owner), connection = self._open
        self._open = None
        if owner == os.getpid():
            _close(connection)
        else:
            _inherited.append(connection)

    def changing(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The index for a change, which counts as a whole when the body ends well; `current` shows it then.

        Raises:
            OSError: The file system refused.
            sqlite3.Error: The index is broken, or another process changes it for too long.
        """
        raise NotImplementedError

    def making(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """An empty index, which counts in place of the old one when the body ends well.

        Raises:
            OSError: The file system refused.
            sqlite3.Error: It cannot be made here.
        """
        raise NotImplementedError

    @property
    def current(self) -> sqlite3.Connection:
        """What was changed or made last, for reading, whatever others have done since."""
        assert self._open is not None
        return self._open[1]

    def _connect(self, path: Path) -> sqlite3.Connection:
        raise NotImplementedError

    def _opened(self, path: Path) -> None:
        """Keep a file open for reading."""
        self.close()
        found = os.stat(path)
        self._open = ((str(self.path), found.st_dev, found.st_ino, os.getpid()), self._connect(path))

    @contextlib.contextmanager
    def _writing(self, temporary: Path) -> Iterator[sqlite3.Connection]:
        """A file that nobody knows yet; whoever gives it its name makes it durable by then."""
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
            self._finish(connection)
        finally:
            connection.close()
        fsync_file(temporary)

    def _finish(self, connection: sqlite3.Connection) -> None:
        pass

    def _sweep(self) -> None:
        """Remove temporaries of processes that died long ago."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and time.time() - entry.stat().st_mtime > _OLD_S:
                    os.unlink(entry.path)


class CopiedIndex(IndexFile):
    """An index that is never changed in place: for a folder that several machines see."""

    def _connect(self, path: Path) -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.changing`."""
        with self._replacing() as temporary:
            shutil.copyfile(self.path, temporary)
            with self._writing(temporary) as connection:
                yield connection

    @contextlib.contextmanager
    def making(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.making`."""
        os.makedirs(self.folder, exist_ok=True)
        self._sweep()
        with self._replacing() as temporary, self._writing(temporary) as connection:
            yield connection

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[Path]:
        temporary = temporary_beside(self.path)
        try:
            yield temporary
            self._opened(temporary)
            os.replace(temporary, self.path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


class LiveIndex(IndexFile):
    """An index that is changed in place: for a folder of this machine alone."""

    @property
    def path(self) -> Path:
        """The file that counts now; where none does, one that does not exist."""
        try:
            name = self._pointer.read_text(encoding="utf-8")
        except (OSError, ValueError):
            name = ""
        good = re.fullmatch(re.escape(self.stem) + r"-[0-9a-f]{16}\.sqlite", name)
        return self.folder / (name if good else f"{self.stem}-none.sqlite")

    @property
    def _pointer(self) -> Path:
        return self.folder / f"{self.stem}.current"

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = self._plain(path)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _plain(self, path: Path) -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        # What was written may be lost with the machine's power, and is read from the journals again; the file
        # stays whole.
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.changing`."""
        assert self._open is not None
        connection = self._plain(Path(str(self._open[0][0])))
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            connection.close()

    @contextlib.contextmanager
    def making(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.making`."""
        os.makedirs(self.folder, exist_ok=True)
        self._sweep()
        path = self.folder / f"{self.stem}-{secrets.token_hex(8)}.sqlite"
        temporary = temporary_beside(path)
        try:
            with self._writing(temporary) as connection:
                yield connection
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.close()
        try:
            found = os.stat(path)
            self._open = ((str(path), found.st_dev, found.st_ino, os.getpid()), self._connect(path))
            self._point_to(path)
        except (OSError, sqlite3.Error):
            self.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._remove_old(path.name)

    def _remove_old(self, current: str) -> None:
        """Remove the indexes before this one, but for what another process may be about to change.

        Whoever opens a file of which the log was removed, and the file not yet, writes where its own readers do
        not look.
        """
        files: dict[str, float] = {}
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(f"{self.stem}-") and not entry.name.startswith(current):
                    base = entry.name.removesuffix("-wal").removesuffix("-shm")
                    files[base] = max(files.get(base, 0.0), entry.stat().st_mtime)
        for base, changed in files.items():
            if time.time() - changed > _LEFT_S:
                for end in ("", "-wal", "-shm"):  # the file first: nobody opens its log from then on
                    with contextlib.suppress(OSError):
                        os.unlink(self.folder / f"{base}{end}")

    def _point_to(self, path: Path) -> None:
        temporary = temporary_beside(self._pointer)
        try:
            temporary.write_text(path.name, encoding="utf-8")
            os.replace(temporary, self._pointer)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _finish(self, connection: sqlite3.Connection) -> None:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"journal mode {mode}")


class MemoryIndex(IndexFile):
    """An index for a thread of this object alone: where the cache cannot be written."""

    def reader(self) -> sqlite3.Connection | None:
        """See `IndexFile.reader`."""
        return None if self._open is None else self._open[1]

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.changing`."""
        connection = self.current
        connection.execute("BEGIN")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextlib.contextmanager
    def making(self) -> Iterator[sqlite3.Connection]:
        """See `IndexFile.making`."""
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        yield connection
        self.close()
        self._open = ((os.getpid(),), connection)


def index_file(folder: Path, stem: str, fits: Callable[[sqlite3.Connection], bool]) -> IndexFile:
    """The file of an index as its folder allows."""
    return (LiveIndex if is_local(folder) else CopiedIndex)(folder, stem, fits)
